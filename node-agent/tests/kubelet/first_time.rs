//! The first time on a node: never beside somebody else.

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use node_agent_core::identity::lock_name;
use rustix::fs::{FlockOperation, flock};

use crate::fake_kubelet::Model;
use crate::rig::{Rig, TTY, until};

fn remember(rig: &Rig, state: &str) {
    fs::write(rig.settings.state_dir.join("test"), state).unwrap();
}

const SERVED: &str =
    r#"{"configUid":"uid-1","revision":"0123456789","resources":["example.com/tty"]}"#;

#[tokio::test]
async fn the_kubelets_list_is_read_twice() {
    let rig = Rig::new(Model::V1_37);
    let agent = rig.start();
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    assert_eq!(rig.pod_resources.now().readings, 2);
    rig.until_remembered(TTY).await;
    agent.stop().await.unwrap();
    // Now it is remembered.
    let readings = rig.pod_resources.now().readings;
    let agent = rig.start();
    rig.kubelet
        .until("served", |known| {
            known.calls.len() == 2 && known.is_served(TTY)
        })
        .await;
    assert_eq!(rig.pod_resources.now().readings, readings);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn another_plugin_is_left_alone_until_it_is_gone() {
    let rig = Rig::new(Model::V1_36);
    let other = UnixListener::bind(rig.settings.plugin_dir.join("other.sock")).unwrap();
    rig.pod_resources.answer(|answers| {
        answers
            .allocatable
            .insert(TTY.to_owned(), vec!["a".to_owned(), "b".to_owned()]);
    });
    let agent = rig.start();
    let told = || {
        agent
            .readiness
            .get()
            .is_err_and(|why| why.contains("another plugin serves it"))
    };
    until("told", told).await;
    let readings = rig.pod_resources.now().readings;
    rig.pod_resources
        .until(|answers| answers.readings > readings + 1)
        .await;
    assert!(rig.kubelet.known().calls.is_empty());
    assert_eq!(rig.plugin_sockets(), ["other.sock"]);
    // Meanwhile the lock is free for whoever it may be.
    let path = rig.settings.lock_dir.join(lock_name(TTY));
    let taken = fs::File::open(path).unwrap();
    let take = || flock(&taken, FlockOperation::NonBlockingLockExclusive).is_ok();
    until("the lock is free", take).await;
    drop((taken, other));
    rig.pod_resources
        .answer(|answers| answers.allocatable.clear());
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    agent.until_ready().await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_new_kubelet_is_read_twice_again() {
    let mut rig = Rig::new(Model::V1_37);
    // What must not be over before the second kubelet comes.
    rig.settings.timing.first_time.after_kubelet_start = Duration::from_millis(700);
    let agent = rig.start();
    rig.pod_resources
        .until(|answers| answers.readings == 1)
        .await;
    rig.kubelet.bind();
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    assert_eq!(rig.pod_resources.now().readings, 3);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_waited_for() {
    let rig = Rig::new(Model::V1_36);
    fs::remove_file(rig.settings.pod_resources_dir.join("kubelet.sock")).unwrap();
    let agent = rig.start();
    let told = || {
        agent
            .readiness
            .get()
            .is_err_and(|why| why.contains("failed to read from the kubelet"))
    };
    until("told", told).await;
    assert!(rig.kubelet.known().calls.is_empty());
    let fresh = rig.home.path().join("fresh");
    let _serving = crate::fake_pod_resources::FakePodResources::start(&fresh, &rig.kubelet);
    fs::rename(
        fresh.join("kubelet.sock"),
        rig.settings.pod_resources_dir.join("kubelet.sock"),
    )
    .unwrap();
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    agent.stop().await.unwrap();
}

/// A lock that is held: a newcomer says so, who served before waits for it.
#[tokio::test]
async fn a_lock_is_waited_for() {
    for (state, expected) in [("{", "holds its lock"), (SERVED, "to leave")] {
        let mut rig = Rig::new(Model::V1_37);
        rig.settings.timing.first_time.lock_poll = Duration::from_millis(5);
        remember(&rig, state);
        let path = rig.settings.lock_dir.join(lock_name(TTY));
        let holder = fs::File::create(path).unwrap();
        flock(&holder, FlockOperation::NonBlockingLockExclusive).unwrap();
        let agent = rig.start();
        until(expected, || {
            agent
                .readiness
                .get()
                .is_err_and(|why| why.contains(expected))
        })
        .await;
        assert!(rig.kubelet.known().calls.is_empty());
        drop(holder);
        rig.kubelet
            .until("served", |known| known.is_served(TTY))
            .await;
        agent.stop().await.unwrap();
    }
}

/// Two agents of one config on a node: the second serves when the first has left, and not before.
#[tokio::test]
async fn two_agents_follow_each_other() {
    let rig = Rig::new(Model::V1_36);
    rig.plug("tty0");
    let first = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let second = rig.start();
    until("waiting", || {
        second
            .readiness
            .get()
            .is_err_and(|why| why.contains("to leave"))
    })
    .await;
    assert_eq!(rig.kubelet.known().calls.len(), 1);
    first.stop().await.unwrap();
    rig.kubelet
        .until("served", |known| {
            known.calls.len() >= 2 && known.healths(TTY) == ["Healthy"]
        })
        .await;
    second.until_ready().await;
    second.stop().await.unwrap();
}

/// A state file of another config, or garbage, is no permission.
#[tokio::test]
async fn a_state_of_somebody_else_does_not_count() {
    for state in [
        SERVED.replace("uid-1", "uid-2"),
        "garbage".to_owned(),
        String::new(),
    ] {
        let rig = Rig::new(Model::V1_37);
        remember(&rig, &state);
        let agent = rig.start();
        rig.kubelet
            .until("served", |known| known.is_served(TTY))
            .await;
        assert_eq!(rig.pod_resources.now().readings, 2, "{state:?}");
        let written = || fs::read_to_string(rig.settings.state_dir.join("test")).unwrap();
        until("written", || {
            written().contains("uid-1") && written().contains(TTY)
        })
        .await;
        agent.stop().await.unwrap();
    }
}
