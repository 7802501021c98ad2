//! Devices that come, go, and are not what they seem.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use crds::node::{DeviceReport, Health};
use serde_json::json;

use crate::api::wait_until;
use crate::scene::{PATIENCE, Scene};

/// Numbers of `/dev/null` and `/dev/mem`.
const NULL: (u32, u32) = (1, 3);
const MEM: (u32, u32) = (1, 1);

/// One device for each `/dev/dpo-test/card*`; the stories of this file share it.
pub fn cards() -> String {
    json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": "cards"},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
            "resources": [{
                "name": "example.com/card",
                "discovery": {"paths": {"globs": ["/dev/dpo-test/card*"]}},
            }],
        },
    })
    .to_string()
}

pub fn device_that_vanishes_and_returns_is_told(scene: &Scene) -> Result<()> {
    let node = scene.node("n1")?;
    node.make_device("card0", NULL.0, NULL.1)?;
    node.make_device("card1", NULL.0, NULL.1)?;
    scene.apply(&cards())?;
    scene.wait_for_condition("cards", "Ready", "True", "Complete")?;
    scene.wait_for_allocatable("n1", "example.com/card", 2)?;
    scene.wait_for_allocatable("n2", "example.com/card", 0)?;

    node.remove_device("card1")?;
    scene.wait_for_allocatable("n1", "example.com/card", 1)?;
    let gone = wait_for_health(scene, "/dev/dpo-test/card1", Health::Unhealthy)?;
    ensure!(
        !gone.reason.is_empty() && gone.last_transition_time.is_some(),
        "{gone:?}"
    );
    let message = scene.wait_for_condition("cards", "Degraded", "True", "DevicesUnhealthy")?;
    ensure!(
        message.contains("n1") && message.contains("example.com/card"),
        "{message}"
    );

    node.make_device("card1", NULL.0, NULL.1)?;
    scene.wait_for_allocatable("n1", "example.com/card", 2)?;
    let back = wait_for_health(scene, "/dev/dpo-test/card1", Health::Healthy)?;
    ensure!(
        back.id == gone.id,
        "the id changed from {:?} to {:?}",
        gone.id,
        back.id
    );
    scene
        .wait_for_condition("cards", "Degraded", "False", "AsExpected")
        .map(|_| ())
}

pub fn device_that_appears_is_advertised(scene: &Scene) -> Result<()> {
    let registrations = |scene: &Scene| -> Result<i32> {
        let report = scene
            .node_object("cards", "n2")?
            .status
            .and_then(|s| s.active)
            .context("a report")?;
        Ok(report
            .resources
            .iter()
            .map(|resource| resource.registrations)
            .sum())
    };
    let before = registrations(scene)?;
    scene.node("n2")?.make_device("card7", NULL.0, NULL.1)?;
    scene.wait_for_allocatable("n2", "example.com/card", 1)?;
    ensure!(
        registrations(scene)? == before,
        "the resource was registered anew for a new device"
    );
    Ok(())
}

pub fn dangerous_devices_are_refused(scene: &Scene) -> Result<()> {
    scene.node("n1")?.make_device("card9", MEM.0, MEM.1)?;
    let message = wait_until(
        "the refusal of /dev/mem under another name",
        PATIENCE,
        || {
            let report = scene
                .node_object("cards", "n1")?
                .status
                .and_then(|s| s.active)
                .context("a report")?;
            Ok(report
                .resources
                .into_iter()
                .map(|r| r.message)
                .find(|message| message.contains("card9")))
        },
    )?;
    ensure!(message.contains("/dev/mem"), "{message}");
    scene.wait_for_allocatable("n1", "example.com/card", 2)?;
    scene.node("n1")?.remove_device("card9")?;
    scene.delete_config("cards")
}

pub fn simulated_devices_reach_a_container(scene: &Scene) -> Result<()> {
    let config = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": "simulated"},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n2"}},
            "resources": [{
                "name": "example.com/sim",
                "discovery": {"simulated": {"count": 4, "unhealthy": [3]}},
                "container": {"env": [{"name": "SIM", "value": "ids=$(DEVICE_IDS)"}]},
            }],
        },
    });
    scene.apply(&config.to_string())?;
    scene.wait_for_condition("simulated", "Ready", "True", "Complete")?;
    scene.wait_for_allocatable("n2", "example.com/sim", 3)?;
    ensure!(
        scene.api.allocatable("n1", "example.com/sim")?.is_none(),
        "n1 is not selected"
    );
    scene.start_pod(
        "simulated",
        "n2",
        "example.com/sim",
        "echo $SIM; exec sleep 3600",
    )?;
    scene.wait_for_running_pod("simulated")?;
    wait_until("the ids in the container's environment", PATIENCE, || {
        let logs = scene.cluster.kubectl(&["logs", "simulated"])?;
        ensure!(logs.starts_with("ids=sim-"), "logs: {logs}");
        Ok(Some(()))
    })?;
    scene.delete_pod("simulated")?;
    scene.delete_config("simulated")
}

/// Devices that nearly every machine has, one found by what the kernel's own sysfs says of it. The first
/// config has `/dev/fuse`.
pub fn real_devices_are_opened_in_containers(scene: &Scene) -> Result<()> {
    let mut devices = vec![(
        "tun",
        "/dev/net/tun",
        json!({"udev": {"subsystem": "misc", "attributes": {"dev": "10:200"}}}),
    )];
    // Machines without virtualisation have none; nodes have what their machine has.
    if Path::new("/dev/kvm").exists() {
        devices.push(("kvm", "/dev/kvm", json!({"paths": {"globs": ["/dev/kvm"]}})));
    }
    let resources = devices.iter().map(|(name, _, discovery)| {
        json!({"name": format!("example.com/{name}"), "discovery": discovery})
    });
    let config = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": "real"},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
            "resources": resources.collect::<Vec<_>>(),
        },
    });
    scene.apply(&config.to_string())?;
    scene.wait_for_condition("real", "Ready", "True", "Complete")?;
    let mut pods = Vec::new();
    for (name, path, _) in &devices {
        for node in ["n1", "n2"] {
            let (pod, resource) = (format!("real-{name}-{node}"), format!("example.com/{name}"));
            scene.wait_for_allocatable(node, &resource, 1)?;
            let script = format!("exec 3<>{path} && echo opened {path} && exec sleep 3600");
            scene.start_pod(&pod, node, &resource, &script)?;
            pods.push((pod, format!("opened {path}\n")));
        }
    }
    for (pod, said) in &pods {
        scene.wait_for_running_pod(pod)?;
        wait_until(&format!("what {pod:?} says"), PATIENCE, || {
            let logs = scene.cluster.kubectl(&["logs", pod])?;
            ensure!(logs == *said, "logs: {logs}");
            Ok(Some(()))
        })?;
        scene.delete_pod(pod)?;
    }
    scene.delete_config("real")
}

fn wait_for_health(scene: &Scene, path: &str, health: Health) -> Result<DeviceReport> {
    wait_until(
        &format!("{path} being {health:?} on the object"),
        PATIENCE,
        || {
            let report = scene
                .node_object("cards", "n1")?
                .status
                .and_then(|s| s.active)
                .context("a report")?;
            let device = report
                .devices
                .into_iter()
                .find(|device| device.paths.iter().any(|p| p == path));
            Ok(device.filter(|device| device.health == health))
        },
    )
}
