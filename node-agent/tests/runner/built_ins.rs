//! The actions without a program, on fixture trees.

use std::fs;
use std::os::unix::fs::symlink;

use node_agent::runner::{Action, Outcome};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::rig::Rig;

const FUNCTION: &str = "devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0";
const USB: &str = "devices/pci0000:00/0000:00:14.0/usb1/1-2";

/// A machine with a PCI function and a USB device whose interface is `/dev/null`.
fn machine() -> Rig {
    let mut rig = Rig::empty();
    let sys = rig.path("sys");
    let make = |path: &str, text: &str| {
        let path = sys.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let link = |to: &str, at: &str| {
        fs::create_dir_all(sys.join(at).parent().unwrap()).unwrap();
        symlink(to, sys.join(at)).unwrap();
    };
    for file in ["reset", "driver_override", "power/control"] {
        make(&format!("{FUNCTION}/{file}"), "");
    }
    for file in [
        "drivers/old/unbind",
        "drivers/vfio-pci/bind",
        "drivers_probe",
    ] {
        make(&format!("bus/pci/{file}"), "");
    }
    link(
        "../../../../bus/pci/drivers/old",
        &format!("{FUNCTION}/driver"),
    );
    link(
        &format!("../../../{FUNCTION}"),
        "bus/pci/devices/0000:3b:00.0",
    );
    for file in ["authorized", "idVendor", "1-2:1.0/authorized"] {
        make(&format!("{USB}/{file}"), "");
    }
    make(&format!("{USB}/1-2:1.0/tty/ttyX0/dev"), "1:3");
    link(&format!("../../{USB}/1-2:1.0/tty/ttyX0"), "dev/char/1:3");
    make("devices/virtual/mem/zero/dev", "1:5");
    link("../../devices/virtual/mem/zero", "dev/char/1:5");
    make("kernel/uevent_helper", "");
    // A path that is absolute replaces the home.
    rig.start("/dev");
    rig
}

fn written(rig: &Rig, path: &str) -> String {
    fs::read_to_string(rig.path("sys").join(path)).unwrap()
}

fn write(path: &str) -> Action {
    Action::SysfsWrite {
        path: path.to_owned(),
        value: "on".to_owned(),
    }
}

fn refused(outcome: &Outcome, words: &[&str]) {
    assert!(!outcome.success, "{outcome:?}");
    for word in words {
        assert!(outcome.message.contains(word), "no {word:?} in {outcome:?}");
    }
}

#[tokio::test]
async fn sysfs_is_written_below_devices_only() {
    let rig = machine();
    let control = format!("/sys/{FUNCTION}/power/control");
    let outcome = rig.run(write(&control)).await;
    assert!(outcome.success, "{outcome:?}");
    assert_eq!(written(&rig, &format!("{FUNCTION}/power/control")), "on");
    let through = "/sys/bus/pci/devices/0000:3b:00.0/driver_override";
    assert!(rig.run(write(through)).await.success);
    assert_eq!(written(&rig, &format!("{FUNCTION}/driver_override")), "on");

    let outside = rig.path("outside");
    fs::write(&outside, "").unwrap();
    symlink(&outside, rig.path("sys").join(FUNCTION).join("trap")).unwrap();
    for (path, words) in [
        ("/sys/kernel/uevent_helper", &["is not below"][..]),
        (&format!("/sys/{FUNCTION}/driver/unbind"), &["is not below"]),
        (&format!("/sys/{FUNCTION}/trap"), &["is not below"]),
        (
            &format!("/sys/{FUNCTION}/../../../../kernel/uevent_helper"),
            &["is not below"],
        ),
        ("/etc/passwd", &["/etc/passwd", "not below /sys"]),
        ("/sys/../etc/passwd", &["etc/passwd"]),
        (&format!("/sys/{FUNCTION}/power"), &["power", "directory"]),
        (&format!("/sys/{FUNCTION}/none"), &["none", "No such file"]),
    ] {
        refused(&rig.run(write(path)).await, words);
    }
    assert_eq!(fs::read_to_string(outside).unwrap(), "");
    assert_eq!(written(&rig, "kernel/uevent_helper"), "");
    assert_eq!(written(&rig, "bus/pci/drivers/old/unbind"), "");
}

#[tokio::test]
async fn a_pci_function_is_reset_by_its_address() {
    let rig = machine();
    let reset = |address: &str| Action::PciReset {
        address: address.to_owned(),
    };
    assert!(rig.run(reset("0000:3b:00.0")).await.success);
    assert_eq!(written(&rig, &format!("{FUNCTION}/reset")), "1");
    for address in ["", "..", "0000:3b:00", "0000:3b:00.0/..", "0000:3b:0g.0"] {
        refused(&rig.run(reset(address)).await, &["is no PCI address"]);
    }
    refused(&rig.run(reset("0000:3c:00.0")).await, &["No such file"]);
}

#[tokio::test]
async fn a_usb_device_is_reset_by_any_of_its_nodes() {
    let rig = machine();
    let reset = |path: &str| Action::UsbReset {
        path: path.to_owned(),
    };
    let outcome = rig.run(reset("/dev/null")).await;
    assert!(outcome.success, "{outcome:?}");
    // Files of a fixture keep what was written over them.
    assert_eq!(written(&rig, &format!("{USB}/authorized")), "1");
    assert_eq!(written(&rig, &format!("{USB}/1-2:1.0/authorized")), "");
    refused(&rig.run(reset("/dev/zero")).await, &["of no USB device"]);
    refused(&rig.run(reset("/dev/none")).await, &["No such file"]);
    refused(&rig.run(reset("/sys/x")).await, &["not below /dev"]);
}

#[tokio::test]
async fn a_pci_function_is_given_to_a_driver_that_the_node_has() {
    let rig = machine();
    let bind = |driver: &str| Action::DriverBind {
        address: "0000:3b:00.0".to_owned(),
        driver: driver.to_owned(),
    };
    refused(&rig.run(bind("../old")).await, &["is no name of a driver"]);
    refused(&rig.run(bind("none")).await, &["no PCI driver \"none\""]);
    assert_eq!(written(&rig, &format!("{FUNCTION}/driver_override")), "");
    // The files of a fixture bind nothing.
    let outcome = rig.run(bind("vfio-pci")).await;
    refused(&outcome, &["bound to \"old\" and not to \"vfio-pci\""]);
    assert_eq!(
        written(&rig, &format!("{FUNCTION}/driver_override")),
        "vfio-pci"
    );
    for file in ["drivers/old/unbind", "drivers_probe"] {
        assert_eq!(written(&rig, &format!("bus/pci/{file}")), "0000:3b:00.0");
    }
    fs::write(rig.path("sys/bus/pci/drivers_probe"), "").unwrap();
    assert!(rig.run(bind("old")).await.success);
    assert_eq!(written(&rig, "bus/pci/drivers_probe"), "");
}

#[tokio::test]
async fn only_character_devices_are_opened() {
    let mut rig = machine();
    let open = |path: &str| Action::Open {
        path: path.to_owned(),
    };
    let outcome = rig.run(open("/dev/null")).await;
    assert!(outcome.success, "{outcome:?}");
    for (path, words) in [
        ("/dev/fd", &["/dev/fd"][..]),
        ("/dev/../etc/passwd", &["etc/passwd"]),
        ("/dev/none", &["No such file"]),
        ("/etc/passwd", &["not below /dev"]),
        ("/dev/", &["/dev/"]),
    ] {
        refused(&rig.run(open(path)).await, words);
    }
    rig.kill();
    // What a process of the node may put in the place of a device.
    let dev = rig.path("dev");
    fs::write(dev.join("file"), "").unwrap();
    symlink("/dev/null", dev.join("link")).unwrap();
    symlink("/dev", dev.join("directory")).unwrap();
    mknodat(CWD, dev.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    // Only root makes devices with numbers of their own; the tests of a change run as root.
    let is_root = rustix::process::geteuid().is_root();
    let mut nodes = vec![
        ("mem", FileType::CharacterDevice, 1),
        ("disk", FileType::BlockDevice, 7),
    ];
    nodes.retain(|_| is_root);
    for (name, kind, major) in &nodes {
        let device = rustix::fs::makedev(*major, 1);
        mknodat(CWD, dev.join(name), *kind, Mode::RUSR, device).unwrap();
    }
    rig.start("dev");
    for (name, _, _) in &nodes {
        let words = if *name == "mem" {
            "1:1, "
        } else {
            "a block device"
        };
        refused(&rig.run(open(&format!("/dev/{name}"))).await, &[words]);
    }
    refused(&rig.run(open("/dev/file")).await, &["is no device"]);
    refused(&rig.run(open("/dev/fifo")).await, &["is no device"]);
    refused(&rig.run(open("/dev/link")).await, &["/dev/link"]);
    refused(&rig.run(open("/dev/directory/null")).await, &["directory"]);
}
