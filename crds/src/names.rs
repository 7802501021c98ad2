//! Names that are frozen because several processes, or a user's scripts, rely on them.

use sha2::{Digest, Sha256};

/// API group of all three kinds.
pub const GROUP: &str = "deviceplugins.dev";
/// API version of all three kinds.
pub const VERSION: &str = "v1alpha1";

/// Field manager of everything the operator applies.
pub const OPERATOR_FIELD_MANAGER: &str = "device-plugin-operator";
/// Field manager of the slot `status.active`, written by the agent that serves.
pub const AGENT_ACTIVE_FIELD_MANAGER: &str = "agent-active";
/// Field manager of the slot `status.standby`, written by the agent that stands by.
pub const AGENT_STANDBY_FIELD_MANAGER: &str = "agent-standby";

/// Keeps a config until its agents are gone and its traces on nodes are removed.
pub const CLEANUP_FINALIZER: &str = "deviceplugins.dev/node-cleanup";

/// Label with the name of the config, on everything made for it.
pub const CONFIG_LABEL: &str = "deviceplugins.dev/config";
/// Label with the revision, on everything made for one revision.
pub const REVISION_LABEL: &str = "deviceplugins.dev/revision";
/// Annotation on a ControllerRevision: its number in the order of promotions, starting at 1.
pub const PROMOTED_ANNOTATION: &str = "deviceplugins.dev/promoted";
/// Annotation on a ControllerRevision that failed on a node: why, in a sentence. It is not rolled out
/// again while it has the annotation.
pub const FAILED_ANNOTATION: &str = "deviceplugins.dev/failed";
/// Prefix of the membership label that the operator keeps on a pool, as OpenShift does on its pools.
pub const POOL_LABEL_PREFIX: &str = "pools.deviceplugins.dev/";
/// Prefix of the node labels that name the revision proven on a node. A kubelet may not set a
/// label under `node-restriction.kubernetes.io` itself (NodeRestriction admission).
pub const NODE_LABEL_PREFIX: &str = "deviceplugins.node-restriction.kubernetes.io/";

/// First part of the name of a node label that stages a revision beside the proven one.
const STAGE_PREFIX: &str = "stage.";

/// The ConfigMap with the claims of all configs.
pub const LEDGER: &str = "rollout-ledger";
/// The ledger's only key.
pub const LEDGER_KEY: &str = "ledger.json";
/// The Lease that operators elect their leader with.
pub const LEASE: &str = "device-plugin-operator";

/// Longest name of a config: it becomes part of a label key, whose name part holds 63 characters,
/// also of the key `stage.<config>`.
pub const CONFIG_NAME_MAX: usize = 50;
/// Longest name of any object (a DNS-1123 subdomain).
const OBJECT_NAME_MAX: usize = 253;

/// Key of the agent's configuration in a revision's ConfigMap.
pub const AGENT_CONFIG_KEY: &str = "agent.json";

/// Directories of the node and of the agent's container, agreed by whoever renders the pod and
/// the agent in it.
pub mod paths {
    /// Where the revision's ConfigMap is mounted in the agent's container.
    pub const AGENT_CONFIG_DIR: &str = "/etc/device-plugin-agent";
    /// Where the node's `/dev` is mounted, read-only and whole: a single file mounted from it goes
    /// stale when udev makes the node anew.
    pub const HOST_DEV_DIR: &str = "/host/dev";
    /// The kernel's devices (container): every container has the host's, read-only.
    pub const SYSFS_DIR: &str = "/sys";
    /// What the host's udev knows of devices (host and container).
    pub const UDEV_DIR: &str = "/run/udev";
    /// Locks that the agents of a node share (host and container).
    pub const LOCK_DIR: &str = "/run/device-plugin-agent";
    /// What an agent remembers over restarts (host and container).
    pub const STATE_DIR: &str = "/var/lib/device-plugin-agent";
    /// Where container runtimes read CDI specifications (host and container).
    pub const CDI_DIR: &str = "/var/run/cdi";
    /// The kubelet's plugin directory, a compile-time constant of the kubelet (container; the
    /// host's directory is a value of the chart).
    pub const DEVICE_PLUGIN_DIR: &str = "/var/lib/kubelet/device-plugins";
    /// The directory of the kubelet's pod-resources socket (container).
    pub const POD_RESOURCES_DIR: &str = "/var/lib/kubelet/pod-resources";
    /// Where the runner's socket is, in the agent's and the runner's container.
    pub const RUNNER_SOCKET_DIR: &str = "/run/device-plugin-runner";
    /// Where our program is in containers of other images.
    pub const RUNNER_PROGRAM_DIR: &str = "/opt/device-plugin-agent";
}

