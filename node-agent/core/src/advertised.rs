//! The ids that the kubelet knows, and the devices behind them. With replicas, one device has several
//! ids; everything that the kubelet says or is told goes through here.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crds::node::Health;
use crds::resource::Resource;

use crate::inventory::{Device, Inventory};

/// Most bytes of a list. The kubelet reads messages of at most 4 MiB and ends the stream over a longer
/// one; what is kept back leaves room for devices that get a NUMA node after they were listed.
pub const LIST_MAX: usize = 4_000_000;

/// Most NUMA nodes that are told of one device: sysfs names one, or very few.
pub const NUMA_NODES_MAX: usize = 16;

/// How often each device is advertised.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sharing {
    replicas: usize,
    several_per_container: bool,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            replicas: 1,
            several_per_container: false,
        }
    }
}

impl Sharing {
    /// The sharing of a resource.
    pub fn new(resource: &Resource) -> Self {
        Self {
            replicas: usize::try_from(resource.replicas)
                .unwrap_or(1)
                .clamp(1, 1_000),
            several_per_container: resource.allow_multiple_replicas_per_container,
        }
    }

    /// How many ids a device has.
    pub fn replicas(self) -> usize {
        self.replicas
    }

    /// Whether a container must not get one device twice, though that could happen.
    pub fn is_one_per_container(self) -> bool {
        self.replicas > 1 && !self.several_per_container
    }

    /// The ids of a device: `card-1f`, or `card-1f.0`, `card-1f.1`, … where it has several.
    pub fn ids(self, device: &str) -> impl Iterator<Item = Cow<'_, str>> {
        (0..self.replicas).map(move |replica| {
            if self.replicas == 1 {
                Cow::Borrowed(device)
            } else {
                Cow::Owned(format!("{device}.{replica}"))
            }
        })
    }

    /// The device whose id this is; nothing for an id that no device gets, such as one from a time
    /// when there were more replicas.
    pub fn replica_of(self, id: &str) -> Option<&str> {
        if self.replicas == 1 {
            return Some(id);
        }
        let (device, number) = id.rsplit_once('.')?;
        let replica: usize = number.parse().ok()?;
        // `+1` and `01` are numbers too, but not how we write them.
        (replica < self.replicas && replica.to_string() == number).then_some(device)
    }

    /// The device that an id means: an id that no device gets is a device of its own.
    pub fn device(self, id: &str) -> &str {
        self.replica_of(id).unwrap_or(id)
    }

    /// Ids that containers hold, by device.
    pub fn by_device(self, ids: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
        let mut by_device: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for id in ids {
            let device = by_device.entry(self.device(id).to_owned()).or_default();
            device.insert(id.clone());
        }
        by_device
    }

    /// Bytes that a device takes in a list, at most.
    pub fn list_bytes(self, device: &str, numa_nodes: usize) -> usize {
        const TAG_AND_LENGTH: usize = 3;
        const NUMA_NODE: usize = 8;
        let number = if self.replicas == 1 { 0 } else { ".999".len() };
        let id = TAG_AND_LENGTH + device.len() + number;
        let health = TAG_AND_LENGTH + Health::Unhealthy.as_str().len();
        let topology = match numa_nodes.min(NUMA_NODES_MAX) {
            0 => 0,
            nodes => TAG_AND_LENGTH + nodes * NUMA_NODE,
        };
        self.replicas * (TAG_AND_LENGTH + id + health + topology)
    }
}

/// One entry of the kubelet's list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Advertised<'a> {
    /// Its id.
    pub id: Cow<'a, str>,
    /// Its health.
    pub health: Health,
    /// The NUMA nodes that its device is near to.
    pub numa_nodes: &'a [u32],
}

