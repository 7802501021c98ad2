//! What a container runtime is told of devices by the Container Device Interface: a specification for
//! each resource, with a name for each device. The kubelet keeps the names for as long as the pod
//! lives, and the runtime looks up what they stand for each time a container starts.

use std::collections::BTreeMap;

use crds::container::ContainerAccess;
use crds::names::short_hash;
use serde::{Deserialize, Serialize};

use crate::inventory::{Device, Inventory};

/// The first version in which the class of a device may have a dot.
const VERSION: &str = "0.6.0";

/// The specification of one resource.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Specification {
    cdi_version: String,
    kind: String,
    devices: Vec<Named>,
}

/// A device by its name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    name: String,
    container_edits: Edits,
}

/// What a container gets that has the device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    device_nodes: Vec<Node>,
}

/// One device node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: String,
    permissions: String,
}

/// The specification of a resource. Runtimes refuse a device without edits, so one without device
/// nodes is left out. What was specified `before` stays for a device that a container holds and that
/// cannot be seen now, and for every device while nobody has said what containers hold.
pub fn specification(
    resource: &str,
    access: &ContainerAccess,
    inventory: &Inventory,
    before: Option<Specification>,
) -> Specification {
    let before = before.map(|before| before.devices).unwrap_or_default();
    let listed: BTreeMap<String, &Device> = inventory
        .devices
        .iter()
        .map(|(id, device)| (device_name(id), device))
        .collect();
    let is_kept = |one: &Named| match listed.get(&one.name) {
        Some(device) => device.paths.is_empty(),
        None => !inventory.allocations_known,
    };
    let kept = before.into_iter().filter(is_kept);
    let kept = kept.map(|one| (one.name.clone(), one));
    let mut devices: BTreeMap<String, Named> = kept.collect();
    for (name, device) in listed {
        if !device.paths.is_empty() {
            let container_edits = Edits {
                device_nodes: nodes(access, device),
            };
            let named = Named {
                name: name.clone(),
                container_edits,
            };
            devices.insert(name, named);
        }
    }
    Specification {
        cdi_version: VERSION.to_owned(),
        kind: kind(resource),
        devices: devices.into_values().collect(),
    }
}

/// Whether two inventories of a resource surely have one specification.
pub fn is_same(one: &Inventory, other: &Inventory) -> bool {
    one.allocations_known == other.allocations_known
        && one.devices.len() == other.devices.len()
        && one.devices.iter().zip(&other.devices).all(|(one, other)| {
            one.0 == other.0
                && one.1.paths == other.1.paths
                && one.1.hardware.nodes == other.1.hardware.nodes
        })
}

/// Name of the file with a resource's specification. All agents that serve the resource, one after
/// the other, write this one: runtimes ignore devices that two files have.
pub fn file_name(resource: &str) -> String {
    format!("device-plugin-agent-{}.json", short_hash(resource))
}

/// The fully qualified name of a device: `example.com/fpga=<id>`.
pub fn name(resource: &str, device: &str) -> String {
    format!("{}={}", kind(resource), device_name(device))
}

/// Where a device node is in containers: in the directory that the user names, or at its host's path.
pub fn container_path(directory: &str, host_path: &str) -> String {
    if directory.is_empty() {
        return host_path.to_owned();
    }
    let name = host_path.rsplit('/').next().unwrap_or(host_path);
    format!("{directory}{name}")
}

/// The resource's name as vendor and class. Both must start with a letter, and some runtimes panic
/// over one that is a letter alone.
fn kind(resource: &str) -> String {
    let part = |part: &str| {
        if part.len() > 1 && part.starts_with(|c: char| c.is_ascii_alphabetic()) {
            part.to_owned()
        } else {
            format!("x-{part}")
        }
    };
    let (vendor, class) = resource.split_once('/').unwrap_or((resource, ""));
    format!("{}/{}", part(vendor), part(class))
}

/// An id as the name of a device. Ids are such names mostly; any other gets one from its hash.
fn device_name(id: &str) -> String {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    let is_name = id.starts_with(alphanumeric)
        && id.ends_with(alphanumeric)
        && id.chars().all(|c| alphanumeric(c) || "._-:".contains(c));
    if is_name {
        id.to_owned()
    } else {
        format!("device-{}", short_hash(id))
    }
}

