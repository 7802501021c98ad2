//! `DevicePluginNode`: one per config and node. Its `spec` is written by the operator only, its
//! `status` by that node's agent only.

#![expect(
    clippy::duplicated_attributes,
    reason = "printer columns are alike in type"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::placement::LogLevel;

/// What one config wants of one node's agent.
#[derive(
    Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize,
)]
#[kube(
    group = "deviceplugins.dev",
    version = "v1alpha1",
    kind = "DevicePluginNode",
    plural = "devicepluginnodes",
    shortname = "dpn",
    category = "device-plugins",
    status = "DevicePluginNodeStatus",
    derive = "PartialEq",
    doc = "DevicePluginNode tells how one DevicePluginConfig stands on one node. The operator makes it and writes its spec; the node's agent writes its status. Users only read it.",
    printcolumn(
        name = "Config",
        type_ = "string",
        json_path = ".spec.configName",
        description = "The config"
    ),
    printcolumn(
        name = "Node",
        type_ = "string",
        json_path = ".spec.nodeName",
        description = "The node"
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.active.revision",
        description = "The revision that serves"
    ),
    printcolumn(
        name = "Standby",
        type_ = "string",
        json_path = ".spec.standby",
        description = "The revision that stands by",
        priority = 1
    ),
    printcolumn(
        name = "Registered",
        type_ = "string",
        json_path = ".status.active.summary.registered",
        description = "Registered and all resources"
    ),
    printcolumn(
        name = "Healthy",
        type_ = "integer",
        json_path = ".status.active.summary.healthy",
        description = "Healthy devices"
    ),
    printcolumn(
        name = "Allocated",
        type_ = "integer",
        json_path = ".status.active.summary.allocated",
        description = "Devices that containers hold"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    selectable = ".spec.nodeName",
    selectable = ".spec.configName"
)]
#[serde(rename_all = "camelCase")]
pub struct DevicePluginNodeSpec {
    /// Name of the config.
    pub config_name: String,
    /// Name of the node.
    pub node_name: String,
    /// UID of the node: a node that was made again under the same name is another node.
    #[serde(rename = "nodeUID")]
    pub node_uid: String,
    /// The revision whose agent may register at the kubelet of this node.
    pub active: String,
    /// The revision whose agent runs beside it: it checks itself, counts devices and reports, and
    /// does not register. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<String>,
    /// What the node served before its change began, which the new agent is judged against. Present
    /// only while the node is being changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// How the last change of this node ended, if it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Since when the config's selection no longer matches the node; absent while it matches. The
    /// agent stays until the config's `labelLossGraceSeconds` have passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmatched_since: Option<Time>,
    /// How much the agent logs; absent means `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
}

/// What a node served before a change.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// When this was so.
    pub taken_at: Time,
    /// The revision that served: the proven one, which serves again if the new one fails.
    pub revision: String,
    /// Its resources.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub resources: Vec<BaselineResource>,
}

/// What a node had of one resource before a change.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BaselineResource {
    /// Name of the resource.
    pub name: String,
    /// Healthy devices.
    pub healthy: i32,
}

/// How a change of a node ended that did not succeed.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The revision that the node was to serve.
    pub revision: String,
    /// What became of the node.
    pub result: OutcomeResult,
    /// Why, in one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why, in a sentence.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When.
    pub at: Time,
}

/// What became of a node whose change did not succeed: `RolledBack` (the old revision serves again),
/// `Quarantined` (neither the new nor the old revision serves) or `Skipped` (the node was never
/// switched).
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum OutcomeResult {
    /// The old revision serves again.
    RolledBack,
    /// Neither the new nor the old revision serves.
    Quarantined,
    /// The node was never switched.
    Skipped,
}

/// What the node's agent reports.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePluginNodeStatus {
    /// The report of the agent that serves, or waits to serve, on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<AgentReport>,
    /// The report of the agent that stands by; absent while none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyReport>,
    /// `DeviceManagerAvailable`, `Registered`, `DevicesHealthy`, `Contested` and `PhantomResource`;
    /// the reasons are explained in docs/operations.md.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One agent's report.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentReport {
    /// The revision that the agent runs.
    pub revision: String,
    /// UID of the agent's pod.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Boot id of the node's kernel, which changes with every reboot.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// The numbers of the columns.
    pub summary: ReportSummary,
    /// One entry for each resource of the config.
    #[serde(default)]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub resources: Vec<ResourceReport>,
    /// The devices, at most 256 over all resources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["resource", "id"]))]
    pub devices: Vec<DeviceReport>,
    /// Whether there are more devices than `devices` lists.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The hook that ended last; absent while none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_hook: Option<LastHook>,
}

