//! A world and its faults from a number.

use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::api::Watch;
use crate::behaviour::Behaviour;
use crate::fault::{Fault, Value, Which};
use crate::host::{Host, Kubelet};
use crate::random::{Random, ms, secs};
use crate::script::Script;
use crate::world::World;

/// When the first edit comes, after everything is installed.
const FIRST_EDIT: Duration = secs(60);
/// When the last fault begins.
const FAULTS_UNTIL: Duration = secs(420);

/// A world before anything has happened in it, and what is going to happen.
pub struct Setup {
    /// The world.
    pub world: World,
    /// What happens, in order.
    pub faults: Vec<(Duration, Fault)>,
}

/// The spec of a config with these resources.
pub fn spec(resources: &[&str], rollout: &Json) -> Json {
    let resources: Vec<_> = resources
        .iter()
        .map(|name| json!({ "name": name, "discovery": { "paths": { "globs": ["/dev/fuse"] } } }))
        .collect();
    json!({
        "nodeSelector": { "matchLabels": { "kubernetes.io/os": "linux" } },
        "resources": resources,
        "rollout": rollout,
    })
}

/// The setup of a seed.
pub fn setup(seed: u64) -> Setup {
    let mut random = Random::new(seed);
    let period = *random
        .pick(&[secs(10), secs(10), secs(2)])
        .unwrap_or(&secs(10));
    let script = script(&mut random);
    let chance = Random::new(seed ^ 0x5EED_5EED);
    let mut world = World::new(chance, World::settings(period), script);
    let nodes = 2 + random.below(3);
    let kubelet = match random.percent(50) {
        true => Kubelet::ByResource,
        false => Kubelet::BySocket,
    };
    for number in 1..=nodes {
        let offset = random.between(Duration::ZERO, period);
        let devices = [0b1, 0b1111, 0b1111_1111];
        let devices = random.pick(&devices).copied().unwrap_or(1);
        world.add_host(Host::new(&format!("n{number}"), kubelet, devices, offset));
    }
    let mut configs = vec!["fuse"];
    if random.percent(20) {
        configs.push("loop");
    }
    for config in &configs {
        let soak = random.pick(&[0, 5, 20, 30]).copied().unwrap_or(0);
        let unavailable = 1 + random.below(2);
        let rollout = json!({
            "maxUnavailable": unavailable,
            "gate": { "soakSeconds": soak, "maxRestarts": random.below(2) },
        });
        let resource = format!("example.com/{config}");
        world.add_config(config, spec(&[&resource], &rollout), 1);
    }
    world.add_operator();
    if random.percent(50) {
        world.add_operator();
    }
    behaviours(&mut random, &mut world, nodes);
    let faults = faults(&mut random, &configs, nodes);
    Setup { world, faults }
}

fn script(random: &mut Random) -> Script {
    let mut script = Script {
        pass_spacing: ms(500),
        ..Script::default()
    };
    if random.percent(30) {
        script.watch_lag = random.between(ms(200), secs(5));
    }
    if random.percent(30) {
        script.agent_watch_lag = random.between(ms(200), secs(5));
    }
    if random.percent(20) {
        script.agent_write_lag = random.between(ms(200), secs(4));
    }
    if random.percent(20) {
        script.stream_end_lag = ms(300);
    }
    if random.percent(20) {
        script.daemon_set_lag = secs(5);
    }
    if random.percent(20) {
        script.pod_start_lag = secs(20);
    }
    if random.percent(20) {
        script.lost_events = 1 + random.below(5);
    }
    if random.percent(15) {
        script.call_lag = ms(500);
    }
    script
}

