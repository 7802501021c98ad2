//! Section F, and what else is done to devices: init, reset and release.

use std::fs;
use std::time::Duration;

use crds::AgentConfig;
use node_agent_core::role::InitialRole;
use proto::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, PreStartContainerRequest, PreStartContainerResponse,
};
use serde_json::{Value, json};
use tonic::Status;

use crate::fake_kubelet::{DEADLINE, Model};
use crate::fake_runner::{FakeRunner, Play};
use crate::rig::{Rig, Running, TTY, config, tty, until};

fn quick() -> Rig {
    let mut rig = Rig::new(Model::V1_37);
    let timing = &mut rig.settings.timing;
    timing.second = Duration::from_millis(100);
    timing.between_messages = Duration::ZERO;
    timing.between_looks = Duration::ZERO;
    timing.allocations_poll = Duration::from_millis(20);
    timing.given = Duration::from_millis(100);
    timing.hook_retry.first = Duration::from_millis(20);
    timing.hook_retry.limit = Duration::from_millis(50);
    timing.reset_grace = Duration::from_millis(50);
    rig
}

/// Serves all `tty*` with hooks.
fn hooked(hooks: Value) -> AgentConfig {
    AgentConfig {
        hooks: Some(serde_json::from_value(hooks).unwrap()),
        ..config(&[tty()])
    }
}

fn hook(name: &str) -> Value {
    json!({ name: { "type": "Exec", "command": [format!("/tools/{name}")] } })
}

async fn prepare(rig: &Rig, ids: &[&String]) -> Result<PreStartContainerResponse, Status> {
    let devices_ids = ids.iter().map(|id| (*id).clone()).collect();
    let mut plugin = rig.kubelet.plugin(TTY).await;
    let answer = plugin.pre_start_container(PreStartContainerRequest { devices_ids });
    answer.await.map(tonic::Response::into_inner)
}

async fn allocate(rig: &Rig, id: &str) {
    let request = AllocateRequest {
        container_requests: vec![ContainerAllocateRequest {
            devices_ids: vec![id.to_owned()],
        }],
    };
    let mut plugin = rig.kubelet.plugin(TTY).await;
    plugin.allocate(request).await.unwrap();
}

/// A node with devices and a reset.
struct Resetting {
    rig: Rig,
    runner: FakeRunner,
    agent: Running,
    ids: Vec<String>,
}

async fn resetting(devices: usize) -> Resetting {
    let rig = quick();
    let runner = rig.runner();
    for device in 0..devices {
        rig.plug(&format!("tty{device:02}"));
    }
    let agent = rig.start_with(hooked(hook("reset")));
    let expected = vec!["Healthy"; devices];
    let known = rig.kubelet.until_healths(TTY, &expected).await;
    let ids = known.resources[TTY].devices.keys().cloned().collect();
    Resetting {
        rig,
        runner,
        agent,
        ids,
    }
}

/// 59, 60 and 4: each device once for each start of a container, all at the same time.
#[tokio::test]
async fn every_start_of_a_container_resets_its_devices() {
    let Resetting {
        rig,
        runner,
        agent,
        ids,
    } = resetting(3).await;
    let known = rig.kubelet.known();
    assert!(known.calls[0].options.pre_start_required);
    assert_eq!(known.calls[0].request.options, Some(known.calls[0].options));
    assert_eq!(
        runner.now().begun,
        [""; 0],
        "nothing before it is asked for"
    );
    for start in 1..3 {
        prepare(&rig, &[&ids[0], &ids[2], &ids[0]]).await.unwrap();
        for (id, times) in [(&ids[0], start), (&ids[1], 0), (&ids[2], start)] {
            assert_eq!(runner.count(&format!("reset {id}")), times);
        }
    }
    let request = runner.now().last.unwrap();
    assert!(request.env["DEVICE_PATHS"].starts_with("/dev/tty0"));
    let passed = r#"hooks_total{resource="example.com/tty",hook="reset",result="passed"}"#;
    assert_eq!(agent.metric(passed), Some(4.0));
    runner.play("reset", Play::Hang);
    let all = [&ids[0], &ids[1], &ids[2]];
    let (answer, ()) = futures::join!(prepare(&rig, &all), async {
        runner
            .until("all run", |runs| runs.running.len() == 3)
            .await;
        runner.play("reset", Play::Pass);
    });
    answer.unwrap();
    agent.stop().await.unwrap();
}

