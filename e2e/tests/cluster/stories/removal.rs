//! What is left behind: nothing.

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::Cluster;
use e2e::product::{NAMESPACE, RELEASE};
use e2e::progress::Progress;
use serde_json::Value;

use super::change::node_keys;
use crate::api::{path, wait_until};
use crate::scene::{PATIENCE, Scene};

pub fn uninstall_is_refused_while_configs_exist(scene: &Scene) -> Result<()> {
    let refusal = match scene
        .cluster
        .helm(&["uninstall", RELEASE, "--namespace", NAMESPACE])
    {
        Ok(said) => bail!("uninstalled over a config: {said}"),
        Err(error) => format!("{error:#}"),
    };
    for word in ["fuse", "kubectl delete devicepluginconfigs", "--no-hooks"] {
        ensure!(refusal.contains(word), "no {word:?} in: {refusal}");
    }
    // Refused means that everything still works.
    scene.wait_for_condition("fuse", "Ready", "True", "Complete")?;
    ensure!(!scene.api.agent_pods("fuse")?.is_empty(), "agents are gone");
    let deployment =
        format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/device-plugin-operator");
    scene.api.get::<Value>(&deployment).map(|_| ())
}

pub fn deleted_config_leaves_nothing(scene: &Scene) -> Result<()> {
    for node in ["n1", "n2"] {
        scene.delete_pod(&format!("fuse-{node}"))?;
    }
    scene.delete_config("fuse")?;
    wait_until(
        "the end of everything made for the config",
        PATIENCE,
        || {
            for kind in [
                "apis/apps/v1/daemonsets",
                "apis/apps/v1/controllerrevisions",
                "api/v1/configmaps",
                "api/v1/pods",
            ] {
                let (group, plural) = kind.rsplit_once('/').context("group and plural")?;
                let left = scene.api.items(&format!(
                    "/{group}/namespaces/{NAMESPACE}/{plural}?labelSelector={}",
                    crds::names::CONFIG_LABEL
                ))?;
                ensure!(left.is_empty(), "{} of {plural} left", left.len());
            }
            let objects = scene.api.items(path::NODE_OBJECTS)?;
            ensure!(objects.is_empty(), "{} node objects left", objects.len());
            Ok(Some(()))
        },
    )?;
    for node in ["n1", "n2"] {
        let ours: Vec<String> = node_keys(scene, node)?
            .into_keys()
            .filter(|key| key.contains("deviceplugins"))
            .collect();
        ensure!(ours.is_empty(), "{node} still carries {ours:?}");
    }
    Ok(())
}

pub fn uninstalled_chart_leaves_only_the_crds(scene: &Scene) -> Result<()> {
    scene
        .cluster
        .helm(&["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"])?;
    // Helm does not wait for pods that their Deployment's end deletes.
    wait_until("the end of everything in the namespace", PATIENCE, || {
        let kinds = "all,configmaps,serviceaccounts,roles,rolebindings";
        let left = scene
            .cluster
            .kubectl(&["get", kinds, "-n", NAMESPACE, "-o", "name"])?;
        let ours: Vec<&str> = left
            .lines()
            .filter(|name| name.contains("device-plugin"))
            .collect();
        ensure!(ours.is_empty(), "left in the namespace: {ours:?}");
        Ok(Some(()))
    })?;
    let kinds = "clusterroles,clusterrolebindings,roles,rolebindings";
    let everywhere = scene.cluster.kubectl(&["get", kinds, "-A", "-o", "name"])?;
    ensure!(
        !everywhere.contains("device-plugin"),
        "left in the cluster: {everywhere}"
    );
    let definitions = scene.cluster.kubectl(&["get", "crds", "-o", "name"])?;
    ensure!(
        definitions.contains("devicepluginconfigs.deviceplugins.dev"),
        "the definitions were not kept: {definitions}"
    );
    Ok(())
}

/// Ends the cluster and looks for what it left on the machine.
pub fn tear_down() -> Result<()> {
    Cluster::down(&Progress::to_stderr())?;
    let mut left = Vec::new();
    for line in std::fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter(|line| line.contains("dpo-cluster"))
    {
        left.push(format!("mount {line}"));
    }
    for entry in std::fs::read_dir("/sys/class/net")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("dpo") {
            left.push(format!("link {name}"));
        }
    }
    for controller in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let groups = std::fs::read_dir(controller.path())
            .into_iter()
            .flatten()
            .flatten();
        left.extend(
            groups
                .map(|group| group.path())
                .filter(|group| group.to_string_lossy().contains("/dpo-"))
                .map(|group| format!("cgroup {}", group.display())),
        );
    }
    for process in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        if command.contains("/dpo-cluster/") {
            left.push(format!(
                "process {} {}",
                process.file_name().to_string_lossy(),
                command.replace('\0', " ")
            ));
        }
    }
    ensure!(left.is_empty(), "{}", left.join("; "));
    Ok(())
}