/// The nodes of a device. Runtimes follow no link here, so the nodes themselves are named.
fn nodes(access: &ContainerAccess, device: &Device) -> Vec<Node> {
    let followed = device.hardware.nodes.iter().map(Some);
    let followed = followed.chain(std::iter::repeat(None));
    let both = device.paths.iter().zip(followed);
    both.map(|(path, followed)| Node {
        path: container_path(&access.path, path),
        host_path: followed.unwrap_or(path).clone(),
        permissions: access.permissions.clone(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advertised::Sharing;
    use crate::discovery::{Discovered, Found, Hardware};
    use jiff::Timestamp;
    use std::collections::BTreeSet;

    fn next(before: &Inventory, devices: &[(&str, &str)], held: Option<&[&str]>) -> Inventory {
        let found = |(id, node): &(&str, &str)| {
            let hardware = Hardware {
                nodes: vec![(*node).to_owned()],
                ..Hardware::default()
            };
            let found = Found {
                paths: vec![format!("/dev/by-id/{id}")],
                hardware,
                ..Found::default()
            };
            ((*id).to_owned(), found)
        };
        let discovered = Discovered {
            devices: devices.iter().map(found).collect(),
            ..Discovered::default()
        };
        let held: Option<BTreeSet<String>> =
            held.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect());
        before.next(discovered, held.as_ref(), Timestamp::UNIX_EPOCH)
    }

    fn specified(inventory: &Inventory, before: Option<Specification>) -> Specification {
        specification(
            "example.com/fpga",
            &ContainerAccess::default(),
            inventory,
            before,
        )
    }

    fn lines(specification: &Specification) -> Vec<String> {
        let line = |one: &Named| {
            let nodes = one.container_edits.device_nodes.iter();
            let nodes: Vec<String> = nodes
                .map(|node| format!("{}={} {}", node.path, node.host_path, node.permissions))
                .collect();
            format!("{} {}", one.name, nodes.join(","))
        };
        specification.devices.iter().map(line).collect()
    }

    #[test]
    fn names_are_fully_qualified_and_valid() {
        let check = |resource: &str, device: &str, expected: &str| {
            assert_eq!(name(resource, device), expected);
        };
        check("example.com/fpga", "card0-1f", "example.com/fpga=card0-1f");
        check(
            "3com.com/10g.nic_A",
            "a.b:c",
            "x-3com.com/x-10g.nic_A=a.b:c",
        );
        check("a/x", "1", "x-a/x-x=1");
        for odd in ["", "-a", "a.", "ü", "a b"] {
            let name = device_name(odd);
            assert!(name.starts_with("device-") && name.len() == 17, "{name:?}");
        }
        assert_ne!(device_name("-a"), device_name("-b"));
        assert_ne!(file_name("a.com/b"), file_name("a.com/c"));
    }

    #[test]
    fn a_device_keeps_its_name_and_gets_its_node_of_today() {
        let first = next(&Inventory::default(), &[("a", "/dev/ttyUSB0")], Some(&[]));
        let before = specified(&first, None);
        assert_eq!(lines(&before), ["a /dev/by-id/a=/dev/ttyUSB0 rw"]);
        let replugged = next(&first, &[("a", "/dev/ttyUSB1")], Some(&[]));
        assert!(!is_same(&first, &replugged));
        let after = specified(&replugged, Some(before));
        assert_eq!(lines(&after), ["a /dev/by-id/a=/dev/ttyUSB1 rw"]);
        let gone = next(&replugged, &[], Some(&["a"]));
        assert_eq!(specified(&gone, Some(after.clone())), after);
        assert!(is_same(&replugged, &gone));
    }

    #[test]
    fn what_was_specified_stays_as_long_as_somebody_may_use_it() {
        let first = next(
            &Inventory::default(),
            &[("a", "/dev/a"), ("b", "/dev/b")],
            Some(&[]),
        );
        let before = || Some(specified(&first, None));
        // Another agent, which sees neither, and does not know yet who holds what.
        let blind = next(&Inventory::default(), &[], None);
        assert_eq!(specified(&blind, before()), specified(&first, None));
        let told = next(&blind, &[], Some(&["b"]));
        assert!(!is_same(&blind, &told));
        assert_eq!(
            lines(&specified(&told, before())),
            ["b /dev/by-id/b=/dev/b rw"]
        );
        let with_a = next(&blind, &[("a", "/dev/x")], Some(&["b"]));
        assert_eq!(
            lines(&specified(&with_a, before())),
            ["a /dev/by-id/a=/dev/x rw", "b /dev/by-id/b=/dev/b rw"]
        );
    }

    #[test]
    fn a_device_without_nodes_has_no_edits_and_is_left_out() {
        let mut inventory = next(&Inventory::of(Sharing::default()), &[("a", "/dev/a")], None);
        for device in inventory.devices.values_mut() {
            device.paths.clear();
        }
        assert_eq!(lines(&specified(&inventory, None)), Vec::<String>::new());
    }

    #[test]
    fn device_nodes_are_in_the_directory_that_is_named() {
        let access = ContainerAccess {
            path: "/dev/cards/".to_owned(),
            permissions: "r".to_owned(),
            ..ContainerAccess::default()
        };
        let one = next(&Inventory::default(), &[("a", "/dev/x1")], None);
        let specification = specification("example.com/fpga", &access, &one, None);
        assert_eq!(lines(&specification), ["a /dev/cards/a=/dev/x1 r"]);
    }
}
