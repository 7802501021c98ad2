//! The devices of one resource over time. The kubelet must never see a device leave that a container
//! may hold: it has been seen to panic, and to hand the device out again under a new id.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crds::node::Health;
use jiff::Timestamp;

use crate::advertised::{LIST_MAX, Sharing};
use crate::discovery::{Discovered, Found, Hardware, Refusal, Unknown};

/// How long a device that is gone stays listed, as Unhealthy, at least. The kubelet forgets a plugin
/// that is away after the same time; half of it would drop a device while its pod is still being
/// replaced, twice as much only keeps the capacity wrong for longer.
pub const GONE_GRACE: Duration = Duration::from_secs(300);

/// Most devices of one resource, beside the limit of the list that the kubelet reads: so many take half
/// of the memory that an agent has by default.
pub const DEVICES_MAX: usize = 50_000;

/// Why a device that vanished is Unhealthy.
const GONE: &str = "device node is gone";

/// The devices of one resource now.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Inventory {
    /// Devices by their ids, of which `advertised` makes those that the kubelet knows.
    pub devices: BTreeMap<String, Device>,
    /// How often each is advertised.
    pub sharing: Sharing,
    /// Advertised ids that containers hold, by device; those of a device that was never seen are kept
    /// after they were let go of.
    pub held: BTreeMap<String, BTreeSet<String>>,
    /// Whether the kubelet has told what containers hold.
    pub allocations_known: bool,
    /// What is refused for what it is.
    pub refusals: Vec<Refusal>,
    /// What users should know of devices although nothing is wrong.
    pub remarks: Vec<Refusal>,
    /// Devices that are too many.
    pub left_out: usize,
    /// What could not be looked at.
    pub unknown: Unknown,
    /// Ids of devices that are Unhealthy only until the agent that serves has seen to them.
    pub awaiting: BTreeSet<String>,
}

/// One advertised device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// Paths of its device nodes on the host; none for a simulated device, and for one that was
    /// gone before this agent started.
    pub paths: Vec<String>,
    /// What the kernel said of the hardware behind it.
    pub hardware: Hardware,
    /// Whether it can be given to a container.
    pub health: Health,
    /// Why it is Unhealthy; empty otherwise.
    pub reason: String,
    /// When its health changed last, in whole seconds as the report has it.
    pub since: Timestamp,
    /// Since when it has been both gone and held by no container.
    pub idle_since: Option<Timestamp>,
    /// Whether a container holds it.
    pub allocated: bool,
    /// Whether a look ever showed it; else it is known only because a container holds its id.
    pub discovered: bool,
}

impl Inventory {
    /// No devices yet.
    pub fn of(sharing: Sharing) -> Self {
        Self {
            sharing,
            ..Self::default()
        }
    }

    /// The inventory after another look. `allocated` are the ids that containers hold, as far as
    /// that is known: while it is not, nothing is dropped.
    pub fn next(
        &self,
        seen: Discovered,
        allocated: Option<&BTreeSet<String>>,
        now: Timestamp,
    ) -> Self {
        let Discovered {
            devices: found,
            unusable,
            unknown,
            refusals,
            remarks,
            awaiting,
        } = seen;
        let allocated = allocated.map(|ids| self.sharing.by_device(ids));
        let allocated = allocated.as_ref();
        let mut next = Self {
            sharing: self.sharing,
            held: allocated.unwrap_or(&self.held).clone(),
            allocations_known: self.allocations_known || allocated.is_some(),
            refusals,
            remarks,
            awaiting,
            unknown,
            ..Self::default()
        };
        let found = found.into_iter().map(|(id, found)| {
            let found = found.unless_held_as_another(&id, allocated);
            (id, found)
        });
        let found: BTreeMap<String, Found> = found.collect();
        for (id, known) in &self.devices {
            let held = allocated.map_or(known.allocated, |ids| ids.contains_key(id));
            let device = match found.get(id) {
                Some(found) => known.found(found, held, now),
                None if next.unknown.hides(known) => known.unseen(held),
                None => known.missing(unusable.get(id), held, now),
            };
            if device.may_be_dropped(allocated.is_some(), now) {
                continue;
            }
            if !device.discovered
                && let Some(last) = self.held.get(id)
            {
                next.held.entry(id.clone()).or_insert_with(|| last.clone());
            }
            next.devices.insert(id.clone(), device);
        }
        // Whatever the kubelet believes to be held is listed, also where this process never saw it.
        for id in allocated
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter(|id| !found.contains_key(*id))
        {
            let gone = || Device::unknown(now);
            next.devices.entry(id.clone()).or_insert_with(gone);
        }
        let mut room = LIST_MAX.saturating_sub(next.list_bytes());
        for (id, found) in found {
            if self.devices.contains_key(&id) {
                continue;
            }
            let held = allocated.is_some_and(|ids| ids.contains_key(&id));
            let bytes = self
                .sharing
                .list_bytes(&id, found.hardware.numa_nodes.len());
            // What a container holds comes before what anybody may get.
            if !held && (next.devices.len() >= DEVICES_MAX || bytes > room) {
                next.left_out += 1;
                continue;
            }
            room = room.saturating_sub(bytes);
            next.devices.insert(id, Device::new(found, held, now));
        }
        next
    }

