//! How devices are found.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How devices are found: exactly one member is given.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.paths), has(self.groups), has(self.udev), has(self.pci), has(self.usb), has(self.simulated)].filter(given, given).size() == 1")
        .message("exactly one kind of discovery must be given: paths, groups, udev, pci, usb or simulated")
)]
pub struct Discovery {
    /// One device for each device node that matches a glob. The agent looks again when a device
    /// node appears or vanishes; no restart is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<PathDiscovery>,
    /// Devices that are made of several device nodes each, 1 to 64, each id once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub groups: Option<Vec<GroupDiscovery>>,
    /// One device for each device of a kernel subsystem that has the given properties and
    /// attributes and a device node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udev: Option<UdevDiscovery>,
    /// One device for each PCI function that one of these describes, 1 to 32. Its device nodes are
    /// all character devices that the kernel made for the function (`/dev/dri/*`, `/dev/accel/*`,
    /// `/dev/infiniband/*`, `/dev/nvme*`, …) except those of side buses of a card (I2C, SPI, GPIO,
    /// MTD, MEI, DP AUX, watchdogs); for a function that is bound to a driver of VFIO, those of its
    /// IOMMU group. Functions of one IOMMU group are one device. A function without such a node is
    /// told and not advertised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub pci: Option<Vec<PciMatcher>>,
    /// One device for each USB device that one of these describes, 1 to 32. Its device nodes are
    /// those that drivers made for it (`/dev/ttyUSB*`, `/dev/video*`, …), in the order of their
    /// paths, and then `/dev/bus/usb/<bus>/<device>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub usb: Option<Vec<UsbMatcher>>,
    /// Devices without hardware, to try the product and for tests. A container gets no device
    /// node, only the environment variables of `container.env`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulated: Option<SimulatedDiscovery>,
}

/// What a device's id is made from: `Auto`, `Serial`, `BusPath` or `DevicePath`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum IdFrom {
    /// What suits the kind of discovery.
    #[default]
    Auto,
    /// Serial number.
    Serial,
    /// Where it is plugged in.
    BusPath,
    /// Path of its device node.
    DevicePath,
}

/// Whether the kubelet is told where a device is: `Auto` or `None`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Topology {
    /// The NUMA node that the kernel names.
    #[default]
    Auto,
    /// Nothing.
    None,
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

/// One device made of several device nodes.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupDiscovery {
    /// Name of the device, from which its id is made: 1 to 40 letters, digits, `-`, `_` and `.`.
    #[schemars(regex(pattern = "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,38}[A-Za-z0-9])?$"))]
    pub id: String,
    /// Absolute paths of its device nodes under `/dev/`, 1 to 16, without wildcards. The device is
    /// Unhealthy while one of them is missing, and absent from a node that has none of them.
    #[schemars(
        length(min = 1, max = 16),
        inner(
            length(max = 256),
            regex(pattern = r"^/dev(/[^/.*?{}\[\]\\][^/*?{}\[\]\\]*)+$")
        )
    )]
    pub paths: Vec<String>,
    /// Further paths, at most 16, that are part of the device where they exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(
            length(max = 256),
            regex(pattern = r"^/dev(/[^/.*?{}\[\]\\][^/*?{}\[\]\\]*)+$")
        )
    )]
    pub optional_paths: Vec<String>,
}

/// Devices found by what the kernel and udev say of them.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UdevDiscovery {
    /// The kernel's subsystem: a name under `/sys/class` or `/sys/bus`, such as `tty`, `drm` or
    /// `hidraw`; 1 to 63 letters, digits, `-` and `_`.
    #[schemars(regex(pattern = "^[A-Za-z0-9_][-A-Za-z0-9_]{0,62}$"))]
    pub subsystem: String,
    /// Properties that the device must have, such as `ID_VENDOR_ID: "0403"`, at most 16: those of
    /// the kernel's `uevent` file, and where the host runs udev those of its database
    /// (`udevadm info` shows them). A value is a pattern: `*`, `?`, `[0-9]` and `{a,b}`; at most 256
    /// characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub properties: BTreeMap<String, String>,
    /// Attributes, files in the device's directory in sysfs, that must have a value, at most 16:
    /// `name: "0"`. `../idProduct` is the attribute of the nearest device above that has it, such as
    /// the USB device that a serial port is on. Values are patterns as in `properties`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub attributes: BTreeMap<String, String>,
}

/// What a PCI function must be. Members left out match everything.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.vendor) && self.vendor != '', has(self.device) && self.device != '', has(self.class) && self.class != '', has(self.driver) && self.driver != ''].exists(given, given)")
        .message("a pci matcher must name at least one of vendor, device, class and driver, such as vendor: \"8086\"; an empty one would match every PCI function")
)]
pub struct PciMatcher {
    /// Vendor id: four lower-case hex digits, such as `8086`. Default empty: any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = "^([0-9a-f]{4})?$"))]
    pub vendor: String,
    /// Device id: four lower-case hex digits, such as `56c0`. Default empty: any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = "^([0-9a-f]{4})?$"))]
    pub device: String,
    /// The start of the class code: two, four or six lower-case hex digits, such as `03` for all
    /// display controllers. Default empty: any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = "^([0-9a-f]{2}){0,3}$"))]
    pub class: String,
    /// Name of the driver that it is bound to, such as `vfio-pci`; at most 63 letters, digits, `-`
    /// and `_`. Default empty: any, or none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = "^[-A-Za-z0-9_]{0,63}$"))]
    pub driver: String,
}

/// What a USB device must be. Members left out match everything.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsbMatcher {
    /// Vendor id: four lower-case hex digits, such as `0403`.
    #[schemars(regex(pattern = "^[0-9a-f]{4}$"))]
    pub vendor: String,
    /// Product id: four lower-case hex digits, such as `6001`. Default empty: any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = "^([0-9a-f]{4})?$"))]
    pub product: String,
    /// Serial number, exactly as the device gives it, at most 128 characters. Default empty: any.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub serial: String,
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
