//! What kubelets of both versions do with devices while something ends, reboots or falls ill.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::images::SHELL_IMAGE;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::faults::agent_on;
use super::handover::NODES;
use super::install::OPEN_FUSE;
use crate::api::{measured, path, wait_until};
use crate::on_node::{allocatable_devices, held_devices, kill_in_pod, pids_in_pod};
use crate::scene::{PATIENCE, Scene, container_ids};

/// Numbers of `/dev/zero`. A device that one config had is no other's for five minutes, so that each
/// has another one.
const ZERO: (u32, u32) = (1, 5);

/// A config of simulated devices on both nodes, which has a resource of the same name.
pub fn simulated(name: &str, count: usize) -> String {
    config(name, &json!({"simulated": {"count": count}}))
}

fn config(name: &str, discovery: &Value) -> String {
    json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
            "resources": [{
                "name": resource(name), "discovery": discovery,
                "container": {"env": [{"name": "DEVICES", "value": "$(DEVICE_IDS)"}]},
            }],
        },
    })
    .to_string()
}

pub fn resource(config: &str) -> String {
    format!("example.com/{config}")
}

/// Applies a config and waits until both nodes serve its devices.
pub fn install(scene: &Scene, name: &str, manifest: &str, count: i64) -> Result<()> {
    scene.apply(manifest)?;
    scene.wait_for_condition(name, "Ready", "True", "Complete")?;
    NODES
        .iter()
        .try_for_each(|node| scene.wait_for_allocatable(node, &resource(name), count))
}

/// A container that stays and has so many devices of a config.
pub fn container(name: &str, config: &str, devices: usize) -> Value {
    json!({
        "name": name, "image": SHELL_IMAGE, "imagePullPolicy": "Never",
        "command": ["sleep", "100000"],
        "resources": {"limits": {resource(config): devices.to_string()}},
    })
}

/// Starts a pod whose containers are started again whenever they end.
pub fn start(
    scene: &Scene,
    name: &str,
    node: &str,
    init: &[Value],
    containers: &[Value],
) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 1,
            "initContainers": init,
            "containers": containers,
        },
    });
    scene.apply(&pod.to_string())
}

pub fn uid(pod: &Pod) -> Result<&str> {
    pod.metadata.uid.as_deref().context("a pod has a uid")
}

/// Waits until the node's kubelet itself lists so many devices.
fn wait_for_devices(scene: &Scene, node: &str, resource: &str, count: usize) -> Result<()> {
    let what = format!("the kubelet of {node} listing {count} of {resource}");
    wait_until(&what, PATIENCE, || {
        let listed = allocatable_devices(scene.node(node)?, resource)?;
        ensure!(listed.len() == count, "it lists {listed:?}");
        Ok(Some(()))
    })
}

pub fn kubelet_and_agent_that_end_together_have_devices_back(scene: &Scene) -> Result<()> {
    for node in NODES {
        let pod = format!("fuse-{node}");
        let before = container_ids(&scene.api.pod(&pod)?);
        let agent = agent_on(scene, "fuse", node)?;
        scene.node(node)?.stop_kubelet()?;
        let killed = kill_in_pod(uid(&agent)?, "device-plugin-agent");
        scene.node(node)?.start_kubelet()?;
        killed?;
        let begun = Instant::now();
        wait_for_devices(scene, node, "example.com/fuse", 1)?;
        measured(
            &format!("{node}: device back after kubelet and agent began anew"),
            begun.elapsed(),
        );
        scene.wait_for_allocatable(node, "example.com/fuse", 1)?;
        ensure!(
            container_ids(&scene.wait_for_running_pod(&pod)?) == before,
            "the container of {pod:?} was started anew"
        );
    }
    scene
        .wait_for_condition("fuse", "Ready", "True", "Complete")
        .map(|_| ())
}

pub fn pod_deleted_while_its_kubelet_is_down_leaves_its_device(scene: &Scene) -> Result<()> {
    const CONFIG: &str = "freed";
    install(scene, CONFIG, &simulated(CONFIG, 2), 2)?;
    for node in NODES {
        let pod = format!("freed-{node}");
        start(scene, &pod, node, &[], &[container("one", CONFIG, 1)])?;
        let running = scene.wait_for_running_pod(&pod)?;
        scene.node(node)?.stop_kubelet()?;
        scene
            .api
            .delete(&format!("{}/{pod}?gracePeriodSeconds=0", path::PODS))?;
        scene.node(node)?.start_kubelet()?;
        // Before it knows the API server's pods, a kubelet takes no device back.
        wait_until("the end of the deleted pod's container", PATIENCE, || {
            let left = pids_in_pod(uid(&running)?, "sleep")?;
            Ok(left.is_empty().then_some(()))
        })?;
        wait_for_devices(scene, node, &resource(CONFIG), 2)?;
        scene.wait_for_allocatable(node, &resource(CONFIG), 2)?;
        let all = format!("all-{node}");
        start(scene, &all, node, &[], &[container("all", CONFIG, 2)])?;
        scene.wait_for_running_pod(&all)?;
        let held = held_devices(scene.node(node)?, &all, &resource(CONFIG))?;
        ensure!(
            held.get("all").is_some_and(|ids| ids.len() == 2),
            "{held:?}"
        );
    }
    for node in NODES {
        scene.delete_pod(&format!("all-{node}"))?;
    }
    scene.delete_config(CONFIG)
}

