//! What a user changes while it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::product;
use serde_json::{Value, json};

use crate::api::{holds_for, path, wait_until};
use crate::scene::{PATIENCE, Scene, container_ids};

pub fn removed_resource_waits_and_touches_no_node(scene: &Scene) -> Result<()> {
    let fuse = format!("{}/fuse", path::CONFIGS);
    let stable = scene
        .config("fuse")?
        .status
        .and_then(|s| s.stable_revision)
        .context("a stable revision")?;
    let before = footprint(scene)?;
    let pods = container_ids(&scene.api.pod("fuse-n1")?);
    let original: Value = scene.api.get(&fuse)?;

    let mut resources = original["spec"]["resources"].clone();
    resources[0]["name"] = json!("example.com/renamed");
    scene
        .api
        .patch(&fuse, &json!({"spec": {"resources": resources}}))?;
    let message = scene.wait_for_condition("fuse", "Progressing", "False", "Blocked")?;
    ensure!(message.contains("example.com/fuse"), "{message}");
    let status = scene.config("fuse")?.status.unwrap_or_default();
    ensure!(
        status.stable_revision.as_deref() == Some(stable.as_str()),
        "stable moved to {:?}",
        status.stable_revision
    );
    ensure!(
        status.target_revision != status.stable_revision,
        "the target did not move"
    );
    ensure!(
        (
            status.nodes.desired,
            status.nodes.updated,
            status.nodes.ready
        ) == (2, 0, 2),
        "{:?}",
        status.nodes
    );
    scene.wait_for_condition("fuse", "Ready", "False", "Blocked")?;
    holds_for(
        "the footprint on nodes and agents",
        Duration::from_secs(5),
        || {
            let now = footprint(scene)?;
            ensure!(now == before, "it changed from {before:?} to {now:?}");
            Ok(())
        },
    )?;
    ensure!(
        container_ids(&scene.api.pod("fuse-n1")?) == pods,
        "a user's pod was touched"
    );

    // The old content again is the old revision again.
    scene.api.patch(
        &fuse,
        &json!({"spec": {"resources": original["spec"]["resources"]}}),
    )?;
    scene.wait_for_condition("fuse", "Ready", "True", "Complete")?;
    ensure!(footprint(scene)? == before, "going back touched something");

    // The log level is handed to running agents, and is no new revision.
    scene
        .api
        .patch(&fuse, &json!({"spec": {"agent": {"logLevel": "debug"}}}))?;
    wait_until("the log level on the node's object", PATIENCE, || {
        Ok((scene.node_object("fuse", "n1")?.spec.log_level
            == Some(crds::placement::LogLevel::Debug))
        .then_some(()))
    })?;
    wait_until("a line of that level in the agent's log", PATIENCE, || {
        let agent = scene
            .api
            .agent_pods("fuse")?
            .into_iter()
            .find_map(|pod| pod.metadata.name)
            .context("an agent")?;
        let logs = scene
            .cluster
            .kubectl(&["logs", "-n", product::NAMESPACE, &agent])?;
        Ok(logs.contains("\"level\":\"DEBUG\"").then_some(()))
    })?;
    scene.api.patch(&fuse, &json!({"spec": {"agent": null}}))?;
    scene.wait_for_condition("fuse", "Ready", "True", "Complete")?;
    ensure!(
        footprint(scene)? == before,
        "a log level restarted something"
    );
    Ok(())
}

