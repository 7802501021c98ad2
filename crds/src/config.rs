//! `DevicePluginConfig`: what a user asks for, and the whole story of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hooks::Hooks;
use crate::placement::AgentSettings;
use crate::resource::Resource;
use crate::rollout::RolloutSettings;
use crate::selector::LabelSelector;

/// Which nodes serve which devices as which extended resources.
#[derive(
    Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize,
)]
#[kube(
    group = "deviceplugins.dev",
    version = "v1alpha1",
    kind = "DevicePluginConfig",
    plural = "devicepluginconfigs",
    shortname = "dpc",
    category = "device-plugins",
    status = "DevicePluginConfigStatus",
    derive = "PartialEq",
    doc = "DevicePluginConfig says which nodes serve which of their devices as extended resources that pods can ask for. The operator runs a node agent on each selected node, which registers the devices at the kubelet, and tells here how that goes.",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?$')")
        .message(Message::Expression("'metadata.name \"' + self.metadata.name + '\" must be a DNS label of at most 50 characters (a-z, 0-9 and -, starting and ending with a letter or digit): it becomes part of a node label'".into())),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.desired", description = "Selected nodes"),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.nodes.updated", description = "Nodes that serve the target revision"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodes.ready", description = "Nodes whose agent serves every resource"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.nodes.failed", description = "Nodes whose agent fails"),
    printcolumn(name = "Devices", type_ = "string", json_path = ".status.devices.text", description = "Healthy and all advertised devices"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Progressing\")].reason", description = "Where the rollout stands"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.targetRevision", description = "The revision that the spec asks for"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.summary", priority = 1, description = "What happens or is waited for"),
    printcolumn(name = "Paused", type_ = "boolean", json_path = ".spec.rollout.paused", priority = 1, description = "Whether no further node is changed"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".status.stableRevision", priority = 1, description = "The revision that nodes run unless they are being changed")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.nodeSelector) && has(self.machineConfigPoolSelector))")
        .message("at most one of nodeSelector and machineConfigPoolSelector may be given"),
    validation = Rule::new("!(has(self.hooks) && has(self.hooks.reset)) || self.resources.all(r, !has(r.replicas) || r.replicas == 1)")
        .message("hooks.reset and replicas above 1 do not go together: it would reset a device under the containers that share it; leave one of them out"),
    validation = Rule::new("(has(self.hooks) && has(self.hooks.toolsImage)) || self.resources.all(r, !has(r.healthCheck) || !has(r.healthCheck.command))")
        .message("a healthCheck of type Exec runs a program of the tools image: hooks.toolsImage must be given")
)]
pub struct DevicePluginConfigSpec {
    /// Selects nodes by their labels. Left out or empty selects NOTHING. At most one of
    /// `nodeSelector` and `machineConfigPoolSelector` may be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Selects nodes by pools, as a KubeletConfig does: matches the labels of DevicePluginPool
    /// objects; the nodes of all matching pools are selected. Left out or empty selects NOTHING.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_config_pool_selector: Option<LabelSelector>,
    /// How long a node that no longer matches keeps its agent, in seconds: feature discovery takes
    /// labels away for moments when it restarts. 0 to 86400, default 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub label_loss_grace_seconds: Option<i32>,
    /// The resources to serve, 1 to 32, each name once.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub resources: Vec<Resource>,
    /// What is done to the devices beside listing them. Left out: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Settings of the agent's pods. Left out: the product's defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentSettings>,
    /// How changes of `resources`, `hooks` and `agent` spread over the nodes. Left out: one node after the
    /// other, each judged before the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSettings>,
}

/// Grace for nodes that stop matching where `labelLossGraceSeconds` is left out, in seconds: a
/// restart of node feature discovery takes its labels away for up to a minute or two; much more
/// would keep agents on nodes that were taken out on purpose.
pub const DEFAULT_LABEL_LOSS_GRACE_SECONDS: i32 = 300;

/// What the operator reports. Bounded: no list grows with the number of nodes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePluginConfigStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The revision that nodes run unless they are being changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,
    /// The revision that the spec asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_revision: Option<String>,
    /// How many nodes are where.
    #[serde(default)]
    pub nodes: NodeCounts,
    /// Devices over all nodes.
    #[serde(default)]
    pub devices: DeviceCounts,
    /// Devices over all nodes, by resource.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub resources: Vec<ResourceCounts>,
    /// The change that is under way; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// The operator's default agent image where it differs from the one that is rolled out; empty
    /// otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_update: String,
    /// One sentence: what happens now, or what is waited for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// `Accepted`, `Ready`, `Progressing` and `Degraded`; the reasons are explained in
    /// docs/operations.md.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Counts of nodes: `desired` is the sum of `updated`, `pending`, `inFlight`, `failed`,
/// `rolledBack`, `skipped` and `unreachable`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// Selected nodes that agents can run on, and nodes that still have one.
    pub desired: i32,
    /// Nodes that serve the target revision.
    pub updated: i32,
    /// Nodes that do not serve the target revision yet; those whose new agent stands by are among
    /// them.
    pub pending: i32,
    /// Nodes that are being changed: the new agent serves, or was to serve, and is not proven yet.
    pub in_flight: i32,
    /// Nodes whose agent serves every resource, whatever its revision.
    pub ready: i32,
    /// Nodes whose agent fails.
    pub failed: i32,
    /// Nodes that were brought back from the target revision, which failed there.
    pub rolled_back: i32,
    /// Nodes left alone because something else serves a resource there.
    pub skipped: i32,
    /// Nodes that Kubernetes cannot reach.
    pub unreachable: i32,
}

/// A change that is under way.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// Nodes that run an unproven revision, or whose new agent was rolled back and whose old one
    /// does not serve yet.
    pub in_flight: i32,
    /// Nodes whose new agent stands by beside the old one.
    pub staged: i32,
    /// The first ten nodes that are being changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub sample: Vec<NodeInChange>,
    /// The first ten nodes where the target revision failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub failures: Vec<NodeFailure>,
}

/// A node that is being changed.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInChange {
    /// Name of the node.
    pub node: String,
    /// The phase of its change: Staging, Staged, Switching, Verifying, Soaking, Committing,
    /// RollingBack, Quarantined or Releasing; docs/operations.md explains them.
    pub phase: String,
}

/// A node where the target revision failed.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFailure {
    /// Name of the node.
    pub node: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// Counts of devices.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceCounts {
    /// Devices that agents advertise.
    pub total: i32,
    /// Those of them that are Healthy.
    pub healthy: i32,
    /// Those of them that containers hold.
    pub allocated: i32,
    /// Healthy and total, for the column.
    pub text: String,
}

/// Counts of one resource's devices.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceCounts {
    /// Name of the resource.
    pub name: String,
    /// Devices that agents advertise.
    pub total: i32,
    /// Those of them that are Healthy.
    pub healthy: i32,
    /// Those of them that containers hold.
    pub allocated: i32,
}