/// The config whose resource is looked at again long after its end.
pub const SHARED: &str = "shared";

pub fn sidecar_has_the_device_of_an_init_container(scene: &Scene) -> Result<()> {
    install(scene, SHARED, &simulated(SHARED, 3), 3)?;
    let mut init = container("init", SHARED, 1);
    init["command"] = json!(["sh", "-c", "echo $DEVICES"]);
    let mut sidecar = container("sidecar", SHARED, 1);
    sidecar["restartPolicy"] = json!("Always");
    let (before, with) = ([init, sidecar], [container("app", SHARED, 1)]);
    for node in NODES {
        let pod = format!("shared-{node}");
        start(scene, &pod, node, &before, &with)?;
    }
    for node in NODES {
        let pod = format!("shared-{node}");
        scene.wait_for_running_pod(&pod)?;
        // The kubelet lists no ordinary init containers.
        let held = held_devices(scene.node(node)?, &pod, &resource(SHARED))?;
        let containers: Vec<_> = held.keys().map(String::as_str).collect();
        ensure!(containers == ["app", "sidecar"], "{held:?}");
        let of_init = scene.cluster.kubectl(&["logs", &pod, "-c", "init"])?;
        let of_init = of_init.trim();
        ensure!(
            held["sidecar"] == [of_init] && held["app"].len() == 1 && held["app"] != [of_init],
            "init had {of_init:?}: {held:?}"
        );
    }
    for node in NODES {
        scene.delete_pod(&format!("shared-{node}"))?;
    }
    scene.delete_config(SHARED)
}

pub fn illness_of_a_held_device_is_in_its_pods_status(scene: &Scene) -> Result<()> {
    const CONFIG: &str = "ill";
    for node in NODES {
        scene.node(node)?.make_device("ill0", ZERO.0, ZERO.1)?;
    }
    let paths = json!({"paths": {"globs": ["/dev/dpo-test/ill*"]}});
    install(scene, CONFIG, &config(CONFIG, &paths), 1)?;
    for node in NODES {
        let pod = format!("ill-{node}");
        start(scene, &pod, node, &[], &[container("one", CONFIG, 1)])?;
        wait_for_health(scene, node, &pod, "Healthy")?;
    }
    for node in NODES {
        scene.node(node)?.remove_device("ill0")?;
    }
    for node in NODES {
        wait_for_health(scene, node, &format!("ill-{node}"), "Unhealthy")?;
        scene.node(node)?.make_device("ill0", ZERO.0, ZERO.1)?;
    }
    for node in NODES {
        let pod = format!("ill-{node}");
        wait_for_health(scene, node, &pod, "Healthy")?;
        scene.delete_pod(&pod)?;
        scene.node(node)?.remove_device("ill0")?;
    }
    scene.delete_config(CONFIG)
}

/// Waits until the status of a running pod tells the health of the device that it holds.
fn wait_for_health(scene: &Scene, node: &str, pod: &str, health: &str) -> Result<()> {
    let resource = resource("ill");
    wait_until(
        &format!("{health} in the status of {pod:?}"),
        PATIENCE,
        || {
            let held = held_devices(scene.node(node)?, pod, &resource)?;
            let seen = scene.wait_for_running_pod(pod)?;
            let statuses = seen.status.and_then(|status| status.container_statuses);
            let told: Vec<_> = statuses
                .into_iter()
                .flatten()
                .flat_map(|container| container.allocated_resources_status.unwrap_or_default())
                .flat_map(|entry| entry.resources.unwrap_or_default())
                .map(|device| (device.resource_id, device.health.unwrap_or_default()))
                .collect();
            let expected: Vec<_> = held
                .into_values()
                .flatten()
                .map(|id| (id, health.to_owned()))
                .collect();
            ensure!(told == expected && !told.is_empty(), "it tells {told:?}");
            Ok(Some(()))
        },
    )
}

pub fn reboot_ends_pods_that_held_devices_and_brings_the_resource_back(
    scene: &Scene,
) -> Result<()> {
    for node in NODES {
        scene.node(node)?.stop()?;
    }
    for node in NODES {
        scene.node(node)?.start()?;
    }
    for node in NODES {
        let pod = format!("fuse-{node}");
        wait_until(&format!("the end of pod {pod:?} told"), PATIENCE, || {
            let status = scene.api.pod(&pod)?.status.unwrap_or_default();
            let seen = (status.phase.as_deref(), status.reason.as_deref());
            ensure!(
                seen == (Some("Failed"), Some("UnexpectedAdmissionError")),
                "{seen:?}: {:?}",
                status.message
            );
            Ok(Some(()))
        })?;
    }
    for node in NODES {
        wait_for_devices(scene, node, "example.com/fuse", 1)?;
        scene.wait_for_allocatable(node, "example.com/fuse", 1)?;
        let pod = format!("fuse-{node}");
        scene.delete_pod(&pod)?;
        scene.start_pod(&pod, node, "example.com/fuse", OPEN_FUSE)?;
        scene.wait_for_running_pod(&pod)?;
    }
    scene
        .wait_for_condition("fuse", "Ready", "True", "Complete")
        .map(|_| ())
}
