//! Section D: what a container gets.

use proto::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
    PreStartContainerRequest, PreferredAllocationRequest,
};
use serde_json::{Value, json};
use tonic::Status;

use crate::fake_kubelet::Model;
use crate::rig::{Rig, Running, TTY, config, paths, simulated, until};

struct Served {
    rig: Rig,
    agent: Running,
    ids: Vec<String>,
}

/// A node with three devices.
async fn served(container: Value) -> Served {
    let rig = Rig::new(Model::V1_37);
    for device in ["tty0", "tty1", "tty2"] {
        rig.plug(device);
    }
    let resource = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/tty*"] } },
        "container": container,
    });
    let agent = rig.start_with(config(&[resource, simulated("example.com/sim", 1)]));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"; 3]).await;
    let ids = known.resources[TTY].devices.keys().cloned().collect();
    Served { rig, agent, ids }
}

impl Served {
    async fn ask(&self, requests: &[&[&String]]) -> Result<AllocateResponse, Status> {
        let request = |ids: &&[&String]| ContainerAllocateRequest {
            devices_ids: ids.iter().map(|id| (*id).clone()).collect(),
        };
        let request = AllocateRequest {
            container_requests: requests.iter().map(request).collect(),
        };
        let mut plugin = self.rig.kubelet.plugin(TTY).await;
        plugin
            .allocate(request)
            .await
            .map(tonic::Response::into_inner)
    }

    async fn ask_one(&self, ids: &[&String]) -> ContainerAllocateResponse {
        self.ask(&[ids])
            .await
            .unwrap()
            .container_responses
            .remove(0)
    }

