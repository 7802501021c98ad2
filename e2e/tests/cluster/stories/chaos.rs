//! Whatever dies during a change, no device is lost and the change ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::product::NAMESPACE;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::api::{holds_for, measured, path, wait_until};
use crate::on_node::{allocatable_devices, image, kill_in_pod};
use crate::scene::{PATIENCE, Scene, container_ids, times};
use crate::stories::handover::{
    CONFIG, NODES, RESOURCE, ROLLOUT, ask_for, claims, fast, scale_operator, wait_for_rollout,
};

/// How many processes are killed: each victim once in each phase. A release is tried with
/// `E2E_KILLS=100`, which takes a quarter of an hour.
const KILLS: usize = 36;

/// The promise: devices are back so soon after a kill.
const BACK: Duration = Duration::from_secs(15);

/// What is killed.
const VICTIMS: [&str; 6] = [
    "active agent",
    "standby agent",
    "kubelet",
    "containerd",
    "operator",
    "API server",
];

/// When: phases of a change.
const PHASES: [&str; 6] = [
    "Staging",
    "Staged",
    "Switching",
    "Verifying",
    "Soaking",
    "Committing",
];

pub fn killed_processes_lose_no_device(scene: &Scene) -> Result<()> {
    let users: Vec<_> = NODES.iter().map(|node| format!("swap-{node}")).collect();
    let held = |scene: &Scene| -> Result<Vec<Vec<String>>> {
        let ids = users
            .iter()
            .map(|name| Ok(container_ids(&scene.api.pod(name)?)));
        ids.collect()
    };
    let before = held(scene)?;
    let mut chaos = Chaos {
        scene,
        hits: BTreeMap::new(),
        killed: BTreeSet::new(),
        worst: Duration::ZERO,
        revisions: 0,
    };
    let wanted = times("E2E_KILLS", KILLS)?;
    // One of each pair of phase and victim after the other, as far as the phase can be caught.
    let pairs: Vec<_> = (0..wanted * 8)
        .map(|index| {
            (
                PHASES[index % PHASES.len()],
                VICTIMS[(index / PHASES.len() + index) % VICTIMS.len()],
            )
        })
        .collect();
    let mut kills = 0;
    for (phase, victim) in pairs {
        if kills == wanted {
            break;
        }
        kills += usize::from(chaos.kill(phase, victim)?);
        ensure!(
            held(scene)? == before,
            "a user's container was started anew"
        );
    }
    eprintln!(
        "      measured: {kills} kills, devices back after {:.1} s at worst: {:?}",
        chaos.worst.as_secs_f64(),
        chaos.hits
    );
    ensure!(kills == wanted, "only {kills} kills");
    ask_for(scene, "after", 4, &fast())?;
    wait_for_rollout(scene)
}

struct Chaos<'a> {
    scene: &'a Scene,
    hits: BTreeMap<&'static str, BTreeMap<&'static str, usize>>,
    /// Each pod is killed once: the kubelet would wait longer and longer before it starts it again.
    killed: BTreeSet<String>,
    worst: Duration,
    revisions: usize,
}

