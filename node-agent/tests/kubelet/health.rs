//! Sections C and 2 of the design's health: probes, flapping, readers that are slow.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use proto::v1beta1::Empty;
use serde_json::{Value, json};

use crate::fake_kubelet::{DEADLINE, Model};
use crate::fake_runner::Play;
use crate::rig::{Rig, TTY, config, until};

/// A node on which a second of the config is short.
fn quick() -> Rig {
    let mut rig = Rig::new(Model::V1_37);
    let timing = &mut rig.settings.timing;
    timing.second = Duration::from_millis(20);
    timing.between_messages = Duration::ZERO;
    timing.between_looks = Duration::ZERO;
    timing.allocations_poll = Duration::from_millis(20);
    rig
}

fn checked(check: Value) -> Value {
    json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/tty*"] } },
        "healthCheck": check,
    })
}

fn exec() -> Value {
    checked(json!({ "type": "Exec", "command": ["/tools/probe"], "periodSeconds": 1 }))
}

/// 30: a program's word turns a device Unhealthy and back; the other device goes on.
#[tokio::test]
async fn a_program_judges_and_a_device_recovers() {
    let rig = quick();
    let runner = rig.runner();
    rig.plug("tty0");
    rig.plug("tty1");
    let agent = rig.start_with(config(&[exec()]));
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    let id = known.resources[TTY].devices.keys().next().unwrap().clone();
    let told = format!("probe {id}");
    runner.play(&told, Play::Fail("exit code 3: no carrier"));
    rig.kubelet
        .until_healths(TTY, &["Unhealthy", "Healthy"])
        .await;
    assert!(runner.count(&told) >= 2, "the threshold");
    runner.play(&told, Play::Pass);
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    assert_eq!(known.calls.len(), 1);
    let request = runner.now().last.unwrap();
    assert_eq!(request.env["RESOURCE"], TTY);
    assert_eq!(runner.now().overlaps, [""; 0]);
    let failed = r#"probes_total{resource="example.com/tty",result="failed"}"#;
    assert!(agent.metric(failed) >= Some(2.0));
    agent.stop().await.unwrap();
}

/// Probes that hang fail, and hold back no other.
#[tokio::test]
async fn probes_that_hang_harm_no_other_device() {
    let rig = quick();
    let runner = rig.runner();
    for device in 0..12 {
        rig.plug(&format!("tty{device:02}"));
    }
    let agent = rig.start_with(config(&[exec()]));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"; 12]).await;
    let ids: Vec<String> = known.resources[TTY].devices.keys().cloned().collect();
    for id in &ids[..10] {
        runner.play(&format!("probe {id}"), Play::Hang);
    }
    let expected = [&["Unhealthy"; 10][..], &["Healthy"; 2]].concat();
    rig.kubelet.until_healths(TTY, &expected).await;
    let last = format!("probe {}", ids[11]);
    let before = runner.count(&last);
    runner
        .until("the others are probed", |runs| {
            runs.begun.iter().filter(|one| **one == last).count() > before + 3
        })
        .await;
    let runs = runner.now();
    assert_eq!((runs.overlaps, runs.most <= 8), (Vec::new(), true));
    agent.stop().await.unwrap();
}

/// A runner that is away says nothing of devices.
#[tokio::test]
async fn without_a_runner_health_stays() {
    let rig = quick();
    rig.plug("tty0");
    let agent = rig.start_with(config(&[exec()]));
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let not_run = r#"probes_total{resource="example.com/tty",result="not_run"}"#;
    until("tried", || agent.metric(not_run) >= Some(3.0)).await;
    assert_eq!(rig.kubelet.known().healths(TTY), ["Healthy"]);
    let runner = rig.runner();
    runner.until("probed", |runs| !runs.begun.is_empty()).await;
    agent.stop().await.unwrap();
}

/// A device that a container holds, or was given a moment ago, is not opened.
#[tokio::test]
async fn what_containers_hold_is_not_opened() {
    let rig = quick();
    let runner = rig.runner();
    rig.plug("tty0");
    rig.plug("tty1");
    let open = checked(json!({ "type": "Open", "periodSeconds": 1 }));
    let agent = rig.start_with(config(&[open]));
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    let ids: Vec<String> = known.resources[TTY].devices.keys().cloned().collect();
    let opened = |index: usize| format!("open {}", ids[index]);
    runner
        .until("both are opened", |runs| {
            runs.begun.contains(&opened(0)) && runs.begun.contains(&opened(1))
        })
        .await;
    // Given, and its pod is not told of yet.
    let mut plugin = rig.kubelet.plugin(TTY).await;
    let request = proto::v1beta1::AllocateRequest {
        container_requests: vec![proto::v1beta1::ContainerAllocateRequest {
            devices_ids: vec![ids[0].clone()],
        }],
    };
    plugin.allocate(request).await.unwrap();
    rig.hold(&[&ids[1]]);
    let lists = rig.pod_resources.now().lists;
    rig.pod_resources
        .until(|answers| answers.lists > lists + 1)
        .await;
    // What ran when it was given has ended by now, and no other begins.
    until("no more is opened", || runner.now().running.is_empty()).await;
    let before = runner.now().begun.len();
    let lists = rig.pod_resources.now().lists;
    rig.pod_resources
        .until(|answers| answers.lists > lists + 5)
        .await;
    assert_eq!(runner.now().begun.len(), before);
    rig.hold(&[]);
    let again = |runs: &crate::fake_runner::Runs| runs.begun[before..].contains(&opened(1));
    runner.until("the free one is opened", again).await;
    assert!(!runner.now().begun[before..].contains(&opened(0)));
    agent.stop().await.unwrap();
}