    /// Bytes of the list that the kubelet gets, at most.
    fn list_bytes(&self) -> usize {
        let devices = self.devices.iter();
        let bytes = |(id, device): (&String, &Device)| {
            self.sharing
                .list_bytes(id, device.hardware.numa_nodes.len())
        };
        devices.map(bytes).sum()
    }
}

impl Device {
    fn new(found: Found, allocated: bool, now: Timestamp) -> Self {
        let (health, reason) = judged(&found);
        Self {
            paths: found.paths,
            hardware: found.hardware,
            health,
            reason,
            since: whole_seconds(now),
            idle_since: None,
            allocated,
            discovered: true,
        }
    }

    /// A device that a container holds and that this process never saw.
    fn unknown(now: Timestamp) -> Self {
        Self {
            paths: Vec::new(),
            hardware: Hardware::default(),
            health: Health::Unhealthy,
            reason: GONE.to_owned(),
            since: whole_seconds(now),
            idle_since: None,
            allocated: true,
            discovered: false,
        }
    }

    fn found(&self, found: &Found, allocated: bool, now: Timestamp) -> Self {
        let (health, reason) = judged(found);
        Self {
            paths: found.paths.clone(),
            hardware: found.hardware.clone(),
            since: self.since_for(health, now),
            health,
            reason,
            idle_since: None,
            allocated,
            discovered: true,
        }
    }

    fn unseen(&self, allocated: bool) -> Self {
        Self {
            allocated,
            idle_since: self.idle_since.filter(|_| !allocated),
            ..self.clone()
        }
    }

    fn missing(&self, reason: Option<&String>, allocated: bool, now: Timestamp) -> Self {
        Self {
            paths: self.paths.clone(),
            hardware: self.hardware.clone(),
            health: Health::Unhealthy,
            reason: reason.map_or(GONE, String::as_str).to_owned(),
            since: self.since_for(Health::Unhealthy, now),
            idle_since: (!allocated).then(|| self.idle_since.unwrap_or(now)),
            allocated,
            discovered: self.discovered,
        }
    }

    fn since_for(&self, health: Health, now: Timestamp) -> Timestamp {
        if self.health == health {
            self.since
        } else {
            whole_seconds(now)
        }
    }

    fn may_be_dropped(&self, allocations_are_known: bool, now: Timestamp) -> bool {
        let grace = i64::try_from(GONE_GRACE.as_secs()).unwrap_or(i64::MAX);
        let past_grace = |since: Timestamp| now.duration_since(since).as_secs() >= grace;
        allocations_are_known && !self.allocated && self.idle_since.is_some_and(past_grace)
    }
}

impl Unknown {
    /// Whether one of a device's paths, or its place in sysfs, could not be looked at.
    pub fn hides(&self, device: &Device) -> bool {
        device
            .paths
            .iter()
            .chain(&device.hardware.sysfs)
            .any(|path| {
                let below = |directory: &String| {
                    path.strip_prefix(directory.as_str())
                        .is_some_and(|rest| rest.starts_with('/'))
                };
                self.paths.contains_key(path) || self.directories.keys().any(below)
            })
    }
}