impl Inventory {
    /// The kubelet's list.
    pub fn advertised(&self) -> impl Iterator<Item = Advertised<'_>> {
        self.devices.iter().flat_map(|(name, device)| {
            let usual = device.discovered.then(|| self.sharing.ids(name));
            let usual = usual.into_iter().flatten().map(|id| (id, device.health));
            let strays = self.strays(name, device);
            usual
                .chain(strays.map(|id| (Cow::Borrowed(id), Health::Unhealthy)))
                .map(|(id, health)| Advertised {
                    id,
                    health,
                    numa_nodes: numa_nodes(device),
                })
        })
    }

    /// Whether the kubelet would see no difference: it rewrites a file with every message.
    pub fn is_same_list(&self, other: &Self) -> bool {
        let key = |(name, device): (&'_ String, &'_ Device)| {
            (name.clone(), device.health, device.discovered)
        };
        self.sharing == other.sharing
            && self.devices.len() == other.devices.len()
            && self.devices.iter().zip(&other.devices).all(|(one, two)| {
                key(one) == key(two)
                    && numa_nodes(one.1) == numa_nodes(two.1)
                    && self.strays(one.0, one.1).eq(other.strays(two.0, two.1))
            })
    }

    /// Advertised ids.
    pub fn total(&self) -> usize {
        let ids = |(name, device): (&String, &Device)| {
            self.usual(device) + self.strays(name, device).count()
        };
        self.devices.iter().map(ids).sum()
    }

    /// Those of them that can be given to a container.
    pub fn healthy(&self) -> usize {
        let healthy = |device: &&Device| device.health == Health::Healthy;
        let devices = self.devices.values().filter(healthy);
        devices.map(|device| self.usual(device)).sum()
    }

    /// Those of them that containers hold.
    pub fn allocated(&self) -> usize {
        let held = |(name, device): (&String, &Device)| match self.held.get(name) {
            _ if !device.allocated => 0,
            Some(held) => held.len(),
            None => 1,
        };
        self.devices.iter().map(held).sum()
    }

    /// Ids that this agent would give to containers if it served.
    pub fn promised(&self) -> usize {
        self.healthy() + self.awaiting.len() * self.sharing.replicas()
    }

    /// Ids that containers hold and that this agent would not advertise by itself: they are listed as
    /// Unhealthy. A revision that gives devices other ids, or fewer replicas, has them.
    pub fn missing_allocated(&self) -> usize {
        let allocated = self.devices.iter().filter(|(_, device)| device.allocated);
        allocated
            .map(|(name, device)| self.strays(name, device).count())
            .sum()
    }

    /// How many ids a device has by rule.
    fn usual(&self, device: &Device) -> usize {
        if device.discovered {
            self.sharing.replicas
        } else {
            0
        }
    }

    /// Ids of a device that are listed only because containers hold them.
    fn strays<'a>(&'a self, name: &'a str, device: &'a Device) -> impl Iterator<Item = &'a str> {
        let held = self.held.get(name);
        let is_stray =
            move |id: &&'a str| !device.discovered || (self.sharing.replicas > 1 && *id == name);
        // A device that was never seen is known by an id at least.
        let itself = (held.is_none() && !device.discovered).then_some(name);
        let held = held.into_iter().flatten().map(String::as_str);
        held.filter(is_stray).chain(itself)
    }
}