    fn counted(&self, result: &str) -> Option<f64> {
        let labels = format!(r#"{{resource="example.com/tty",result="{result}"}}"#);
        self.agent.metric(&format!("allocations_total{labels}"))
    }
}

/// 42, 43, 47, 48, 51.
#[tokio::test]
async fn a_container_gets_exactly_its_devices() {
    let access = json!({
        "permissions": "r",
        "path": "/dev/card",
        "env": [{ "name": "CARDS", "value": "$(DEVICE_IDS) at $(DEVICE_PATHS)" }],
    });
    let served = served(access).await;
    let (a, b, c) = (&served.ids[0], &served.ids[1], &served.ids[2]);
    let answer = served.ask_one(&[c, a]).await;
    let devices: Vec<(&str, &str, &str)> = answer
        .devices
        .iter()
        .map(|d| {
            (
                d.host_path.as_str(),
                d.container_path.as_str(),
                d.permissions.as_str(),
            )
        })
        .collect();
    assert_eq!(
        devices,
        [
            ("/dev/tty0", "/dev/card", "r"),
            ("/dev/tty2", "/dev/card1", "r")
        ]
    );
    assert_eq!(
        answer.envs["CARDS"],
        format!("{a},{c} at /dev/card,/dev/card1")
    );
    assert!(answer.mounts.is_empty() && answer.annotations.is_empty());
    assert_eq!(
        served.ask_one(&[a, c]).await,
        answer,
        "in any order, any number of times"
    );
    let three = served
        .ask(&[&[b], &[a, c], &[]])
        .await
        .unwrap()
        .container_responses;
    assert_eq!(three.len(), 3);
    assert_eq!(
        (three[0].devices[0].host_path.as_str(), &three[1]),
        ("/dev/tty1", &answer)
    );
    assert!(three[2].devices.is_empty());
    assert_eq!(served.counted("given"), Some(3.0));
    served.agent.stop().await.unwrap();
}

/// 44.
#[tokio::test]
async fn nothing_asked_is_nothing_given() {
    let served = served(json!({})).await;
    assert!(
        served
            .ask(&[])
            .await
            .unwrap()
            .container_responses
            .is_empty()
    );
    assert_eq!(
        served.ask_one(&[]).await,
        ContainerAllocateResponse::default()
    );
    served.agent.stop().await.unwrap();
}

/// 45.
#[tokio::test]
async fn an_unknown_device_is_an_error() {
    let served = served(json!({})).await;
    let error = served
        .ask(&[&[&served.ids[0], &"nobody".to_owned()]])
        .await
        .unwrap_err();
    assert!(
        error
            .message()
            .contains(r#"device "nobody" of resource "example.com/tty""#),
        "{error:?}"
    );
    assert_eq!(served.counted("refused"), Some(1.0));
    served.agent.stop().await.unwrap();
}

/// 46 and 37: unhealthy by now, or gone this very moment.
#[tokio::test]
async fn a_device_that_is_gone_is_an_error_and_a_message() {
    let served = served(json!({})).await;
    let (a, b) = (&served.ids[0], &served.ids[1]);
    served.rig.unplug("tty0");
    // Whether the kernel's event or this request comes first.
    let error = served.ask(&[&[b, a]]).await.unwrap_err();
    assert!(error.message().contains("is gone"), "{error:?}");
    served
        .rig
        .kubelet
        .until_healths(TTY, &["Unhealthy", "Healthy", "Healthy"])
        .await;
    let error = served.ask(&[&[a]]).await.unwrap_err();
    assert!(
        error
            .message()
            .contains("is unhealthy: device node is gone"),
        "{error:?}"
    );
    assert_eq!(served.ask_one(&[b]).await.devices.len(), 1);
    served.agent.stop().await.unwrap();
}

/// 46 without the kernel's help: the refused call itself leads to the message.
#[tokio::test]
async fn a_refused_call_makes_the_agent_look() {
    let mut rig = Rig::new(Model::V1_37);
    // Nothing else does: no event, no poll, and no word about who holds what.
    rig.settings.file_events = false;
    std::fs::remove_file(rig.settings.pod_resources_dir.join("kubelet.sock")).unwrap();
    let state = r#"{"configUid":"uid-1","revision":"0123456789","resources":["example.com/tty"]}"#;
    std::fs::write(rig.settings.state_dir.join("test"), state).unwrap();
    rig.plug("tty0");
    let slow = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/tty*"] } },
        "healthCheck": { "periodSeconds": 3600 },
    });
    let agent = rig.start_with(config(&[slow]));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let ids = known.resources[TTY].devices.keys().cloned().collect();
    let served = Served { rig, agent, ids };
    served.rig.unplug("tty0");
    served.ask(&[&[&served.ids[0]]]).await.unwrap_err();
    served.rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    served.agent.stop().await.unwrap();
}

/// Pod resources are read soon after, so that the report tells who holds what.
#[tokio::test]
async fn an_allocation_is_seen_soon() {
    let served = served(json!({})).await;
    served
        .rig
        .pod_resources
        .until(|answers| answers.lists >= 1)
        .await;
    let lists = served.rig.pod_resources.now().lists;
    served.ask_one(&[&served.ids[0]]).await;
    served
        .rig
        .pod_resources
        .until(|answers| answers.lists > lists)
        .await;
    served.agent.stop().await.unwrap();
}

/// 55: not offered, and yet asked. An error would cost the pod.
#[tokio::test]
async fn what_is_not_offered_is_answered_without_harm() {
    let served = served(json!({})).await;
    let mut plugin = served.rig.kubelet.plugin(TTY).await;
    let request = PreferredAllocationRequest {
        container_requests: vec![Default::default()],
    };
    let answer = plugin
        .get_preferred_allocation(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.container_responses, [Default::default()]);
    let request = PreStartContainerRequest {
        devices_ids: served.ids.clone(),
    };
    plugin.pre_start_container(request).await.unwrap();
    served.agent.stop().await.unwrap();
}

