//! How a config wants its changes to spread, the product's defaults resolved.

use std::time::Duration;

use crds::DevicePluginConfig;
use crds::rollout::{
    DEFAULT_KUBELET_SYNC_TIMEOUT_SECONDS, DEFAULT_MAX_UNAVAILABLE, DEFAULT_SOAK_SECONDS, Gate,
    MAX_UNAVAILABLE_MAX, RolloutSettings,
};

/// How long a new agent may take to be placed, pulled and ready beside the old one. Nothing is lost
/// meanwhile; images of a gigabyte over slow lines need minutes.
pub const STAGE: Duration = Duration::from_mins(10);
/// How long the new agent may take to serve once the roles are swapped. It takes milliseconds.
pub const HANDOVER: Duration = Duration::from_mins(1);
/// How long a node may take to show that it is all right. With the two others it stays below the
/// five minutes after which a kubelet forgets a resource (`endpointStopGracePeriod`).
pub const VERIFY: Duration = Duration::from_mins(2);
/// How long the old agent may take to serve again.
pub const ROLLBACK: Duration = Duration::from_secs(90);
/// How long a new agent's own objections are taken for a passing trouble, such as a kubelet that is
/// just restarting. A quarter would blame a revision for it; four times as much only delays the news.
pub const PREFLIGHT: Duration = Duration::from_secs(30);
/// After this time without a pod the DaemonSet controller is told to be slow.
pub const ACTUATOR: Duration = Duration::from_secs(30);
/// After how long a node that was skipped is tried again.
pub const SKIPPED: Duration = Duration::from_mins(10);
/// How long an agent that does not serve is taken for one that is just starting.
pub const STARTING: Duration = Duration::from_mins(1);
/// For longer than this no cache of an operator that sees lags: its watches show a sign of life every
/// 15 s, or it counts as blind.
pub const LAG: Duration = Duration::from_secs(20);
/// The longest time that claims' clocks run without being written down.
pub const PERSIST: Duration = Duration::from_secs(30);
/// Most nodes of one config whose new agent stands by: each is one more pod on its node.
pub const STANDBY_MAX: usize = 10;

/// Whether no further node is to be changed.
pub fn is_paused(config: &DevicePluginConfig) -> bool {
    rollout(config).and_then(|rollout| rollout.paused) == Some(true)
}

/// How many nodes may be in a disruptive phase at once, of this many.
pub fn max_unavailable(config: &DevicePluginConfig, nodes: usize) -> usize {
    let nodes = i32::try_from(nodes).unwrap_or(i32::MAX);
    let limit = rollout(config).and_then(|rollout| rollout.max_unavailable.as_ref());
    let limit = limit.map_or(DEFAULT_MAX_UNAVAILABLE, |limit| limit.0.of(nodes));
    usize::try_from(limit.clamp(1, MAX_UNAVAILABLE_MAX)).unwrap_or(1)
}

/// How long a node must be all right without a break.
pub fn soak(config: &DevicePluginConfig) -> Duration {
    seconds(
        gate(config).and_then(|gate| gate.soak_seconds),
        DEFAULT_SOAK_SECONDS,
    )
}

/// How often a new agent may restart.
pub fn max_restarts(config: &DevicePluginConfig) -> i32 {
    gate(config).and_then(|gate| gate.max_restarts).unwrap_or(0)
}

/// How many devices a node with this many may lose.
pub fn tolerated_loss(config: &DevicePluginConfig, healthy: i32) -> i32 {
    let limit = gate(config).and_then(|gate| gate.tolerated_device_loss.as_ref());
    limit.map_or(0, |limit| limit.0.of(healthy))
}

/// How long the kubelet's list may differ from the agent's.
pub fn kubelet_sync(config: &DevicePluginConfig) -> Duration {
    let given = gate(config).and_then(|gate| gate.kubelet_sync_timeout_seconds);
    seconds(given, DEFAULT_KUBELET_SYNC_TIMEOUT_SECONDS)
}

fn rollout(config: &DevicePluginConfig) -> Option<&RolloutSettings> {
    config.spec.rollout.as_ref()
}

fn gate(config: &DevicePluginConfig) -> Option<&Gate> {
    rollout(config)?.gate.as_ref()
}

fn seconds(given: Option<i32>, default: i32) -> Duration {
    let seconds = u64::try_from(given.unwrap_or(default)).unwrap_or_default();
    Duration::from_secs(seconds)
}