/// 61: a reset that takes too long is killed, within the agent's own limit.
#[tokio::test]
async fn a_reset_that_hangs_fails_by_itself() {
    let rig = quick();
    let runner = rig.runner();
    rig.plug("tty0");
    let mut hooks = hook("reset");
    hooks["reset"]["timeoutSeconds"] = json!(1);
    let agent = rig.start_with(hooked(hooks));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let id = known.resources[TTY].devices.keys().next().unwrap();
    runner.play("reset", Play::Hang);
    rig.hold(&[id]);
    let answer = prepare(&rig, &[id]).await.unwrap_err();
    assert!(
        answer.message().contains(id) && answer.message().contains("killed after"),
        "{answer:?}"
    );
    assert!(runner.now().last.unwrap().timeout <= Duration::from_millis(100));
    rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    agent.stop().await.unwrap();
}

/// The whole call has a limit of its own, whatever a device waits for.
#[tokio::test]
async fn the_kubelet_is_answered_in_time() {
    let mut rig = quick();
    rig.settings.timing.prepare = Duration::from_millis(50);
    let runner = rig.runner();
    rig.plug("tty0");
    let agent = rig.start_with(hooked(hook("reset")));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let id = known.resources[TTY].devices.keys().next().unwrap();
    runner.play("reset", Play::Hang);
    let answer = prepare(&rig, &[id]).await.unwrap_err();
    assert!(answer.message().contains("has not ended"), "{answer:?}");
    agent.stop().await.unwrap();
    runner
        .until("killed with the agent", |runs| {
            runs.killed.len() + runs.begun.len() - runs.running.len() > 1 && runs.running.is_empty()
        })
        .await;
}

/// 62: whoever gives up stops nothing, and whoever tries again joins.
#[tokio::test]
async fn a_retry_joins_the_reset_that_runs() {
    let Resetting {
        rig,
        runner,
        agent,
        ids,
    } = resetting(1).await;
    runner.play("reset", Play::Hang);
    let one = [&ids[0]];
    let begun = runner.until("begun", |runs| runs.running.len() == 1);
    tokio::select! {
        answer = prepare(&rig, &one) => panic!("{answer:?}"),
        () = begun => {}
    }
    let retry = prepare(&rig, &one);
    let end = async {
        // The retry is on its way; should it come later, it begins a reset of its own.
        tokio::task::yield_now().await;
        runner.play("reset", Play::Pass);
    };
    let (answer, ()) = futures::join!(retry, end);
    answer.unwrap();
    let runs = runner.now();
    assert_eq!((runs.overlaps, runs.killed), (Vec::new(), Vec::new()));
    agent.stop().await.unwrap();
}

/// 63: the text names device and reason; the device recovers once it is free.
#[tokio::test]
async fn a_failed_reset_makes_the_device_unhealthy_until_one_succeeds() {
    let Resetting {
        rig,
        runner,
        agent,
        ids,
    } = resetting(2).await;
    runner.play(&format!("reset {}", ids[0]), Play::Fail("stuck in D3"));
    rig.hold(&[&ids[0], &ids[1]]);
    allocate(&rig, &ids[0]).await;
    let answer = prepare(&rig, &[&ids[0], &ids[1]]).await.unwrap_err();
    assert!(
        answer.message().contains(&ids[0]) && answer.message().contains("stuck in D3"),
        "{answer:?}"
    );
    assert!(!answer.message().contains(&ids[1]));
    rig.kubelet
        .until_healths(TTY, &["Unhealthy", "Healthy"])
        .await;
    let told = format!("reset {}", ids[0]);
    assert_eq!(runner.count(&told), 1, "not while it is held");
    rig.hold(&[]);
    runner
        .until("tried again", |runs| {
            runs.begun.iter().filter(|one| **one == told).count() > 2
        })
        .await;
    runner.play(&told, Play::Pass);
    rig.kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    agent.stop().await.unwrap();
}

