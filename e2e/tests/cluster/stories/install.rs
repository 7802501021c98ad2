//! From `helm install` to a container that opens its device.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::product::{self, NAMESPACE};
use serde_json::Value;

use crate::api::{measured, path, wait_until};
use crate::audit;
use crate::scene::{PATIENCE, Scene};

/// What the container does with its device: list it, open it for reading and writing, and stay.
pub const OPEN_FUSE: &str =
    "ls -l /dev/fuse && exec 3<>/dev/fuse && echo opened && exec sleep 3600";

pub fn operator_without_its_crds_says_so_and_recovers(scene: &Scene) -> Result<()> {
    scene.helm_upgrade(&["crds.enabled=false"])?;
    wait_until(
        "the operator naming the missing definitions",
        PATIENCE,
        || {
            let logs = scene.cluster.kubectl(&[
                "logs",
                "-n",
                NAMESPACE,
                "deployment/device-plugin-operator",
            ])?;
            ensure!(logs.contains("CustomResourceDefinition"), "logs: {logs}");
            Ok(Some(()))
        },
    )?;
    let deployment =
        format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/device-plugin-operator");
    let available = |want: bool| {
        wait_until(
            &format!("availability {want} of the operator"),
            PATIENCE,
            || {
                let seen: Value = scene.api.get(&deployment)?;
                let ready = seen
                    .pointer("/status/readyReplicas")
                    .and_then(Value::as_i64)
                    .unwrap_or_default();
                Ok(((ready > 0) == want).then_some(()))
            },
        )
    };
    available(false)?;
    scene.helm_upgrade(&["crds.enabled=true"])?;
    available(true)
}

pub fn applied_config_puts_a_device_into_a_pod(scene: &Scene) -> Result<()> {
    let example = product::checkout().join("examples/fuse.yaml");
    let example = example.to_str().context("a path in UTF-8")?;
    let begun = Instant::now();
    scene.cluster.kubectl(&["apply", "-f", example])?;
    scene
        .cluster
        .kubectl(&["wait", "--for=condition=Ready", "dpc/fuse", "--timeout=60s"])?;
    for node in ["n1", "n2"] {
        scene.wait_for_allocatable(node, "example.com/fuse", 1)?;
        let pod = format!("fuse-{node}");
        scene.start_pod(&pod, node, "example.com/fuse", OPEN_FUSE)?;
        scene.wait_for_running_pod(&pod)?;
        wait_until(
            &format!("pod {pod:?} having opened its device"),
            PATIENCE,
            || {
                let logs = scene.cluster.kubectl(&["logs", &pod])?;
                ensure!(logs.contains("opened"), "logs: {logs}");
                ensure!(logs.starts_with("crw"), "not a character device: {logs}");
                Ok(Some(()))
            },
        )?;
    }
    measured(
        "apply of the config → a pod on each node has opened its device",
        begun.elapsed(),
    );
    wait_until("allocated devices on the object", PATIENCE, || {
        let devices = scene.config("fuse")?.status.unwrap_or_default().devices;
        Ok(((devices.total, devices.healthy, devices.allocated) == (2, 2, 2)).then_some(()))
    })
}

pub fn columns_tell_the_story(scene: &Scene) -> Result<()> {
    let table = scene.cluster.kubectl(&["get", "devicepluginconfigs"])?;
    let words = |line: usize| -> Vec<String> {
        table
            .lines()
            .nth(line)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let heads = [
        "NAME", "NODES", "UPDATED", "READY", "FAILED", "DEVICES", "STATUS", "REVISION", "AGE",
    ];
    ensure!(words(0) == heads, "{table}");
    let row = words(1);
    ensure!(
        row.get(..7).unwrap_or_default() == ["fuse", "2", "2", "2", "0", "2/2", "Complete"],
        "{table}"
    );
    let revision = row.get(7).map(String::as_str).unwrap_or_default();
    ensure!(
        revision.len() == 10 && revision.chars().all(|c| c.is_ascii_hexdigit()),
        "{table}"
    );
    let nodes = scene.cluster.kubectl(&["get", "dpn"])?;
    for node in ["n1", "n2"] {
        let row: Vec<&str> = nodes
            .lines()
            .find(|line| line.starts_with(&format!("fuse.{node} ")))
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        ensure!(
            row.get(1..7).unwrap_or_default() == ["fuse", node, revision, "1/1", "1", "1"],
            "{nodes}"
        );
    }
    Ok(())
}

pub fn every_field_is_explained(scene: &Scene) -> Result<()> {
    for (field, words) in [
        ("devicepluginconfigs", "DevicePluginConfig says which nodes"),
        (
            "devicepluginconfigs.spec.resources.discovery",
            "Exactly one member",
        ),
        (
            "devicepluginconfigs.spec.labelLossGraceSeconds",
            "default 300",
        ),
        ("devicepluginconfigs.spec.agent.logLevel", "`debug`"),
        ("devicepluginnodes.status.active.resources", "one"),
        ("devicepluginpools.spec.nodeSelector", "selects NOTHING"),
    ] {
        let text = scene.cluster.kubectl(&["explain", field])?;
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(
            flat.to_lowercase().contains(&words.to_lowercase()),
            "{field}: no {words:?} in {text}"
        );
    }
    Ok(())
}

pub fn every_example_is_accepted(scene: &Scene) -> Result<()> {
    for entry in std::fs::read_dir(product::checkout().join("examples"))? {
        let example = entry?.path();
        if example
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let example = example.to_str().context("a path in UTF-8")?;
            scene
                .cluster
                .kubectl(&["apply", "--dry-run=server", "-f", example])?;
        }
    }
    Ok(())
}

pub fn converged_cluster_is_not_written_to(scene: &Scene) -> Result<()> {
    let log = scene.cluster.audit_log_path();
    let users = format!("system:serviceaccount:{NAMESPACE}:");
    // Converged means: one quiet window. The first may still see the echo of the story before.
    let quiet = Duration::from_secs(25);
    wait_until("a window without writes", PATIENCE * 3, || {
        let mark = audit::mark(&log)?;
        std::thread::sleep(quiet);
        let writes = audit::writes_since(&log, mark, &users)?;
        ensure!(writes.is_empty(), "writes in {quiet:?}: {writes:?}");
        Ok(Some(()))
    })?;
    // The log is alive: a write of our own shows.
    let mark = audit::mark(&log)?;
    scene.api.patch(
        &format!("{}/n1", path::NODES),
        &serde_json::json!({"metadata": {"labels": {"story": "quiet"}}}),
    )?;
    scene.api.patch(
        &format!("{}/n1", path::NODES),
        &serde_json::json!({"metadata": {"labels": {"story": null}}}),
    )?;
    wait_until("our own writes in the audit log", PATIENCE, || {
        let writes = audit::writes_since(&log, mark, "admin")?;
        Ok((writes.get("patch nodes/ n1") == Some(&2)).then_some(()))
    })
}
