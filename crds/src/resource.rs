//! What a resource is: which devices it advertises and what a container gets. All of it is part of
//! a revision: members equal to their default are left out of the serialised form, so that a later
//! version with more fields gives the same revision.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::container::ContainerAccess;
use crate::discovery::{Discovery, IdFrom, Topology};
use crate::health::HealthCheck;

/// One extended resource and the devices behind it.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.idFrom) || self.idFrom == 'Auto' || !(has(self.discovery.groups) || has(self.discovery.simulated))")
        .message(Message::Expression("'idFrom must be Auto, not ' + self.idFrom + ': devices of groups and simulated have ids of their own'".into()))
)]
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
    /// What the ids of devices are made from: `Serial` (a device's serial number), `BusPath` (the
    /// slot or port that it is plugged into), `DevicePath` (the path of its device node) or `Auto`:
    /// the path for `paths`, the slot for `pci`, the serial number for `usb` and `udev`. A device
    /// without what is asked for, and devices that share it, get the next of `Serial`, `BusPath`
    /// and `DevicePath`. Only `Auto` for `groups` and `simulated`. Default `Auto`.
    #[serde(default, skip_serializing_if = "is_default_id_from")]
    pub id_from: IdFrom,
    /// Whether the kubelet is told which NUMA node a device is near to: `Auto` (the one that the
    /// kernel names, if any) or `None`. Default `Auto`.
    #[serde(default, skip_serializing_if = "is_default_topology")]
    pub topology: Topology,
    /// How many containers can share a device: each device is advertised so many times, and all
    /// counts of devices grow with it. Nothing keeps those who share a device apart. 1 to 1000,
    /// default 1: a device belongs to one container.
    #[serde(
        default = "default_replicas",
        skip_serializing_if = "is_default_replicas"
    )]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: i32,
    /// Whether a container that asks for several devices may be given one device more than once,
    /// where `replicas` is more than 1. If not, it gets as many different devices as it asks for, or
    /// its pod fails with a message that says why. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_multiple_replicas_per_container: bool,
    /// Which of the free devices a container gets. `None`: the kubelet chooses. `Packed`: devices
    /// near to each other and already in use, so that others stay free as a whole: on as few NUMA
    /// nodes as possible, there on as few PCI devices (functions of one card), there as few devices.
    /// `Spread`: the devices that the fewest containers share, by turns from each NUMA node and each
    /// PCI device. `NumaAligned`: all from one NUMA node where one has enough, from the one with the
    /// least to spare; there the devices that the fewest containers share. The kubelet's Topology
    /// Manager, where it is on, decides about NUMA nodes first. Default `None`.
    #[serde(default, skip_serializing_if = "is_default_preferred_allocation")]
    pub preferred_allocation: PreferredAllocation,
    /// What a container that asked for devices gets. Left out: each device at its host's path,
    /// readable and writable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerAccess>,
    /// How the health of a device is judged. Left out: type `Exists`, every 5 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// With fewer Healthy devices than this, a node counts as degraded, whether devices are
    /// Unhealthy or missing. 0 to 50000, default 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 50_000))]
    pub min_devices: i32,
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

fn is_default_id_from(id_from: &IdFrom) -> bool {
    *id_from == IdFrom::default()
}

fn is_default_topology(topology: &Topology) -> bool {
    *topology == Topology::default()
}

/// Which of the free devices a container gets.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum PreferredAllocation {
    /// Those that the kubelet chooses.
    #[default]
    None,
    /// Those near to each other.
    Packed,
    /// Those that the fewest share.
    Spread,
    /// Those of one NUMA node.
    NumaAligned,
}

fn default_replicas() -> i32 {
    1
}

fn is_default_replicas(replicas: &i32) -> bool {
    *replicas == default_replicas()
}

fn is_default_preferred_allocation(preferred: &PreferredAllocation) -> bool {
    *preferred == PreferredAllocation::default()
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}