fn numa_nodes(device: &Device) -> &[u32] {
    let nodes = device.hardware.numa_nodes.as_slice();
    nodes.get(..NUMA_NODES_MAX).unwrap_or(nodes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::discovery::{Discovered, Found, Hardware};
    use jiff::Timestamp;

    pub(crate) fn sharing(replicas: usize, several_per_container: bool) -> Sharing {
        Sharing {
            replicas,
            several_per_container,
        }
    }

    /// An inventory of devices, each with its NUMA nodes and PCI address, and of the ids that are held.
    pub(crate) fn inventory(
        sharing: Sharing,
        devices: &[(&str, &[u32], &str)],
        held: &[&str],
    ) -> Inventory {
        next(&Inventory::of(sharing), devices, held)
    }

    fn next(before: &Inventory, devices: &[(&str, &[u32], &str)], held: &[&str]) -> Inventory {
        let found = |(id, numa_nodes, pci_address): &(&str, &[u32], &str)| {
            let hardware = Hardware {
                pci_address: (!pci_address.is_empty()).then(|| (*pci_address).to_owned()),
                numa_nodes: numa_nodes.to_vec(),
                ..Hardware::default()
            };
            let found = Found {
                paths: vec![format!("/dev/{id}")],
                hardware,
                ..Found::default()
            };
            ((*id).to_owned(), found)
        };
        let discovered = Discovered {
            devices: devices.iter().map(found).collect(),
            ..Discovered::default()
        };
        let held = held.iter().map(|id| (*id).to_owned()).collect();
        before.next(discovered, Some(&held), Timestamp::UNIX_EPOCH)
    }

    fn list(inventory: &Inventory) -> Vec<String> {
        let line = |one: Advertised<'_>| format!("{} {}", one.id, one.health.as_str());
        inventory.advertised().map(line).collect()
    }

    fn counts(inventory: &Inventory) -> [usize; 4] {
        [
            inventory.total(),
            inventory.healthy(),
            inventory.allocated(),
            inventory.missing_allocated(),
        ]
    }

    #[test]
    fn ids_lead_back_to_their_devices() {
        for device in ["a", "a.0", "a.1", "video.7-1f", ".", "", "ü.", "a.-1"] {
            for replicas in [1, 2, 10, 1_000] {
                let sharing = sharing(replicas, false);
                let ids: BTreeSet<Cow<'_, str>> = sharing.ids(device).collect();
                assert_eq!(ids.len(), replicas);
                for id in &ids {
                    assert_eq!(sharing.replica_of(id), Some(device), "{id:?}");
                    assert_eq!(sharing.device(id), device);
                }
            }
        }
    }

    #[test]
    fn an_id_that_no_device_gets_is_a_device_of_its_own() {
        let four = sharing(4, false);
        for id in [
            "",
            ".",
            "a",
            "a.4",
            "a.",
            "a.+1",
            "a.01",
            "a.1x",
            "a.99999999999999999999",
        ] {
            assert_eq!((four.replica_of(id), four.device(id)), (None, id));
        }
        // The other way round: whatever is given, the ids of its device hold it, or it is one.
        for id in ["a.0", "a.3", "a.b.2", ".1", "a.1.1", "a.7"] {
            let device = four.device(id);
            assert!(
                device == id || four.ids(device).any(|one| one == id),
                "{id:?}"
            );
        }
    }

    #[test]
    fn the_longest_ids_fit_the_protocol() {
        let device = "d".repeat(58);
        let longest = sharing(1_000, false).ids(&device).map(|id| id.len()).max();
        assert!(longest <= Some(crate::identity::DEVICE_ID_MAX));
    }

    #[test]
    fn every_device_is_listed_as_often_as_it_is_shared() {
        let devices: &[(&str, &[u32], &str)] = &[("a", &[0], ""), ("b", &[], "")];
        let one = inventory(sharing(1, false), devices, &["b"]);
        assert_eq!(list(&one), ["a Healthy", "b Healthy"]);
        assert_eq!(counts(&one), [2, 2, 1, 0]);
        let two = inventory(sharing(2, false), devices, &["b.0", "b.1", "a.1"]);
        assert_eq!(
            list(&two),
            ["a.0 Healthy", "a.1 Healthy", "b.0 Healthy", "b.1 Healthy"]
        );
        assert_eq!(counts(&two), [4, 4, 3, 0]);
        let gone = next(&two, &[("a", &[0], "")], &["b.1"]);
        assert_eq!(
            list(&gone),
            [
                "a.0 Healthy",
                "a.1 Healthy",
                "b.0 Unhealthy",
                "b.1 Unhealthy"
            ]
        );
        assert_eq!(counts(&gone), [4, 2, 1, 0]);
    }

    #[test]
    fn ids_of_another_number_of_replicas_stay_listed_while_they_are_held() {
        let devices: &[(&str, &[u32], &str)] = &[("a", &[], "")];
        // There was one, or there were eight.
        let two = inventory(sharing(2, false), devices, &["a", "a.7"]);
        assert_eq!(
            list(&two),
            ["a.0 Healthy", "a.1 Healthy", "a Unhealthy", "a.7 Unhealthy"]
        );
        assert_eq!(counts(&two), [4, 2, 2, 2]);
        let freed = next(&two, devices, &[]);
        assert_eq!(
            list(&freed),
            ["a.0 Healthy", "a.1 Healthy", "a.7 Unhealthy"],
            "one that no device gets stays for the grace"
        );
        assert_eq!(counts(&freed), [3, 2, 0, 0]);
        let one = inventory(sharing(1, false), devices, &["a.1"]);
        assert_eq!(
            list(&one),
            ["a Unhealthy", "a.1 Unhealthy"],
            "it would be given out twice"
        );
        assert_eq!(counts(&one), [2, 0, 1, 1]);
        // Gone before this agent started, and let go of since.
        let gone = inventory(sharing(2, false), &[], &["a.1"]);
        assert_eq!(list(&gone), ["a.1 Unhealthy"]);
        assert_eq!(list(&next(&gone, &[], &[])), ["a.1 Unhealthy"]);
    }

    #[test]
    fn what_the_kubelet_would_see_is_a_difference() {
        let two = sharing(2, false);
        let base = inventory(two, &[("a", &[0], "x"), ("b", &[1], "")], &[]);
        let check = |devices: &[(&str, &[u32], &str)], held: &[&str], same: bool| {
            let other = inventory(two, devices, held);
            assert_eq!(base.is_same_list(&other), same, "{other:?}");
        };
        check(&[("a", &[0], "y"), ("b", &[1], "")], &["a.0"], true);
        check(&[("a", &[], "x"), ("b", &[1], "")], &[], false);
        check(&[("a", &[0], "x"), ("b", &[1, 2], "")], &[], false);
        check(&[("a", &[0], "x"), ("b", &[1], "")], &["b"], false);
        check(&[("a", &[0], "x")], &[], false);
        check(&[("a", &[0], "x"), ("c", &[1], "")], &[], false);
        let once = inventory(sharing(1, false), &[("a", &[0], "x"), ("b", &[1], "")], &[]);
        assert!(!base.is_same_list(&once));
    }
}
