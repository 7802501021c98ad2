//! What dies comes back, and takes nothing with it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::product::NAMESPACE;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::api::{holds_for, measured, wait_until};
use crate::audit;
use crate::on_node::{allocatable_devices, kill_in_pod};
use crate::scene::{PATIENCE, Scene, container_ids};

/// The promise: a resource is back so soon after the kubelet is ready.
const BACK_AFTER_KUBELET: Duration = Duration::from_secs(5);

pub fn restarted_kubelet_has_its_devices_back(scene: &Scene) -> Result<()> {
    for name in ["n1", "n2"] {
        let node = scene.node(name)?;
        let before = container_ids(&scene.api.pod(&format!("fuse-{name}"))?);
        ensure!(!before.is_empty(), "the pod of the first story runs");
        node.stop_kubelet()?;
        node.start_kubelet()?;
        // `start_kubelet` returns when the kubelet's /healthz answers.
        let ready = Instant::now();
        wait_until(
            &format!("the kubelet of {name} listing the device again"),
            PATIENCE,
            || {
                let listed = allocatable_devices(node, "example.com/fuse")?;
                Ok((listed.len() == 1).then_some(()))
            },
        )?;
        let took = ready.elapsed();
        measured(
            &format!("{name}: device back after the kubelet's /healthz"),
            took,
        );
        ensure!(
            took <= BACK_AFTER_KUBELET,
            "the device of {name} was back only after {took:?}"
        );
        scene.wait_for_allocatable(name, "example.com/fuse", 1)?;
        let after = container_ids(&scene.wait_for_running_pod(&format!("fuse-{name}"))?);
        ensure!(
            before == after,
            "the pod's container was started anew: {before:?}, {after:?}"
        );
    }
    scene
        .wait_for_condition("fuse", "Ready", "True", "Complete")
        .map(|_| ())
}

pub fn killed_agent_has_its_devices_back(scene: &Scene) -> Result<()> {
    let before = container_ids(&scene.api.pod("fuse-n1")?);
    let agent = agent_on(scene, "fuse", "n1")?;
    let uid = agent.metadata.uid.clone().context("a pod has a uid")?;
    let restarts = restart_count(&agent);
    kill_in_pod(&uid, "device-plugin-agent")?;
    wait_until("the agent's restart", PATIENCE, || {
        Ok((restart_count(&agent_on(scene, "fuse", "n1")?) > restarts).then_some(()))
    })?;
    wait_until("the kubelet listing the device again", PATIENCE, || {
        Ok((allocatable_devices(scene.node("n1")?, "example.com/fuse")?.len() == 1).then_some(()))
    })?;
    scene.wait_for_allocatable("n1", "example.com/fuse", 1)?;
    ensure!(
        container_ids(&scene.api.pod("fuse-n1")?) == before,
        "the pod's container was started anew"
    );
    scene
        .wait_for_condition("fuse", "Ready", "True", "Complete")
        .map(|_| ())
}

pub fn restarted_operator_touches_nothing(scene: &Scene) -> Result<()> {
    let log = scene.cluster.audit_log_path();
    let agents = pod_uids(&scene.api.agent_pods("fuse")?);
    let mark = audit::mark(&log)?;
    scene.cluster.kubectl(&[
        "rollout",
        "restart",
        "-n",
        NAMESPACE,
        "deployment/device-plugin-operator",
    ])?;
    scene.cluster.kubectl(&[
        "rollout",
        "status",
        "-n",
        NAMESPACE,
        "deployment/device-plugin-operator",
        "--timeout=60s",
    ])?;
    holds_for("the object staying Ready", Duration::from_secs(5), || {
        scene
            .wait_for_condition("fuse", "Ready", "True", "Complete")
            .map(|_| ())
    })?;
    let operator = format!("system:serviceaccount:{NAMESPACE}:device-plugin-operator");
    let writes = audit::writes_since(&log, mark, &operator)?;
    ensure!(
        writes.is_empty(),
        "a new operator over a converged cluster wrote {writes:?}"
    );
    ensure!(
        pod_uids(&scene.api.agent_pods("fuse")?) == agents,
        "agents were replaced"
    );
    Ok(())
}

pub fn lost_objects_are_made_again_as_they_were(scene: &Scene) -> Result<()> {
    let revision = scene
        .config("fuse")?
        .status
        .and_then(|s| s.stable_revision)
        .context("a stable revision")?;
    let name = crds::names::revision_object("fuse", &revision);
    let kinds = [
        // Its template is read back from the DaemonSet, with the defaults that the API server adds.
        ("apis/apps/v1", "controllerrevisions", "/data/agentConfig"),
        ("api/v1", "configmaps", "/data"),
        ("apis/apps/v1", "daemonsets", "/spec/template"),
    ];
    for (group, kind, content) in kinds {
        let path = format!("/{group}/namespaces/{NAMESPACE}/{kind}/{name}");
        let before: Value = scene.api.get(&path)?;
        scene.api.delete(&path)?;
        wait_until(&format!("a new one of {kind} {name}"), PATIENCE, || {
            let Some(after) = scene.api.find::<Value>(&path)? else {
                return Ok(None);
            };
            let is_new = after.pointer("/metadata/uid") != before.pointer("/metadata/uid");
            if is_new {
                ensure!(
                    after.pointer(content) == before.pointer(content),
                    "{kind} {name} came back changed"
                );
            }
            Ok(is_new.then_some(()))
        })?;
    }
    scene.wait_for_condition("fuse", "Ready", "True", "Complete")?;
    let after = scene.config("fuse")?.status.and_then(|s| s.stable_revision);
    ensure!(
        after.as_deref() == Some(revision.as_str()),
        "stable became {after:?}"
    );
    for node in ["n1", "n2"] {
        scene.wait_for_allocatable(node, "example.com/fuse", 1)?;
    }
    Ok(())
}

/// The agent of a config on a node; not one that is being ended.
pub fn agent_on(scene: &Scene, config: &str, node: &str) -> Result<Pod> {
    let on_node = |pod: &Pod| {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
            && pod.metadata.deletion_timestamp.is_none()
    };
    scene
        .api
        .agent_pods(config)?
        .into_iter()
        .find(on_node)
        .with_context(|| format!("no agent of {config} on {node}"))
}

pub fn restart_count(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .map(|status| status.restart_count)
        .sum()
}

fn pod_uids(pods: &[Pod]) -> Vec<String> {
    let mut uids: Vec<String> = pods
        .iter()
        .filter_map(|pod| pod.metadata.uid.clone())
        .collect();
    uids.sort();
    uids
}