impl Chaos<'_> {
    /// Kills a victim while a node is in a phase; whether that was possible.
    fn kill(&mut self, phase: &'static str, victim: &'static str) -> Result<bool> {
        let scene = self.scene;
        self.keep_changing()?;
        // Phases of milliseconds are not always met.
        let begun = Instant::now();
        let node = loop {
            let found = claims(scene)?.into_iter().find(|(_, now)| now == phase);
            if let Some((node, _)) = found {
                break node;
            }
            if begun.elapsed() > Duration::from_secs(6) {
                return Ok(false);
            }
            self.keep_changing()?;
        };
        let on = scene.node(&node)?;
        match victim {
            "kubelet" => on.crash_kubelet()?,
            "containerd" => on.crash_containerd()?,
            "API server" => scene.cluster.restart_api_server()?,
            "operator" => {
                let selector = "labelSelector=app.kubernetes.io/name=device-plugin-operator";
                let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods?{selector}");
                let pods = scene.api.items(&pods)?;
                let uid = pods.first().and_then(|pod| pod["metadata"]["uid"].as_str());
                let Some(uid) = uid else { return Ok(false) };
                if kill_in_pod(uid, "device-plugin-operator").is_err() {
                    return Ok(false);
                }
                // Another pod at once, instead of the kubelet's growing pauses.
                let name = pods[0]["metadata"]["name"].as_str().unwrap_or_default();
                let path =
                    format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}?gracePeriodSeconds=0");
                scene.api.delete(&path)?;
            }
            _ => {
                let spec = scene.node_object(CONFIG, &node)?.spec;
                let revision = match victim {
                    "active agent" => Some(spec.active),
                    _ => spec.standby,
                };
                let Some(uid) = revision
                    .map(|one| pod_uid(scene, &node, &one))
                    .transpose()?
                    .flatten()
                else {
                    return Ok(false);
                };
                if self.killed.contains(&uid) || kill_in_pod(&uid, "device-plugin-agent").is_err() {
                    return Ok(false);
                }
                self.killed.insert(uid);
            }
        }
        let died = Instant::now();
        for node in NODES {
            wait_until(
                &format!("the devices of {node} after the end of {victim} in {phase}"),
                BACK,
                || {
                    let listed = allocatable_devices(scene.node(node)?, RESOURCE)?.len();
                    ensure!(listed == 4, "{listed} are listed");
                    Ok(Some(()))
                },
            )?;
        }
        self.worst = self.worst.max(died.elapsed());
        *self
            .hits
            .entry(phase)
            .or_default()
            .entry(victim)
            .or_default() += 1;
        Ok(true)
    }

    /// Asks for another revision whenever the last one is everywhere.
    fn keep_changing(&mut self) -> Result<()> {
        let config = self.scene.config(CONFIG)?;
        let status = config.status.unwrap_or_default();
        let is_seen = status.observed_generation == config.metadata.generation;
        let is_done = status.stable_revision == status.target_revision && status.nodes.updated == 2;
        let is_halted = status.conditions.iter().any(|one| one.reason == "Halted");
        if is_seen && (is_done || is_halted) {
            self.revisions += 1;
            let rollout =
                json!({"maxUnavailable": 2, "gate": {"soakSeconds": 3, "maxRestarts": 100}});
            ask_for(
                self.scene,
                &format!("chaos-{}", self.revisions),
                4,
                &rollout,
            )?;
        }
        Ok(())
    }
}

/// The UID of the pod of a revision on a node, if it runs.
fn pod_uid(scene: &Scene, node: &str, revision: &str) -> Result<Option<String>> {
    let pods = scene.api.agent_pods(CONFIG)?.into_iter();
    let mut wanted = pods.filter(|pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        let of_revision = labels.and_then(|labels| labels.get(crds::names::REVISION_LABEL));
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
            && of_revision.map(String::as_str) == Some(revision)
            && pod.metadata.deletion_timestamp.is_none()
    });
    Ok(wanted.next().and_then(|pod| pod.metadata.uid))
}

/// The name of the agent's image.
pub const IMAGE: &str = concat!("localhost/device-plugin-agent:", env!("CARGO_PKG_VERSION"));
/// The image under another name, which can be taken away without touching the running agents.
pub const OTHER_IMAGE: &str = "localhost/device-plugin-agent:of-story";

pub fn proven_standby_takes_over_when_nobody_is_there_to_bring_it_back(
    scene: &Scene,
) -> Result<()> {
    let stable = scene
        .config(CONFIG)?
        .status
        .and_then(|status| status.stable_revision);
    let stable = stable.context("a stable revision")?;
    for node in NODES {
        image(scene.node(node)?, &["tag", "--force", IMAGE, OTHER_IMAGE])?;
    }
    let rollout = json!({"maxUnavailable": 1, "gate": {"soakSeconds": 3600}});
    let resources = json!({"spec": {"agent": {"image": OTHER_IMAGE, "imagePullPolicy": "Never"}, "rollout": rollout}});
    scene
        .api
        .patch(&format!("{}/{CONFIG}", path::CONFIGS), &resources)?;
    let node = wait_until("a node that is switched", ROLLOUT, || {
        let claims = claims(scene)?.into_iter();
        let mut switched = claims.filter(|(_, phase)| phase == "Verifying" || phase == "Soaking");
        Ok(switched.next().map(|(node, _)| node))
    })?;
    scale_operator(scene, 0)?;
    let told = without_operator(scene, &node, &stable);
    for node in NODES {
        image(scene.node(node)?, &["tag", "--force", IMAGE, OTHER_IMAGE])?;
    }
    scale_operator(scene, 1)?;
    told?;
    let outcome = wait_until("the failure booked", PATIENCE, || {
        Ok(scene.node_object(CONFIG, &node)?.spec.outcome)
    })?;
    ensure!(outcome.reason == "StandbyTookOver", "{outcome:?}");
    scene.wait_for_condition(CONFIG, "Degraded", "True", "Halted")?;
    scene.api.patch(
        &format!("{}/{CONFIG}", path::CONFIGS),
        &json!({"spec": {"agent": null}}),
    )?;
    ask_for(scene, "after", 4, &fast())?;
    wait_for_rollout(scene)
}

