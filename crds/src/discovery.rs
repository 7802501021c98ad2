//! How devices are found.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

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
