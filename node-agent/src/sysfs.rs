//! The host's sysfs and udev's database, read for what a rule wants and no further.
//!
//! Everything here may vanish while it is read: what is gone is left out, what cannot be read is
//! told, and neither ends a look.

mod files;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use node_agent_core::discovery::{Numbers, Unknown};
use node_agent_core::rule::{Rule, Wanted};
use node_agent_core::sight::{Level, SeenNode, Sight};
use node_agent_core::udev;
use node_agent_core::uevent::is_pci_address;

use crate::host_dev::HostDev;
use crate::sysfs::files::{
    Seen, attribute, groups_devices, link_name, names, numbers, read, unless_gone,
};

/// Most directories below a device, and levels of them. Real machines have some dozen and five; a
/// loop, or a wrong mount, must not keep the agent busy.
const DIRECTORIES_MAX: usize = 4096;
const DEPTH_MAX: usize = 12;

/// Subsystems of nodes that are no part of what a PCI function is for: buses and memories on a card
/// through which a container could change its firmware.
const SIDE_BUSES: &[&str] = &[
    "drm_dp_aux_dev",
    "gpio",
    "i2c-dev",
    "mei",
    "mtd",
    "spidev",
    "watchdog",
];

/// Device nodes that belong to no device, and that nothing works without: by the subsystem, or the
/// driver, that needs them.
const COMPANIONS: &[(&str, &str)] = &[
    ("infiniband_verbs", "rdma_cm"),
    ("vfio", "vfio"),
    ("vfio-dev", "iommu"),
];

/// The host's sysfs and udev's database, seen at other places.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
    udev: PathBuf,
    dev: HostDev,
}

/// What one look at sysfs found.
#[derive(Debug, Default)]
pub struct Sights {
    /// Devices that the rule accepts.
    pub sights: Vec<Sight>,
    /// What could not be looked at.
    pub unknown: Unknown,
}

impl Sysfs {
    /// The host's sysfs at `root`, udev's directory in `/run` at `udev`.
    pub fn new(root: PathBuf, udev: PathBuf, dev: HostDev) -> Self {
        // Places of devices are told from where they really are.
        let root = fs::canonicalize(&root).unwrap_or(root);
        Self { root, udev, dev }
    }

    /// Where udev keeps what it knows of devices.
    pub fn udev_data(&self) -> PathBuf {
        self.udev.join("data")
    }

    /// Looks for the devices that a rule accepts.
    pub fn look(&self, rule: &Rule) -> Sights {
        let mut found = Sights::default();
        let directories = match rule.wanted() {
            Wanted::Nothing => return found,
            Wanted::Subsystem { name, .. } => {
                vec![format!("class/{name}"), format!("bus/{name}/devices")]
            }
            Wanted::PciFunctions => vec!["bus/pci/devices".to_owned()],
            Wanted::UsbDevices => vec!["bus/usb/devices".to_owned()],
        };
        for directory in directories {
            let entries = match names(&self.root.join(&directory)) {
                Ok(entries) => entries,
                Err(error) => {
                    if let Some(error) = unless_gone(&error) {
                        // Its entries are links: what is behind them may be anywhere.
                        let told = format!("failed to list /sys/{directory}: {error}");
                        let everywhere = "/sys/devices".to_owned();
                        found.unknown.directories.insert(everywhere, told);
                    }
                    continue;
                }
            };
            for name in entries {
                let Some(place) = self.behind_link(&self.root.join(&directory).join(&name)) else {
                    continue;
                };
                match self.sight(&place, rule) {
                    Ok(Some(sight)) => found.sights.push(sight),
                    Ok(None) | Err(None) => {}
                    Err(Some(error)) => {
                        found.unknown.paths.insert(self.told(&place), error);
                    }
                }
            }
        }
        found
    }

    /// What is behind a device node.
    ///
    /// # Errors
    /// Why it could not be looked at; nothing where it is gone.
    pub fn behind(&self, (major, minor): Numbers) -> Seen<Sight> {
        let link = self.root.join(format!("dev/char/{major}:{minor}"));
        let place = self.behind_link(&link).ok_or(None)?;
        Ok(Sight {
            sysfs: self.told(&place),
            levels: self.levels(&place)?,
            ..Sight::default()
        })
    }