/// Name of the runner's socket in its directory.
pub const RUNNER_SOCKET: &str = "runner.sock";

/// Environment variables of the agent's container.
pub mod agent_env {
    /// Name of the config that the agent serves.
    pub const CONFIG: &str = "CONFIG";
    /// The revision that the agent runs, ten hex digits.
    pub const REVISION: &str = "REVISION";
    /// Name of the node that the agent runs on.
    pub const NODE_NAME: &str = "NODE_NAME";
    /// UID of the agent's pod.
    pub const POD_UID: &str = "POD_UID";
    /// What the agent is on a node where nothing says otherwise: `Active` or `Standby`.
    pub const INITIAL_ROLE: &str = "INITIAL_ROLE";
}

/// Port of `/metrics`, `/healthz` and `/readyz` in both binaries' containers.
pub const HTTP_PORT: u16 = 8080;

/// The label key that names the revision proven on a node for one config.
pub fn node_revision_label(config: &str) -> String {
    format!("{NODE_LABEL_PREFIX}{config}")
}

/// The label key that stages a revision on a node beside the proven one. No config can have a name
/// with a dot, so it is no other config's label.
pub fn node_stage_label(config: &str) -> String {
    format!("{NODE_LABEL_PREFIX}{STAGE_PREFIX}{config}")
}

/// The config that a node label of ours belongs to, whichever of its two labels it is.
pub fn labelled_config(key: &str) -> Option<&str> {
    let name = key.strip_prefix(NODE_LABEL_PREFIX)?;
    Some(name.strip_prefix(STAGE_PREFIX).unwrap_or(name))
}

/// Name of the ControllerRevision, ConfigMap and DaemonSet of one revision.
pub fn revision_object(config: &str, revision: &str) -> String {
    format!("{config}-{revision}")
}

/// Name of the `DevicePluginNode` of one config on one node: `<config>.<node>`. A name that would
/// be too long is cut and ends in a hash of the whole node name, so that two nodes never share one.
pub fn node_object(config: &str, node: &str) -> String {
    let name = format!("{config}.{node}");
    if name.len() <= OBJECT_NAME_MAX {
        return name;
    }
    let digest = short_hash(node);
    let cut = OBJECT_NAME_MAX - digest.len() - 1;
    let head: String = name.chars().take(cut).collect();
    format!("{}-{digest}", head.trim_end_matches(['.', '-']))
}

/// The first ten hex digits of the SHA-256 of a text.
pub fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .take(5)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_node_names_are_kept_whole() {
        assert_eq!(node_object("fuse", "n1.example.com"), "fuse.n1.example.com");
    }

    #[test]
    fn long_node_names_are_cut_and_stay_distinct() {
        let long = "a".repeat(250);
        let one = node_object("fuse", &format!("{long}x"));
        let other = node_object("fuse", &format!("{long}y"));
        assert!(one.len() <= OBJECT_NAME_MAX && other.len() <= OBJECT_NAME_MAX);
        assert_ne!(one, other);
        let dotted = node_object("fuse", &".".repeat(260));
        assert!(
            dotted.starts_with("fuse-"),
            "{dotted:?} must not end its head in a dot"
        );
    }

    #[test]
    fn the_longest_config_fits_a_label_key() {
        let config = "c".repeat(CONFIG_NAME_MAX);
        assert!(format!("stage.{config}").len() <= 63);
        assert!(
            revision_object(&config, "0123456789").len() <= 63,
            "also a label value"
        );
    }
}