/// 42, 53: what else a container gets.
#[tokio::test]
async fn mounts_and_annotations_are_given() {
    let access = json!({
        "mounts": [
            { "hostPath": "/run/cards", "containerPath": "/run/x" },
            { "hostPath": "/run/log", "containerPath": "/run/y", "readOnly": false },
        ],
        "annotations": { "example.com/mode": "fast" },
    });
    let served = served(access).await;
    let answer = served.ask_one(&[&served.ids[0]]).await;
    let mounts: Vec<(&str, &str, bool)> = answer
        .mounts
        .iter()
        .map(|one| {
            (
                one.host_path.as_str(),
                one.container_path.as_str(),
                one.read_only,
            )
        })
        .collect();
    assert_eq!(
        mounts,
        [
            ("/run/cards", "/run/x", true),
            ("/run/log", "/run/y", false)
        ]
    );
    assert_eq!(answer.annotations["example.com/mode"], "fast");
    assert_eq!(
        served.ask_one(&[]).await,
        ContainerAllocateResponse::default()
    );
    served.agent.stop().await.unwrap();
}

/// 52: the kubelet gives the answer to every restart of the container, and the runtime follows the
/// link each time.
#[tokio::test]
async fn a_link_that_the_config_names_is_what_the_kubelet_keeps() {
    let rig = Rig::new(Model::V1_37);
    rig.plug("raw/tty0");
    rig.link("by-id/card", "../raw/tty0");
    let agent = rig.start_with(config(&[paths(TTY, &["/dev/by-id/*", "/dev/raw/*"])]));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let ids = known.resources[TTY].devices.keys().cloned().collect();
    let served = Served { rig, agent, ids };
    let answer = served.ask_one(&[&served.ids[0]]).await;
    assert_eq!(answer.devices[0].host_path, "/dev/by-id/card");
    served.agent.stop().await.unwrap();
}