/// 64: after a restart nothing is known of Allocate; ids that are not there are told.
#[tokio::test]
async fn a_reset_needs_no_memory_of_allocate() {
    let Resetting {
        rig,
        runner,
        agent,
        ids,
    } = resetting(1).await;
    rig.hold(&[&ids[0]]);
    agent.stop().await.unwrap();
    let agent = rig.start_with(hooked(hook("reset")));
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    prepare(&rig, &[&ids[0]]).await.unwrap();
    assert_eq!(runner.count(&format!("reset {}", ids[0])), 1);
    let unknown = "no-such-device".to_owned();
    let answer = prepare(&rig, &[&ids[0], &unknown]).await.unwrap_err();
    assert!(
        answer.message().contains("\"no-such-device\""),
        "{answer:?}"
    );
    prepare(&rig, &[]).await.unwrap();
    agent.stop().await.unwrap();
}

/// 65: the kubelet restarted and did not ask.
#[tokio::test]
async fn a_container_that_started_without_its_reset_is_told() {
    let Resetting {
        rig, agent, ids, ..
    } = resetting(3).await;
    let gauge = r#"started_without_reset{resource="example.com/tty"}"#;
    rig.hold(&[&ids[0], &ids[1]]);
    allocate(&rig, &ids[1]).await;
    prepare(&rig, &[&ids[1]]).await.unwrap();
    until("the unprepared one is found", || {
        agent.metric(gauge) == Some(1.0)
    })
    .await;
    agent.stop().await.unwrap();
    // What was prepared is remembered on the host.
    let agent = rig.start_with(hooked(hook("reset")));
    until("found again", || agent.metric(gauge) == Some(1.0)).await;
    prepare(&rig, &[&ids[0]]).await.unwrap();
    until("prepared", || agent.metric(gauge) == Some(0.0)).await;
    agent.stop().await.unwrap();
}

/// Each device is prepared before it is given out, once for each boot and content of the hook.
#[tokio::test]
async fn init_comes_before_the_first_list_that_offers_a_device() {
    let rig = quick();
    let runner = rig.runner();
    rig.plug("tty0");
    rig.plug("tty1");
    runner.play("init", Play::Hang);
    let agent = rig.start_with(hooked(hook("init")));
    let known = rig
        .kubelet
        .until_healths(TTY, &["Unhealthy", "Unhealthy"])
        .await;
    assert!(!known.calls[0].options.pre_start_required);
    runner
        .until("both run", |runs| runs.running.len() == 2)
        .await;
    let ids: Vec<String> = known.resources[TTY].devices.keys().cloned().collect();
    runner.play(&format!("init {}", ids[0]), Play::Fail("no firmware"));
    runner.play(&format!("init {}", ids[1]), Play::Pass);
    rig.kubelet
        .until_healths(TTY, &["Unhealthy", "Healthy"])
        .await;
    let first = format!("init {}", ids[0]);
    runner
        .until("tried again", |runs| {
            runs.begun.iter().filter(|one| **one == first).count() > 2
        })
        .await;
    runner.play(&first, Play::Pass);
    rig.kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    agent.stop().await.unwrap();
    let before = runner.now().begun.len();
    let agent = rig.start_with(hooked(hook("init")));
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    assert_eq!(known.resources[TTY].messages.len(), 1, "from the first on");
    assert_eq!(runner.now().begun.len(), before);
    agent.stop().await.unwrap();
    let mut other = hook("init");
    other["init"]["command"] = json!(["/tools/init", "-v2"]);
    rig.hold(&[&ids[0]]);
    let agent = rig.start_with(hooked(other));
    rig.kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    let begun = runner.now().begun.split_off(before);
    assert_eq!(
        begun,
        [format!("init {}", ids[1])],
        "never one that is held"
    );
    agent.stop().await.unwrap();
}

/// What a standby counts, and that it prepares nothing.
#[tokio::test]
async fn a_standby_runs_no_hook() {
    let rig = quick();
    let runner = rig.runner();
    rig.plug("tty0");
    let agent = rig.start_as(hooked(hook("init")), InitialRole::Standby);
    rig.pod_resources.until(|answers| answers.lists > 5).await;
    agent.until_ready().await;
    assert_eq!(runner.now().begun, [""; 0]);
    agent.stop().await.unwrap();
}