fn without_operator(scene: &Scene, node: &str, stable: &str) -> Result<()> {
    let spec = scene.node_object(CONFIG, node)?.spec;
    let uid = pod_uid(scene, node, &spec.active)?.context("the new agent")?;
    // It cannot start again.
    image(scene.node(node)?, &["rm", OTHER_IMAGE])?;
    kill_in_pod(&uid, "device-plugin-agent")?;
    let died = Instant::now();
    let took = wait_until(
        "the old agent serving by itself",
        Duration::from_secs(240),
        || {
            let status = scene.node_object(CONFIG, node)?.status.unwrap_or_default();
            let is_back = status
                .active
                .is_some_and(|active| active.revision == stable);
            let listed = allocatable_devices(scene.node(node)?, RESOURCE)?.len();
            Ok((is_back && listed == 4).then(|| died.elapsed()))
        },
    )?;
    measured("served again by the standby, without an operator", took);
    Ok(())
}

/// How long the config is changed every second.
const RESTLESS: usize = 20;

pub fn config_changed_every_second_loses_nothing(scene: &Scene) -> Result<()> {
    for number in 0..RESTLESS {
        let rollout = json!({"maxUnavailable": 1, "gate": {"soakSeconds": 0}});
        scene.apply(&crate::stories::handover::manifest(
            &format!("restless-{number}"),
            4,
            &rollout,
        ))?;
        holds_for(
            "the devices of both nodes",
            Duration::from_millis(800),
            || all_listed(scene),
        )?;
    }
    ask_for(scene, "restless-end", 4, &fast())?;
    wait_for_rollout(scene)?;
    // What was asked for on the way leaves nothing behind.
    wait_until("the end of the DaemonSets on the way", ROLLOUT, || {
        let query = format!("labelSelector={}={CONFIG}", crds::names::CONFIG_LABEL);
        let sets = scene
            .api
            .items(&format!("/apis/apps/v1/daemonsets?{query}"))?;
        ensure!(sets.len() == 1, "{} DaemonSets", sets.len());
        Ok(Some(()))
    })
}

