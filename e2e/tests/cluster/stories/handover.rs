//! A changed config reaches the nodes without losing a device.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use crds::DevicePluginNode;
use e2e::product::NAMESPACE;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::{Value, json};

use crate::api::{path, wait_until};
use crate::on_node::{self, allocatable_devices};
use crate::scene::{PATIENCE, Scene, container_ids, times};

/// The config of these stories: simulated devices on both nodes.
pub const CONFIG: &str = "swap";
/// Its resource.
pub const RESOURCE: &str = "example.com/swap";
/// Its nodes.
pub const NODES: [&str; 2] = ["n1", "n2"];
/// How many devices it has on each.
const DEVICES: usize = 4;

/// Longest wait for a rollout over both nodes: staging, two seconds of verification and soak each,
/// on cores that are shared.
pub const ROLLOUT: Duration = Duration::from_secs(120);

/// The config with one value of an environment variable, which is what changes from revision to
/// revision.
pub fn manifest(value: &str, count: usize, rollout: &Value) -> String {
    json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": CONFIG},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
            "resources": [{
                "name": RESOURCE,
                "discovery": {"simulated": {"count": count}},
                "container": {"env": [{"name": "REVISION_OF_STORY", "value": value}]},
            }],
            "rollout": rollout,
        },
    })
    .to_string()
}

/// As fast as the gates allow, both nodes at once.
pub fn fast() -> Value {
    json!({"maxUnavailable": 2, "gate": {"soakSeconds": 0}})
}

/// Applies another revision and waits until the operator has seen it; its name.
pub fn ask_for(scene: &Scene, value: &str, count: usize, rollout: &Value) -> Result<String> {
    scene.apply(&manifest(value, count, rollout))?;
    wait_until("the change to be seen", PATIENCE, || {
        let config = scene.config(CONFIG)?;
        let status = config.status.unwrap_or_default();
        let is_seen = status.observed_generation == config.metadata.generation;
        Ok(status.target_revision.filter(|_| is_seen))
    })
}

/// Installs the config and waits until both nodes serve it.
pub fn install(scene: &Scene) -> Result<String> {
    let revision = ask_for(scene, "first", DEVICES, &fast())?;
    for node in NODES {
        scene.wait_for_allocatable(node, RESOURCE, 4)?;
    }
    scene.wait_for_condition(CONFIG, "Ready", "True", "Complete")?;
    Ok(revision)
}

/// Waits until every node serves the target.
pub fn wait_for_rollout(scene: &Scene) -> Result<()> {
    wait_until("the rollout", ROLLOUT, || {
        let config = scene.config(CONFIG)?;
        let status = config.status.unwrap_or_default();
        ensure!(
            status.observed_generation == config.metadata.generation
                && status.stable_revision == status.target_revision
                && status.nodes.updated == 2
                && status.nodes.ready == 2,
            "{:?}: {}",
            status.nodes,
            status.summary
        );
        Ok(Some(()))
    })
}

/// The ledger's claims: node and phase.
pub fn claims(scene: &Scene) -> Result<BTreeMap<String, String>> {
    let path = format!(
        "/api/v1/namespaces/{NAMESPACE}/configmaps/{}",
        crds::names::LEDGER
    );
    let Some(map) = scene.api.find::<ConfigMap>(&path)? else {
        return Ok(BTreeMap::new());
    };
    let text = map
        .data
        .and_then(|mut data| data.remove(crds::names::LEDGER_KEY));
    let ledger: Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
    let claims = ledger["claims"].as_array().cloned().unwrap_or_default();
    Ok(claims
        .iter()
        .filter_map(|claim| {
            let node = claim["node"].as_str()?.to_owned();
            Some((node, claim["phase"].as_str()?.to_owned()))
        })
        .collect())
}

