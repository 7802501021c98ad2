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
    /// The revision whose agent serves on this node.
    pub active: String,
    /// Since when the config's selection no longer matches the node; absent while it matches. The
    /// agent stays until the config's `labelLossGraceSeconds` have passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmatched_since: Option<Time>,
    /// How much the agent logs; absent means `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
}

/// What the node's agent reports.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePluginNodeStatus {
    /// The report of the agent that serves, or waits to serve, on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<AgentReport>,
    /// `DeviceManagerAvailable`, `Registered` and `DevicesHealthy`; the reasons are explained in
    /// docs/operations.md.
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
    /// Why the resource is not registered, or why devices were refused; empty when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
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
