//! What a container gets for the devices that the kubelet chose.
//!
//! An answer depends on nothing but config and ids: the kubelet keeps it, asks again for the same
//! ids, and asks in any order.

use std::collections::{BTreeMap, BTreeSet};

use crds::container::{Cdi, ContainerAccess, Mount};
use crds::node::Health;

use crate::cdi;
use crate::expansion::Expansions;
use crate::inventory::{Device, Inventory};

/// What one container gets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer {
    /// Device nodes, in the order of ids, each device once.
    pub devices: Vec<DeviceNode>,
    /// What the container runtime knows these device nodes by, in place of their paths, where a
    /// resource has CDI.
    pub cdi_names: Vec<String>,
    /// Environment variables.
    pub envs: BTreeMap<String, String>,
    /// Other directories and files.
    pub mounts: Vec<Mount>,
    /// Annotations for the container runtime.
    pub annotations: BTreeMap<String, String>,
}

/// One device node in a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceNode {
    /// Its path on the host.
    pub host_path: String,
    /// Its path in the container.
    pub container_path: String,
    /// Any of `r`, `w` and `m`.
    pub permissions: String,
}

/// Why devices are not given out. The kubelet fails the pod and shows the text to its user.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The kubelet's list is older than ours, or not ours.
    #[error("device {id:?} of resource {resource:?} is not known on this node")]
    Unknown {
        /// The device.
        id: String,
        /// Its resource.
        resource: String,
    },
    /// The device failed after the kubelet chose it.
    #[error("device {id:?} of resource {resource:?} is unhealthy: {reason}")]
    Unhealthy {
        /// The device.
        id: String,
        /// Its resource.
        resource: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A container asks for more devices than there are different ones.
    #[error(
        "{first:?} and {second:?} of resource {resource:?} are one device, and a container gets a device once: ask for fewer, or set allowMultipleReplicasPerContainer"
    )]
    Twice {
        /// One of its ids.
        first: String,
        /// Another one.
        second: String,
        /// Its resource.
        resource: String,
    },
    /// Two devices have one name, in a directory of the container.
    #[error(
        "two devices of resource {resource:?} would both be {path:?} in the container: leave container.path empty"
    )]
    SamePath {
        /// The path in the container.
        path: String,
        /// Their resource.
        resource: String,
    },
}

/// The answer for one container.
///
/// # Errors
/// When a device is unknown or Unhealthy, or there are not enough different ones.
pub fn answer(
    resource: &str,
    access: &ContainerAccess,
    inventory: &Inventory,
    ids: &[String],
) -> Result<Answer, Refused> {
    let chosen = chosen(resource, inventory, ids)?;
    if chosen.is_empty() {
        return Ok(Answer::default());
    }
    let devices = device_nodes(resource, access, &chosen)?;
    let cdi_names = match access.cdi {
        Cdi::Disabled => Vec::new(),
        Cdi::Enabled => chosen
            .iter()
            .filter(|(_, device)| !device.paths.is_empty())
            .map(|(name, _)| cdi::name(resource, name))
            .collect(),
    };
    let expansions = Expansions::of(&chosen, &devices);
    let envs = access.env.iter().map(|variable| {
        let value = expansions.expanded(&variable.value);
        (variable.name.clone(), value)
    });
    Ok(Answer {
        cdi_names,
        envs: envs.collect(),
        mounts: access.mounts.clone(),
        annotations: access.annotations.clone(),
        devices,
    })
}

/// The devices behind ids, each once.
fn chosen<'a>(
    resource: &str,
    inventory: &'a Inventory,
    ids: &'a [String],
) -> Result<BTreeMap<&'a str, &'a Device>, Refused> {
    let sharing = inventory.sharing;
    let ids: BTreeSet<&String> = ids.iter().collect();
    let mut names: BTreeMap<&str, &String> = BTreeMap::new();
    let mut chosen = BTreeMap::new();
    for id in ids {
        let name = sharing.device(id);
        let device = healthy(resource, inventory, id)?;
        if let Some(first) = names.insert(name, id)
            && sharing.is_one_per_container()
        {
            return Err(Refused::Twice {
                first: first.clone(),
                second: id.clone(),
                resource: resource.to_owned(),
            });
        }
        chosen.insert(name, device);
    }
    Ok(chosen)
}