/// Whether the kubelets list every device; the gap of a hand-over is looked past.
fn all_listed(scene: &Scene) -> Result<()> {
    for node in NODES {
        wait_until("every device", Duration::from_secs(2), || {
            let listed = allocatable_devices(scene.node(node)?, RESOURCE)?.len();
            ensure!(listed == 4, "{listed} are listed on {node}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

pub fn garbage_and_deleted_objects_stop_no_change(scene: &Scene) -> Result<()> {
    let ledger = format!(
        "/api/v1/namespaces/{NAMESPACE}/configmaps/{}",
        crds::names::LEDGER
    );
    type Harm<'a> = (&'a str, Box<dyn Fn(&Scene, &str) -> Result<()> + 'a>);
    let object = |kind: &str, revision: &str| {
        let name = crds::names::revision_object(CONFIG, revision);
        match kind {
            "configmaps" => format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{name}"),
            _ => format!("/apis/apps/v1/namespaces/{NAMESPACE}/{kind}/{name}"),
        }
    };
    let harms: Vec<Harm<'_>> = vec![
        (
            "garbage in the ledger",
            Box::new(|scene, _| {
                scene.api.patch(
                    &ledger,
                    &json!({"data": {crds::names::LEDGER_KEY: "{garbage"}}),
                )
            }),
        ),
        (
            "the ledger deleted",
            Box::new(|scene, _| scene.api.delete(&ledger)),
        ),
        (
            "garbage in the status of a node's object",
            Box::new(|scene, node| {
                let status = format!("{}/{CONFIG}.{node}/status", path::NODE_OBJECTS);
                let nonsense = json!({"status": {"active": {
                    "revision": "nonsense", "podUID": "nobody", "agentVersion": "", "bootID": "",
                    "summary": {"registered": "9/9", "healthy": -1, "allocated": 7}, "resources": [],
                }}});
                scene.api.patch(&status, &nonsense)
            }),
        ),
        (
            "a node's object deleted",
            Box::new(|scene, node| {
                scene
                    .api
                    .delete(&format!("{}/{CONFIG}.{node}", path::NODE_OBJECTS))
            }),
        ),
        (
            "the target's ControllerRevision deleted",
            Box::new(|scene, _| {
                let target = target(scene)?;
                scene.api.delete(&object("controllerrevisions", &target))
            }),
        ),
        (
            "the target's ConfigMap deleted",
            Box::new(|scene, _| {
                let target = target(scene)?;
                scene.api.delete(&object("configmaps", &target))
            }),
        ),
        (
            "the target's DaemonSet deleted",
            Box::new(|scene, _| {
                let target = target(scene)?;
                scene.api.delete(&object("daemonsets", &target))
            }),
        ),
        (
            "garbage in the state file",
            Box::new(|scene, node| {
                let state = scene.node(node)?.directory();
                let state = state.join(format!("var-lib/device-plugin-agent/{CONFIG}"));
                std::fs::write(&state, "{garbage").with_context(|| format!("{state:?}"))
            }),
        ),
    ];
    for (number, (harm, act)) in harms.iter().enumerate() {
        let rollout = json!({"maxUnavailable": 1, "gate": {"soakSeconds": 2, "maxRestarts": 3}});
        ask_for(scene, &format!("harm-{number}"), 4, &rollout)?;
        let node = wait_until("a node that is switched", ROLLOUT, || {
            let mut switched = claims(scene)?.into_iter();
            Ok(switched
                .find(|(_, phase)| phase == "Soaking")
                .map(|(node, _)| node))
        })?;
        act(scene, &node).with_context(|| (*harm).to_owned())?;
        let begun = Instant::now();
        wait_until(harm, BACK, || {
            all_listed(scene)?;
            Ok(Some(()))
        })?;
        let ended = wait_until(
            &format!("the end of the change after: {harm}"),
            ROLLOUT,
            || {
                let config = scene.config(CONFIG)?;
                let status = config.status.unwrap_or_default();
                let is_done =
                    status.nodes.updated == 2 && status.stable_revision == status.target_revision;
                let halted = status.conditions.iter().any(|one| one.reason == "Halted");
                ensure!(
                    claims(scene)?.is_empty() && (is_done || halted),
                    "{}",
                    status.summary
                );
                all_listed(scene)?;
                Ok(Some(if halted { "brought back" } else { "done" }))
            },
        )?;
        eprintln!(
            "      {harm}: {ended} after {:.1} s",
            begun.elapsed().as_secs_f64()
        );
    }
    // An agent's configuration cannot be edited at all.
    let target = target(scene)?;
    let edit = json!({"data": {crds::names::AGENT_CONFIG_KEY: "{garbage"}});
    let refused = scene.api.patch(&object("configmaps", &target), &edit);
    ensure!(refused.is_err(), "the ConfigMap was edited");
    ask_for(scene, "after-harm", 4, &fast())?;
    wait_for_rollout(scene)
}

fn target(scene: &Scene) -> Result<String> {
    let status = scene.config(CONFIG)?.status.unwrap_or_default();
    status.target_revision.context("a target")
}

/// Takes the config of these stories away, and its users.
pub fn hand_over_stories_leave_nothing(scene: &Scene) -> Result<()> {
    for node in NODES {
        scene.delete_pod(&format!("swap-{node}"))?;
    }
    scene.delete_config(CONFIG)?;
    for node in NODES {
        let keys = super::change::node_keys(scene, node)?;
        ensure!(
            !keys
                .keys()
                .any(|key| crds::names::labelled_config(key) == Some(CONFIG)),
            "labels are left on {node}"
        );
    }
    let claims: Vec<Value> = claims(scene)?.into_keys().map(Value::from).collect();
    ensure!(claims.is_empty(), "claims are left: {claims:?}");
    Ok(())
}
