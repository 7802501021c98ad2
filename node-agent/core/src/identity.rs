//! Names that must stay the same over restarts, reboots and upgrades: a device id that changes looks
//! to the kubelet like a free device while a container still holds it.

use sha2::{Digest, Sha256};

/// Longest id that is advertised, in bytes: the limit that the protocol's text gives.
pub const DEVICE_ID_MAX: usize = 63;

/// Longest id of a device itself, in bytes: what is advertised may be one of several replicas of it,
/// whose number takes up to five more.
pub const PHYSICAL_ID_MAX: usize = DEVICE_ID_MAX - 5;

/// Hex digits of the hash in a device id: 40 bits, so that even 50,000 devices collide with a
/// probability of 1 in 900; half as many would make that certain, twice as many only longer lists.
const ID_HASH_DIGITS: usize = 10;

/// The id of the device at a path: the path's readable characters, and a hash of resource and path,
/// so that no two resources of a node share an id (kubelets up to 1.36 mix such devices up).
pub fn path_device_id(resource: &str, path: &str) -> String {
    let stem = path.strip_prefix("/dev/").unwrap_or(path);
    device_id(stem, &[resource, path])
}

/// The id of a device with a serial number, from what [`crate::sight::Sight::serial`] tells.
pub fn serial_device_id(resource: &str, serial: &str) -> String {
    device_id(serial, &[resource, "serial", serial])
}

/// The id of a device at a place, from what [`crate::sight::Sight::bus_path`] tells.
pub fn bus_device_id(resource: &str, bus_path: &str) -> String {
    device_id(bus_path, &[resource, "bus", bus_path])
}

/// The id of a device that a config names.
pub fn group_device_id(resource: &str, name: &str) -> String {
    device_id(name, &[resource, "group", name])
}

/// The id of a simulated device.
pub fn simulated_device_id(resource: &str, prefix: &str, index: i32) -> String {
    let stem = format!("{prefix}-{index}");
    device_id(&stem, &[resource, &stem])
}

/// What people can read of it, and a hash of what it is made from.
fn device_id(stem: &str, made_from: &[&str]) -> String {
    let readable: String = stem
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .take(PHYSICAL_ID_MAX - ID_HASH_DIGITS - 1)
        .collect();
    format!("{readable}-{}", digits(made_from, ID_HASH_DIGITS))
}

/// Start of the names of a resource's sockets: eight hex digits of the resource keep a socket's path
/// short whatever the name (a socket's path holds 107 bytes) and tell whose it is.
pub fn socket_prefix(resource: &str) -> String {
    format!("dpo-{}-", digits(&[resource], 8))
}

/// A socket's name for one registration: never used twice, because kubelets from 1.37 on refuse a
/// name that they still hold.
pub fn socket_name(resource: &str, random: u64) -> String {
    format!("{}{random:016x}.sock", socket_prefix(resource))
}

/// Name of the file whose lock gives the right to register a resource on a node.
pub fn lock_name(resource: &str) -> String {
    format!("{}.lock", digits(&[resource], 64))
}

/// Name of the file whose lock gives one agent of a config the right to take its resources' locks.
pub fn role_lock_name(config: &str) -> String {
    format!("{config}.role")
}

/// Name of the file whose lock a process of a revision holds for as long as it lives. No config's
/// name has a dot, so these are no other config's files.
pub fn presence_lock_name(config: &str, revision: &str) -> String {
    format!("{config}.{revision}.present")
}

/// Name of the lock that a process of a revision holds while it waits for the role: whoever holds
/// the role lets go of it for somebody who is ready to take it, and for nobody else.
pub fn waiting_lock_name(config: &str, revision: &str) -> String {
    format!("{config}.{revision}.waits")
}

/// The first hex digits of a hash over texts; the texts cannot run into each other, because none
/// holds a zero byte.
fn digits(texts: &[&str], count: usize) -> String {
    let hash = Sha256::digest(texts.join("\0").as_bytes());
    let all: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    all.chars().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_never_change() {
        // Golden: a release that fails here hands out devices twice.
        assert_eq!(
            path_device_id("example.com/serial", "/dev/serial/by-id/usb-FTDI_A1"),
            "serial-by-id-usb-FTDI_A1-87bf57d70a"
        );
        assert_eq!(
            simulated_device_id("example.com/sim", "sim", 3),
            "sim-3-e2f784f584"
        );
        assert_eq!(
            serial_device_id("example.com/serial", "0403-6001-A10K"),
            "0403-6001-A10K-a897bae8f0"
        );
        assert_eq!(
            bus_device_id("example.com/gpu", "pci-0000:3b:00.0"),
            "pci-0000-3b-00.0-0b07c52b31"
        );
        assert_eq!(
            group_device_id("example.com/card", "card0"),
            "card0-f49a3d74f4"
        );
        assert_eq!(
            socket_name("example.com/serial", 0x1f),
            "dpo-a6cc823d-000000000000001f.sock"
        );
    }

    #[test]
    fn ids_fit_and_differ() {
        let long = format!("/dev/{}", "ü/".repeat(100));
        let longer = format!("{long}x");
        let ids = [
            path_device_id("a.com/x", &long),
            path_device_id("a.com/x", &longer),
            path_device_id("a.com/y", &long),
            path_device_id("a.com/x", "/dev/a/b"),
            path_device_id("a.com/x", "/dev/a-b"),
            simulated_device_id("a.com/x", &"p".repeat(20), 255),
            serial_device_id("a.com/x", "/dev/a/b"),
            serial_device_id("a.com/x", &"ü".repeat(200)),
            bus_device_id("a.com/x", "/dev/a/b"),
            group_device_id("a.com/x", "/dev/a/b"),
        ];
        for id in &ids {
            assert!(!id.is_empty() && id.len() <= PHYSICAL_ID_MAX, "{id:?}");
        }
        let distinct: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn file_names_have_no_slash_and_fit_a_socket_path() {
        let resource = format!("{}/{}", "d".repeat(244), "n".repeat(63));
        let name = socket_name(&resource, u64::MAX);
        assert!(name.len() <= 75 && !name.contains('/'), "{name:?}");
        assert!(!lock_name(&resource).contains('/') && lock_name(&resource).len() < 255);
        let names = [
            lock_name(&resource),
            role_lock_name("fuse"),
            presence_lock_name("fuse", "0123456789"),
            presence_lock_name("fuse", "role"),
            waiting_lock_name("fuse", "0123456789"),
        ];
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }
}