fn judged(found: &Found) -> (Health, String) {
    match &found.unhealthy {
        None => (Health::Healthy, String::new()),
        Some(reason) => (Health::Unhealthy, reason.clone()),
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::discovered;
    use crate::discovery::tests::{character, numbered, seen_paths};
    use crate::discovery::{Candidate, Kind, Target};
    use crate::rule::{self, tests::rule};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn look(candidates: &[Candidate]) -> Discovered {
        discovered(&rule(&["/dev/**"], &[]), &seen_paths(candidates))
    }

    fn node(path: &str) -> Candidate {
        character(path, path)
    }

    fn none() -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn lines(inventory: &Inventory) -> Vec<String> {
        let line = |device: &Device| {
            let held = if device.allocated { " held" } else { "" };
            let path = device.paths.first().map_or("-", String::as_str);
            format!(
                "{path} {} {}{held} {}",
                device.health.as_str(),
                device.since.as_second(),
                device.reason
            )
            .trim_end()
            .to_owned()
        };
        inventory.devices.values().map(line).collect()
    }

    #[test]
    fn a_free_device_that_vanishes_stays_for_the_grace_and_returns_at_once() {
        let first = Inventory::default().next(look(&[node("/dev/a")]), Some(&none()), at(10));
        assert_eq!(lines(&first), ["/dev/a Healthy 10"]);
        let gone = first.next(look(&[]), Some(&none()), at(20));
        assert_eq!(lines(&gone), ["/dev/a Unhealthy 20 device node is gone"]);
        let still = gone.next(look(&[]), Some(&none()), at(319));
        assert_eq!(lines(&still), ["/dev/a Unhealthy 20 device node is gone"]);
        let back = still.next(look(&[node("/dev/a")]), Some(&none()), at(319));
        assert_eq!(lines(&back), ["/dev/a Healthy 319"]);
        let dropped = still.next(look(&[]), Some(&none()), at(320));
        assert!(dropped.devices.is_empty());
    }

    #[test]
    fn an_allocated_device_that_vanishes_stays() {
        let first = Inventory::default().next(look(&[node("/dev/a")]), None, at(10));
        let held: BTreeSet<String> = first.devices.keys().cloned().collect();
        let gone = first.next(look(&[]), Some(&held), at(20));
        let later = gone.next(look(&[]), Some(&held), at(100_000));
        assert_eq!(
            lines(&later),
            ["/dev/a Unhealthy 20 held device node is gone"]
        );
        let unknown = later.next(look(&[]), None, at(100_001));
        assert_eq!(
            unknown, later,
            "what containers hold is not known: nothing changes"
        );
        // One reading without it may be a kubelet that has just started and knows no pod yet.
        let freed = later.next(look(&[]), Some(&none()), at(100_001));
        assert_eq!(lines(&freed), ["/dev/a Unhealthy 20 device node is gone"]);
        let held_again = freed.next(look(&[]), Some(&held), at(100_002));
        let kept = held_again.next(look(&[]), Some(&none()), at(100_400));
        assert_eq!(kept.devices.len(), 1, "the grace begins anew");
        let dropped = kept.next(look(&[]), Some(&none()), at(100_700));
        assert!(dropped.devices.is_empty());
    }

    #[test]
    fn nothing_is_dropped_while_allocations_are_unknown() {
        let first = Inventory::default().next(look(&[node("/dev/a")]), None, at(0));
        let gone = first
            .next(look(&[]), None, at(1))
            .next(look(&[]), None, at(9_999));
        assert_eq!(lines(&gone), ["/dev/a Unhealthy 1 device node is gone"]);
    }

    #[test]
    fn a_held_id_that_was_gone_before_the_start_is_listed() {
        let held = BTreeSet::from(["old-id".to_owned()]);
        let first = Inventory::default().next(look(&[]), Some(&held), at(10));
        assert_eq!(lines(&first), ["- Unhealthy 10 held device node is gone"]);
        let freed = first.next(look(&[]), Some(&none()), at(20));
        assert_eq!(lines(&freed), ["- Unhealthy 10 device node is gone"]);
        assert!(
            freed
                .next(look(&[]), Some(&none()), at(320))
                .devices
                .is_empty()
        );
    }

    #[test]
    fn a_node_of_another_kind_is_unhealthy() {
        let first = Inventory::default().next(look(&[node("/dev/a")]), Some(&none()), at(1));
        let block = look(&[numbered("/dev/a", "/dev/a", Kind::Block, 8, 0)]);
        let changed = first.next(block, Some(&none()), at(2));
        assert_eq!(
            lines(&changed),
            [
                "/dev/a Unhealthy 2 is a block device (8:0), which gives access to whole file systems"
            ]
        );
        assert_eq!(changed.refusals.len(), 1);
        let file = Candidate {
            path: "/dev/a".to_owned(),
            target: Target::Other("a regular file"),
        };
        let changed = changed.next(look(&[file]), Some(&none()), at(3));
        assert_eq!(
            lines(&changed),
            [r#"/dev/a Unhealthy 2 "/dev/a" is a regular file, not a device"#]
        );
        let replugged = numbered("/dev/a", "/dev/a", Kind::Character, 188, 7);
        let back = changed.next(look(&[replugged]), Some(&none()), at(4));
        assert_eq!(lines(&back), ["/dev/a Healthy 4"]);
    }

    #[test]
    fn what_cannot_be_looked_at_stays_as_it_was() {
        let nodes = [node("/dev/a"), node("/dev/bus/b"), node("/dev/business/c")];
        let first = Inventory::default().next(look(&nodes), Some(&none()), at(1));
        let target = Target::Unreadable("permission denied".to_owned());
        let mut blind = look(&[Candidate {
            path: "/dev/a".to_owned(),
            target,
        }]);
        blind
            .unknown
            .directories
            .insert("/dev/bus".to_owned(), "input/output error".to_owned());
        let next = first.next(blind, Some(&none()), at(9_999));
        assert_eq!(
            lines(&next),
            [
                "/dev/a Healthy 1",
                "/dev/bus/b Healthy 1",
                "/dev/business/c Unhealthy 9999 device node is gone"
            ]
        );
    }

    /// What sysfs does not show now is not gone.
    #[test]
    fn a_device_whose_place_cannot_be_looked_at_stays_as_it_was() {
        let seen = |devices: &[(&str, &str)]| Discovered {
            devices: devices
                .iter()
                .map(|(id, sysfs)| {
                    let hardware = Hardware {
                        sysfs: Some((*sysfs).to_owned()),
                        ..Hardware::default()
                    };
                    let paths = vec![format!("/dev/{id}")];
                    let found = Found {
                        paths,
                        hardware,
                        ..Found::default()
                    };
                    ((*id).to_owned(), found)
                })
                .collect(),
            ..Discovered::default()
        };
        let both = [("a", "/sys/devices/a"), ("b", "/sys/devices/b")];
        let first = Inventory::default().next(seen(&both), Some(&none()), at(1));
        let mut blind = seen(&[]);
        let error = "input/output error".to_owned();
        blind.unknown.paths = [("/sys/devices/a".to_owned(), error.clone())].into();
        let next = first.next(blind, Some(&none()), at(2));
        let one = ["/dev/a Healthy 1", "/dev/b Unhealthy 2 device node is gone"];
        assert_eq!(lines(&next), one);
        let mut blind = seen(&[]);
        blind.unknown.directories = [("/sys/devices".to_owned(), error)].into();
        let next = first.next(blind, Some(&none()), at(9));
        assert_eq!(lines(&next), ["/dev/a Healthy 1", "/dev/b Healthy 1"]);
    }

    #[test]
    fn more_devices_than_a_message_holds_are_left_out() {
        let found = |from: usize, to: usize| Discovered {
            devices: (from..to)
                .map(|n| {
                    (
                        format!("id-{n:06}"),
                        Found {
                            paths: vec![format!("/dev/{n}")],
                            ..Found::default()
                        },
                    )
                })
                .collect(),
            ..Discovered::default()
        };
        let many = Inventory::default().next(found(1_000, 200_000), Some(&none()), at(1));
        assert_eq!((many.devices.len(), many.left_out), (DEVICES_MAX, 149_000));
        let more = many.next(found(0, 200_000), Some(&none()), at(2));
        assert_eq!((more.devices.len(), more.left_out), (DEVICES_MAX, 150_000));
        assert!(
            !more.devices.contains_key("id-000000"),
            "known devices are not pushed out"
        );
    }

    #[test]
    fn a_list_stays_below_what_the_kubelet_reads() {
        let found = |nodes: &[u32]| Discovered {
            devices: (0..200_000)
                .map(|n| {
                    let mut found = Found::default();
                    found.hardware.numa_nodes = nodes.to_vec();
                    (format!("{n:058}"), found)
                })
                .collect(),
            ..Discovered::default()
        };
        let check = |replicas: i32, nodes: &[u32]| {
            let mut resource = rule::tests::resource(crds::discovery::Discovery::default());
            resource.replicas = replicas;
            let empty = Inventory::of(Sharing::new(&resource));
            let many = empty.next(found(nodes), Some(&none()), at(1));
            let bytes = many.list_bytes();
            assert!(
                (3_800_000..=LIST_MAX).contains(&bytes),
                "{replicas}: {bytes}"
            );
            assert_eq!(many.devices.len() + many.left_out, 200_000);
            assert_eq!(many.total(), many.devices.len() * many.sharing.replicas());
        };
        check(1, &[0]);
        check(7, &[]);
        check(1_000, &[1, 300]);
    }

    #[test]
    fn a_held_device_is_never_left_out() {
        let found = |count: usize| Discovered {
            devices: (0..count)
                .map(|n| (format!("id-{n:06}"), Found::default()))
                .collect(),
            ..Discovered::default()
        };
        let held = BTreeSet::from(["id-099999".to_owned()]);
        let many = Inventory::default().next(found(100_000), Some(&held), at(1));
        assert!(many.devices["id-099999"].allocated);
        assert_eq!(many.left_out, 49_999);
    }
}
