//! Section B: the kubelet restarts, and its directory with it.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::fake_kubelet::{Model, Script};
use crate::rig::{Rig, TTY, config, simulated, tty, until};

/// 19: everything is gone and comes back; every resource.
#[tokio::test]
async fn a_kubelet_restart_is_survived() {
    for model in [Model::V1_36, Model::V1_37] {
        let mut rig = Rig::new(model);
        rig.plug("tty0");
        let sim = "example.com/sim";
        let agent = rig.start_with(config(&[tty(), simulated(sim, 1)]));
        for round in 1..=3 {
            let served = |known: &crate::fake_kubelet::Knowledge| {
                known.endpoints(TTY).len() >= round
                    && known.healths(TTY) == ["Healthy"]
                    && known.healths(sim) == ["Healthy"]
            };
            rig.kubelet.until("both served", served).await;
            rig.kubelet.stop();
            until("not ready", || agent.readiness.get().is_err()).await;
            rig.kubelet.start();
        }
        let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
        rig.kubelet.until_healths(sim, &["Healthy"]).await;
        agent.until_ready().await;
        let mut endpoints = known.endpoints(TTY);
        let all = endpoints.len();
        endpoints.sort_unstable();
        endpoints.dedup();
        assert_eq!(endpoints.len(), all, "no name is used twice");
        agent.stop().await.unwrap();
    }
}

/// 19 without a stream that ends: only the socket is another one.
#[tokio::test]
async fn a_new_kubelet_socket_is_noticed_at_once() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.socket_poll = Duration::from_secs(3600);
    let agent = rig.start();
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    rig.kubelet.bind();
    rig.kubelet
        .until("served again", |known| {
            known.calls.len() >= 2 && known.is_served(TTY)
        })
        .await;
    agent.stop().await.unwrap();
}

/// 24: no file events, and the same behaviour by polling.
#[tokio::test]
async fn polling_is_enough() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.file_events = false;
    rig.settings.timing.socket_poll = Duration::from_millis(20);
    rig.plug("tty0");
    let quick = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/tty*"] } },
        "healthCheck": { "periodSeconds": 1 },
    });
    let agent = rig.start_with(config(&[quick]));
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    fs::remove_file(rig.settings.plugin_dir.join(&known.resources[TTY].endpoint)).unwrap();
    rig.kubelet
        .until("own socket", |known| {
            known.calls.len() == 2 && known.is_served(TTY)
        })
        .await;
    rig.kubelet.bind();
    rig.kubelet
        .until("kubelet's socket", |known| {
            known.calls.len() == 3 && known.is_served(TTY)
        })
        .await;
    rig.unplug("tty0");
    rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    agent.stop().await.unwrap();
}

/// 28 and failure 4: a mount would hold on to the old directory for ever.
#[tokio::test]
async fn a_replaced_plugin_directory_ends_the_agent() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.socket_poll = Duration::from_millis(20);
    let agent = rig.start();
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    let moved = rig.home.path().join("moved");
    fs::rename(&rig.settings.plugin_dir, &moved).unwrap();
    fs::create_dir(&rig.settings.plugin_dir).unwrap();
    let error = agent.ended().await.unwrap_err().to_string();
    assert!(
        error.contains("was replaced") && error.contains("plugins"),
        "{error}"
    );
    // Its streams are ended, not abandoned.
    rig.kubelet
        .until("disconnected", |known| !known.is_served(TTY))
        .await;
}

/// A registration that the dying kubelet accepted, and whose answer never came.
#[tokio::test]
async fn a_kubelet_that_dies_within_the_call_is_left() {
    let mut rig = Rig::new(Model::V1_36);
    rig.kubelet.script(&[Script::Hang]);
    let agent = rig.start();
    rig.kubelet
        .until("called", |known| known.calls.len() == 1)
        .await;
    rig.kubelet.stop();
    rig.kubelet.start();
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    agent.stop().await.unwrap();
}
