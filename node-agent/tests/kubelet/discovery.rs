//! Devices that are found by what the kernel says of them, and devices that several want.

use std::fs;
use std::time::Duration;

use crds::AgentConfig;
use node_agent_core::identity::path_device_id;
use proto::v1beta1::{AllocateRequest, AllocateResponse, ContainerAllocateRequest};
use serde_json::json;
use tonic::Status;

use crate::fake_kubelet::{Knowledge, Model};
use crate::machine::Machine;
use crate::rig::{Rig, config, paths};

const GPU: &str = "example.com/gpu";

/// A rig whose `/sys` and `/dev` are a machine's.
fn rig() -> (Rig, Machine) {
    let mut rig = Rig::new(Model::V1_37);
    let machine = Machine::new(&rig.home.path().join("machine"));
    rig.settings.host_dev_dir = machine.dev.clone();
    rig.settings.sysfs_dir = machine.sys.clone();
    rig.settings.udev_dir = machine.udev.clone();
    rig.settings.timing.between_messages = Duration::ZERO;
    (rig, machine)
}

async fn allocate(rig: &Rig, resource: &str, id: &str) -> Result<AllocateResponse, Status> {
    let request = AllocateRequest {
        container_requests: vec![ContainerAllocateRequest {
            devices_ids: vec![id.to_owned()],
        }],
    };
    let mut plugin = rig.kubelet.plugin(resource).await;
    Ok(plugin.allocate(request).await?.into_inner())
}

async fn until_served(rig: &Rig, resource: &str) {
    let served = rig
        .kubelet
        .until("served", |known| known.is_served(resource));
    served.await;
}

/// 40, and the nodes of a function that come and go.
#[tokio::test]
async fn a_pci_function_is_one_device_with_all_its_nodes() {
    let (rig, machine) = rig();
    machine.gpu("pci0000:80", "0000:83:00.0", 0, "1");
    let gpu = json!({
        "name": GPU,
        "discovery": { "pci": [{ "vendor": "8086", "class": "03" }] },
        "healthCheck": { "periodSeconds": 3600 },
    });
    let agent = rig.start_with(config(&[gpu]));
    let known = rig.kubelet.until_healths(GPU, &["Healthy"]).await;
    let id = known.resources[GPU].devices.keys().next().unwrap().clone();
    assert!(id.starts_with("pci-0000-83-00.0-"), "{id}");
    let answer = allocate(&rig, GPU, &id).await.unwrap();
    let nodes: Vec<&str> = answer.container_responses[0]
        .devices
        .iter()
        .map(|device| device.host_path.as_str())
        .collect();
    assert_eq!(nodes, ["/dev/dri/card0", "/dev/dri/renderD128"]);
    fs::remove_file(machine.dev.join("dri/card0")).unwrap();
    rig.kubelet.until_healths(GPU, &["Unhealthy"]).await;
    machine.plug("dri/card0");
    rig.kubelet.until_healths(GPU, &["Healthy"]).await;
    agent.stop().await.unwrap();
}

/// Neither inotify nor a rescan tells of it: only the kernel's event does. To make one needs root.
#[tokio::test]
async fn the_kernels_event_is_enough() {
    let (mut rig, machine) = rig();
    rig.settings.file_events = false;
    rig.settings.host_dev_dir = "/dev".into();
    let memory = "example.com/memory";
    let null = json!({
        "name": memory,
        "discovery": { "udev": { "subsystem": "mem" } },
        "healthCheck": { "periodSeconds": 3600 },
    });
    let agent = rig.start_with(config(&[null]));
    until_served(&rig, memory).await;
    let directory = machine.device("mem", "virtual/mem/null", &[("dev", "1:3")]);
    fs::write(directory.join("uevent"), "MAJOR=1\nMINOR=3\nDEVNAME=null\n").unwrap();
    match fs::write("/sys/class/mem/null/uevent", "change") {
        Ok(()) => _ = rig.kubelet.until_healths(memory, &["Healthy"]).await,
        Err(error) => assert!(!rustix::process::geteuid().is_root(), "{error}"),
    }
    agent.stop().await.unwrap();
}

