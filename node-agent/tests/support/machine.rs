//! A machine's `/sys`, `/dev` and `/run/udev` in a directory, device by device.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// Numbers of every device node: a device that does nothing, the only one that needs no privileges
/// to be made.
const NUMBERS: &str = "0:0";

/// Subsystems that are buses; the others are classes.
const BUSES: &[&str] = &["hid", "pci", "platform", "usb", "usb-serial", "virtio"];

/// A machine.
pub struct Machine {
    /// Its `/sys`.
    pub sys: PathBuf,
    /// Its `/dev`.
    pub dev: PathBuf,
    /// Its `/run/udev`.
    pub udev: PathBuf,
}

impl Machine {
    /// A machine without devices, in a directory.
    pub fn new(home: &Path) -> Self {
        let machine = Self {
            sys: home.join("sys"),
            dev: home.join("dev"),
            udev: home.join("udev"),
        };
        for directory in ["devices", "bus", "class", "dev/char"] {
            fs::create_dir_all(machine.sys.join(directory)).unwrap();
        }
        fs::create_dir_all(&machine.dev).unwrap();
        machine
    }

    /// A device at a place below `/sys/devices`, with attributes.
    pub fn device(&self, subsystem: &str, place: &str, attributes: &[(&str, &str)]) -> PathBuf {
        let directory = self.sys.join("devices").join(place);
        fs::create_dir_all(&directory).unwrap();
        let list = match BUSES.contains(&subsystem) {
            true => format!("bus/{subsystem}/devices"),
            false => format!("class/{subsystem}"),
        };
        fs::create_dir_all(self.sys.join(&list)).unwrap();
        let to = list.trim_end_matches("/devices");
        symlink(self.sys.join(to), directory.join("subsystem")).unwrap();
        let name = directory.file_name().unwrap();
        symlink(&directory, self.sys.join(list).join(name)).unwrap();
        fs::write(directory.join("uevent"), "").unwrap();
        // Every device has such a directory, and no device is in it.
        fs::create_dir(directory.join("power")).unwrap();
        fs::write(directory.join("power/control"), "auto\n").unwrap();
        for (name, value) in attributes {
            fs::write(directory.join(name), format!("{value}\n")).unwrap();
        }
        directory
    }

    /// A device with a device node.
    pub fn with_node(&self, subsystem: &str, place: &str, node: &str) -> PathBuf {
        let directory = self.device(subsystem, place, &[]);
        self.node(&directory, node);
        directory
    }

    /// The device node of a device.
    pub fn node(&self, directory: &Path, node: &str) {
        fs::write(directory.join("dev"), format!("{NUMBERS}\n")).unwrap();
        let uevent = format!("MAJOR=0\nMINOR=0\nDEVNAME={node}\n");
        fs::write(directory.join("uevent"), uevent).unwrap();
        let by_numbers = self.sys.join("dev/char").join(NUMBERS);
        let _replaced = fs::remove_file(&by_numbers);
        symlink(directory, by_numbers).unwrap();
        self.plug(node);
    }

    /// A file in `/dev` only.
    pub fn plug(&self, node: &str) {
        let path = self.dev.join(node);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let (kind, numbers) = (FileType::CharacterDevice, makedev(0, 0));
        mknodat(CWD, &path, kind, Mode::RUSR, numbers).unwrap();
    }

    /// A PCI function.
    pub fn function(
        &self,
        place: &str,
        ids: (&str, &str, &str),
        driver: &str,
        numa: &str,
    ) -> PathBuf {
        let (vendor, device, class) = ids;
        let attributes = [
            ("vendor", vendor),
            ("device", device),
            ("class", class),
            ("numa_node", numa),
        ];
        let directory = self.device("pci", place, &attributes);
        fs::create_dir(directory.join("msi_irqs")).unwrap();
        fs::write(directory.join("msi_irqs/40"), "msi\n").unwrap();
        if !driver.is_empty() {
            let drivers = self.sys.join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&drivers).unwrap();
            symlink(drivers, directory.join("driver")).unwrap();
        }
        directory
    }

    /// A USB device with its node; `serial` may be empty.
    pub fn usb(&self, place: &str, ids: (&str, &str), serial: &str, node: &str) -> PathBuf {
        let mut attributes = vec![("idVendor", ids.0), ("idProduct", ids.1)];
        if !serial.is_empty() {
            attributes.push(("serial", serial));
        }
        let directory = self.device("usb", place, &attributes);
        self.node(&directory, node);
        directory
    }

    /// A USB serial adapter on a port of a controller: its interface, and the terminal on it.
    pub fn serial_adapter(&self, port: &str, serial: &str, number: u32) -> PathBuf {
        let place = format!("{CONTROLLER}/usb1/1-{port}");
        let ids = ("0403", "6001");
        let device = self.usb(&place, ids, serial, &format!("bus/usb/001/{number:03}"));
        let interface = format!("{place}/1-{port}:1.0");
        self.device("usb", &interface, &[("bInterfaceNumber", "00")]);
        let terminal = format!("ttyUSB{number}");
        self.device("usb-serial", &format!("{interface}/{terminal}"), &[]);
        let tty = format!("{interface}/{terminal}/tty/{terminal}");
        self.with_node("tty", &tty, &terminal);
        device
    }

    /// The controller that adapters are on, and its root hub.
    pub fn usb_controller(&self) {
        self.function(
            CONTROLLER,
            ("0x8086", "0xa36d", "0x0c0330"),
            "xhci_hcd",
            "-1",
        );
        let hub = format!("{CONTROLLER}/usb1");
        self.usb(&hub, ("1d6b", "0002"), "0000:00:14.0", "bus/usb/001/000");
    }

    /// A GPU with its nodes, a monitor's side bus, and no other.
    pub fn gpu(&self, root: &str, address: &str, number: u32, numa: &str) -> PathBuf {
        let place = format!("{root}/{address}");
        let function = self.function(&place, ("0x8086", "0x56c0", "0x038000"), "i915", numa);
        let (card, render) = (format!("card{number}"), format!("renderD{}", 128 + number));
        self.with_node(
            "drm",
            &format!("{place}/drm/{card}"),
            &format!("dri/{card}"),
        );
        self.with_node(
            "drm",
            &format!("{place}/drm/{render}"),
            &format!("dri/{render}"),
        );
        let bus = format!("i2c-{number}");
        self.device("i2c", &format!("{place}/{bus}"), &[]);
        self.with_node("i2c-dev", &format!("{place}/{bus}/i2c-dev/{bus}"), &bus);
        function
    }

    /// Takes a device out: its directory, and its nodes.
    pub fn unplug(&self, directory: &Path, nodes: &[&str]) {
        fs::remove_dir_all(directory).unwrap();
        for node in nodes {
            fs::remove_file(self.dev.join(node)).unwrap();
        }
    }

    /// Takes links in `/sys` away that lead to what was unplugged.
    pub fn forget(&self, links: &[&str]) {
        for link in links {
            fs::remove_file(self.sys.join(link)).unwrap();
        }
    }
}

/// Where the USB controller is.
pub const CONTROLLER: &str = "pci0000:00/0000:00:14.0";
