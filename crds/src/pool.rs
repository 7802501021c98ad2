//! `DevicePluginPool`: a named set of nodes that configs select by the pool's labels.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selector::LabelSelector;

/// The nodes of a pool.
#[derive(
    Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize,
)]
#[kube(
    group = "deviceplugins.dev",
    version = "v1alpha1",
    kind = "DevicePluginPool",
    plural = "devicepluginpools",
    shortname = "dpp",
    category = "device-plugins",
    status = "DevicePluginPoolStatus",
    derive = "PartialEq",
    doc = "DevicePluginPool is a named set of nodes. A DevicePluginConfig selects pools by their labels with machineConfigPoolSelector, as a KubeletConfig selects MachineConfigPools.",
    validation = Rule::new("size(self.metadata.name) <= 63")
        .message(Message::Expression("'metadata.name \"' + self.metadata.name + '\" must have at most 63 characters: it becomes part of a label'".into())),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodeCount", description = "Nodes in the pool"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyNodeCount", description = "Nodes on which every config of the pool serves"),
    printcolumn(name = "Configs", type_ = "string", json_path = ".status.configs", description = "Configs that select this pool"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DevicePluginPoolSpec {
    /// Selects the pool's nodes by their labels. Left out or empty selects NOTHING.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
}

/// What the operator reports about a pool.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePluginPoolStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes in the pool.
    #[serde(default)]
    pub node_count: i32,
    /// Nodes in the pool on which every config that selects the pool serves all its resources.
    #[serde(default)]
    pub ready_node_count: i32,
    /// Names of the configs that select this pool, the first 32 in alphabetical order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub configs: Vec<String>,
}