pub fn changed_config_reaches_every_node_under_running_pods(scene: &Scene) -> Result<()> {
    let first = install(scene)?;
    for node in NODES {
        scene.start_pod(&format!("swap-{node}"), node, RESOURCE, "sleep 100000")?;
        scene.wait_for_running_pod(&format!("swap-{node}"))?;
    }
    let before = held(scene)?;
    let second = ask_for(scene, "second", DEVICES, &fast())?;
    ensure!(first != second, "the change is no other revision");
    // A pod a second asks for a device while the nodes are changed.
    let (mut made, mut failed) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < ROLLOUT {
        let config = scene.config(CONFIG)?;
        let status = config.status.unwrap_or_default();
        if status.nodes.updated == 2 && status.stable_revision.as_ref() == Some(&second) {
            break;
        }
        for node in NODES {
            let name = format!("swap-{node}-{made}");
            scene.start_pod(&name, node, RESOURCE, "true")?;
            made += 1;
            failed += usize::from(ended(scene, &name)? == "Failed");
            scene.delete_pod(&name)?;
        }
    }
    wait_for_rollout(scene)?;
    eprintln!("      measured: {failed} of {made} pods failed admission during the rollout");
    ensure!(failed <= 1 + made / 10, "{failed} of {made} pods failed");
    ensure!(held(scene)? == before, "a container was started anew");
    for node in NODES {
        let object = scene.node_object(CONFIG, node)?;
        ensure!(
            object.spec.active == second
                && object.spec.standby.is_none()
                && object.spec.baseline.is_none(),
            "{:?}",
            object.spec
        );
        scene.wait_for_allocatable(node, RESOURCE, 4)?;
    }
    ensure!(
        claims(scene)?.is_empty(),
        "claims are left: {:?}",
        claims(scene)?
    );
    Ok(())
}

fn held(scene: &Scene) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for node in NODES {
        ids.extend(container_ids(&scene.api.pod(&format!("swap-{node}"))?));
    }
    Ok(ids)
}

/// Waits until a pod has ended, and how.
fn ended(scene: &Scene, name: &str) -> Result<String> {
    wait_until(
        &format!("the end of what pod {name:?} does"),
        PATIENCE,
        || {
            let phase = scene.api.pod(name)?.status.and_then(|status| status.phase);
            Ok(phase.filter(|phase| phase == "Succeeded" || phase == "Failed"))
        },
    )
}

pub fn revision_with_fewer_devices_never_switches(scene: &Scene) -> Result<()> {
    let stable = scene
        .config(CONFIG)?
        .status
        .and_then(|status| status.stable_revision);
    let stable = stable.context("a stable revision")?;
    let streams = streams(scene)?;
    let rollout = json!({"maxUnavailable": 1, "gate": {"soakSeconds": 0}});
    ask_for(scene, "second", DEVICES - 1, &rollout)?;
    let message = wait_until("the halt", Duration::from_secs(150), || {
        let status = scene.config(CONFIG)?.status.unwrap_or_default();
        let halted = status
            .conditions
            .into_iter()
            .find(|one| one.type_ == "Progressing" && one.reason == "Halted");
        Ok(halted.map(|one| one.message))
    })?;
    ensure!(
        message.contains("FewerDevices")
            && message.contains("3 healthy devices where there were 4"),
        "{message}"
    );
    for node in NODES {
        ensure!(scene.node_object(CONFIG, node)?.spec.active == stable);
    }
    ensure!(self::streams(scene)? == streams, "a stream was opened anew");
    // Set back, nothing is left of it.
    ask_for(scene, "second", DEVICES, &fast())?;
    wait_for_rollout(scene)?;
    wait_until("no trace of the standby", PATIENCE, || {
        for node in NODES {
            let keys = super::change::node_keys(scene, node)?;
            ensure!(
                !keys.contains_key(&crds::names::node_stage_label(CONFIG)),
                "a stage label"
            );
            let spec = scene.node_object(CONFIG, node)?.spec;
            ensure!(spec.standby.is_none(), "a standby");
        }
        ensure!(claims(scene)?.is_empty(), "a claim");
        Ok(Some(()))
    })
}

/// How often each node's agent has registered, and since when the kubelet reads.
fn streams(scene: &Scene) -> Result<Vec<Value>> {
    NODES
        .iter()
        .map(|node| {
            let status = scene.node_object(CONFIG, node)?.status.unwrap_or_default();
            let active = status.active.context("a report")?;
            Ok(json!([active.pod_uid, active.resources[0].stream_since]))
        })
        .collect()
}

