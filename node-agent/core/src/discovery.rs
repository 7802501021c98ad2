//! From what was seen to devices: what is refused, what is one device under two names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::discovery::{SimulatedDiscovery, Topology};

use crate::by_path::by_path;
use crate::by_sight::by_sight;
use crate::groups::by_group;
use crate::identity::simulated_device_id;
use crate::rule::{Matches, Rule};
use crate::sight::Sight;

/// Major and minor number of a device node.
pub type Numbers = (u32, u32);

/// What a reader of `/dev` and sysfs saw for a rule.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Look {
    /// Paths that the rule matches.
    pub candidates: Vec<Candidate>,
    /// What sysfs has of the candidates' device nodes.
    pub behind: BTreeMap<Numbers, Arc<Sight>>,
    /// Devices in sysfs that the rule accepts.
    pub sights: Vec<Sight>,
    /// What could not be looked at.
    pub unknown: Unknown,
}

/// A path that a rule matches, and what is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// The path on the host, such as `/dev/serial/by-id/usb-A1`.
    pub path: String,
    /// What the path leads to.
    pub target: Target,
}

/// What a path leads to, links followed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// A device node.
    Device {
        /// Its own path on the host.
        path: String,
        /// Character or block.
        kind: Kind,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Something else, in words: a directory, a socket.
    Other(&'static str),
    /// A place outside `/dev`, which a link names.
    Outside(String),
    /// It could not be looked at; why.
    Unreadable(String),
}

/// The kind of a device node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A character device.
    Character,
    /// A block device.
    Block,
}

/// A path that a rule matches and that is not advertised.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Refusal {
    /// The path on the host.
    pub path: String,
    /// Why, as a clause: `is a block device (8:0)`.
    pub reason: String,
}

/// What one look found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Discovered {
    /// Devices by id.
    pub devices: BTreeMap<String, Found>,
    /// Ids whose path leads to something that is no usable device now, and why. Whether that is news
    /// depends on what was known before.
    pub unusable: BTreeMap<String, String>,
    /// Ids that could not be looked at, and directories (their paths) that could not be listed:
    /// nothing is known of them, so what was known stays.
    pub unknown: Unknown,
    /// What is refused for what it is.
    pub refusals: Vec<Refusal>,
    /// What users should know of devices although nothing is wrong.
    pub remarks: Vec<Refusal>,
    /// Ids of devices that are Unhealthy only until the agent that serves has seen to them.
    pub awaiting: BTreeSet<String>,
}

/// What a look could not see.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Unknown {
    /// Paths that could not be looked at, and why: of device nodes, or of devices in sysfs.
    pub paths: BTreeMap<String, String>,
    /// Directories that could not be listed, and why.
    pub directories: BTreeMap<String, String>,
}

/// One device of a look.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Found {
    /// Paths of its device nodes on the host, none for a simulated device.
    pub paths: Vec<String>,
    /// Numbers of the device nodes that nobody else may have.
    pub numbers: Vec<Numbers>,
    /// Ids that the same device has under other rules for ids. While a container holds one of them,
    /// it holds the device.
    pub also: Vec<String>,
    /// What the kernel says of the hardware behind it.
    pub hardware: Hardware,
    /// Why it is Unhealthy although it was found.
    pub unhealthy: Option<String>,
}

/// What the kernel says of the hardware behind a device.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hardware {
    /// Its directory in sysfs, such as `/sys/devices/pci0000:00/0000:00:02.0`; nothing where the
    /// discovery knows none.
    pub sysfs: Option<String>,
    /// The address of the PCI function that it is, or is on: `0000:00:02.0`.
    pub pci_address: Option<String>,
    /// The NUMA nodes that it is near to, in order; none where the kernel says none.
    pub numa_nodes: Vec<u32>,
    /// The device nodes that its paths lead to, links followed, in the order of the paths.
    pub nodes: Vec<String>,
}

/// The devices in what was seen.
pub fn discovered(rule: &Rule, look: &Look) -> Discovered {
    let mut discovered = match rule.by() {
        Matches::Paths(_) => by_path(rule, look),
        Matches::Groups(groups) => by_group(rule.resource(), groups, look),
        Matches::Udev(_) | Matches::Pci(_) | Matches::Usb(_) => by_sight(rule, look),
        Matches::Simulated(simulated) => simulation(rule.resource(), simulated),
    };
    if rule.topology() == Topology::None {
        for device in discovered.devices.values_mut() {
            device.hardware.numa_nodes.clear();
        }
    }
    discovered.refusals.sort();
    discovered
}

