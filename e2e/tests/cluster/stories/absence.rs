//! What becomes of devices and of running containers when agents are away for long.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::chaos::{IMAGE, OTHER_IMAGE};
use super::faults::{agent_on, restart_count};
use super::handover::NODES;
use super::kubelets::{SHARED, container, install, resource, simulated, start, uid};
use crate::api::{path, wait_until};
use crate::on_node::{held_devices, image, kill_in_pod};
use crate::scene::{PATIENCE, Scene};

/// The config whose agents go away in one story and come back in another.
const LOST: &str = "lost";
/// How long a kubelet keeps the devices of a plugin that is away, and some slack.
const FORGOTTEN: Duration = Duration::from_secs(360);
/// Kubelets try again after 10 to 40 s what they could not start.
const AGAIN: Duration = Duration::from_secs(120);

fn lost_pod(node: &str) -> String {
    format!("lost-{node}")
}

/// What the node's status says of a resource: capacity and allocatable.
fn counts(scene: &Scene, node: &str, resource: &str) -> Result<(Option<String>, Option<String>)> {
    let node: Value = scene.api.get(&format!("{}/{node}", path::NODES))?;
    let count = |list: &str| node["status"][list][resource].as_str().map(str::to_owned);
    Ok((count("capacity"), count("allocatable")))
}

fn wait_for_counts(
    scene: &Scene,
    resource: &str,
    deadline: Duration,
    [capacity, allocatable]: [&str; 2],
) -> Result<()> {
    let expected = (Some(capacity.to_owned()), Some(allocatable.to_owned()));
    for node in NODES {
        let what = format!("{allocatable} of {capacity} {resource} on {node}");
        wait_until(&what, deadline, || {
            let seen = counts(scene, node, resource)?;
            ensure!(seen == expected, "capacity and allocatable are {seen:?}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

/// Begins five minutes that other stories use; the next of this tale is
/// [`container_waits_for_its_agent_and_starts_by_itself`].
pub fn agents_that_cannot_start_again_are_told_at_once(scene: &Scene) -> Result<()> {
    for node in NODES {
        image(scene.node(node)?, &["tag", "--force", IMAGE, OTHER_IMAGE])?;
    }
    let mut manifest: Value = serde_json::from_str(&simulated(LOST, 3))?;
    manifest["spec"]["agent"] = json!({"image": OTHER_IMAGE, "imagePullPolicy": "Never"});
    install(scene, LOST, &manifest.to_string(), 3)?;
    for node in NODES {
        let pod = lost_pod(node);
        start(scene, &pod, node, &[], &[container("one", LOST, 1)])?;
        scene.wait_for_running_pod(&pod)?;
    }
    for node in NODES {
        let agent = agent_on(scene, LOST, node)?;
        image(scene.node(node)?, &["rm", OTHER_IMAGE])?;
        kill_in_pod(uid(&agent)?, "device-plugin-agent")?;
    }
    wait_for_counts(scene, &resource(LOST), PATIENCE, ["3", "0"])?;
    // Minutes before running containers depend on it.
    wait_until("both nodes named", PATIENCE, || {
        scene.wait_for_condition(LOST, "Ready", "False", "NodesFailed")?;
        let told = scene.wait_for_condition(LOST, "Degraded", "True", "NodesFailed")?;
        let words = ["n1", "n2", "ErrImageNeverPull"];
        let missing = words.iter().find(|word| !told.contains(**word));
        ensure!(missing.is_none(), "no {missing:?} in: {told}");
        Ok(Some(()))
    })
}

pub fn container_waits_for_its_agent_and_starts_by_itself(scene: &Scene) -> Result<()> {
    let held = |node: &str| -> Result<Vec<String>> {
        let held = held_devices(scene.node(node)?, &lost_pod(node), &resource(LOST))?;
        let devices: Vec<String> = held.into_values().flatten().collect();
        ensure!(devices.len() == 1, "{devices:?}");
        Ok(devices)
    };
    let devices = NODES.map(held);
    wait_for_counts(scene, &resource(LOST), FORGOTTEN, ["0", "0"])?;
    for node in NODES {
        let pod = scene.wait_for_running_pod(&lost_pod(node))?;
        ensure!(
            restart_count(&pod) == 0,
            "the container of a running pod ended"
        );
        kill_in_pod(uid(&pod)?, "sleep")?;
    }
    for node in NODES {
        let what = format!("a container on {node} that waits");
        wait_until(&what, PATIENCE, || {
            let pod = scene.api.pod(&lost_pod(node))?;
            let waiting = waiting(&pod).context("it does not wait")?;
            ensure!(
                waiting.0 == "CreateContainerConfigError" && waiting.1.contains(&resource(LOST)),
                "{waiting:?}"
            );
            Ok(Some(()))
        })?;
    }
    for node in NODES {
        image(scene.node(node)?, &["tag", "--force", IMAGE, OTHER_IMAGE])?;
    }
    wait_for_counts(scene, &resource(LOST), AGAIN, ["3", "3"])?;
    for (node, before) in NODES.iter().zip(devices) {
        let pod = lost_pod(node);
        wait_until(&format!("{pod:?} running again"), AGAIN, || {
            let seen = scene.api.pod(&pod)?;
            let statuses = seen
                .status
                .as_ref()
                .and_then(|s| s.container_statuses.as_ref());
            let is_running = statuses.into_iter().flatten().any(|one| one.ready);
            ensure!(
                is_running && restart_count(&seen) > 0,
                "{:?}",
                waiting(&seen)
            );
            Ok(Some(()))
        })?;
        let after = held(node)?;
        ensure!(after == before?, "the devices changed to {after:?}");
        scene.delete_pod(&pod)?;
    }
    scene.wait_for_condition(LOST, "Ready", "True", "Complete")?;
    scene.delete_config(LOST)?;
    for node in NODES {
        image(scene.node(node)?, &["rm", OTHER_IMAGE])?;
    }
    Ok(())
}

/// Why a container of a pod waits: reason and message.
fn waiting(pod: &Pod) -> Option<(String, String)> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let waiting = statuses.first()?.state.as_ref()?.waiting.clone()?;
    Some((
        waiting.reason.unwrap_or_default(),
        waiting.message.unwrap_or_default(),
    ))
}

pub fn key_of_a_resource_that_is_gone_stays_at_zero(scene: &Scene) -> Result<()> {
    wait_for_counts(scene, &resource(SHARED), FORGOTTEN, ["0", "0"])
}
