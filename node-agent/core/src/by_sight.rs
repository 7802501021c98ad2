//! Devices by what sysfs has of them.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use crate::discovery::{
    Discovered, Found, Hardware, Kind, Look, Numbers, Refusal, Target, Verdict, usable,
};
use crate::names::{Name, Naming};
use crate::rule::{Matches, Rule};
use crate::sight::{SeenNode, Sight};

/// The devices among those that were seen in sysfs.
pub(crate) fn by_sight(rule: &Rule, look: &Look) -> Discovered {
    let mut seen = Discovered {
        unknown: look.unknown.clone(),
        ..Discovered::default()
    };
    let mut sights: Vec<&Sight> = look.sights.iter().filter(|one| rule.accepts(one)).collect();
    sights.sort_by(|one, other| one.sysfs.cmp(&other.sysfs));
    sights.dedup_by(|one, other| one.sysfs == other.sysfs);
    // Who gets one function of an IOMMU group can reach the others: a group is one device.
    let mut groups = BTreeSet::new();
    sights.retain(|sight| {
        sight
            .vfio_group
            .as_ref()
            .is_none_or(|group| groups.insert(group))
    });
    let mut naming = Naming::new(rule.resource(), rule.id_from());
    for sight in &sights {
        let path = sight.nodes.first().map_or(&sight.sysfs, |node| &node.path);
        naming.add(Some(sight), path);
    }
    for (sight, name) in sights.iter().zip(naming.names()) {
        insert(rule, sight, name, &mut seen);
    }
    seen
}

/// The nodes of a device, and what is wrong with them.
#[derive(Default)]
struct Parts {
    nodes: Vec<(String, Option<Numbers>)>,
    wrong: Option<String>,
    refused: Option<(String, String)>,
    unknown: Option<String>,
}

fn insert(rule: &Rule, sight: &Sight, name: Name, seen: &mut Discovered) {
    let parts = parts(sight);
    if let Some(reason) = parts.unknown {
        seen.unknown.paths.insert(sight.sysfs.clone(), reason);
        return;
    }
    let path = || sight.sysfs.clone();
    let has_own = parts.nodes.iter().any(|(_, numbers)| numbers.is_some());
    if !has_own && parts.wrong.is_none() {
        let (list, path, reason) = match (parts.refused, rule.by()) {
            (Some((path, reason)), Matches::Udev(_)) => (&mut seen.refusals, path, reason),
            // A bridge or a network card, mostly, among other functions of one vendor.
            _ => (&mut seen.remarks, path(), without_node(sight)),
        };
        seen.unusable.insert(name.id, reason.clone());
        list.push(Refusal { path, reason });
        return;
    }
    if let Some(reason) = name.remark {
        seen.remarks.push(Refusal {
            path: path(),
            reason,
        });
    }
    let paths: Vec<String> = parts.nodes.iter().map(|(path, _)| path.clone()).collect();
    match seen.devices.entry(name.id) {
        Entry::Vacant(free) => {
            free.insert(Found {
                paths: paths.clone(),
                numbers: parts
                    .nodes
                    .iter()
                    .filter_map(|(_, numbers)| *numbers)
                    .collect(),
                also: name.also,
                hardware: Hardware {
                    nodes: paths,
                    ..sight.hardware()
                },
                unhealthy: parts.wrong,
            });
        }
        Entry::Occupied(taken) => seen.refusals.push(Refusal {
            path: path(),
            reason: format!("has the same id as another device: {:?}", taken.key()),
        }),
    }
}

fn without_node(sight: &Sight) -> String {
    let driver = sight.driver.as_ref();
    let driver = driver.map_or("no driver".to_owned(), |driver| {
        format!("driver {driver:?}")
    });
    format!("has no character device node of its own ({driver})")
}

fn parts(sight: &Sight) -> Parts {
    let mut parts = Parts::default();
    for node in &sight.nodes {
        let path = &node.path;
        let missing = || {
            format!(
                "device node {path:?} ({}:{}) is missing",
                node.major, node.minor
            )
        };
        let Some(target) = &node.target else {
            if !node.is_shared {
                parts.wrong.get_or_insert_with(missing);
            }
            continue;
        };
        match usable(path, target) {
            Verdict::Usable(_, numbers) if numbers == (node.major, node.minor) => {
                let own = (!node.is_shared).then_some(numbers);
                parts.nodes.push((path.clone(), own));
            }
            Verdict::Usable(_, (major, minor)) => {
                let told = || format!("{}: {major}:{minor} is in its place", missing());
                parts.wrong.get_or_insert_with(told);
            }
            // A disk beside the nodes of its controller: nothing is wrong, it is not given out.
            Verdict::Refused(reason) if is_refused_by_nature(node) => {
                parts.refused.get_or_insert((path.clone(), reason));
            }
            Verdict::Refused(reason) => {
                let told = || format!("device node {path:?} {reason}");
                parts.wrong.get_or_insert_with(told);
            }
            Verdict::NoDevice(reason) => _ = parts.wrong.get_or_insert(reason),
            Verdict::Unknown(reason) => _ = parts.unknown.get_or_insert(reason),
        }
    }
    parts
}

