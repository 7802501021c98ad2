//! What is done to devices beside listing them: hooks, and where they run.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest time of a reset, in seconds: the kubelet gives PreStartContainer 30 s, and the rest is
/// for killing what hangs and for saying so.
pub const RESET_TIMEOUT_MAX: i32 = 25;
/// Time of a reset where none is given, in seconds.
pub const RESET_TIMEOUT: i32 = 20;
/// Time of an `init` or `release` where none is given, in seconds.
pub const HOOK_TIMEOUT: i32 = 60;
/// Time of a driver container where none is given, in seconds.
pub const DRIVER_TIMEOUT: i32 = 600;

/// What is done to every device of the config, and where it runs. Hooks run in a container of their
/// own in the agent's pod; the agent itself stays unprivileged.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.toolsImage) || !(has(self.init) && self.init.type == 'Exec')")
        .message("init of type Exec runs a program of the tools image: toolsImage must be given (the agent's image has no programs)"),
    validation = Rule::new("has(self.toolsImage) || !(has(self.reset) && self.reset.type == 'Exec')")
        .message("reset of type Exec runs a program of the tools image: toolsImage must be given (the agent's image has no programs)"),
    validation = Rule::new("has(self.toolsImage) || !(has(self.release) && self.release.type == 'Exec')")
        .message("release of type Exec runs a program of the tools image: toolsImage must be given (the agent's image has no programs)"),
    validation = Rule::new("!has(self.privileged) || !self.privileged || has(self.toolsImage)")
        .message("privileged is for programs of the tools image: toolsImage must be given"),
    validation = Rule::new("!has(self.reset) || !has(self.reset.timeoutSeconds) || self.reset.timeoutSeconds <= 25")
        .message("reset.timeoutSeconds must be at most 25: the kubelet waits 30 seconds for a container to be prepared")
)]
pub struct Hooks {
    /// Image whose programs hooks and probes of type `Exec` run. Left out: there are no programs,
    /// only the built-in types. The cluster's allowlist must name it (docs/security.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9][-A-Za-z0-9._:/@]*$') && !self.contains('..') && !self.contains('//')")
            .message(Message::Expression("'toolsImage \"' + self + '\" must be an image reference, such as registry.example.com/tools:1.2'".into()))
    )]
    pub tools_image: Option<String>,
    /// `true`: programs of the tools image may open every device of the node and write everywhere
    /// below `/sys`, in a privileged container, which the cluster's allowlist must allow. Default
    /// `false`: they may open none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// What makes the devices' driver ready on a node before the agent starts there. Left out:
    /// nothing; the node has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// Prepares a device before it is first advertised: once per device, boot of the node and
    /// content of the hook, never while a container holds the device. Default 60 seconds. A device
    /// whose `init` failed is Unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Hook>,
    /// Resets a device before every start of a container that got it, restarts included. Default 20
    /// seconds, at most 25. If it fails, the container does not start and is tried again by the
    /// kubelet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<Hook>,
    /// Cleans a device after the container that held it has ended. Default 60 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Hook>,
}