    /// A device as far as it concerns a rule; nothing if the rule does not accept it.
    fn sight(&self, place: &Path, rule: &Rule) -> Seen<Option<Sight>> {
        let mut sight = Sight {
            sysfs: self.told(place),
            ..Sight::default()
        };
        match rule.wanted() {
            Wanted::Nothing => return Ok(None),
            Wanted::Subsystem {
                attributes,
                properties,
                ..
            } => {
                let Some(numbers) = numbers(place)? else {
                    return Ok(None);
                };
                for name in attributes {
                    let value = match name.strip_prefix("../") {
                        None => attribute(place, name)?,
                        Some(name) => self.attribute_above(place, name)?,
                    };
                    sight.attributes.extend(value.map(|v| (name.to_owned(), v)));
                }
                if properties {
                    sight.properties = self.properties(place, numbers)?;
                }
                sight.nodes.extend(self.node(place, numbers)?);
                sight.driver = link_name(&place.join("device/driver"))?;
            }
            Wanted::PciFunctions => {
                sight.driver = link_name(&place.join("driver"))?;
                for name in ["vendor", "device", "class"] {
                    let value = attribute(place, name)?;
                    sight.attributes.extend(value.map(|v| (name.to_owned(), v)));
                }
            }
            Wanted::UsbDevices => {
                for name in ["idVendor", "idProduct", "serial"] {
                    let value = attribute(place, name)?;
                    sight.attributes.extend(value.map(|v| (name.to_owned(), v)));
                }
            }
        }
        if !rule.accepts(&sight) {
            return Ok(None);
        }
        sight.levels = self.levels(place)?;
        match rule.wanted() {
            Wanted::PciFunctions => self.add_nodes_of_function(place, &mut sight)?,
            Wanted::UsbDevices => {
                let (own, mut below) = (numbers(place)?, Below::default());
                self.walk(place, 0, &is_another_usb_device, &mut below)?;
                sight.nodes = below.nodes;
                sight.nodes.sort_by(|one, other| one.path.cmp(&other.path));
                if let Some(own) = own {
                    sight.nodes.extend(self.node(place, own)?);
                }
            }
            Wanted::Nothing | Wanted::Subsystem { .. } => {}
        }
        Ok(Some(sight))
    }

    fn add_nodes_of_function(&self, place: &Path, sight: &mut Sight) -> Seen<()> {
        let mut below = Below::default();
        self.walk(place, 0, &is_another_function, &mut below)?;
        let is_vfio = |driver: &String| driver.contains("vfio");
        if sight.driver.as_ref().is_some_and(is_vfio)
            && let Some(group) = link_name(&place.join("iommu_group"))?
        {
            below.nodes.extend(self.node_of_class("vfio", &group)?);
            below.subsystems.push("vfio".to_owned());
            sight.vfio_group = Some(group);
        }
        below.nodes.sort_by(|one, other| one.path.cmp(&other.path));
        for (needs, misc) in COMPANIONS {
            if below.subsystems.iter().any(|subsystem| subsystem == needs)
                && let Some(mut node) = self.node_of_class("misc", misc)?
            {
                node.is_shared = true;
                below.nodes.push(node);
            }
        }
        sight.nodes = below.nodes;
        if let Some(function) = sight.levels.first_mut() {
            function.serial = match attribute(place, "unique_id")? {
                None => attribute(place, "serial_number")?.or(below.serial),
                own => own,
            };
        }
        Ok(())
    }