/// Some revision behaves badly in one world of three.
fn behaviours(random: &mut Random, world: &mut World, nodes: u64) {
    if !random.percent(35) {
        return;
    }
    let bad = [
        Behaviour::PreflightFails,
        Behaviour::NeverRegisters,
        Behaviour::ListStaysEmpty,
        Behaviour::FewerDevices,
        Behaviour::CrashAfter(random.between(ms(500), secs(60))),
        Behaviour::NoImage,
    ];
    let behaviour = random.pick(&bad).copied().unwrap_or_default();
    let node = match random.percent(50) {
        true => String::new(),
        false => format!("n{}", 1 + random.below(nodes)),
    };
    let tag = u32::try_from(2 + random.below(2)).unwrap_or(2);
    world.script.behaviours.insert((node, tag), behaviour);
    if random.percent(20) {
        let node = format!("n{}", 1 + random.below(nodes));
        world.script.behaviours.insert((node, 1), Behaviour::Hangs);
    }
}

fn faults(random: &mut Random, configs: &[&str], nodes: u64) -> Vec<(Duration, Fault)> {
    let mut faults = Vec::new();
    for config in configs {
        let first = FIRST_EDIT + random.between(Duration::ZERO, secs(5));
        faults.push((first, Fault::Edit((*config).to_owned(), 2)));
        if random.percent(40) {
            let at = first + random.between(ms(100), secs(200));
            let tag = if random.percent(60) { 3 } else { 1 };
            faults.push((at, Fault::Edit((*config).to_owned(), tag)));
        }
        if random.percent(15) {
            let at = first + random.between(ms(100), secs(100));
            let until = at + random.between(secs(1), secs(200));
            faults.push((at, Fault::Pause((*config).to_owned(), true)));
            faults.push((until, Fault::Pause((*config).to_owned(), false)));
        }
    }
    let most = if random.percent(20) { 16 } else { 6 };
    for _ in 0..random.below(most) {
        // Most fall into the time in which something is going on.
        let latest = *random
            .pick(&[secs(120), secs(200), FAULTS_UNTIL])
            .unwrap_or(&FAULTS_UNTIL);
        let at = random.between(FIRST_EDIT, latest);
        let config = random.pick(configs).copied().unwrap_or("fuse").to_owned();
        let node = format!("n{}", 1 + random.below(nodes));
        faults.push((at, fault(random, config, node)));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn fault(random: &mut Random, config: String, node: String) -> Fault {
    let short = random.between(ms(500), secs(30));
    let long = random.between(secs(10), secs(120));
    let tag = u32::try_from(1 + random.below(3)).unwrap_or(1);
    let at = usize::try_from(random.below(2)).unwrap_or_default();
    let value = [Value::None, Value::Garbage, Value::Tag(tag)];
    let value = random.pick(&value).copied().unwrap_or(Value::None);
    match random.below(36) {
        0..4 => Fault::KillAgent(node, Which::Active),
        4..6 => Fault::KillAgent(node, Which::Other),
        6 | 7 => Fault::RestartKubelet(node, short),
        8 | 9 => Fault::Reboot(node, long),
        10 => Fault::Disconnect(node, long),
        11 => Fault::DeleteNode(node, Some(short)),
        12 => Fault::DeleteNode(node, None),
        13 => Fault::Cordon(node, random.percent(70)),
        14 => Fault::Evict(node),
        15 => Fault::DeletePods(node),
        16 => Fault::ForceDelete(node),
        17 => Fault::Label(node, config, value),
        18 => Fault::StageLabel(node, config, value),
        19 => Fault::DeleteLedger,
        20 => Fault::GarbageLedger,
        21 => Fault::DeleteNodeObject(node, config),
        22 => Fault::DeleteDaemonSet(config, tag),
        23 => Fault::DeleteRevision(config, tag),
        24 => Fault::WipeStatus(config),
        25 | 26 => Fault::CrashOperator(at, short),
        27 => Fault::PauseOperator(at, long),
        28 | 29 => Fault::StealLease,
        30 => Fault::Freeze(
            at,
            random.pick(&Watch::ALL).copied().unwrap_or(Watch::Pods),
            long,
        ),
        31 => Fault::FreezeAgents(node, long),
        32 => Fault::ApiErrors(10 + random.below(30), long),
        33 => Fault::ApiDown(long),
        34 => Fault::SlowDaemonSets(long),
        _ => Fault::ClockJump(if random.percent(50) { 600 } else { -600 }),
    }
}
