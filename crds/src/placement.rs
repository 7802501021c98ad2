//! How an agent's pod runs: the part of a config that is about the agent and not about devices.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of the agent's pods. Every field left out means the product's default, which may
/// change with a release of the operator; what runs is recorded in the revision.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentSettings {
    /// Image of the agent, which the cluster's allowlist must name with `privileged`
    /// (docs/security.md). Left out: the one that the config's agents have already, at first the
    /// operator's default; `status.agentUpdate` tells when the operator has a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^[^ \\t\\r\\n]+$')")
            .message(Message::Expression("'image \"' + self + '\" must be an image reference without white space, such as registry.example.com/device-plugin-agent:0.1.0'".into()))
    )]
    pub image: Option<String>,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`. Left out: `IfNotPresent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Secrets, in the operator's namespace, to pull the image with. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<SecretReference>,
    /// What the container asks for and may use. Left out: requests of zero, so that an agent never
    /// displaces workloads, and a memory limit of 64Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ComputeResources>,
    /// Taints that agents tolerate beside those that every DaemonSet pod tolerates (not-ready,
    /// unreachable, unschedulable, pressure). Nodes with other taints are not selected. At most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Priority class of the pods. Left out: `system-node-critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// How much an agent logs: `error`, `warn`, `info`, `debug` or `trace`. Left out: `info`. A
    /// change is handed to running agents; nothing restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
}

/// When the image is pulled: `Always`, `IfNotPresent` or `Never`. Left out: `IfNotPresent`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ImagePullPolicy {
    /// At every start.
    Always,
    /// Only if the node does not have it.
    IfNotPresent,
    /// Never; the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Names a secret in the operator's namespace.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Requests and limits of the agent's container.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ComputeResources {
    /// What is set aside for the container. A quantity left out is zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Quantities>,
    /// What the container may use at most. A quantity left out is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Quantities>,
}

/// Amounts of compute resources.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quantities {
    /// Processor time in cores, for example `100m` or `0.5`; at most three decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        regex(pattern = r"^([0-9]{1,6}m|[0-9]{1,4}([.][0-9]{1,3})?)$")
    )]
    pub cpu: Option<String>,
    /// Memory in bytes, a whole number, for example `64Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        regex(pattern = r"^([0-9]{1,12}|[0-9]{1,5}(Ki|Mi|Gi|k|M|G))$")
    )]
    pub memory: Option<String>,
}

/// A taint that agents tolerate.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.key) && self.key != '' || has(self.operator) && self.operator == 'Exists'")
        .message("a toleration without a key tolerates every taint and must say operator: Exists"),
    validation = Rule::new("!(has(self.operator) && self.operator == 'Exists' && has(self.value) && self.value != '')")
        .message("a toleration with operator Exists must not have a value")
)]
pub struct Toleration {
    /// The taint's key. Left out, with operator `Exists`: every key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub key: Option<String>,
    /// `Equal`: the value must be the taint's. `Exists`: any value. Left out: `Equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// The taint's value, with operator `Equal`. Left out: the empty value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// The taint's effect: `NoSchedule`, `PreferNoSchedule` or `NoExecute`. Left out: every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

/// `Equal`: the value must be the taint's. `Exists`: any value. Left out: `Equal`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum TolerationOperator {
    /// The value must be the taint's.
    Equal,
    /// Any value.
    Exists,
}

/// The taint's effect: `NoSchedule`, `PreferNoSchedule` or `NoExecute`. Left out: every effect.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum TaintEffect {
    /// New pods do not come.
    NoSchedule,
    /// New pods come only when there is no other place.
    PreferNoSchedule,
    /// Running pods leave too.
    NoExecute,
}

impl TaintEffect {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

/// How much an agent logs: `error`, `warn`, `info`, `debug` or `trace`. Left out: `info`. A change
/// is handed to running agents; nothing restarts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// Also what may become a failure.
    Warn,
    /// Also what changed.
    #[default]
    Info,
    /// Also what was decided, and why.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word on the wire, also a filter for the logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
