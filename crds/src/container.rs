//! What a container gets that asked for devices.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What Allocate answers for a container.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.cdi) || self.cdi == 'Disabled' || !has(self.path) || self.path == '' || self.path.endsWith('/')")
        .message(Message::Expression("'with cdi Enabled, path \"' + self.path + '\" must be empty or a directory that ends in /, such as /dev/cards/: a CDI specification gives each device one path for all containers'".into()))
)]
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
    /// Directories and files of the node that the container gets beside its devices, at most 16.
    /// They must exist on the node, or the container does not start. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["containerPath"]))]
    pub mounts: Vec<Mount>,
    /// Annotations that the container runtime gets with the container; they are not those of the
    /// pod. At most 16. A key is a name of at most 63 letters, digits, `-`, `_` and `.`, after a
    /// lower-case domain and a slash if there is one; keys that make a runtime add devices or change
    /// the container's limits (under `k8s.io` and `kubernetes.io`, and those that start with
    /// `io.kubernetes.`, `io.containerd.`, `org.systemd.` or `run.oci.`) are refused. A value has at
    /// most 1024 characters. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations_schema")]
    #[x_kube(
        validation = Rule::new("self.all(k, k.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$') && !k.matches('^[^/]{245}'))")
            .message("an annotation's key must be a name of 1 to 63 letters, digits, -, _ and ., with or without a lower-case domain and a slash before it, such as example.com/mode"),
        validation = Rule::new("!self.exists(k, k.matches('^([^/]*[.])?(k8s|kubernetes)[.]io/') || k.matches('^(io[.]kubernetes|io[.]containerd|org[.]systemd|run[.]oci)[.]'))")
            .message("an annotation's key must not be under k8s.io or kubernetes.io, nor start with io.kubernetes., io.containerd., org.systemd. or run.oci.: runtimes take such annotations for orders")
    )]
    pub annotations: BTreeMap<String, String>,
    /// How the container runtime is told of the device nodes. `Disabled`: with the answer, by the
    /// paths that they have then. `Enabled`: by names in a CDI specification that the agent keeps in
    /// `/var/run/cdi` of the node, so that a container that is restarted finds a device also where it
    /// has got another path since; the runtime must have CDI switched on (containerd from 2.0 on and
    /// CRI-O have). Default `Disabled`.
    #[serde(default, skip_serializing_if = "is_default_cdi")]
    pub cdi: Cdi,
}

impl Default for ContainerAccess {
    fn default() -> Self {
        Self {
            permissions: default_permissions(),
            path: String::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            annotations: BTreeMap::new(),
            cdi: Cdi::default(),
        }
    }
}

fn annotations_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 1024 },
    })
}

fn is_default_cdi(cdi: &Cdi) -> bool {
    *cdi == Cdi::default()
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
    /// the container's devices and the paths of their nodes in the container, `$(PCI_ADDRESSES)` the
    /// PCI addresses of those that have one (`0000:3b:00.0`), `$(NUMA_NODES)` the numbers of the
    /// NUMA nodes that they are near to: each without repetition and separated by commas. A device
    /// that several containers share has one id. `$$` is one dollar sign.
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = Rule::new("self.matches('^([^$]|[$][^(]|[$][(](DEVICE_IDS|DEVICE_PATHS|PCI_ADDRESSES|NUMA_NODES)[)])*[$]?$')")
            .message(Message::Expression("'value \"' + self + '\" uses an unknown expansion: only $(DEVICE_IDS), $(DEVICE_PATHS), $(PCI_ADDRESSES) and $(NUMA_NODES) exist; write $$( for a literal $('".into()))
    )]
    pub value: String,
}

/// A directory or file of the node in the container.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Its path on the node: absolute, without empty segments, `.` and `..`, at most 256 characters.
    /// The cluster's administrator decides which ones a config may ask for.
    #[schemars(length(min = 2, max = 256))]
    #[x_kube(
        validation = Rule::new("self.matches('^(/[^/]+)+$') && !self.matches('/[.][.]?(/|$)')")
            .message(Message::Expression("'host path \"' + self + '\" must be an absolute path without empty segments, . and .., and without a slash at its end, such as /run/cards'".into()))
    )]
    pub host_path: String,
    /// Its path in the container, written in the same way. No two mounts of a resource have the
    /// same one.
    #[schemars(length(min = 2, max = 256))]
    #[x_kube(
        validation = Rule::new("self.matches('^(/[^/]+)+$') && !self.matches('/[.][.]?(/|$)')")
            .message(Message::Expression("'container path \"' + self + '\" must be an absolute path without empty segments, . and .., and without a slash at its end, such as /run/cards'".into()))
    )]
    pub container_path: String,
    /// Whether the container can only read it, but for what the node has mounted below. Default true.
    #[serde(default = "default_read_only", skip_serializing_if = "Clone::clone")]
    pub read_only: bool,
}

fn default_read_only() -> bool {
    true
}

/// How the container runtime is told of device nodes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Cdi {
    /// By their paths, with the answer.
    #[default]
    Disabled,
    /// By names in a CDI specification.
    Enabled,
}
