//! From candidates to devices: what is refused, what is one device under two names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crds::discovery::SimulatedDiscovery;

use crate::identity::{path_device_id, simulated_device_id};
use crate::rule::{Matches, Rule};

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
}

/// What a look could not see.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Unknown {
    /// Paths that could not be looked at, and why.
    pub paths: BTreeMap<String, String>,
    /// Directories that could not be listed, and why.
    pub directories: BTreeMap<String, String>,
}

/// One device of a look.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Found {
    /// Paths of its device nodes on the host, none for a simulated device.
    pub paths: Vec<String>,
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
}

/// The devices among candidates.
pub fn discovered(
    rule: &Rule,
    candidates: &[Candidate],
    unreadable_directories: BTreeMap<String, String>,
) -> Discovered {
    match rule.by() {
        Matches::Paths(_) => by_path(rule, candidates, unreadable_directories),
        Matches::Simulated(simulated) => simulation(rule.resource(), simulated),
    }
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

fn by_path(
    rule: &Rule,
    candidates: &[Candidate],
    unreadable_directories: BTreeMap<String, String>,
) -> Discovered {
    let mut seen = Discovered::default();
    seen.unknown.directories = unreadable_directories;
    // The best name of each device node: that of the earliest glob, then the smallest path. A user
    // who lists `/dev/serial/by-id/*` before `/dev/ttyUSB*` gets the names that survive a replug.
    let mut names: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for candidate in candidates {
        let path = candidate.path.as_str();
        let Some(precedence) = rule.precedence(path) else {
            continue;
        };
        match usable(path, &candidate.target) {
            Verdict::Usable(node) => {
                let best = names.entry(node).or_insert((precedence, path));
                *best = (*best).min((precedence, path));
            }
            Verdict::Refused(reason) => {
                seen.unusable
                    .insert(path_device_id(rule.resource(), path), reason.clone());
                seen.refusals.push(Refusal {
                    path: path.to_owned(),
                    reason,
                });
            }
            Verdict::NoDevice(reason) => {
                seen.unusable
                    .insert(path_device_id(rule.resource(), path), reason);
            }
            Verdict::Unknown(reason) => {
                seen.unknown.paths.insert(path.to_owned(), reason);
            }
        }
    }
    for (_, path) in names.into_values() {
        match seen.devices.entry(path_device_id(rule.resource(), path)) {
            Entry::Vacant(free) => {
                free.insert(Found {
                    paths: vec![path.to_owned()],
                    ..Found::default()
                });
            }
            Entry::Occupied(taken) => seen.refusals.push(Refusal {
                path: path.to_owned(),
                reason: format!("has the same id as another device: {:?}", taken.key()),
            }),
        }
    }
    seen.refusals.sort();
    seen
}

enum Verdict<'a> {
    Usable(&'a str),
    Refused(String),
    NoDevice(String),
    Unknown(String),
}

fn usable<'a>(path: &str, target: &'a Target) -> Verdict<'a> {
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
            None => Verdict::Usable(node),
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

    fn look(globs: &[&str], candidates: &[Candidate]) -> Discovered {
        discovered(&rule(globs, &["/dev/ttyUSB9"]), candidates, BTreeMap::new())
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
        let seen = discovered(
            &rule(&["/dev/ttyUSB*"], &[]),
            &candidates,
            unreadable.clone(),
        );
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
            paths: None,
            simulated: Some(simulated),
        };
        let rule = Rule::new(&resource(discovery)).unwrap();
        let seen = discovered(&rule, &[character("/dev/x", "/dev/x")], BTreeMap::new());
        let stems: Vec<(&str, bool)> = seen
            .devices
            .iter()
            .map(|(id, found)| (&id[..5], found.unhealthy.is_some()))
            .collect();
        assert_eq!(stems, [("toy-0", false), ("toy-1", true), ("toy-2", false)]);
    }
}