/// An attribute in sysfs, read by the agent itself.
#[tokio::test]
async fn an_attribute_judges() {
    let rig = quick();
    rig.plug("tty0");
    let sys = &rig.settings.sysfs_dir;
    fs::create_dir_all(sys.join("devices/card/tty")).unwrap();
    fs::create_dir_all(sys.join("dev/char")).unwrap();
    symlink("../../devices/card/tty", sys.join("dev/char/0:0")).unwrap();
    let state = sys.join("devices/card/state");
    fs::write(&state, "live\n").unwrap();
    let equals = checked(json!({
        "type": "SysfsEquals", "attribute": "../state", "values": ["live"], "periodSeconds": 1,
    }));
    let agent = rig.start_with(config(&[equals]));
    let passed = r#"probes_total{resource="example.com/tty",result="passed"}"#;
    until("read", || agent.metric(passed) >= Some(2.0)).await;
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    fs::write(&state, "dead\n").unwrap();
    rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    fs::write(&state, "live\n").unwrap();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    agent.stop().await.unwrap();
}

/// 32: a device that comes and goes a thousand times a second.
#[tokio::test]
async fn flapping_costs_few_messages_and_ends_in_the_truth() {
    let gap = Duration::from_millis(50);
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.between_messages = gap;
    rig.settings.timing.between_looks = Duration::from_millis(1);
    rig.plug("tty0");
    rig.plug("tty1");
    let agent = rig.start();
    rig.kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    let start = Instant::now();
    let mut turn = tokio::time::interval(Duration::from_millis(1));
    for _ in 0..1_000 {
        rig.unplug("tty0");
        turn.tick().await;
        rig.plug("tty0");
        turn.tick().await;
    }
    rig.unplug("tty1");
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Unhealthy"])
        .await;
    let messages = &known.resources[TTY].messages;
    let most = start.elapsed().as_millis() / gap.as_millis() + 2;
    assert!(
        (messages.len() as u128) <= most && messages.len() > 2,
        "{} of {most}",
        messages.len()
    );
    agent.stop().await.unwrap();
}

/// 36 and 37: a device that a container holds, or is being given, stays listed.
#[tokio::test]
async fn an_allocated_device_that_vanishes_stays_listed() {
    let rig = quick();
    rig.plug("tty0");
    rig.plug("tty1");
    let agent = rig.start();
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    let ids: Vec<String> = known.resources[TTY].devices.keys().cloned().collect();
    rig.hold(&[&ids[0]]);
    let mut plugin = rig.kubelet.plugin(TTY).await;
    let request = proto::v1beta1::AllocateRequest {
        container_requests: vec![proto::v1beta1::ContainerAllocateRequest {
            devices_ids: vec![ids[1].clone()],
        }],
    };
    rig.unplug("tty0");
    rig.unplug("tty1");
    // Given or refused, but answered.
    let answer = tokio::time::timeout(DEADLINE, plugin.allocate(request)).await;
    if let Err(refused) = answer.unwrap() {
        assert!(refused.message().contains(&ids[1]) || refused.message().contains("tty1"));
    }
    rig.kubelet
        .until_healths(TTY, &["Unhealthy", "Unhealthy"])
        .await;
    let lists = rig.pod_resources.now().lists;
    rig.pod_resources
        .until(|answers| answers.lists > lists + 5)
        .await;
    assert_eq!(rig.kubelet.known().healths(TTY), ["Unhealthy", "Unhealthy"]);
    agent.stop().await.unwrap();
}

/// 31: probes and readings that change nothing are told to nobody.
#[tokio::test]
async fn what_changes_nothing_is_no_message() {
    let rig = quick();
    let runner = rig.runner();
    rig.plug("tty0");
    let agent = rig.start_with(config(&[exec()]));
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    runner
        .until("probed often", |runs| runs.begun.len() > 10)
        .await;
    let messages = rig.kubelet.known().resources[TTY].messages.len();
    assert_eq!(messages, 1);
    agent.stop().await.unwrap();
}

/// 39: whoever does not read costs no memory, and reads the truth later.
#[tokio::test]
async fn a_reader_that_stops_reads_the_latest_list_later() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.between_messages = Duration::ZERO;
    rig.settings.timing.between_looks = Duration::ZERO;
    for device in 0..2_000 {
        rig.plug(&format!("tty-{device:04}"));
    }
    let agent = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"; 2_000]).await;
    let mut plugin = rig.kubelet.plugin(TTY).await;
    let mut idle = plugin.list_and_watch(Empty {}).await.unwrap().into_inner();
    let messages = || rig.kubelet.known().resources[TTY].messages.len();
    for _ in 0..50 {
        let before = messages();
        rig.unplug("tty-0000");
        until("told", || messages() > before).await;
        let before = messages();
        rig.plug("tty-0000");
        until("told", || messages() > before).await;
    }
    rig.unplug("tty-0001");
    let last = async {
        let mut read = 0;
        while let Ok(Some(message)) = idle.message().await {
            read += 1;
            let unhealthy = message.devices.iter().filter(|d| d.health != "Healthy");
            let unhealthy: Vec<&str> = unhealthy.map(|d| d.id.as_str()).collect();
            if unhealthy.len() == 1 && unhealthy[0].contains("0001") {
                return read;
            }
        }
        0
    };
    let read = tokio::time::timeout(DEADLINE, last).await.unwrap();
    assert!(
        (1..60).contains(&read),
        "{read} of more than 100 lists were kept for a reader that stood still"
    );
    agent.stop().await.unwrap();
}