fn healthy<'a>(resource: &str, inventory: &'a Inventory, id: &str) -> Result<&'a Device, Refused> {
    let is_ours =
        |device: &&Device| !device.discovered || inventory.sharing.replica_of(id).is_some();
    let device = inventory.devices.get(inventory.sharing.device(id));
    let (id, resource) = (id.to_owned(), resource.to_owned());
    match device.filter(is_ours) {
        None => Err(Refused::Unknown { id, resource }),
        Some(device) if device.health == Health::Unhealthy => Err(Refused::Unhealthy {
            id,
            resource,
            reason: device.reason.clone(),
        }),
        Some(device) => Ok(device),
    }
}

fn device_nodes(
    resource: &str,
    access: &ContainerAccess,
    chosen: &BTreeMap<&str, &Device>,
) -> Result<Vec<DeviceNode>, Refused> {
    let mounts = access.mounts.iter();
    let mut taken: BTreeSet<String> = mounts.map(|mount| mount.container_path.clone()).collect();
    let mut nodes = Vec::new();
    // Devices share some of their nodes: all functions have `/dev/vfio/vfio`.
    let mut hosts = BTreeSet::new();
    let paths = chosen.values().flat_map(|device| &device.paths);
    for path in paths.filter(|path| hosts.insert(path.as_str())) {
        let container_path = match access.cdi {
            Cdi::Disabled => free_path(&access.path, path, &taken),
            // What is in the specification is for all containers.
            Cdi::Enabled => cdi::container_path(&access.path, path),
        };
        if !taken.insert(container_path.clone()) {
            return Err(Refused::SamePath {
                path: container_path,
                resource: resource.to_owned(),
            });
        }
        nodes.push(DeviceNode {
            host_path: path.clone(),
            container_path,
            permissions: access.permissions.clone(),
        });
    }
    Ok(nodes)
}

