//! What a reader of sysfs saw of one device: plain values, and what identifies the device in them.

use std::collections::BTreeMap;

use crate::discovery::{Hardware, Target};

/// One device in sysfs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sight {
    /// Its directory on the host, such as `/sys/devices/pci0000:00/0000:00:02.0`.
    pub sysfs: String,
    /// Attributes that the rule asks for, by the rule's names; those that are missing are left out.
    pub attributes: BTreeMap<String, String>,
    /// Properties of the kernel and of udev.
    pub properties: BTreeMap<String, String>,
    /// Driver that it is bound to.
    pub driver: Option<String>,
    /// IOMMU group that it is in, where a driver of VFIO holds it.
    pub vfio_group: Option<String>,
    /// Itself and the devices above it, nearest first.
    pub levels: Vec<Level>,
    /// Its device nodes.
    pub nodes: Vec<SeenNode>,
}

/// A device directory on the way from a device up to the root of all devices.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Level {
    /// Name of the directory: `1-1.2`, `0000:00:02.0`, `ttyUSB0`.
    pub name: String,
    /// Bus or class that it belongs to: `usb`, `pci`, `tty`.
    pub subsystem: String,
    /// Its serial number.
    pub serial: Option<String>,
    /// Vendor and product of a USB device, four hex digits each.
    pub usb: Option<(String, String)>,
    /// The NUMA node that it is near to.
    pub numa_node: Option<u32>,
}

/// A device node of a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SeenNode {
    /// Its path on the host, as the kernel names it.
    pub path: String,
    /// Major number that the kernel gave it.
    pub major: u32,
    /// Minor number that the kernel gave it.
    pub minor: u32,
    /// Whether other devices use it as well, such as `/dev/vfio/vfio`.
    pub is_shared: bool,
    /// What is at the path; nothing if nothing is.
    pub target: Option<Target>,
}

impl Sight {
    /// What is told of the hardware.
    pub fn hardware(&self) -> Hardware {
        let pci = self.levels.iter().find(|level| level.subsystem == "pci");
        let numa_node = self.levels.iter().find_map(|level| level.numa_node);
        Hardware {
            sysfs: (!self.sysfs.is_empty()).then(|| self.sysfs.clone()),
            pci_address: pci.map(|level| level.name.clone()),
            numa_nodes: numa_node.into_iter().collect(),
            nodes: Vec::new(),
        }
    }

    /// The serial number with what makes it unique: whose product it is of, and what part of the
    /// device this is. The nearest device that has one counts.
    pub fn serial(&self) -> Option<String> {
        // What is above a USB device or a PCI function, such as a hub, is another device.
        let is_whole = |level: &Level| level.usb.is_some() || level.subsystem == "pci";
        let whole = self.levels.iter().position(is_whole);
        let own = self.levels.iter().enumerate();
        let mut own = own.take(whole.map_or(usize::MAX, |whole| whole + 1));
        let (index, level, serial) = own.find_map(|(index, level)| {
            let serial = level.serial.as_ref().filter(|serial| !serial.is_empty())?;
            Some((index, level, serial))
        })?;
        let maker = match &level.usb {
            Some((vendor, product)) => format!("{vendor}-{product}"),
            None => level.subsystem.clone(),
        };
        let mut text = format!("{maker}-{serial}");
        for below in self.levels.iter().take(index).rev() {
            text.push_str(&part(below));
        }
        Some(text + &self.leaf(index))
    }

    /// Where the device is plugged in: the nearest PCI function, USB port and place on a board, by
    /// names that an enumeration in another order does not change. Nothing for a device that is
    /// plugged in nowhere.
    pub fn bus_path(&self) -> Option<String> {
        let mut anchor = None;
        let mut text = String::new();
        let mut hub = "";
        for (index, level) in self.levels.iter().enumerate().rev() {
            match level.subsystem.as_str() {
                "pci" => text = format!("pci-{}", level.name),
                "usb" if level.name.starts_with("usb") => {
                    // Bus numbers depend on the order of the controllers. A controller has one root
                    // hub for each generation of USB, and their ports have the same numbers.
                    hub = level.usb.as_ref().map_or("", |(_, product)| product);
                    continue;
                }
                "usb" => match level.name.split_once(':') {
                    Some(_) => {
                        text.push_str(&part(level));
                        continue;
                    }
                    None => {
                        let port = level.name.split_once('-').map_or("", |(_, port)| port);
                        let above = text.split("-usb").next().unwrap_or_default();
                        text = format!("{above}-usb{}-{port}", hub.trim_start_matches('0'));
                    }
                },
                "platform" | "pnp" | "amba" => text = format!("{}-{}", level.subsystem, level.name),
                _ => continue,
            }
            anchor = Some(index);
        }
        anchor.map(|index| text + &self.leaf(index))
    }

