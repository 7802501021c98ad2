//! What a container gets that asked for devices.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

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
