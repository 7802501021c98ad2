//! What a resource is: which devices it advertises and what a container gets. All of it is part of
//! a revision: members equal to their default are left out of the serialised form, so that a later
//! version with more fields gives the same revision.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One extended resource and the devices behind it.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// The extended resource name that pods ask for in `limits`, for example `example.com/fpga`:
    /// a lower-case DNS subdomain of at most 244 characters, one slash, and a name of at most 63
    /// letters, digits, `-`, `_` and `.`. Not under `kubernetes.io`, not starting with `requests.`.
    #[schemars(length(min = 3, max = 308))]
    #[x_kube(
        validation = Rule::new("self.matches('^[^/]+/[^/]+$')")
            .message(Message::Expression("'resource name \"' + self + '\" must be a domain and a name with one slash between them, such as example.com/fpga'".into())),
        validation = Rule::new("!self.contains('kubernetes.io/')")
            .message(Message::Expression("'resource name \"' + self + '\" must not be under kubernetes.io, which Kubernetes reserves: use a domain of your own, such as example.com/fpga'".into())),
        validation = Rule::new("!self.startsWith('requests.')")
            .message(Message::Expression("'resource name \"' + self + '\" must not start with \"requests.\", which Kubernetes reserves for quotas'".into())),
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/') && !self.matches('^[^/]{245}')")
            .message(Message::Expression("'resource name \"' + self + '\": the part before the slash must be a lower-case DNS subdomain (a-z, 0-9, - and .) of at most 244 characters'".into())),
        validation = Rule::new("self.matches('/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')")
            .message(Message::Expression("'resource name \"' + self + '\": the part after the slash must be 1 to 63 letters, digits, -, _ and ., and start and end with a letter or digit'".into()))
    )]
    pub name: String,
    /// How the devices of this resource are found. Exactly one member is given.
    pub discovery: Discovery,
    /// What a container that asked for devices gets. Left out: each device at its host's path,
    /// readable and writable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerAccess>,
    /// How the health of a device is judged. Left out: type `Exists`, every 5 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

impl Resource {
    /// What a container gets, the default resolved.
    pub fn container_access(&self) -> ContainerAccess {
        self.container.clone().unwrap_or_default()
    }

    /// How health is judged, the default resolved.
    pub fn health_check(&self) -> HealthCheck {
        self.health_check.clone().unwrap_or_default()
    }
}

/// How devices are found: exactly one member is given.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.paths) ? 1 : 0) + (has(self.simulated) ? 1 : 0) == 1")
        .message("exactly one kind of discovery must be given: paths or simulated")
)]
pub struct Discovery {
    /// One device for each device node that matches a glob. The agent looks again when a device
    /// node appears or vanishes; no restart is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<PathDiscovery>,
    /// Devices without hardware, to try the product and for tests. A container gets no device
    /// node, only the environment variables of `container.env`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulated: Option<SimulatedDiscovery>,
}

/// Devices found by the paths of their device nodes.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathDiscovery {
    /// Patterns of absolute paths under `/dev/`, 1 to 32. `*` and `?` match within one path
    /// segment, `**` over segments, `{a,b}` alternatives, `[0-9]` classes. Links are followed;
    /// block devices, `/dev/mem`, `/dev/kmem` and `/dev/port` are refused by their numbers.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 256)))]
    #[x_kube(
        validation = Rule::new("self.all(g, g.matches('^/dev/.'))")
            .message(Message::Expression("'every glob must be a path under /dev/, such as /dev/ttyUSB*; wrong: ' + self.filter(g, !g.matches('^/dev/.'))[0]".into())),
        validation = Rule::new("self.all(g, !g.matches('(^|[/{,])[.][.]?([/},]|$)'))")
            .message(Message::Expression("'a glob must not contain the segments . or ..; wrong: ' + self.filter(g, g.matches('(^|[/{,])[.][.]?([/},]|$)'))[0]".into()))
    )]
    pub globs: Vec<String>,
    /// Patterns of paths that are left out although a glob matches them, at most 32. The same
    /// syntax as in `globs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 256)))]
    #[x_kube(
        validation = Rule::new("self.all(g, g.matches('^/dev/.'))")
            .message(Message::Expression("'every exclude must be a path under /dev/, such as /dev/ttyUSB0; wrong: ' + self.filter(g, !g.matches('^/dev/.'))[0]".into()))
    )]
    pub exclude: Vec<String>,
}