/// How a hook ended.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastHook {
    /// Which one: `init`, `reset` or `release`.
    pub name: String,
    /// The resource of the device.
    pub resource: String,
    /// Id of the device.
    pub device: String,
    /// `Succeeded` or `Failed`.
    pub result: HookResult,
    /// How long it took, in milliseconds.
    pub duration_millis: i64,
    /// Why it failed; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// How a hook ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum HookResult {
    /// It did what it was to do.
    Succeeded,
    /// It did not.
    Failed,
}

/// An agent's report in three numbers.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportSummary {
    /// Registered and all resources, for example `2/2`.
    pub registered: String,
    /// Healthy devices over all resources.
    pub healthy: i32,
    /// Devices that containers hold, over all resources.
    pub allocated: i32,
}

/// How one resource stands on a node.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceReport {
    /// Name of the resource.
    pub name: String,
    /// Whether the kubelet accepted the registration and reads the list of devices.
    pub registered: bool,
    /// Since when the kubelet reads the list; absent while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_since: Option<Time>,
    /// How often this agent has registered the resource since it started.
    pub registrations: i32,
    /// Devices that are advertised.
    pub total: i32,
    /// Those of them that are Healthy.
    pub healthy: i32,
    /// Those of them that containers hold.
    pub allocated: i32,
    /// Ids that containers hold and that are not advertised.
    #[serde(default)]
    pub missing_allocated: i32,
    /// What the kubelet itself lists as healthy devices of the resource; absent until it was read
    /// after the stream opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<KubeletList>,
    /// Why the resource is not registered, or why devices were refused; empty when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// The kubelet's own list of one resource, read from its pod-resources socket.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeletList {
    /// Devices in it.
    pub devices: i32,
    /// Whether it holds exactly the Healthy devices that the agent sent.
    pub matches: bool,
    /// Since when that is so, or is not so.
    pub since: Time,
    /// Whether it was read at least two seconds after the stream opened: what an older stream's end
    /// does to the list has happened by then.
    pub read_after_stream: bool,
}

/// The report of an agent that stands by.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StandbyReport {
    /// The revision that the agent runs.
    pub revision: String,
    /// UID of the agent's pod.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Whether it could serve.
    pub preflight: Preflight,
    /// What it would advertise, one entry for each resource of its revision.
    #[serde(default)]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub resources: Vec<StandbyResource>,
}

/// Whether an agent that stands by could serve.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// Whether nothing speaks against it.
    pub ok: bool,
    /// What speaks against it, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub reasons: Vec<String>,
}

/// What an agent that stands by would advertise of one resource.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StandbyResource {
    /// Name of the resource.
    pub name: String,
    /// Devices.
    pub total: i32,
    /// Those of them that are Healthy.
    pub healthy: i32,
    /// Ids that containers hold and that it would not advertise.
    pub missing_allocated: i32,
}

/// One device on a node.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceReport {
    /// The id that the kubelet knows the device by.
    pub id: String,
    /// The resource it belongs to.
    pub resource: String,
    /// `Healthy` or `Unhealthy`.
    pub health: Health,
    /// Why the device is Unhealthy; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub reason: String,
    /// The NUMA node that it is near to; absent where the kernel names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<i32>,
    /// Paths of its device nodes on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub paths: Vec<String>,
    /// Whether a container holds it.
    pub allocated: bool,
    /// When its health changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
}

/// Health of a device, in the kubelet's words.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum Health {
    /// It can be given to a container.
    #[default]
    Healthy,
    /// It cannot.
    Unhealthy,
}

impl Health {
    /// The word in the device plugin protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Unhealthy => "Unhealthy",
        }
    }
}

/// Most devices in one report; a node with more says `truncated`. 256 entries of about 200 bytes
/// stay far below etcd's limit for an object, and a list twice as long helps nobody who reads it.
pub const REPORTED_DEVICES_MAX: usize = 256;