pub fn nodes_come_and_go_with_their_labels(scene: &Scene) -> Result<()> {
    let config = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": "labelled"},
        "spec": {
            "nodeSelector": {"matchExpressions": [{"key": "story/labelled", "operator": "Exists"}]},
            "labelLossGraceSeconds": 8,
            "resources": [{"name": "example.com/labelled", "discovery": {"simulated": {"count": 2}}}],
        },
    });
    scene.apply(&config.to_string())?;
    scene.wait_for_condition("labelled", "Ready", "True", "NoMatchingNodes")?;
    label(scene, "n2", json!("yes"))?;
    scene.wait_for_allocatable("n2", "example.com/labelled", 2)?;
    scene.wait_for_condition("labelled", "Ready", "True", "Complete")?;

    // A label that is lost for less than the grace takes nothing away.
    label(scene, "n2", Value::Null)?;
    wait_until("the loss noted on the node's object", PATIENCE, || {
        Ok(scene
            .node_object("labelled", "n2")?
            .spec
            .unmatched_since
            .map(|_| ()))
    })?;
    let agents = footprint_of(scene, "labelled")?;
    label(scene, "n2", json!("again"))?;
    wait_until("the loss forgotten", PATIENCE, || {
        Ok(scene
            .node_object("labelled", "n2")?
            .spec
            .unmatched_since
            .is_none()
            .then_some(()))
    })?;
    ensure!(
        footprint_of(scene, "labelled")? == agents,
        "a flap of a label moved something"
    );

    // One that stays away ends the agent.
    label(scene, "n2", Value::Null)?;
    wait_until("the end of the agent on n2", PATIENCE, || {
        let objects = scene
            .api
            .find::<Value>(&format!("{}/labelled.n2", path::NODE_OBJECTS))?;
        Ok((scene.api.agent_pods("labelled")?.is_empty() && objects.is_none()).then_some(()))
    })?;
    ensure!(
        !node_keys(scene, "n2")?.contains_key(&crds::names::node_revision_label("labelled")),
        "the label stayed"
    );
    scene.wait_for_allocatable("n2", "example.com/labelled", 0)?;
    scene.delete_config("labelled")
}

pub fn pools_select_nodes(scene: &Scene) -> Result<()> {
    let pool = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginPool",
        "metadata": {"name": "first", "labels": {"story": "pools"}},
        "spec": {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n1"}}},
    });
    let config = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": "pooled"},
        "spec": {
            "machineConfigPoolSelector": {"matchLabels": {"story": "pools"}},
            "resources": [{"name": "example.com/pooled", "discovery": {"simulated": {"count": 1}}}],
        },
    });
    scene.apply(&config.to_string())?;
    scene.wait_for_condition("pooled", "Accepted", "False", "NoMatchingPools")?;
    scene.apply(&pool.to_string())?;
    scene.wait_for_allocatable("n1", "example.com/pooled", 1)?;
    scene.wait_for_condition("pooled", "Ready", "True", "Complete")?;
    ensure!(
        scene.api.allocatable("n2", "example.com/pooled")?.is_none(),
        "n2 is not in the pool"
    );
    wait_until("the pool's status", PATIENCE, || {
        let pool: crds::DevicePluginPool = scene.api.get(&format!("{}/first", path::POOLS))?;
        let status = pool.status.unwrap_or_default();
        ensure!(
            (status.node_count, status.ready_node_count) == (1, 1) && status.configs == ["pooled"],
            "{status:?}"
        );
        Ok(Some(()))
    })?;
    scene.delete_config("pooled")?;
    scene.api.delete(&format!("{}/first", path::POOLS))
}

fn label(scene: &Scene, node: &str, value: Value) -> Result<()> {
    scene.api.patch(
        &format!("{}/{node}", path::NODES),
        &json!({"metadata": {"labels": {"story/labelled": value}}}),
    )
}

/// Labels and annotations of a node.
pub fn node_keys(scene: &Scene, node: &str) -> Result<BTreeMap<String, String>> {
    let node: k8s_openapi::api::core::v1::Node =
        scene.api.get(&format!("{}/{node}", path::NODES))?;
    let mut keys = node.metadata.labels.unwrap_or_default();
    keys.extend(node.metadata.annotations.unwrap_or_default());
    Ok(keys)
}

fn footprint(scene: &Scene) -> Result<BTreeMap<String, String>> {
    footprint_of(scene, "fuse")
}

/// Everything of a config that a node or an agent would notice a change of.
fn footprint_of(scene: &Scene, config: &str) -> Result<BTreeMap<String, String>> {
    let mut seen = BTreeMap::new();
    for set in scene.api.items(&format!(
        "/apis/apps/v1/daemonsets?labelSelector={}={config}",
        crds::names::CONFIG_LABEL
    ))? {
        seen.insert(
            format!("daemonset {}", set["metadata"]["name"]),
            set["metadata"]["generation"].to_string(),
        );
    }
    for pod in scene.api.agent_pods(config)? {
        seen.insert(
            format!("pod {:?}", pod.metadata.uid),
            container_ids(&pod).join(","),
        );
    }
    for node in ["n1", "n2"] {
        let label = crds::names::node_revision_label(config);
        seen.insert(
            format!("label of {node}"),
            node_keys(scene, node)?.remove(&label).unwrap_or_default(),
        );
    }
    Ok(seen)
}