fn simulation(resource: &str, simulated: &SimulatedDiscovery) -> Discovered {
    let devices = (0..simulated.count).map(|index| {
        let unhealthy = simulated.unhealthy.contains(&index);
        let found = Found {
            unhealthy: unhealthy.then(|| "simulated as unhealthy".to_owned()),
            ..Found::default()
        };
        (
            simulated_device_id(resource, &simulated.prefix, index),
            found,
        )
    });
    Discovered {
        devices: devices.collect(),
        ..Discovered::default()
    }
}

/// What the target of a path is good for.
pub(crate) enum Verdict<'a> {
    /// It may be given out: the node's own path, and its numbers.
    Usable(&'a str, Numbers),
    /// It never may.
    Refused(String),
    /// It is none.
    NoDevice(String),
    /// It could not be looked at.
    Unknown(String),
}

/// What the target of a path is good for.
pub(crate) fn usable<'a>(path: &str, target: &'a Target) -> Verdict<'a> {
    match target {
        Target::Device {
            kind: Kind::Block,
            major,
            minor,
            ..
        } => Verdict::Refused(format!(
            "is a block device ({major}:{minor}), which gives access to whole file systems"
        )),
        Target::Device {
            path: node,
            kind: Kind::Character,
            major,
            minor,
        } => match forbidden(*major, *minor) {
            Some(what) => {
                Verdict::Refused(format!("is the character device {major}:{minor}, {what}"))
            }
            None => Verdict::Usable(node, (*major, *minor)),
        },
        Target::Other(what) => Verdict::NoDevice(format!("{path:?} is {what}, not a device")),
        Target::Outside(place) => Verdict::Refused(format!("leads out of /dev, to {place:?}")),
        Target::Unreadable(reason) => Verdict::Unknown(reason.clone()),
    }
}