    /// What kind of node this is of the device at a level: `-ttyUSB`. One device may have several
    /// kinds of nodes; numbers in their names depend on the order of enumeration.
    fn leaf(&self, index: usize) -> String {
        let leaf = self.levels.first().filter(|_| index > 0);
        let kind = leaf.map(|level| level.name.trim_end_matches(|c: char| c.is_ascii_digit()));
        kind.map_or_else(String::new, |kind| format!("-{kind}"))
    }
}

/// The interface of a USB device, such as `-1.0`; nothing else has a stable name.
fn part(level: &Level) -> String {
    match level.name.split_once(':') {
        Some((_, interface)) if level.subsystem == "usb" => format!("-{interface}"),
        _ => String::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Levels in the order of a path in sysfs, written as `subsystem name`.
    pub(crate) fn levels(down: &[&str]) -> Vec<Level> {
        let level = |text: &&str| {
            let (subsystem, name) = text.split_once(' ').unwrap();
            Level {
                name: name.to_owned(),
                subsystem: subsystem.to_owned(),
                ..Level::default()
            }
        };
        down.iter().map(level).rev().collect()
    }

    fn usb(level: &mut Level, ids: (&str, &str), serial: &str) {
        level.usb = Some((ids.0.to_owned(), ids.1.to_owned()));
        level.serial = Some(serial.to_owned());
    }

    fn adapter(bus: &str, name: &str) -> Sight {
        let mut levels = levels(&[
            "pci 0000:00:14.0",
            &format!("usb usb{bus}"),
            &format!("usb {bus}-1"),
            &format!("usb {bus}-1.2"),
            &format!("usb {bus}-1.2:1.0"),
            &format!("usb-serial {name}"),
            &format!("tty {name}"),
        ]);
        usb(&mut levels[3], ("0403", "6001"), "A10K");
        usb(&mut levels[4], ("05e3", "0610"), "HUB");
        usb(&mut levels[5], ("1d6b", "0002"), "0000:00:14.0");
        Sight {
            levels,
            ..Sight::default()
        }
    }

    #[test]
    fn numbers_of_enumeration_are_in_no_identity() {
        let one = adapter("1", "ttyUSB0");
        assert_eq!(one.serial().unwrap(), "0403-6001-A10K-1.0-ttyUSB");
        let path = "pci-0000:00:14.0-usb2-1.2-1.0-ttyUSB";
        assert_eq!(one.bus_path().unwrap(), path);
        let other = adapter("3", "ttyUSB7");
        assert_eq!(other.serial(), one.serial());
        assert_eq!(other.bus_path(), one.bus_path());
        let mut without = one;
        without.levels[3].serial = None;
        assert_eq!(without.serial(), None, "the hub's is another device's");
    }

    #[test]
    fn devices_that_are_plugged_in_nowhere_have_no_bus_path() {
        let check = |down: &[&str], expected: Option<&str>| {
            let sight = Sight {
                levels: levels(down),
                ..Sight::default()
            };
            assert_eq!(sight.bus_path().as_deref(), expected, "{down:?}");
            assert_eq!(sight.serial(), None);
        };
        check(&["misc fuse"], None);
        check(&[], None);
        check(
            &["pci 0000:00:01.0", "pci 0000:01:00.0"],
            Some("pci-0000:01:00.0"),
        );
        check(
            &["pci 0000:01:00.0", "drm card1"],
            Some("pci-0000:01:00.0-card"),
        );
        check(
            &["pci 0000:01:00.0", "drm renderD128"],
            Some("pci-0000:01:00.0-renderD"),
        );
        check(
            &["platform serial8250", "tty ttyS0"],
            Some("platform-serial8250-ttyS"),
        );
        check(
            &["pci 0000:00:14.0", "usb usb1", "usb 1-4"],
            Some("pci-0000:00:14.0-usb-4"),
        );
    }

    #[test]
    fn hardware_is_that_of_the_nearest_level_that_knows() {
        let mut sight = Sight {
            sysfs: "/sys/devices/x".to_owned(),
            levels: levels(&["pci 0000:00:01.0", "pci 0000:01:00.0", "nvme nvme0"]),
            ..Sight::default()
        };
        sight.levels[2].numa_node = Some(1);
        let hardware = sight.hardware();
        assert_eq!(hardware.pci_address.as_deref(), Some("0000:01:00.0"));
        assert_eq!(hardware.sysfs.as_deref(), Some("/sys/devices/x"));
        assert_eq!(hardware.numa_nodes, [1]);
        sight.levels[1].numa_node = Some(0);
        assert_eq!(sight.hardware().numa_nodes, [0]);
        assert_eq!(Sight::default().hardware(), Hardware::default());
    }
}
