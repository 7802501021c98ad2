use std::os::unix::fs::symlink;

use crds::Resource;
use node_agent_core::discovery::{Discovered, Look, discovered};
use serde_json::{Value, json};

use super::machine::{CONTROLLER, Machine};
use super::*;

fn rule(discovery: Value) -> Rule {
    let resource = json!({ "name": "example.com/x", "discovery": discovery });
    Rule::new(&serde_json::from_value::<Resource>(resource).unwrap()).unwrap()
}

fn sysfs(machine: &Machine) -> Sysfs {
    let dev = HostDev::new(machine.dev.clone());
    Sysfs::new(machine.sys.clone(), machine.udev.clone(), dev)
}

fn seen(machine: &Machine, rule: &Rule) -> Discovered {
    let Sights { sights, unknown } = sysfs(machine).look(rule);
    let look = Look {
        sights,
        unknown,
        ..Look::default()
    };
    discovered(rule, &look)
}

/// Each device in a line: the readable part of its id, its nodes, its NUMA nodes.
fn lines(seen: &Discovered) -> Vec<String> {
    let lines = seen.devices.iter().map(|(id, found)| {
        let stem = id.rsplit_once('-').unwrap().0;
        let nodes = found.paths.join(" ");
        let near = &found.hardware.numa_nodes;
        let wrong = found.unhealthy.as_deref().unwrap_or_default();
        format!("{stem}: {nodes} {near:?} {wrong}")
            .trim_end()
            .to_owned()
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

fn machine() -> (tempfile::TempDir, Machine) {
    let home = tempfile::tempdir().unwrap();
    let machine = Machine::new(home.path());
    (home, machine)
}

#[test]
fn a_gpu_has_its_drm_nodes_and_no_side_bus() {
    let (_home, machine) = machine();
    machine.gpu("pci0000:00/0000:00:01.0", "0000:03:00.0", 0, "-1");
    let gpus = rule(json!({ "pci": [{ "vendor": "8086", "class": "03" }] }));
    let found = seen(&machine, &gpus);
    assert_eq!(
        lines(&found),
        ["pci-0000-03-00.0: /dev/dri/card0 /dev/dri/renderD128 []"]
    );
    let hardware = &found.devices.values().next().unwrap().hardware;
    assert_eq!(hardware.pci_address.as_deref(), Some("0000:03:00.0"));
    let sysfs = "/sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0";
    assert_eq!(hardware.sysfs.as_deref(), Some(sysfs));
    for other in [
        json!({ "vendor": "10de" }),
        json!({ "device": "56c1" }),
        json!({ "class": "0300" }),
        json!({ "driver": "xe" }),
    ] {
        assert!(lines(&seen(&machine, &rule(json!({ "pci": [other] })))).is_empty());
    }
    let driver = rule(json!({ "pci": [{ "driver": "nobody" }, { "driver": "i915" }] }));
    assert_eq!(lines(&seen(&machine, &driver)).len(), 1);
}

/// The bridge that a function is behind matches as well, and does not get the function's nodes.
#[test]
fn a_bridge_has_no_nodes_of_what_is_behind_it() {
    let (_home, machine) = machine();
    let bridge = "pci0000:00/0000:00:01.0";
    machine.function(bridge, ("0x8086", "0x1901", "0x060400"), "pcieport", "-1");
    machine.gpu(bridge, "0000:03:00.0", 0, "-1");
    machine.usb_controller();
    machine.serial_adapter("2", "A10K", 1);
    let found = seen(&machine, &rule(json!({ "pci": [{ "vendor": "8086" }] })));
    assert_eq!(lines(&found).len(), 1, "{:?}", lines(&found));
    let told: Vec<String> = found
        .remarks
        .iter()
        .map(|one| format!("{} {}", one.path, one.reason))
        .collect();
    let without = "has no character device node of its own";
    assert_eq!(
        told,
        [
            format!("/sys/devices/{bridge} {without} (driver \"pcieport\")"),
            format!("/sys/devices/{CONTROLLER} {without} (driver \"xhci_hcd\")"),
        ]
    );
}

#[test]
fn a_machine_with_two_numa_nodes() {
    let (_home, machine) = machine();
    machine.gpu("pci0000:00", "0000:03:00.0", 0, "0");
    machine.gpu("pci0000:80", "0000:83:00.0", 1, "1");
    let gpus = json!({ "pci": [{ "class": "0380" }] });
    assert_eq!(
        lines(&seen(&machine, &rule(gpus.clone()))),
        [
            "pci-0000-03-00.0: /dev/dri/card0 /dev/dri/renderD128 [0]",
            "pci-0000-83-00.0: /dev/dri/card1 /dev/dri/renderD129 [1]",
        ]
    );
    let resource = json!({ "name": "example.com/x", "discovery": gpus, "topology": "None" });
    let blind = Rule::new(&serde_json::from_value::<Resource>(resource).unwrap()).unwrap();
    assert!(
        lines(&seen(&machine, &blind))
            .iter()
            .all(|line| line.ends_with("[]"))
    );
    let nodes =
        rule(json!({ "udev": { "subsystem": "drm", "attributes": { "../device": "0x56c0" } } }));
    assert_eq!(
        lines(&seen(&machine, &nodes)),
        [
            "pci-0000-03-00.0-card: /dev/dri/card0 [0]",
            "pci-0000-03-00.0-renderD: /dev/dri/renderD128 [0]",
            "pci-0000-83-00.0-card: /dev/dri/card1 [1]",
            "pci-0000-83-00.0-renderD: /dev/dri/renderD129 [1]",
        ]
    );
}

#[test]
fn an_nvme_gives_out_its_controller_and_no_disk() {
    let (_home, machine) = machine();
    let place = "pci0000:00/0000:01:00.0";
    machine.function(place, ("0x144d", "0xa80a", "0x010802"), "nvme", "0");
    let controller = machine.with_node("nvme", &format!("{place}/nvme/nvme0"), "nvme0");
    fs::write(controller.join("serial"), "S64DNX0R\n").unwrap();
    let disk = machine.device("block", &format!("{place}/nvme/nvme0/nvme0n1"), &[]);
    fs::write(disk.join("dev"), "259:0\n").unwrap();
    fs::write(disk.join("uevent"), "DEVNAME=nvme0n1\n").unwrap();
    let nvme = json!({ "pci": [{ "class": "0108" }] });
    assert_eq!(
        lines(&seen(&machine, &rule(nvme.clone()))),
        ["pci-0000-01-00.0: /dev/nvme0 [0]"]
    );
    let resource = json!({ "name": "example.com/x", "discovery": nvme, "idFrom": "Serial" });
    let by_serial = Rule::new(&serde_json::from_value::<Resource>(resource).unwrap()).unwrap();
    let found = seen(&machine, &by_serial);
    assert_eq!(lines(&found), ["pci-S64DNX0R: /dev/nvme0 [0]"]);
    let also = &found.devices.values().next().unwrap().also;
    assert!(also.iter().any(|id| id.starts_with("pci-0000-01-00.0-")));
}

#[test]
fn an_infiniband_hca_has_its_verbs_and_the_connection_manager() {
    let (_home, machine) = machine();
    let place = "pci0000:00/0000:3b:00.0";
    machine.function(place, ("0x15b3", "0x1017", "0x020000"), "mlx5_core", "1");
    for (class, node) in [
        ("infiniband_verbs", "uverbs0"),
        ("infiniband_mad", "umad0"),
        ("infiniband_mad", "issm0"),
    ] {
        let device = format!("{place}/{class}/{node}");
        machine.with_node(class, &device, &format!("infiniband/{node}"));
    }
    let hca = machine.device("infiniband", &format!("{place}/infiniband/mlx5_0"), &[]);
    fs::create_dir_all(hca.join("ports/1/gids")).unwrap();
    fs::write(hca.join("ports/1/state"), "4: ACTIVE\n").unwrap();
    machine.device("net", &format!("{place}/net/eth0"), &[]);
    machine.with_node("misc", "virtual/misc/rdma_cm", "infiniband/rdma_cm");
    let found = seen(&machine, &rule(json!({ "pci": [{ "vendor": "15b3" }] })));
    assert_eq!(
        lines(&found),
        [
            "pci-0000-3b-00.0: /dev/infiniband/issm0 /dev/infiniband/umad0 \
             /dev/infiniband/uverbs0 /dev/infiniband/rdma_cm [1]"
        ]
    );
    let own = found.devices.values().next().unwrap().numbers.len();
    assert_eq!(own, 3, "the connection manager is everybody's");
}

#[test]
fn a_vfio_group_is_one_device() {
    let (_home, machine) = machine();
    for function in ["0000:65:00.0", "0000:65:00.1"] {
        let ids = ("0x10de", "0x20b0", "0x030200");
        let place = format!("pci0000:64/{function}");
        let place = machine.function(&place, ids, "vfio-pci", "0");
        let group = machine.sys.join("kernel/iommu_groups/42");
        fs::create_dir_all(&group).unwrap();
        symlink(group, place.join("iommu_group")).unwrap();
    }
    machine.with_node("vfio", "virtual/vfio/42", "vfio/42");
    machine.with_node("misc", "virtual/misc/vfio", "vfio/vfio");
    let found = seen(
        &machine,
        &rule(json!({ "pci": [{ "driver": "vfio-pci" }] })),
    );
    assert_eq!(
        lines(&found),
        ["pci-0000-65-00.0: /dev/vfio/42 /dev/vfio/vfio [0]"]
    );
}

#[test]
fn two_usb_adapters_of_one_model() {
    let (_home, machine) = machine();
    machine.usb_controller();
    machine.serial_adapter("1", "A10K", 1);
    let other = machine.serial_adapter("2", "", 2);
    let usb = rule(json!({ "usb": [{ "vendor": "0403", "product": "6001" }] }));
    let first = "0403-6001-A10K: /dev/ttyUSB1 /dev/bus/usb/001/001 []";
    let second = "pci-0000-00-14.0-usb2-2: /dev/ttyUSB2 /dev/bus/usb/001/002 []";
    assert_eq!(lines(&seen(&machine, &usb)), [first, second]);
    let serial = rule(json!({ "usb": [{ "vendor": "0403", "serial": "A10K" }] }));
    assert_eq!(lines(&seen(&machine, &serial)), [first]);
    let ports = json!({ "subsystem": "tty", "attributes": { "../idProduct": "60??" } });
    assert_eq!(
        lines(&seen(&machine, &rule(json!({ "udev": ports })))),
        [
            "0403-6001-A10K-1.0-ttyUSB: /dev/ttyUSB1 []",
            "pci-0000-00-14.0-usb2-2-1.0-ttyUSB: /dev/ttyUSB2 []",
        ]
    );
    // Replugged: other numbers, the same ids.
    let before: Vec<String> = seen(&machine, &usb).devices.into_keys().collect();
    machine.unplug(&other, &["ttyUSB2", "bus/usb/001/002"]);
    machine.forget(&["bus/usb/devices/1-2", "bus/usb/devices/1-2:1.0"]);
    assert_eq!(lines(&seen(&machine, &usb)), [first]);
    machine.serial_adapter("2", "", 7);
    let after: Vec<String> = seen(&machine, &usb).devices.into_keys().collect();
    assert_eq!(after, before);
}

#[test]
fn udevs_database_is_asked_where_there_is_one() {
    let (_home, machine) = machine();
    machine.usb_controller();
    machine.serial_adapter("1", "A10K", 1);
    let by_name = |pattern: &str| {
        let properties = json!({ "ID_MODEL": pattern });
        let ports = rule(json!({ "udev": { "subsystem": "tty", "properties": properties } }));
        lines(&seen(&machine, &ports)).len()
    };
    assert_eq!(by_name("FT232R*"), 0);
    fs::create_dir_all(machine.udev.join("data")).unwrap();
    let entry = machine.udev.join("data/c0:0");
    fs::write(&entry, "I:7\nE:ID_MODEL=FT232R_USB_UART\nE:BROKEN\nG:x\n").unwrap();
    assert_eq!((by_name("FT232R*"), by_name("CP210*")), (1, 0));
    fs::write(&entry, b"E:ID_MODEL=\xff\xfe\nE:ID_MODEL=FT232R\n\0\0\0").unwrap();
    assert_eq!(by_name("FT232R*"), 1);
    let kernel = json!({ "subsystem": "tty", "properties": { "DEVNAME": "ttyUSB?" } });
    assert_eq!(
        lines(&seen(&machine, &rule(json!({ "udev": kernel })))).len(),
        1
    );
}

#[test]
fn a_missing_node_is_named() {
    let (_home, machine) = machine();
    machine.gpu("pci0000:00", "0000:03:00.0", 0, "-1");
    fs::remove_file(machine.dev.join("dri/card0")).unwrap();
    let gpus = rule(json!({ "pci": [{ "class": "03" }] }));
    assert_eq!(
        lines(&seen(&machine, &gpus)),
        ["pci-0000-03-00.0: /dev/dri/renderD128 [] \
             device node \"/dev/dri/card0\" (0:0) is missing"]
    );
}

/// What cannot be read hides a device, and what is nonsense does no harm.
#[test]
fn trees_that_are_broken() {
    let (_home, machine) = machine();
    let function = machine.gpu("pci0000:00", "0000:03:00.0", 0, "-1");
    let gpus = rule(json!({ "pci": [{ "class": "03" }] }));
    let check = |file: &str, bytes: &[u8], devices: usize| {
        let path = function.join(file);
        let before = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let found = seen(&machine, &gpus);
        assert_eq!(found.devices.len(), devices, "{file} {bytes:?}");
        fs::write(&path, before).unwrap();
    };
    check("class", b"", 0);
    check("class", b"\xff\xff\0", 0);
    check("class", &[b'0'; 1 << 17], 0);
    check("numa_node", b"99999999999999999999", 1);
    check("numa_node", b"north", 1);
    for nonsense in ["x", "1:", ":", "-1:-1", "4294967296:0"] {
        check("drm/card0/dev", nonsense.as_bytes(), 1);
    }
    for nonsense in [
        "DEVNAME=../../etc/passwd",
        "DEVNAME=",
        "DEVNAME=/",
        "=",
        "DEVNAME",
    ] {
        check("drm/card0/uevent", nonsense.as_bytes(), 1);
    }
    // A link that leads nowhere, one in a circle, and something that would wait for a writer.
    let list = machine.sys.join("bus/pci/devices");
    symlink("nowhere", list.join("0000:04:00.0")).unwrap();
    symlink("0000:05:00.0", list.join("0000:05:00.0")).unwrap();
    let place = machine.function("pci0000:00/0000:06:00.0", ("", "", ""), "", "");
    fs::remove_file(place.join("class")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, place.join("class"), rustix::fs::Mode::RUSR).unwrap();
    assert_eq!(seen(&machine, &gpus).devices.len(), 1);
    // Nobody may read it: root may read everything, so a link that never ends stands for it.
    fs::remove_file(function.join("class")).unwrap();
    symlink("class", function.join("class")).unwrap();
    let blind = seen(&machine, &gpus);
    assert!(blind.devices.is_empty());
    let (path, error) = blind.unknown.paths.first_key_value().unwrap();
    assert_eq!(path, "/sys/devices/pci0000:00/0000:03:00.0");
    assert!(
        error.contains("class") && error.contains("failed to read"),
        "{error}"
    );
    fs::remove_dir_all(&list).unwrap();
    symlink("devices", &list).unwrap();
    let blind = seen(&machine, &gpus);
    assert!(
        blind.unknown.directories.contains_key("/sys/devices"),
        "{blind:?}"
    );
}

#[test]
fn what_is_behind_a_device_node() {
    let (_home, machine) = machine();
    machine.gpu("pci0000:80", "0000:83:00.0", 0, "1");
    let sight = sysfs(&machine).behind((0, 0)).unwrap();
    let hardware = sight.hardware();
    assert_eq!(hardware.pci_address.as_deref(), Some("0000:83:00.0"));
    assert_eq!(hardware.numa_nodes, [1]);
    assert_eq!(sysfs(&machine).behind((1, 3)), Err(None));
}

/// Devices that exist nearly everywhere, on the machine that the test runs on.
#[test]
fn the_devices_of_this_machine() {
    let dev = HostDev::new(PathBuf::from("/dev"));
    let sysfs = Sysfs::new(
        PathBuf::from("/sys"),
        PathBuf::from("/run/udev"),
        dev.clone(),
    );
    let misc = |name: &str| {
        let attributes = json!({ "uevent": format!("*DEVNAME={name}*") });
        rule(json!({ "udev": { "subsystem": "misc", "attributes": attributes } }))
    };
    for name in ["fuse", "net/tun", "kvm"] {
        let path = format!("/dev/{name}");
        let Some(target) = dev.target(&path) else {
            continue;
        };
        let node_agent_core::discovery::Target::Device { major, minor, .. } = target else {
            panic!("{path} is {target:?}");
        };
        let sights = sysfs.look(&misc(name)).sights;
        assert_eq!(sights.len(), 1, "{name}: {sights:?}");
        assert_eq!(sights[0].nodes[0].path, path);
        assert_eq!(
            (sights[0].nodes[0].major, sights[0].nodes[0].minor),
            (major, minor)
        );
        let behind = sysfs.behind((major, minor)).unwrap();
        assert!(
            behind.sysfs.starts_with("/sys/devices/virtual/misc/"),
            "{behind:?}"
        );
    }
}