    /// Finds the device nodes below a device. A directory in sysfs is a device (it has a `uevent`
    /// file), or groups devices of one class (it has no files), or is of no interest.
    fn walk(
        &self,
        directory: &Path,
        depth: usize,
        is_another: &dyn Fn(&str) -> bool,
        below: &mut Below,
    ) -> Seen<()> {
        if depth > DEPTH_MAX {
            return Ok(());
        }
        for entry in fs::read_dir(directory).map_err(|error| unless_gone(&error))? {
            let entry = entry.map_err(|error| unless_gone(&error))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Links lead to other devices. No device node was ever below a network interface.
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if !is_directory || name == "net" || name == "power" || is_another(&name) {
                continue;
            }
            below.directories += 1;
            if below.directories > DIRECTORIES_MAX {
                return Ok(());
            }
            let place = entry.path();
            match self.add_node(&place, below) {
                // A directory that is gone takes nothing else with it.
                Err(None) | Ok(false) => continue,
                Err(error) => return Err(error),
                Ok(true) => {}
            }
            match self.walk(&place, depth + 1, is_another, below) {
                Ok(()) | Err(None) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adds the node of a directory; tells whether there may be more below.
    fn add_node(&self, place: &Path, below: &mut Below) -> Seen<bool> {
        if !place.join("uevent").exists() {
            return Ok(groups_devices(place));
        }
        for name in ["serial", "node_guid"] {
            if below.serial.is_none() {
                below.serial = attribute(place, name)?;
            }
        }
        let Some(numbers) = numbers(place)? else {
            return Ok(true);
        };
        let subsystem = link_name(&place.join("subsystem"))?.unwrap_or_default();
        if SIDE_BUSES.contains(&subsystem.as_str()) {
            return Ok(false);
        }
        // Block devices have numbers of their own kind, and are never given out.
        if subsystem != "block" {
            below.nodes.extend(self.node(place, numbers)?);
            below.subsystems.push(subsystem);
        }
        Ok(true)
    }

    fn node_of_class(&self, class: &str, name: &str) -> Seen<Option<SeenNode>> {
        let place = self.root.join("class").join(class).join(name);
        match numbers(&place)? {
            None => Ok(None),
            Some(numbers) => self.node(&place, numbers),
        }
    }

    /// The device node of a device, by the name that the kernel gave it.
    fn node(&self, place: &Path, (major, minor): Numbers) -> Seen<Option<SeenNode>> {
        let properties = read(&place.join("uevent"))?.unwrap_or_default();
        let name = udev::variables(&properties).find(|(name, _)| *name == "DEVNAME");
        let Some((_, name)) = name else {
            return Ok(None);
        };
        let is_plain = |segment: &str| !matches!(segment, "" | "." | "..");
        if !name.split('/').all(is_plain) {
            return Ok(None);
        }
        let path = format!("/dev/{name}");
        Ok(Some(SeenNode {
            target: self.dev.target(&path),
            path,
            major,
            minor,
            is_shared: false,
        }))
    }

    fn properties(&self, place: &Path, numbers: Numbers) -> Seen<BTreeMap<String, String>> {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let kernel = read(&place.join("uevent"))?.unwrap_or_default();
        let mut properties: BTreeMap<_, _> = udev::variables(&kernel).map(owned).collect();
        let (major, minor) = numbers;
        let entry = self.udev_data().join(format!("c{major}:{minor}"));
        let udev = read(&entry)?.unwrap_or_default();
        properties.extend(udev::properties(&udev).map(owned));
        Ok(properties)
    }

    /// The device and what is above it, nearest first.
    fn levels(&self, place: &Path) -> Seen<Vec<Level>> {
        let mut levels: Vec<Level> = Vec::new();
        let mut is_near = None;
        for directory in self.upwards(place).take(DEPTH_MAX * 2) {
            let Some(subsystem) = link_name(&directory.join("subsystem"))? else {
                continue;
            };
            let name = directory.file_name().unwrap_or_default();
            let mut level = Level {
                name: name.to_string_lossy().into_owned(),
                serial: attribute(directory, "serial")?,
                ..Level::default()
            };
            if is_near.is_none() {
                let node = attribute(directory, "numa_node")?;
                level.numa_node = node.and_then(|node| node.parse().ok());
                is_near = level.numa_node;
            }
            if subsystem == "usb" {
                let vendor = attribute(directory, "idVendor")?;
                level.usb = vendor.zip(attribute(directory, "idProduct")?);
            }
            level.subsystem = subsystem;
            levels.push(level);
        }
        Ok(levels)
    }

    fn attribute_above(&self, place: &Path, name: &str) -> Seen<Option<String>> {
        for directory in self.upwards(place).skip(1).take(DEPTH_MAX * 2) {
            if let Some(value) = attribute(directory, name)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// A directory and those above it, as far as they can be devices.
    fn upwards<'a>(&self, place: &'a Path) -> impl Iterator<Item = &'a Path> {
        let devices = self.root.join("devices");
        let is_below =
            move |directory: &&Path| directory.starts_with(&devices) && **directory != devices;
        place.ancestors().take_while(is_below)
    }

    /// Where a link to a device leads. It is not the kernel that follows it, so that also a device
    /// that cannot be looked at has its name; a link to elsewhere is none of sysfs's.
    fn behind_link(&self, link: &Path) -> Option<PathBuf> {
        let mut place = link.parent()?.to_owned();
        for part in fs::read_link(link).ok()?.components() {
            match part {
                Component::ParentDir => _ = place.pop(),
                Component::CurDir => {}
                Component::RootDir | Component::Prefix(_) | Component::Normal(_) => {
                    place.push(part);
                }
            }
        }
        place
            .starts_with(self.root.join("devices"))
            .then_some(place)
    }

    /// A place as the host calls it.
    fn told(&self, place: &Path) -> String {
        let below = place.strip_prefix(&self.root).unwrap_or(place);
        format!("/sys/{}", below.display())
    }
}

/// What is below a device.
#[derive(Default)]
struct Below {
    nodes: Vec<SeenNode>,
    subsystems: Vec<String>,
    serial: Option<String>,
    directories: usize,
}

fn is_another_function(name: &str) -> bool {
    let is_usb_bus = name.strip_prefix("usb").is_some_and(is_number);
    is_pci_address(name) || is_usb_bus
}

/// Whether a directory below a USB device is another one, on a port of a hub: `1-1.2`.
fn is_another_usb_device(name: &str) -> bool {
    let ports = name.split_once('-').filter(|(bus, _)| is_number(bus));
    ports.is_some_and(|(_, ports)| ports.split('.').all(is_number))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
#[path = "../tests/support/machine.rs"]
mod machine;
#[cfg(test)]
#[path = "sysfs/tests.rs"]
mod tests;