/// Devices that give a container the whole machine, by number: a node with these numbers is the
/// device, whatever its name.
pub fn forbidden(major: u32, minor: u32) -> Option<&'static str> {
    match (major, minor) {
        (1, 1) => Some("/dev/mem, which gives access to all memory"),
        (1, 2) => Some("/dev/kmem, which gives access to the kernel's memory"),
        (1, 4) => Some("/dev/port, which gives access to all I/O ports"),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::rule::tests::{resource, rule};
    use crds::discovery::Discovery;

    pub(crate) fn character(path: &str, node: &str) -> Candidate {
        numbered(path, node, Kind::Character, 188, 0)
    }

    pub(crate) fn numbered(
        path: &str,
        node: &str,
        kind: Kind,
        major: u32,
        minor: u32,
    ) -> Candidate {
        let target = Target::Device {
            path: node.to_owned(),
            kind,
            major,
            minor,
        };
        Candidate {
            path: path.to_owned(),
            target,
        }
    }

    pub(crate) fn seen_paths(candidates: &[Candidate]) -> Look {
        Look {
            candidates: candidates.to_vec(),
            ..Look::default()
        }
    }

    fn look(globs: &[&str], candidates: &[Candidate]) -> Discovered {
        discovered(&rule(globs, &["/dev/ttyUSB9"]), &seen_paths(candidates))
    }

    fn paths(seen: &Discovered) -> Vec<&str> {
        let mut paths: Vec<&str> = seen
            .devices
            .values()
            .flat_map(|d| &d.paths)
            .map(String::as_str)
            .collect();
        paths.sort_unstable();
        paths
    }

    #[test]
    fn each_match_is_a_device() {
        let seen = look(
            &["/dev/ttyUSB*"],
            &[
                character("/dev/ttyUSB0", "/dev/ttyUSB0"),
                character("/dev/ttyUSB1", "/dev/ttyUSB1"),
                character("/dev/ttyUSB9", "/dev/ttyUSB9"),
                character("/dev/null", "/dev/null"),
            ],
        );
        assert_eq!(paths(&seen), ["/dev/ttyUSB0", "/dev/ttyUSB1"]);
        assert!(seen.refusals.is_empty());
    }

    #[test]
    fn one_device_node_under_several_names_is_one_device() {
        let candidates = [
            character("/dev/ttyUSB0", "/dev/ttyUSB0"),
            character("/dev/serial/by-id/b", "/dev/ttyUSB0"),
            character("/dev/serial/by-id/a", "/dev/ttyUSB0"),
            character("/dev/ttyUSB1", "/dev/ttyUSB1"),
        ];
        let seen = look(&["/dev/serial/by-id/*", "/dev/ttyUSB*"], &candidates);
        assert_eq!(paths(&seen), ["/dev/serial/by-id/a", "/dev/ttyUSB1"]);
        let seen = look(&["/dev/ttyUSB*", "/dev/serial/by-id/*"], &candidates);
        assert_eq!(paths(&seen), ["/dev/ttyUSB0", "/dev/ttyUSB1"]);
    }

    #[test]
    fn order_of_enumeration_changes_nothing() {
        let mut candidates = vec![
            character("/dev/ttyUSB0", "/dev/ttyUSB0"),
            character("/dev/ttyUSB1", "/dev/ttyUSB1"),
            numbered("/dev/sda", "/dev/sda", Kind::Block, 8, 0),
            numbered("/dev/hidden", "/dev/hidden", Kind::Character, 1, 1),
        ];
        let seen = look(&["/dev/*"], &candidates);
        candidates.reverse();
        assert_eq!(look(&["/dev/*"], &candidates), seen);
    }

    #[test]
    fn dangerous_devices_are_refused_by_number() {
        let check = |kind, major, minor, expected: Option<&str>| {
            let seen = look(
                &["/dev/*"],
                &[numbered("/dev/toy", "/dev/deep/toy", kind, major, minor)],
            );
            assert_eq!(seen.devices.is_empty(), expected.is_some());
            let reason = seen.refusals.first().map(|refusal| refusal.reason.as_str());
            assert_eq!(reason, expected);
        };
        check(
            Kind::Block,
            8,
            0,
            Some("is a block device (8:0), which gives access to whole file systems"),
        );
        let expected = "is the character device 1:1, /dev/mem, which gives access to all memory";
        check(Kind::Character, 1, 1, Some(expected));
        let expected =
            "is the character device 1:2, /dev/kmem, which gives access to the kernel's memory";
        check(Kind::Character, 1, 2, Some(expected));
        let expected =
            "is the character device 1:4, /dev/port, which gives access to all I/O ports";
        check(Kind::Character, 1, 4, Some(expected));
        check(Kind::Character, 1, 3, None);
        check(Kind::Character, 10, 1, None);
    }

    #[test]
    fn a_link_out_of_dev_is_refused() {
        let target = Target::Outside("/proc/self/fd".to_owned());
        let seen = look(
            &["/dev/*"],
            &[Candidate {
                path: "/dev/fd".to_owned(),
                target,
            }],
        );
        assert_eq!(
            seen.refusals,
            [Refusal {
                path: "/dev/fd".to_owned(),
                reason: r#"leads out of /dev, to "/proc/self/fd""#.to_owned()
            }]
        );
    }

    #[test]
    fn directories_and_sockets_are_no_news() {
        let candidate = |path: &str, what| Candidate {
            path: path.to_owned(),
            target: Target::Other(what),
        };
        let seen = look(
            &["/dev/*"],
            &[
                candidate("/dev/net", "a directory"),
                candidate("/dev/log", "a socket"),
            ],
        );
        assert!(seen.devices.is_empty() && seen.refusals.is_empty());
        assert_eq!(seen.unusable.len(), 2);
    }

    #[test]
    fn what_cannot_be_seen_is_unknown() {
        let target = Target::Unreadable("permission denied".to_owned());
        let candidates = [Candidate {
            path: "/dev/ttyUSB0".to_owned(),
            target,
        }];
        let unreadable = BTreeMap::from([("/dev/bus".to_owned(), "input/output error".to_owned())]);
        let mut look = seen_paths(&candidates);
        look.unknown.directories = unreadable.clone();
        let seen = discovered(&rule(&["/dev/ttyUSB*"], &[]), &look);
        assert!(seen.devices.is_empty() && seen.unusable.is_empty());
        assert!(seen.unknown.paths.contains_key("/dev/ttyUSB0"));
        assert_eq!(seen.unknown.directories, unreadable);
    }

    #[test]
    fn simulated_devices_need_no_candidates() {
        let simulated = SimulatedDiscovery {
            count: 3,
            prefix: "toy".to_owned(),
            unhealthy: vec![1, 7],
        };
        let discovery = Discovery {
            simulated: Some(simulated),
            ..Discovery::default()
        };
        let rule = Rule::new(&resource(discovery)).unwrap();
        let seen = discovered(&rule, &seen_paths(&[character("/dev/x", "/dev/x")]));
        let stems: Vec<(&str, bool)> = seen
            .devices
            .iter()
            .map(|(id, found)| (&id[..5], found.unhealthy.is_some()))
            .collect();
        assert_eq!(stems, [("toy-0", false), ("toy-1", true), ("toy-2", false)]);
    }
}