pub fn revision_that_the_kubelet_does_not_list_is_rolled_back(scene: &Scene) -> Result<()> {
    let stable = scene
        .config(CONFIG)?
        .status
        .and_then(|status| status.stable_revision);
    let stable = stable.context("a stable revision")?;
    let rollout =
        json!({"maxUnavailable": 1, "gate": {"soakSeconds": 5, "kubeletSyncTimeoutSeconds": 0}});
    ask_for(scene, "unheard", DEVICES, &rollout)?;
    let on = wait_until("a node that is judged", ROLLOUT, || {
        let judged = claims(scene)?
            .into_iter()
            .find(|(_, phase)| phase == "Verifying");
        Ok(judged.map(|(node, _)| node))
    })?;
    // Another plugin takes the resource over again and again: the kubelet never lists what the new
    // agent sends.
    let log = scene.cluster.logs_path().join(format!("{on}-fighter.log"));
    let program = env!("CARGO_BIN_EXE_naive-plugin");
    let words = [
        program,
        "--resource",
        RESOURCE,
        "--devices",
        "1",
        "--again-every-millis",
        "200",
    ];
    let fighter = on_node::start(scene.node(&on)?, &words, &log)?;
    let told = wait_until("the rollback", Duration::from_secs(240), || {
        let object = scene.node_object(CONFIG, &on)?;
        let outcome = object.spec.outcome.context("no outcome yet")?;
        Ok((object.spec.active == stable).then_some(outcome))
    });
    let written = Instant::now();
    fighter.stop()?;
    let outcome = told?;
    wait_until("the old agent's devices at the kubelet", PATIENCE, || {
        let devices = allocatable_devices(scene.node(&on)?, RESOURCE)?;
        let is_ours = devices.len() == DEVICES && devices.iter().all(|id| !id.starts_with("naive"));
        Ok(is_ours.then_some(()))
    })?;
    crate::api::measured("rolled back and listed again", written.elapsed());
    ensure!(outcome.reason == "KubeletOutOfSync", "{outcome:?}");
    scene.wait_for_condition(CONFIG, "Degraded", "True", "Halted")?;
    wait_until("the node counted as rolled back", PATIENCE, || {
        let nodes = scene.config(CONFIG)?.status.unwrap_or_default().nodes;
        ensure!(nodes.rolled_back == 1, "{nodes:?}");
        Ok(Some(()))
    })?;
    ask_for(scene, "second", DEVICES, &fast())?;
    wait_for_rollout(scene)
}

/// Both agents of a node, by revision.
fn agents_on(scene: &Scene, node: &str) -> Result<BTreeMap<String, Pod>> {
    let mut agents = BTreeMap::new();
    for pod in scene.api.agent_pods(CONFIG)? {
        let is_here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        if let (true, Some(revision)) = (is_here, labels.get(crds::names::REVISION_LABEL)) {
            agents.insert(revision.clone(), pod);
        }
    }
    Ok(agents)
}

/// Times of an agent's log lines with a message, from newest to oldest.
fn times_of(scene: &Scene, pod: &Pod, message: &str) -> Result<Vec<f64>> {
    let name = pod.metadata.name.as_deref().context("a name")?;
    let log = scene.cluster.kubectl(&["logs", "-n", NAMESPACE, name])?;
    let mut times = Vec::new();
    for line in log.lines().rev() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let said = line.pointer("/fields/message").or(line.get("message"));
        if said
            .and_then(Value::as_str)
            .is_some_and(|said| said.contains(message))
        {
            let at = line["timestamp"].as_str().context("a timestamp")?;
            times.push(seconds(at)?);
        }
    }
    Ok(times)
}

fn seconds(timestamp: &str) -> Result<f64> {
    let at: k8s_openapi::jiff::Timestamp = timestamp.parse()?;
    Ok(at.as_microsecond() as f64 / 1e6)
}

/// How often the roles are swapped on each node to measure, an even number. Figures worth telling
/// need `E2E_SWAPS=100` and an idle machine.
const SWAPS: usize = 20;

