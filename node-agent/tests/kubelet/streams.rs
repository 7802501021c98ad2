//! Sections B and C: the streams, and what makes the agent register again.

use std::fs;
use std::time::{Duration, Instant};

use proto::v1beta1::{Empty, ListAndWatchResponse};
use tokio::time::timeout;
use tonic::Streaming;

use crate::fake_kubelet::{DEADLINE, Model, Script};
use crate::rig::{Rig, TTY, config, simulated, until};

/// The next message of a stream.
async fn next(stream: &mut Streaming<ListAndWatchResponse>) -> Vec<String> {
    let message = timeout(DEADLINE, stream.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    message
        .devices
        .into_iter()
        .map(|device| device.health)
        .collect()
}

/// 17 and 18.
#[tokio::test]
async fn a_stream_that_ends_is_answered_by_a_new_registration() {
    for model in [Model::V1_36, Model::V1_37] {
        let rig = Rig::new(model);
        rig.plug("tty0");
        let agent = rig.start();
        for calls in 1..=2 {
            let served = |known: &crate::fake_kubelet::Knowledge| {
                known.calls.len() == calls && known.healths(TTY) == ["Healthy"]
            };
            rig.kubelet.until("served", served).await;
            rig.kubelet.end_streams();
        }
        let known = rig
            .kubelet
            .until("served", |known| {
                known.calls.len() == 3 && known.is_served(TTY)
            })
            .await;
        let took = known.calls[1].at - known.calls[0].at;
        assert!(took < Duration::from_secs(2), "{took:?}");
        let mut endpoints = known.endpoints(TTY);
        endpoints.sort_unstable();
        endpoints.dedup();
        assert_eq!(endpoints.len(), 3);
        assert_eq!(
            rig.plugin_sockets().len(),
            1,
            "sockets of the past are removed"
        );
        agent.until_ready().await;
        let lost = r#"stream_lost_total{resource="example.com/tty"}"#;
        assert_eq!(agent.metric(lost), Some(2.0));
        agent.stop().await.unwrap();
    }
}

/// Two who displace each other do it ever more slowly.
#[tokio::test]
async fn streams_that_end_again_and_again_are_answered_more_slowly() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.registration.refused.first = Duration::from_millis(200);
    let agent = rig.start();
    for calls in 1..=3 {
        rig.kubelet
            .until("served", |known| {
                known.calls.len() == calls && known.is_served(TTY)
            })
            .await;
        rig.kubelet.end_streams();
    }
    let known = rig
        .kubelet
        .until("served", |known| {
            known.calls.len() == 4 && known.is_served(TTY)
        })
        .await;
    assert!(known.calls[3].at - known.calls[2].at >= Duration::from_millis(100));
    agent.stop().await.unwrap();
}

/// 20: inotify tells at once.
#[tokio::test]
async fn a_removed_socket_is_noticed() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.socket_poll = Duration::from_secs(3600);
    let agent = rig.start();
    let known = rig
        .kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    fs::remove_file(rig.settings.plugin_dir.join(&known.resources[TTY].endpoint)).unwrap();
    rig.kubelet
        .until("served again", |known| {
            known.calls.len() == 2 && known.is_served(TTY)
        })
        .await;
    agent.stop().await.unwrap();
}

/// 22: the kubelet accepts and cleans up before it watches.
#[tokio::test]
async fn a_socket_removed_right_after_registration_is_noticed() {
    let rig = Rig::new(Model::V1_37);
    rig.kubelet.script(&[Script::ForgetToWatch]);
    let agent = rig.start();
    let known = rig
        .kubelet
        .until("called", |known| known.calls.len() == 1)
        .await;
    fs::remove_file(
        rig.settings
            .plugin_dir
            .join(&known.calls[0].request.endpoint),
    )
    .unwrap();
    rig.kubelet
        .until("served", |known| {
            known.calls.len() == 2 && known.is_served(TTY)
        })
        .await;
    agent.stop().await.unwrap();
}

/// 23.
#[tokio::test]
async fn a_kubelet_that_never_watches_is_asked_again() {
    let mut rig = Rig::new(Model::V1_36);
    rig.settings.timing.registration.watchdog = Duration::from_millis(150);
    rig.kubelet.script(&[Script::ForgetToWatch]);
    let agent = rig.start();
    let why = || {
        agent
            .readiness
            .get()
            .is_err_and(|why| why.contains("has not asked for the devices"))
    };
    until("told", why).await;
    let known = rig
        .kubelet
        .until("served", |known| {
            known.calls.len() == 2 && known.is_served(TTY)
        })
        .await;
    assert!(known.calls[1].at - known.calls[0].at >= Duration::from_millis(150));
    agent.stop().await.unwrap();
}