/// Devices that exist only in the agent.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.unhealthy) || self.unhealthy.all(i, i < self.count)")
        .message("unhealthy names devices by their index: each must be at least 0 and less than count")
)]
pub struct SimulatedDiscovery {
    /// How many devices, 0 to 256.
    #[schemars(range(min = 0, max = 256))]
    pub count: i32,
    /// The start of the device ids: lower-case letters, digits and `-`, at most 20 characters.
    /// Default `sim`.
    #[serde(default = "default_prefix", skip_serializing_if = "is_default_prefix")]
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$"))]
    pub prefix: String,
    /// Indices, from 0, of the devices that are Unhealthy. At most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(range(min = 0, max = 255)))]
    pub unhealthy: Vec<i32>,
}

fn default_prefix() -> String {
    "sim".to_owned()
}

fn is_default_prefix(prefix: &str) -> bool {
    prefix == default_prefix()
}

/// What Allocate answers for a container.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerAccess {
    /// What the container may do with the device node: any of `r` (read), `w` (write) and `m`
    /// (mknod), in this order. Default `rw`.
    #[serde(
        default = "default_permissions",
        skip_serializing_if = "is_default_permissions"
    )]
    #[schemars(length(min = 1, max = 3))]
    #[x_kube(
        validation = Rule::new("self.matches('^r?w?m?$')")
            .message(Message::Expression("'permissions \"' + self + '\" must be any of r, w and m, each at most once and in this order, such as rw'".into()))
    )]
    pub permissions: String,
    /// Where the device appears in the container: an absolute path. Empty: at the host's path. A
    /// path that ends in `/` is a directory in which each device has its host's file name; any
    /// other path is that of the first device, and further ones get a number appended (`/dev/card`,
    /// `/dev/card1`, …, in the order of their ids). Default empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(
        validation = Rule::new("self == '' || (self.matches('^/.') && !self.matches('(^|/)[.][.]?(/|$)'))")
            .message(Message::Expression("'container path \"' + self + '\" must be an absolute path without the segments . and .., such as /dev/card or /dev/cards/'".into()))
    )]
    pub path: String,
    /// Environment variables for the container, at most 32. Names must be unique over all
    /// resources that one container asks for: the kubelet keeps the first of two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVariable>,
}

impl Default for ContainerAccess {
    fn default() -> Self {
        Self {
            permissions: default_permissions(),
            path: String::new(),
            env: Vec::new(),
        }
    }
}

fn default_permissions() -> String {
    "rw".to_owned()
}

fn is_default_permissions(permissions: &str) -> bool {
    permissions == default_permissions()
}

/// One environment variable of a container that uses devices.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVariable {
    /// The variable's name: letters, digits and `_`, not starting with a digit, at most 128.
    #[schemars(length(max = 128), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value, at most 1024 characters. `$(DEVICE_IDS)` and `$(DEVICE_PATHS)` become the ids of
    /// the container's devices and their paths in the container, separated by commas; `$$` is one
    /// dollar sign.
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = Rule::new("self.matches('^([^$]|[$][^(]|[$][(]DEVICE_(IDS|PATHS)[)])*[$]?$')")
            .message(Message::Expression("'value \"' + self + '\" uses an unknown expansion: only $(DEVICE_IDS) and $(DEVICE_PATHS) exist; write $$( for a literal $('".into()))
    )]
    pub value: String,
}

/// How the health of a device is judged.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// `Exists`: a device is Healthy while its device node exists as a device of the same kind.
    /// Default `Exists`.
    #[serde(
        default,
        rename = "type",
        skip_serializing_if = "is_default_health_check"
    )]
    pub type_: HealthCheckType,
    /// How often devices are looked at, in seconds, beside the events of `/dev` that are acted on
    /// at once. 1 to 3600, default 5.
    #[serde(default = "default_period", skip_serializing_if = "is_default_period")]
    #[schemars(range(min = 1, max = 3600))]
    pub period_seconds: i32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            type_: HealthCheckType::default(),
            period_seconds: default_period(),
        }
    }
}

/// The kinds of health check.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum HealthCheckType {
    /// Healthy while the device node exists.
    #[default]
    Exists,
}

fn is_default_health_check(kind: &HealthCheckType) -> bool {
    *kind == HealthCheckType::default()
}

fn default_period() -> i32 {
    5
}

fn is_default_period(period: &i32) -> bool {
    *period == default_period()
}