pub fn hand_overs_are_measured(scene: &Scene) -> Result<()> {
    ask_for(
        scene,
        "measured",
        DEVICES,
        &json!({"maxUnavailable": 2, "gate": {"soakSeconds": 3600}}),
    )?;
    wait_until("both nodes to soak", ROLLOUT, || {
        let soaking = claims(scene)?
            .values()
            .filter(|phase| *phase == "Soaking")
            .count();
        Ok((soaking == 2).then_some(()))
    })?;
    // Both agents run, and without an operator the roles are ours to give.
    scale_operator(scene, 0)?;
    let measured = NODES.iter().try_for_each(|node| swaps_on(scene, node));
    scale_operator(scene, 1)?;
    measured?;
    ask_for(scene, "measured", DEVICES, &fast())?;
    wait_for_rollout(scene)
}

fn swaps_on(scene: &Scene, node: &str) -> Result<()> {
    let path = format!("{}/{CONFIG}.{node}", path::NODE_OBJECTS);
    let (mut gaps, mut changes, mut lost) = (Vec::new(), Vec::new(), 0);
    let swaps = times("E2E_SWAPS", SWAPS)?;
    for _ in 0..swaps {
        let object: DevicePluginNode = scene.api.get(&path)?;
        let (active, standby) = (
            object.spec.active,
            object.spec.standby.context("a standby")?,
        );
        let agents = agents_on(scene, node)?;
        let (old, new) = (
            agents.get(&active).context("old")?,
            agents.get(&standby).context("new")?,
        );
        let opened_before = times_of(scene, new, OPENED)?.len();
        let written = now();
        scene.api.patch(
            &path,
            &json!({"spec": {"active": standby, "standby": active}}),
        )?;
        let opened = wait_until("the new agent's stream", PATIENCE, || {
            let times = times_of(scene, new, OPENED)?;
            Ok((times.len() > opened_before).then(|| times[0]))
        })?;
        let closed = times_of(scene, old, CLOSED)?;
        let closed = closed
            .first()
            .copied()
            .context("the old agent told no end")?;
        gaps.push((opened - closed) * 1e3);
        changes.push((opened - written) * 1e3);
        let listed = allocatable_devices(scene.node(node)?, RESOURCE)?.len();
        lost += usize::from(listed != DEVICES);
    }
    gaps.sort_by(f64::total_cmp);
    changes.sort_by(f64::total_cmp);
    let at = |all: &[f64], share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
    eprintln!(
        "      measured: {node}: {swaps} hand-overs, gap p50 {:.1} p90 {:.1} p99 {:.1} worst {:.1} ms; write → stream p50 {:.0} p99 {:.0} worst {:.0} ms; {lost} with a list not yet whole right after",
        at(&gaps, 0.5),
        at(&gaps, 0.9),
        at(&gaps, 0.99),
        at(&gaps, 1.0),
        at(&changes, 0.5),
        at(&changes, 0.99),
        at(&changes, 1.0),
    );
    if gaps.is_empty() {
        bail!("nothing was measured");
    }
    scene.wait_for_allocatable(node, RESOURCE, 4)
}

/// What an agent logs when the kubelet reads its devices, and when it has ended its streams.
const OPENED: &str = "the kubelet reads the devices";
const CLOSED: &str = "ending the streams";

fn now() -> f64 {
    k8s_openapi::jiff::Timestamp::now().as_microsecond() as f64 / 1e6
}

/// Ends the operator, or starts it again, and waits for that.
pub fn scale_operator(scene: &Scene, replicas: u32) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    let deployment = "deployment/device-plugin-operator";
    scene
        .cluster
        .kubectl(&["scale", "-n", NAMESPACE, deployment, &replicas])?;
    if replicas == "--replicas=0" {
        let pods = format!(
            "/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name=device-plugin-operator"
        );
        return wait_until("the operator's end", PATIENCE, || {
            Ok(scene.api.items(&pods)?.is_empty().then_some(()))
        });
    }
    scene
        .cluster
        .kubectl(&[
            "rollout",
            "status",
            "-n",
            NAMESPACE,
            deployment,
            "--timeout=60s",
        ])
        .map(|_| ())
}