/// The first resource has it, and while a container holds it through the other one, that one.
#[tokio::test]
async fn two_resources_never_give_out_one_device() {
    let (mut rig, _machine) = rig();
    rig.settings.host_dev_dir = "/dev".into();
    rig.settings.timing.allocations_poll = Duration::from_millis(10);
    let (a, b) = ("example.com/a", "example.com/b");
    let agent = rig.start_with(config(&[
        paths(a, &["/dev/null"]),
        paths(b, &["/dev/nul*"]),
    ]));
    rig.kubelet.until_healths(a, &["Healthy"]).await;
    until_served(&rig, b).await;
    assert!(rig.kubelet.known().healths(b).is_empty());
    let [id_a, id_b] = [a, b].map(|resource| path_device_id(resource, "/dev/null"));
    let hold = |ids: Vec<String>| {
        rig.pod_resources.answer(|answers| {
            answers.held.insert(b.to_owned(), ids);
        });
    };
    hold(vec![id_b.clone()]);
    rig.kubelet.until_healths(a, &["Unhealthy"]).await;
    rig.kubelet.until_healths(b, &["Healthy"]).await;
    let refused = allocate(&rig, a, &id_a).await.unwrap_err();
    // The reason may be that of a look ago.
    assert!(
        refused.message().contains("resource \"example.com/b\""),
        "{refused}"
    );
    hold(Vec::new());
    rig.kubelet.until_healths(a, &["Healthy"]).await;
    rig.kubelet.until_healths(b, &["Unhealthy"]).await;
    agent.stop().await.unwrap();
}

/// A container that shares a device holds it like any other.
#[tokio::test]
async fn two_resources_never_share_one_device() {
    let (mut rig, _machine) = rig();
    rig.settings.host_dev_dir = "/dev".into();
    rig.settings.timing.allocations_poll = Duration::from_millis(10);
    let (a, b) = ("example.com/a", "example.com/b");
    let shared = |name: &str, glob: &str| {
        let mut resource = paths(name, &[glob]);
        resource["replicas"] = json!(2);
        resource
    };
    let agent = rig.start_with(config(&[shared(a, "/dev/null"), shared(b, "/dev/nul*")]));
    rig.kubelet.until_healths(a, &["Healthy"; 2]).await;
    until_served(&rig, b).await;
    let id_b = format!("{}.1", path_device_id(b, "/dev/null"));
    rig.pod_resources.answer(|answers| {
        answers.held.insert(b.to_owned(), vec![id_b.clone()]);
    });
    rig.kubelet.until_healths(a, &["Unhealthy"; 2]).await;
    rig.kubelet.until_healths(b, &["Healthy"; 2]).await;
    allocate(&rig, b, &id_b).await.unwrap();
    agent.stop().await.unwrap();
}

/// The config that came first has it, and keeps it over a restart of its agent.
#[tokio::test]
async fn two_configs_never_give_out_one_device() {
    let (mut rig, _machine) = rig();
    rig.settings.host_dev_dir = "/dev".into();
    let (a, b) = ("example.com/a", "example.com/b");
    let first = rig.start_with(config(&[paths(a, &["/dev/zero"])]));
    rig.kubelet.until_healths(a, &["Healthy"]).await;
    let other = AgentConfig {
        config: "other".to_owned(),
        ..config(&[paths(b, &["/dev/zero", "/dev/full"])])
    };
    let other = rig.start_with(other);
    let known = rig.kubelet.until_healths(b, &["Healthy"]).await;
    let id = path_device_id(b, "/dev/full");
    assert!(known.resources[b].devices.contains_key(&id));
    first.stop().await.unwrap();
    let again = rig.start_with(config(&[paths(a, &["/dev/zero"])]));
    rig.kubelet.until_healths(a, &["Healthy"]).await;
    assert_eq!(rig.kubelet.known().healths(b), ["Healthy"]);
    again.stop().await.unwrap();
    other.stop().await.unwrap();
}

/// 33: an adapter that is plugged in again is the same device under another path.
#[tokio::test]
async fn a_usb_adapter_is_the_same_after_a_replug() {
    let (rig, machine) = rig();
    machine.usb_controller();
    machine.serial_adapter("1", "A10K", 1);
    let adapter = machine.serial_adapter("2", "", 2);
    let usb = "example.com/usb";
    let resource = json!({
        "name": usb,
        "discovery": { "usb": [{ "vendor": "0403" }] },
        "healthCheck": { "periodSeconds": 1 },
    });
    let agent = rig.start_with(config(&[resource]));
    let both = ["Healthy", "Healthy"];
    let before = rig.kubelet.until_healths(usb, &both).await;
    machine.unplug(&adapter, &["ttyUSB2", "bus/usb/001/002"]);
    let one = ["Healthy", "Unhealthy"];
    rig.kubelet.until_healths(usb, &one).await;
    machine.forget(&["bus/usb/devices/1-2", "bus/usb/devices/1-2:1.0"]);
    machine.serial_adapter("2", "", 7);
    let after = rig.kubelet.until_healths(usb, &both).await;
    let ids = |known: &Knowledge| {
        known.resources[usb]
            .devices
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&after), ids(&before));
    let answer = allocate(&rig, usb, &ids(&after)[1]).await.unwrap();
    let node = &answer.container_responses[0].devices[0];
    assert_eq!(node.host_path, "/dev/ttyUSB7");
    agent.stop().await.unwrap();
}