/// 54, and 52: the name stays, what it stands for follows the device.
#[tokio::test]
async fn with_cdi_a_device_has_a_name_for_as_long_as_it_is_there() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.between_messages = std::time::Duration::ZERO;
    rig.plug("raw/tty0");
    rig.plug("raw/tty1");
    rig.link("by-id/card", "../raw/tty0");
    let by_id = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/by-id/*"] } },
        "container": { "cdi": "Enabled", "env": [{ "name": "X", "value": "$(DEVICE_PATHS)" }] },
    });
    let agent = rig.start_with(config(std::slice::from_ref(&by_id)));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let ids: Vec<String> = known.resources[TTY].devices.keys().cloned().collect();
    let specified = || {
        let files = crate::rig::names(&rig.settings.cdi_dir);
        assert_eq!(files.len(), 1, "{files:?}");
        let text = std::fs::read(rig.settings.cdi_dir.join(&files[0])).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()
    };
    // Before the kubelet hears of the device, and so before it can be given out.
    let specification = specified();
    let device = &specification["devices"][0];
    assert_eq!(
        device["containerEdits"]["deviceNodes"],
        json!([{ "path": "/dev/by-id/card", "hostPath": "/dev/raw/tty0", "permissions": "rw" }])
    );
    let served = Served { rig, agent, ids };
    let answer = served.ask_one(&[&served.ids[0]]).await;
    let kind = specification["kind"].as_str().unwrap();
    let name = format!("{kind}={}", device["name"].as_str().unwrap());
    let names: Vec<&str> = answer
        .cdi_devices
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!((names, kind), (vec![name.as_str()], TTY));
    assert!(answer.devices.is_empty(), "the runtime gets them by name");
    assert_eq!(answer.envs["X"], "/dev/by-id/card");

    // Plugged in somewhere else, at once.
    let Served { rig, agent, ids } = served;
    std::fs::remove_file(rig.settings.host_dev_dir.join("by-id/card")).unwrap();
    rig.link("by-id/card", "../raw/tty1");
    let specified = || {
        let files = crate::rig::names(&rig.settings.cdi_dir);
        let text = std::fs::read(rig.settings.cdi_dir.join(&files[0])).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()
    };
    let node = |specification: &Value| {
        specification["devices"][0]["containerEdits"]["deviceNodes"][0]["hostPath"].clone()
    };
    until("followed", || node(&specified()) == "/dev/raw/tty1").await;
    let before = specified();
    agent.stop().await.unwrap();
    assert_eq!(
        specified(),
        before,
        "containers may start while no agent runs"
    );
    // The next agent does not see the device, which a container still holds.
    rig.unplug("raw/tty1");
    rig.pod_resources.answer(|answers| {
        answers.held.insert(TTY.to_owned(), ids.clone());
    });
    let agent = rig.start_with(config(&[by_id]));
    rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    assert_eq!(specified(), before);
    agent.stop().await.unwrap();
}

/// Nothing is given out that the runtime would not find.
#[tokio::test]
async fn a_specification_that_cannot_be_written_gives_out_nothing() {
    let rig = Rig::new(Model::V1_37);
    std::fs::remove_dir(&rig.settings.cdi_dir).unwrap();
    std::fs::write(&rig.settings.cdi_dir, "a file").unwrap();
    rig.plug("tty0");
    let resource = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/tty*"] } },
        "container": { "cdi": "Enabled" },
    });
    let agent = rig.start_with(config(&[resource]));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let ids = known.resources[TTY].devices.keys().cloned().collect();
    let served = Served { rig, agent, ids };
    let error = served.ask(&[&[&served.ids[0]]]).await.unwrap_err();
    assert!(
        error
            .message()
            .contains("failed to write the CDI specification"),
        "{error:?}"
    );
    std::fs::remove_file(&served.rig.settings.cdi_dir).unwrap();
    let answer = served.ask_one(&[&served.ids[0]]).await;
    assert_eq!(answer.cdi_devices.len(), 1);
    served.agent.stop().await.unwrap();
}

/// 50.
#[tokio::test]
async fn many_calls_at_once_while_devices_change() {
    let served = served(json!({})).await;
    let id = &served.ids[1];
    let calls = (0..64).map(|_| served.ask_one(std::slice::from_ref(&id)));
    let changes = async {
        for _ in 0..5 {
            served.rig.unplug("tty0");
            served.rig.plug("tty0");
            tokio::task::yield_now().await;
        }
    };
    let (answers, ()) = futures::join!(futures::future::join_all(calls), changes);
    assert!(answers.iter().all(|answer| answer.devices.len() == 1));
    until("counted", || served.counted("given") == Some(64.0)).await;
    served.agent.stop().await.unwrap();
}

/// What a link leads to is looked at when a container gets it: discovery may have been before the
/// link was swapped.
#[tokio::test]
async fn a_link_that_was_swapped_is_not_given_out() {
    let rig = Rig::new(Model::V1_37);
    rig.plug("raw/tty0");
    rig.link("tty0", "raw/tty0");
    let resource = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/tty*"] } },
        "healthCheck": { "periodSeconds": 3600 },
    });
    let agent = rig.start_with(config(&[resource]));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let ids: Vec<String> = known.resources[TTY].devices.keys().cloned().collect();
    let served = Served { rig, agent, ids };
    let id = &served.ids[0];
    served.ask(&[&[id]]).await.unwrap();

    let dev = &served.rig.settings.host_dev_dir;
    let mut others = vec!["/etc/passwd"];
    // Only root makes a node of the memory's numbers.
    if rustix::process::geteuid().is_root() {
        let memory = rustix::fs::makedev(1, 1);
        let kind = rustix::fs::FileType::CharacterDevice;
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, dev.join("raw/mem"), kind, mode, memory).unwrap();
        others.push("raw/mem");
    }
    for other in others {
        // As a process of the node would: at no moment is there no link.
        std::os::unix::fs::symlink(other, dev.join("swapped")).unwrap();
        std::fs::rename(dev.join("swapped"), dev.join("tty0")).unwrap();
        let refused = served.ask(&[&[id]]).await.unwrap_err();
        assert!(refused.message().contains(TTY), "{other}: {refused}");
    }
}