/// 27.
#[tokio::test]
async fn two_streams_get_the_same() {
    let rig = Rig::new(Model::V1_37);
    rig.plug("tty0");
    let agent = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let mut plugin = rig.kubelet.plugin(TTY).await;
    let mut second = plugin.list_and_watch(Empty {}).await.unwrap().into_inner();
    assert_eq!(next(&mut second).await, ["Healthy"]);
    rig.plug("tty1");
    assert_eq!(next(&mut second).await, ["Healthy", "Healthy"]);
    rig.kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    drop(second);
    rig.unplug("tty1");
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Unhealthy"])
        .await;
    assert_eq!(known.calls.len(), 1, "the first stream never ended");
    agent.stop().await.unwrap();
}

/// 29.
#[tokio::test]
async fn the_first_message_comes_at_once_and_without_devices_too() {
    let rig = Rig::new(Model::V1_37);
    let agent = rig.start();
    let known = rig
        .kubelet
        .until("a message", |known| known.is_served(TTY))
        .await;
    let took = known.resources[TTY].messages[0] - known.calls[0].at;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(known.resources[TTY].devices.is_empty());
    agent.stop().await.unwrap();
}

/// 31: a change that the kubelet cannot see is no message.
#[tokio::test]
async fn nothing_is_sent_when_nothing_changed() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.between_looks = Duration::ZERO;
    rig.settings.timing.between_messages = Duration::ZERO;
    rig.settings.timing.allocations_poll = Duration::from_millis(5);
    rig.plug("tty0");
    let agent = rig.start();
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let id = known.resources[TTY].devices.keys().next().unwrap().clone();
    // Looks that find nothing new, and devices that are given to containers.
    for turn in 0..5_usize {
        let ids = if turn % 2 == 0 {
            vec![id.clone()]
        } else {
            Vec::new()
        };
        rig.pod_resources.answer(|answers| {
            answers.held.insert(TTY.to_owned(), ids);
        });
        let lists = rig.pod_resources.now().lists;
        rig.pod_resources
            .until(|answers| answers.lists > lists + 1)
            .await;
        fs::write(rig.settings.host_dev_dir.join("noise"), "x").unwrap();
        fs::remove_file(rig.settings.host_dev_dir.join("noise")).unwrap();
    }
    rig.plug("tty1");
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    assert_eq!(known.resources[TTY].messages.len(), 2);
    agent.stop().await.unwrap();
}

/// 32.
#[tokio::test]
async fn a_flapping_device_costs_few_messages() {
    let rig = Rig::new(Model::V1_37);
    rig.plug("tty0");
    let agent = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let started = Instant::now();
    let mut turn = tokio::time::interval(Duration::from_millis(2));
    while started.elapsed() < Duration::from_millis(1_600) {
        turn.tick().await;
        rig.unplug("tty0");
        turn.tick().await;
        rig.plug("tty0");
    }
    rig.unplug("tty0");
    let known = rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    let messages = &known.resources[TTY].messages;
    let took = started.elapsed().as_millis() / 500 + 2;
    assert!(
        messages.len() <= usize::try_from(took).unwrap(),
        "{} in {took}",
        messages.len()
    );
    agent.stop().await.unwrap();
}

/// 39: what is not read is not kept.
#[tokio::test]
async fn a_slow_reader_gets_the_latest_list() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.between_looks = Duration::ZERO;
    rig.settings.timing.between_messages = Duration::ZERO;
    let many = "example.com/many";
    let agent = rig.start_with(config(&[crate::rig::tty(), simulated(many, 2)]));
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    let mut plugin = rig.kubelet.plugin(TTY).await;
    let mut slow = plugin.list_and_watch(Empty {}).await.unwrap().into_inner();
    for device in 0..50 {
        rig.plug(&format!("tty{device:02}"));
        let expected = vec!["Healthy"; device + 1];
        rig.kubelet.until_healths(TTY, &expected).await;
    }
    let mut messages = 0;
    while next(&mut slow).await.len() < 50 {
        messages += 1;
    }
    assert!(messages <= 50, "{messages}");
    agent.stop().await.unwrap();
}