/// A device is cleaned once, after its container has ended, and offered to nobody before.
#[tokio::test]
async fn a_device_is_released_before_it_is_given_out_again() {
    let rig = quick();
    let runner = rig.runner();
    rig.plug("tty0");
    let agent = rig.start_with(hooked(hook("release")));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let id = known.resources[TTY].devices.keys().next().unwrap().clone();
    let told = format!("release {id}");
    assert_eq!(runner.now().begun, [""; 0], "nobody used it");
    rig.hold(&[&id]);
    until("remembered", || remembers(&rig, &id)).await;
    runner.play("release", Play::Fail("busy"));
    rig.hold(&[]);
    rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    runner
        .until("tried again", |runs| {
            runs.begun.iter().filter(|one| **one == told).count() > 2
        })
        .await;
    runner.play("release", Play::Pass);
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    until("forgotten", || !remembers(&rig, &id)).await;
    let before = runner.count(&told);
    let lists = rig.pod_resources.now().lists;
    rig.pod_resources
        .until(|answers| answers.lists > lists + 5)
        .await;
    assert_eq!(runner.count(&told), before);
    agent.stop().await.unwrap();
}

/// The container ended while no agent ran.
#[tokio::test]
async fn a_release_survives_the_restart_of_the_agent() {
    let rig = quick();
    let runner = rig.runner();
    rig.plug("tty0");
    let agent = rig.start_with(hooked(hook("release")));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let id = known.resources[TTY].devices.keys().next().unwrap().clone();
    rig.hold(&[&id]);
    until("remembered", || remembers(&rig, &id)).await;
    agent.stop().await.unwrap();
    rig.hold(&[]);
    // A kubelet that has just started and does not know its pods yet.
    let checkpoint = json!({ "Data": { "PodDeviceEntries": [{
        "PodUID": "p", "ContainerName": "c", "ResourceName": TTY, "DeviceIDs": { "-1": [&id] },
    }] }, "Checksum": 0 });
    let file = rig.settings.plugin_dir.join("kubelet_internal_checkpoint");
    fs::write(&file, checkpoint.to_string()).unwrap();
    let agent = rig.start_with(hooked(hook("release")));
    rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    let lists = rig.pod_resources.now().lists;
    rig.pod_resources
        .until(|answers| answers.lists > lists + 5)
        .await;
    assert_eq!(runner.now().begun, [""; 0], "a container may hold it");
    fs::write(&file, r#"{"Data":{"PodDeviceEntries":null},"Checksum":0}"#).unwrap();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    assert_eq!(runner.now().begun, [format!("release {id}")]);
    agent.stop().await.unwrap();
}

/// Whether the host remembers that a device was used.
fn remembers(rig: &Rig, id: &str) -> bool {
    let files = fs::read_dir(&rig.settings.state_dir).unwrap();
    let records = files.filter_map(|file| {
        let path = file.unwrap().path();
        let is_record = path.extension().is_some_and(|end| end == "hooks");
        is_record.then(|| fs::read(path).unwrap_or_default())
    });
    records
        .filter_map(|text| serde_json::from_slice::<Value>(&text).ok())
        .any(|record| {
            record["used"]
                .as_array()
                .is_some_and(|used| used.contains(&json!(id)))
        })
}

/// The agent that leaves kills what it ran before the next one takes the role.
#[tokio::test]
async fn hooks_end_with_the_role() {
    let rig = quick();
    let runner = rig.runner();
    rig.plug("tty0");
    runner.play("init", Play::Hang);
    let agent = rig.start_with(hooked(hook("init")));
    runner.until("begun", |runs| runs.running.len() == 1).await;
    agent.stop().await.unwrap();
    runner.until("killed", |runs| runs.killed.len() == 1).await;
    let agent = rig.start_with(hooked(hook("init")));
    runner
        .until("begun anew", |runs| runs.running.len() == 1)
        .await;
    assert_eq!(runner.now().overlaps, [""; 0]);
    runner.play("init", Play::Pass);
    let served = rig.kubelet.until_healths(TTY, &["Healthy"]);
    tokio::time::timeout(DEADLINE, served).await.unwrap();
    agent.stop().await.unwrap();
}
