//! Devices that are made of several device nodes.

use std::collections::BTreeMap;

use crds::discovery::GroupDiscovery;

use crate::discovery::{
    Discovered, Found, Hardware, Look, Numbers, Refusal, Target, Verdict, usable,
};
use crate::identity::group_device_id;

/// The groups of which at least one device node is there.
pub(crate) fn by_group(resource: &str, groups: &[GroupDiscovery], look: &Look) -> Discovered {
    let targets: BTreeMap<&str, &Target> = look
        .candidates
        .iter()
        .map(|candidate| (candidate.path.as_str(), &candidate.target))
        .collect();
    let mut seen = Discovered {
        unknown: look.unknown.clone(),
        ..Discovered::default()
    };
    for group in groups {
        let id = group_device_id(resource, &group.id);
        match whole(group, &targets, &mut seen) {
            Ok(parts) => {
                seen.devices.insert(id, found(parts, look));
            }
            Err(reason) => {
                seen.unusable.insert(id, reason);
            }
        }
    }
    seen
}

/// The nodes of a group, and what is wrong with it.
#[derive(Default)]
struct Parts {
    /// Its path, the node that it leads to, and that one's numbers.
    nodes: Vec<(String, String, Numbers)>,
    wrong: Option<String>,
}

fn whole(
    group: &GroupDiscovery,
    targets: &BTreeMap<&str, &Target>,
    seen: &mut Discovered,
) -> Result<Parts, String> {
    let mut parts = Parts::default();
    let needed = group.paths.iter().map(|path| (path, true));
    let optional = group.optional_paths.iter().map(|path| (path, false));
    let mut is_there = false;
    for (path, is_needed) in needed.chain(optional) {
        let wrong = match targets
            .get(path.as_str())
            .map(|target| usable(path, target))
        {
            None => format!("device node {path:?} is missing"),
            Some(Verdict::Usable(node, numbers)) => {
                is_there |= is_needed;
                parts.nodes.push((path.clone(), node.to_owned(), numbers));
                continue;
            }
            Some(Verdict::Unknown(reason)) => {
                seen.unknown.paths.insert(path.clone(), reason.clone());
                format!("device node {path:?} could not be looked at: {reason}")
            }
            Some(Verdict::NoDevice(reason)) => reason,
            Some(Verdict::Refused(reason)) => {
                let told = format!("device node {path:?} {reason}");
                let path = path.clone();
                seen.refusals.push(Refusal { path, reason });
                told
            }
        };
        if is_needed {
            parts.wrong.get_or_insert(wrong);
        }
    }
    if is_there {
        Ok(parts)
    } else {
        Err(parts.wrong.unwrap_or_default())
    }
}

fn found(parts: Parts, look: &Look) -> Found {
    let behind = |numbers: &Numbers| look.behind.get(numbers).map(|sight| sight.hardware());
    let all = parts
        .nodes
        .iter()
        .filter_map(|(_, _, numbers)| behind(numbers));
    let nodes = parts.nodes.iter().map(|(_, node, _)| node.clone());
    let mut hardware = Hardware {
        nodes: nodes.collect(),
        ..Hardware::default()
    };
    for one in all {
        hardware.sysfs = hardware.sysfs.or(one.sysfs);
        hardware.pci_address = hardware.pci_address.or(one.pci_address);
        hardware.numa_nodes.extend(one.numa_nodes);
    }
    hardware.numa_nodes.sort_unstable();
    hardware.numa_nodes.dedup();
    Found {
        paths: parts
            .nodes
            .iter()
            .map(|(path, _, _)| path.clone())
            .collect(),
        numbers: parts.nodes.iter().map(|(_, _, numbers)| *numbers).collect(),
        also: Vec::new(),
        hardware,
        unhealthy: parts.wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::tests::{character, numbered};
    use crate::discovery::{Candidate, Kind};
    use crate::sight::Sight;
    use crate::sight::tests::levels;
    use std::sync::Arc;

    fn look(candidates: &[Candidate]) -> Discovered {
        let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let group = GroupDiscovery {
            id: "card0".to_owned(),
            paths: owned(&["/dev/a0", "/dev/b0"]),
            optional_paths: owned(&["/dev/c0"]),
        };
        let look = Look {
            candidates: candidates.to_vec(),
            ..Look::default()
        };
        by_group("example.com/card", &[group], &look)
    }

    fn node(path: &str) -> Candidate {
        character(path, path)
    }

    #[test]
    fn a_group_is_one_device_of_all_its_nodes() {
        let check = |candidates: &[Candidate], paths: &[&str], wrong: Option<&str>| {
            let seen = look(candidates);
            let (id, found) = seen.devices.first_key_value().unwrap();
            assert!(id.starts_with("card0-"), "{id}");
            assert_eq!(found.paths, paths);
            assert_eq!(found.unhealthy.as_deref(), wrong);
        };
        let (a, b, c) = (node("/dev/a0"), node("/dev/b0"), node("/dev/c0"));
        check(&[b.clone(), a.clone()], &["/dev/a0", "/dev/b0"], None);
        check(
            &[c.clone(), b.clone(), a.clone()],
            &["/dev/a0", "/dev/b0", "/dev/c0"],
            None,
        );
        check(
            &[a.clone(), c.clone()],
            &["/dev/a0", "/dev/c0"],
            Some(r#"device node "/dev/b0" is missing"#),
        );
        let block = numbered("/dev/b0", "/dev/b0", Kind::Block, 8, 0);
        let wrong = r#"device node "/dev/b0" is a block device (8:0), which gives access to whole file systems"#;
        check(&[a, block], &["/dev/a0"], Some(wrong));
        for absent in [&[] as &[Candidate], &[c]] {
            let seen = look(absent);
            assert!(seen.devices.is_empty() && seen.refusals.is_empty());
            assert_eq!(seen.unusable.len(), 1);
        }
    }

    #[test]
    fn a_group_is_near_to_all_that_its_nodes_are_near_to() {
        let sight = |numa_node| {
            let mut levels = levels(&["pci 0000:01:00.0"]);
            levels[0].numa_node = numa_node;
            Arc::new(Sight {
                levels,
                ..Sight::default()
            })
        };
        let look = Look {
            behind: [
                ((1, 1), sight(Some(1))),
                ((1, 2), sight(Some(0))),
                ((1, 3), sight(None)),
            ]
            .into(),
            ..Look::default()
        };
        let nodes = [(1, 1), (1, 2), (1, 3)].map(|numbers| (String::new(), String::new(), numbers));
        let parts = Parts {
            nodes: nodes.to_vec(),
            wrong: None,
        };
        assert_eq!(found(parts, &look).hardware.numa_nodes, [0, 1]);
    }
}