/// Where a device node appears: at the host's path, in a directory, or at a path of which all but
/// the first get a number appended. A path is never given out twice in one answer.
fn free_path(wanted: &str, host_path: &str, taken: &BTreeSet<String>) -> String {
    let first = match wanted {
        "" => host_path.to_owned(),
        directory if directory.ends_with('/') => cdi::container_path(directory, host_path),
        path => path.to_owned(),
    };
    let numbered = (1_usize..).map(|number| format!("{first}{number}"));
    std::iter::once(first.clone())
        .chain(numbered)
        .find(|path| !taken.contains(path))
        .unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advertised::Sharing;
    use crate::advertised::tests::{inventory as advertised, sharing};
    use crate::discovery::Hardware;
    use crds::container::EnvVariable;
    use jiff::Timestamp;

    fn inventory(devices: &[(&str, &[&str], Health)]) -> Inventory {
        let device = |paths: &[&str], health: Health| Device {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            hardware: Hardware::default(),
            health,
            reason: "device node is gone".to_owned(),
            since: Timestamp::UNIX_EPOCH,
            idle_since: None,
            allocated: false,
            discovered: true,
        };
        Inventory {
            devices: devices
                .iter()
                .map(|(id, paths, health)| ((*id).to_owned(), device(paths, *health)))
                .collect(),
            ..Inventory::default()
        }
    }

    fn three() -> Inventory {
        inventory(&[
            ("a", &["/dev/x/tty"], Health::Healthy),
            ("b", &["/dev/y/tty"], Health::Healthy),
            ("c", &["/dev/z/tty1"], Health::Healthy),
            ("sick", &["/dev/s"], Health::Unhealthy),
            ("sim", &[], Health::Healthy),
        ])
    }

    fn access(path: &str, value: &str) -> ContainerAccess {
        ContainerAccess {
            path: path.to_owned(),
            env: vec![EnvVariable {
                name: "X".to_owned(),
                value: value.to_owned(),
            }],
            ..ContainerAccess::default()
        }
    }

    fn ask(access: &ContainerAccess, ids: &[&str]) -> Result<Answer, Refused> {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        answer("example.com/tty", access, &three(), &ids)
    }

    fn container_paths(path: &str, ids: &[&str]) -> Vec<String> {
        let answer = ask(&access(path, ""), ids).unwrap();
        answer
            .devices
            .into_iter()
            .map(|device| device.container_path)
            .collect()
    }

    #[test]
    fn exactly_the_chosen_devices_with_the_configured_permissions() {
        let mut access = access("", "");
        access.permissions = "r".to_owned();
        let answer = ask(&access, &["b"]).unwrap();
        assert_eq!(
            answer.devices,
            [DeviceNode {
                host_path: "/dev/y/tty".to_owned(),
                container_path: "/dev/y/tty".to_owned(),
                permissions: "r".to_owned()
            }]
        );
    }

    #[test]
    fn a_node_that_devices_share_is_there_once() {
        let inventory = inventory(&[
            ("a", &["/dev/vfio/vfio", "/dev/vfio/1"], Health::Healthy),
            ("b", &["/dev/vfio/vfio", "/dev/vfio/2"], Health::Healthy),
        ]);
        for cdi in [Cdi::Disabled, Cdi::Enabled] {
            let access = ContainerAccess {
                cdi,
                ..access("", "")
            };
            let ids = ["a".to_owned(), "b".to_owned()];
            let answer = answer("example.com/vfio", &access, &inventory, &ids).unwrap();
            let paths = answer.devices.into_iter().map(|node| node.container_path);
            assert_eq!(
                paths.collect::<Vec<_>>(),
                ["/dev/vfio/vfio", "/dev/vfio/1", "/dev/vfio/2"]
            );
        }
    }

    #[test]
    fn order_and_repetition_change_nothing() {
        let access = access("/dev/card", "$(DEVICE_IDS)=$(DEVICE_PATHS)");
        let answer = ask(&access, &["a", "b", "c"]).unwrap();
        assert_eq!(ask(&access, &["c", "a", "b", "a"]).unwrap(), answer);
        assert_eq!(answer.envs["X"], "a,b,c=/dev/card,/dev/card1,/dev/card2");
    }

    #[test]
    fn container_paths_are_unique() {
        assert_eq!(
            container_paths("", &["a", "b"]),
            ["/dev/x/tty", "/dev/y/tty"]
        );
        assert_eq!(
            container_paths("/dev/card", &["b", "c", "a"]),
            ["/dev/card", "/dev/card1", "/dev/card2"]
        );
        assert_eq!(
            container_paths("/dev/in/", &["a", "b", "c"]),
            ["/dev/in/tty", "/dev/in/tty1", "/dev/in/tty11"]
        );
    }

    #[test]
    fn no_ids_and_simulated_devices_have_no_nodes() {
        assert_eq!(ask(&ContainerAccess::default(), &[]), Ok(Answer::default()));
        let answer = ask(&access("/dev/x", "$(DEVICE_IDS):$(DEVICE_PATHS)"), &["sim"]).unwrap();
        assert_eq!(
            (answer.devices.len(), answer.envs["X"].as_str()),
            (0, "sim:")
        );
    }

    #[test]
    fn unknown_and_unhealthy_devices_are_refused_by_name() {
        assert_eq!(
            ask(&ContainerAccess::default(), &["a", "nobody"])
                .unwrap_err()
                .to_string(),
            r#"device "nobody" of resource "example.com/tty" is not known on this node"#
        );
        assert_eq!(
            ask(&ContainerAccess::default(), &["sick"])
                .unwrap_err()
                .to_string(),
            r#"device "sick" of resource "example.com/tty" is unhealthy: device node is gone"#
        );
    }

    #[test]
    fn mounts_and_annotations_come_with_a_device() {
        let access = ContainerAccess {
            mounts: vec![Mount {
                host_path: "/run/cards".to_owned(),
                container_path: "/dev/card".to_owned(),
                read_only: true,
            }],
            annotations: [("example.com/a".to_owned(), "b".to_owned())].into(),
            ..access("/dev/card", "")
        };
        let answer = ask(&access, &["a"]).unwrap();
        assert_eq!(
            (&answer.mounts, &answer.annotations),
            (&access.mounts, &access.annotations)
        );
        assert_eq!(
            answer.devices[0].container_path, "/dev/card1",
            "what is mounted is not covered"
        );
        assert_eq!(ask(&access, &[]), Ok(Answer::default()));
    }

    #[test]
    fn with_cdi_devices_have_names_and_places_of_their_own() {
        let access = |path: &str| ContainerAccess {
            cdi: Cdi::Enabled,
            ..access(path, "$(DEVICE_PATHS)")
        };
        let answer = ask(&access("/dev/in/"), &["c", "a", "sim"]).unwrap();
        assert_eq!(answer.cdi_names, ["example.com/tty=a", "example.com/tty=c"]);
        assert_eq!(answer.envs["X"], "/dev/in/tty,/dev/in/tty1");
        assert_eq!(answer.devices.len(), 2, "which are looked at once more");
        assert_eq!(
            ask(&access("/dev/in/"), &["a", "b"])
                .unwrap_err()
                .to_string(),
            r#"two devices of resource "example.com/tty" would both be "/dev/in/tty" in the container: leave container.path empty"#
        );
    }

    fn ask_shared(sharing: Sharing, ids: &[&str]) -> Result<Answer, Refused> {
        let access = access("/dev/card", "$(DEVICE_IDS) $(PCI_ADDRESSES) $(NUMA_NODES)");
        let devices: &[(&str, &[u32], &str)] = &[
            ("a", &[1, 0], "0000:01:00.0"),
            ("b", &[1], "0000:01:00.0"),
            ("c", &[], ""),
        ];
        let inventory = advertised(sharing, devices, &["c", "gone.7", "lost.0"]);
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        answer("example.com/card", &access, &inventory, &ids)
    }

    #[test]
    fn a_container_has_a_device_once_however_many_ids_it_has_of_it() {
        let several = sharing(2, true);
        let answer = ask_shared(several, &["b.1", "a.0", "a.1", "c.0"]).unwrap();
        let hosts: Vec<&str> = answer
            .devices
            .iter()
            .map(|d| d.host_path.as_str())
            .collect();
        assert_eq!(hosts, ["/dev/a", "/dev/b", "/dev/c"]);
        assert_eq!(answer.envs["X"], "a,b,c 0000:01:00.0 0,1");
        let one = sharing(2, false);
        assert_eq!(ask_shared(one, &["b.1", "a.0"]).unwrap().devices.len(), 2);
        assert_eq!(
            ask_shared(one, &["a.1", "b.1", "a.0"])
                .unwrap_err()
                .to_string(),
            r#""a.0" and "a.1" of resource "example.com/card" are one device, and a container gets a device once: ask for fewer, or set allowMultipleReplicasPerContainer"#
        );
    }

    #[test]
    fn ids_of_another_number_of_replicas_are_refused() {
        let check = |id: &str, expected: &str| {
            let error = ask_shared(sharing(2, true), &[id]).unwrap_err().to_string();
            assert!(error.contains(expected), "{id}: {error}");
        };
        for id in ["a", "c", "a.2", "a.01", "gone.0", "nobody.1"] {
            check(id, "is not known on this node");
        }
        check("gone.7", "is unhealthy");
        check("lost.1", "is unhealthy");
    }
}