/// One thing that is done to a device.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'Exec') == has(self.command)")
        .message(Message::Expression("'type ' + self.type + (has(self.command) ? ' has no command: only type Exec has one' : ' needs a command')".into())),
    validation = Rule::new("(self.type == 'SysfsWrite') == has(self.path) && has(self.path) == has(self.value)")
        .message(Message::Expression("'type ' + self.type + (self.type == 'SysfsWrite' ? ' needs a path and a value' : ' has neither path nor value: only type SysfsWrite has them')".into())),
    validation = Rule::new("(self.type == 'DriverBind') == has(self.driver)")
        .message(Message::Expression("'type ' + self.type + (has(self.driver) ? ' has no driver: only type DriverBind has one' : ' needs a driver')".into()))
)]
pub struct Hook {
    /// `Exec`: a program of the tools image. `PciReset`: the kernel resets the PCI function.
    /// `UsbReset`: the USB device is taken from its drivers and given back, as if it were plugged
    /// in again. `SysfsWrite`: a value is written to a file of the device's sysfs directory.
    /// `DriverBind`: the PCI function is given to a driver.
    #[serde(rename = "type")]
    pub type_: HookType,
    /// The program and its arguments, with type `Exec` only: 1 to 32, each at most 1024 characters,
    /// the program with its absolute path. There is no shell. Its environment is `DEVICE_ID`,
    /// `DEVICE_PATHS` (separated by commas), `PCI_ADDRESS` (empty for what is no PCI function),
    /// `RESOURCE` and `PATH`, nothing else. Exit code 0 is success.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), inner(length(max = 1024)))]
    #[x_kube(
        validation = Rule::new("self[0].matches('^/.')")
            .message(Message::Expression("'the program \"' + self[0] + '\" must be an absolute path in the tools image, such as /tools/reset'".into()))
    )]
    pub command: Vec<String>,
    /// The file to write, with type `SysfsWrite` only: a path relative to the device's sysfs
    /// directory, such as `power/control`, at most 256 characters. After links are resolved it must
    /// be below `/sys/devices`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new("self.matches('^[^/]') && !self.matches('(^|/)[.]{0,2}(/|$)')")
            .message(Message::Expression("'path \"' + self + '\" must be relative to the device\\'s sysfs directory and without empty segments, . and .., such as power/control'".into()))
    )]
    pub path: Option<String>,
    /// What is written, with type `SysfsWrite` only: at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub value: Option<String>,
    /// Name of the kernel's driver, with type `DriverBind` only, such as `vfio-pci`: at most 64
    /// letters, digits, `-` and `_`. The node must have loaded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = "^[A-Za-z0-9][-A-Za-z0-9_]*$"))]
    pub driver: Option<String>,
    /// How long it may take, in seconds, 1 to 600; then everything it started is killed and it has
    /// failed. Left out: the default of its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 600))]
    pub timeout_seconds: Option<i32>,
}

/// The kinds of hook.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum HookType {
    /// A program of the tools image.
    Exec,
    /// The kernel's reset of a PCI function.
    PciReset,
    /// A USB device is taken from its drivers and given back.
    UsbReset,
    /// A value for a file of the device's sysfs directory.
    SysfsWrite,
    /// A PCI function is given to a driver.
    DriverBind,
}

impl HookType {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "Exec",
            Self::PciReset => "PciReset",
            Self::UsbReset => "UsbReset",
            Self::SysfsWrite => "SysfsWrite",
            Self::DriverBind => "DriverBind",
        }
    }
}

/// A program that makes a driver ready on a node: it runs to its end before the agent starts, at
/// every start of the agent's pod, and must do nothing where all is ready.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Driver {
    /// Image that holds the program. The cluster's allowlist must name it (docs/security.md).
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9][-A-Za-z0-9._:/@]*$') && !self.contains('..') && !self.contains('//')")
            .message(Message::Expression("'driver image \"' + self + '\" must be an image reference, such as registry.example.com/driver:1.2'".into()))
    )]
    pub image: String,
    /// The program and its arguments, 1 to 32, each at most 1024 characters, the program with its
    /// absolute path. There is no shell.
    #[schemars(length(min = 1, max = 32), inner(length(max = 1024)))]
    #[x_kube(
        validation = Rule::new("self[0].matches('^/.')")
            .message(Message::Expression("'the program \"' + self[0] + '\" must be an absolute path in the image, such as /install'".into()))
    )]
    pub command: Vec<String>,
    /// How long it may take, in seconds, 1 to 3600, default 600; then it is killed, and started
    /// again by the kubelet with growing pauses.
    #[serde(
        default = "default_driver_timeout",
        skip_serializing_if = "is_default_driver_timeout"
    )]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: i32,
    /// `true`: in a privileged container with the node's `/dev`, and `/lib/modules` read-only, which
    /// the cluster's allowlist must allow. Default `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
}

fn default_driver_timeout() -> i32 {
    DRIVER_TIMEOUT
}

fn is_default_driver_timeout(seconds: &i32) -> bool {
    *seconds == DRIVER_TIMEOUT
}