fn is_refused_by_nature(node: &SeenNode) -> bool {
    match &node.target {
        Some(Target::Device {
            kind: Kind::Block, ..
        }) => true,
        Some(Target::Device { major, minor, .. }) => (*major, *minor) == (node.major, node.minor),
        Some(Target::Other(_) | Target::Outside(_) | Target::Unreadable(_)) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::tests::numbered;
    use crate::rule::tests::resource;
    use crate::sight::tests::levels;
    use crds::discovery::{Discovery, UdevDiscovery, UsbMatcher};
    use std::collections::BTreeMap;

    fn udev() -> Rule {
        let udev = UdevDiscovery {
            subsystem: "tty".to_owned(),
            properties: BTreeMap::new(),
            attributes: BTreeMap::new(),
        };
        let discovery = Discovery {
            udev: Some(udev),
            ..Discovery::default()
        };
        Rule::new(&resource(discovery)).unwrap()
    }

    fn node(path: &str, target: Option<Target>) -> SeenNode {
        SeenNode {
            path: path.to_owned(),
            major: 188,
            minor: 0,
            is_shared: false,
            target,
        }
    }

    fn device(kind: Kind, major: u32, minor: u32) -> Option<Target> {
        Some(numbered("/dev/x", "/dev/x", kind, major, minor).target)
    }

    fn seen(rule: &Rule, nodes: Vec<SeenNode>) -> Discovered {
        let sight = Sight {
            sysfs: "/sys/devices/x".to_owned(),
            levels: levels(&["platform x"]),
            attributes: [("idVendor".to_owned(), "0403".to_owned())].into(),
            nodes,
            ..Sight::default()
        };
        let look = Look {
            sights: vec![sight],
            ..Look::default()
        };
        by_sight(rule, &look)
    }

    /// What is wrong with the one device that was found.
    fn wrong(target: Option<Target>) -> String {
        let seen = seen(&udev(), vec![node("/dev/x", target)]);
        let found = seen.devices.into_values().next().unwrap();
        found.unhealthy.unwrap_or_default()
    }

    #[test]
    fn a_node_must_have_the_numbers_that_the_kernel_gave_it() {
        assert_eq!(wrong(device(Kind::Character, 188, 0)), "");
        assert_eq!(wrong(None), r#"device node "/dev/x" (188:0) is missing"#);
        let other = r#"device node "/dev/x" (188:0) is missing: 188:1 is in its place"#;
        assert_eq!(wrong(device(Kind::Character, 188, 1)), other);
        let memory = wrong(device(Kind::Character, 1, 1));
        assert!(memory.contains("/dev/mem"), "{memory}");
        let file = wrong(Some(Target::Other("a regular file")));
        assert!(file.contains("is a regular file"), "{file}");
    }

    #[test]
    fn block_and_memory_devices_are_refused_by_number() {
        let seen_as = |rule: &Rule, kind, numbers: Numbers| {
            let mut node = node("/dev/x", device(kind, numbers.0, numbers.1));
            (node.major, node.minor) = numbers;
            seen(rule, vec![node])
        };
        for (kind, numbers) in [(Kind::Block, (8, 0)), (Kind::Character, (1, 1))] {
            let refused = seen_as(&udev(), kind, numbers);
            assert!(refused.devices.is_empty());
            assert_eq!(refused.refusals[0].path, "/dev/x");
        }
        let usb = UsbMatcher {
            vendor: "0403".to_owned(),
            ..UsbMatcher::default()
        };
        let discovery = Discovery {
            usb: Some(vec![usb]),
            ..Discovery::default()
        };
        let usb = Rule::new(&resource(discovery)).unwrap();
        let disk = seen_as(&usb, Kind::Block, (8, 0));
        assert!(disk.devices.is_empty() && disk.refusals.is_empty());
        assert!(disk.remarks[0].reason.contains("no character device node"));
    }

    #[test]
    fn what_cannot_be_looked_at_hides_the_device() {
        let target = Some(Target::Unreadable("input/output error".to_owned()));
        let seen = seen(&udev(), vec![node("/dev/x", target)]);
        assert!(seen.devices.is_empty() && seen.unusable.is_empty());
        assert!(seen.unknown.paths.contains_key("/sys/devices/x"));
    }

    #[test]
    fn nodes_of_everybody_are_given_out_and_claimed_by_nobody() {
        let mut shared = node("/dev/vfio/vfio", device(Kind::Character, 188, 0));
        shared.is_shared = true;
        let alone = seen(&udev(), vec![shared.clone()]);
        assert!(alone.devices.is_empty());
        let own = node("/dev/vfio/7", device(Kind::Character, 188, 0));
        let seen = seen(&udev(), vec![own, shared]);
        let found = seen.devices.into_values().next().unwrap();
        assert_eq!(found.paths, ["/dev/vfio/7", "/dev/vfio/vfio"]);
        assert_eq!(found.numbers, [(188, 0)]);
    }
}
