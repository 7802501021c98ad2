//! Section A: how a plugin registers.

use std::fs;
use std::os::unix::net::UnixListener as StaleListener;
use std::time::{Duration, Instant};

use crate::fake_kubelet::{FakeKubelet, Model, Script, dial};
use crate::rig::{Rig, TTY, config, names, paths, simulated, tty, until};
use proto::v1beta1::Empty;

/// 1, 2, 4, 16.
#[tokio::test]
async fn registers_at_start() {
    for model in [Model::V1_36, Model::V1_37] {
        let rig = Rig::new(model);
        rig.plug("tty0");
        for foreign in ["DEPRECATION", "kubelet_internal_checkpoint", "other.txt"] {
            fs::write(rig.settings.plugin_dir.join(foreign), "x").unwrap();
        }
        fs::create_dir(rig.settings.plugin_dir.join("directory")).unwrap();
        let agent = rig.start();
        // The kubelet asks for the options within the call: the plugin serves by then.
        let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
        let call = &known.calls[0];
        assert_eq!(call.request.version, "v1beta1");
        assert!(
            !call.request.endpoint.contains('/'),
            "{:?}",
            call.request.endpoint
        );
        assert_eq!(call.request.options, Some(call.options));
        assert!(!call.options.pre_start_required);
        assert!(!call.options.get_preferred_allocation_available);
        agent.until_ready().await;
        agent.stop().await.unwrap();
        assert_eq!(
            names(&rig.settings.plugin_dir),
            [
                "DEPRECATION",
                "directory",
                "kubelet.sock",
                "kubelet_internal_checkpoint",
                "other.txt"
            ],
            "nothing of ours is left, nothing else is touched"
        );
    }
}

/// 3: the answer comes late, and the stream is open before.
#[tokio::test]
async fn a_late_answer_changes_nothing() {
    let rig = Rig::new(Model::V1_37);
    rig.kubelet.script(&[Script::WatchBeforeAnswer]);
    let agent = rig.start();
    agent.until_ready().await;
    let known = rig.kubelet.known();
    assert_eq!(known.calls.len(), 1);
    agent.stop().await.unwrap();
}

/// 5.
#[tokio::test]
async fn a_kubelet_that_comes_later_is_waited_for() {
    let mut rig = Rig::without_kubelet(Model::V1_37);
    rig.settings.timing.socket_poll = Duration::from_millis(20);
    fs::remove_dir(&rig.settings.plugin_dir).unwrap();
    let agent = rig.start();
    let waits = || {
        agent
            .readiness
            .get()
            .is_err_and(|why| why.contains("waiting for the kubelet's socket"))
    };
    until("waiting", waits).await;
    assert!(agent.runs());
    rig.kubelet.start();
    rig.kubelet
        .until("registered", |known| known.is_served(TTY))
        .await;
    agent.stop().await.unwrap();
}

/// 6 and 7: the socket is there but refuses; then somebody listens at the same socket.
#[tokio::test]
async fn a_socket_that_refuses_is_tried_again_more_and_more_slowly() {
    let rig = Rig::without_kubelet(Model::V1_37);
    // It served before: no reading of the kubelet's list comes first.
    let state = r#"{"configUid":"uid-1","revision":"0123456789","resources":["example.com/tty"]}"#;
    fs::write(rig.settings.state_dir.join("test"), state).unwrap();
    // A stale socket: bound, and nobody listens any more.
    drop(StaleListener::bind(rig.kubelet.socket()).unwrap());
    let agent = rig.start();
    let tries =
        || agent.metric(r#"registrations_total{resource="example.com/tty",result="unreachable"}"#);
    until("five tries", || tries() >= Some(5.0)).await;
    let started = Instant::now();
    let first = tries().unwrap();
    until("two more tries", || tries() >= Some(first + 2.0)).await;
    assert!(
        started.elapsed() > Duration::from_millis(15),
        "no busy loop: {:?}",
        started.elapsed()
    );
    let why = agent.readiness.get().unwrap_err();
    assert!(why.contains("the kubelet does not answer"), "{why}");
    assert_eq!(
        rig.plugin_sockets().len(),
        1,
        "the name that nobody heard is kept"
    );
    let mut rig = rig;
    rig.kubelet.start();
    rig.kubelet
        .until("registered", |known| known.is_served(TTY))
        .await;
    agent.stop().await.unwrap();
}

/// 8 and 11: one resource is refused, the other is served.
#[tokio::test]
async fn a_refusal_is_told_and_tried_again_with_another_name() {
    let mut rig = Rig::without_kubelet(Model::V1_36);
    rig.kubelet.script(&[
        Script::Refuse("no such luck"),
        Script::Refuse("no such luck"),
    ]);
    rig.kubelet.start();
    rig.settings.timing.registration.refused.first = Duration::from_millis(50);
    let agent = rig.start();
    until("told", || {
        agent
            .readiness
            .get()
            .is_err_and(|why| why.contains("no such luck"))
    })
    .await;
    let known = rig
        .kubelet
        .until("registered", |known| known.is_served(TTY))
        .await;
    let mut endpoints = known.endpoints(TTY);
    assert_eq!(endpoints.len(), 3);
    endpoints.dedup();
    assert_eq!(endpoints.len(), 3, "a name is never used twice");
    agent.until_ready().await;
    let refused = r#"registrations_total{resource="example.com/tty",result="refused"}"#;
    assert_eq!(agent.metric(refused), Some(2.0));
    agent.stop().await.unwrap();
}

/// 9.
#[tokio::test]
async fn a_call_that_hangs_is_given_up() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.register_call = Duration::from_millis(200);
    rig.kubelet.script(&[Script::Hang]);
    let agent = rig.start();
    let known = rig
        .kubelet
        .until("registered", |known| known.is_served(TTY))
        .await;
    assert_eq!(known.calls.len(), 2);
    assert!(known.calls[1].at - known.calls[0].at >= Duration::from_millis(200));
    agent.stop().await.unwrap();
}

/// 11 and 35.
#[tokio::test]
async fn resources_are_registered_each_by_itself() {
    let rig = Rig::new(Model::V1_36);
    rig.plug("tty0");
    let other = "example.com/other";
    let resources = [
        tty(),
        paths(other, &["/dev/tty*"]),
        simulated("example.com/sim", 2),
    ];
    let agent = rig.start_with(config(&resources));
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    rig.kubelet.until_healths(other, &["Healthy"]).await;
    let known = rig
        .kubelet
        .until_healths("example.com/sim", &["Healthy", "Healthy"])
        .await;
    assert_eq!(rig.plugin_sockets().len(), 3);
    let mut ids: Vec<&String> = known
        .resources
        .values()
        .flat_map(|r| r.devices.keys())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4, "no two resources share an id");
    let messages = known.resources[other].messages.len();
    rig.kubelet.end_streams_of(TTY);
    let known = rig
        .kubelet
        .until("registered again", |known| {
            known.endpoints(TTY).len() == 2 && known.is_served(TTY)
        })
        .await;
    assert_eq!(known.endpoints(other).len(), 1, "the other is left alone");
    assert_eq!(known.resources[other].messages.len(), messages);
    agent.stop().await.unwrap();
}

/// 12.
#[tokio::test]
async fn socket_names_are_short() {
    let long = format!("{}/{}", "d".repeat(244), "n".repeat(63));
    let rig = Rig::new(Model::V1_37);
    let agent = rig.start_with(config(&[simulated(&long, 1), simulated("a.b/c", 1)]));
    rig.kubelet
        .until("both", |known| {
            known.is_served(&long) && known.is_served("a.b/c")
        })
        .await;
    let sockets = rig.plugin_sockets();
    assert!(sockets.iter().all(|name| name.len() <= 75), "{sockets:?}");
    agent.stop().await.unwrap();
}

/// 13 and 34.
#[tokio::test]
async fn a_restart_has_another_socket_and_the_same_ids() {
    let rig = Rig::new(Model::V1_37);
    for device in ["ttyB", "ttyA", "ttyC"] {
        rig.plug(device);
    }
    let mut seen = Vec::new();
    for restart in 0..3 {
        let agent = rig.start();
        let known = rig
            .kubelet
            .until("served", |known| {
                known.calls.len() == restart + 1 && known.is_served(TTY)
            })
            .await;
        seen.push(known.resources[TTY].clone());
        agent.stop().await.unwrap();
        // Enumeration changes its order.
        rig.unplug("ttyA");
        rig.plug("ttyA");
    }
    let mut endpoints: Vec<&String> = seen.iter().map(|resource| &resource.endpoint).collect();
    endpoints.sort();
    endpoints.dedup();
    assert_eq!(endpoints.len(), 3);
    assert!(
        seen.iter()
            .all(|resource| resource.devices.keys().eq(seen[0].devices.keys()))
    );
    for id in seen[0].devices.keys() {
        assert!(!id.is_empty() && id.len() <= 63, "{id:?}");
    }
}

/// 14: what a killed process left is removed, what somebody listens at is not.
#[tokio::test]
async fn stale_sockets_of_ours_are_removed() {
    let rig = Rig::new(Model::V1_37);
    let agent = rig.start();
    let known = rig
        .kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    let ours = known.resources[TTY].endpoint.clone();
    agent.stop().await.unwrap();
    let at = |name: &str| rig.settings.plugin_dir.join(name);
    let prefix = &ours[..13];
    let stale = at(&format!("{prefix}0000000000000001.sock"));
    let live = at(&format!("{prefix}0000000000000002.sock"));
    let foreign = at("nvidia-gpu.sock");
    drop(StaleListener::bind(&stale).unwrap());
    drop(StaleListener::bind(&foreign).unwrap());
    let _listening = StaleListener::bind(&live).unwrap();
    let file = at(&format!("{prefix}0000000000000003.sock"));
    fs::write(&file, "x").unwrap();
    let agent = rig.start();
    until("removed", || !stale.exists()).await;
    agent.until_ready().await;
    agent.stop().await.unwrap();
    assert!(live.exists() && foreign.exists() && file.exists());
}

/// 15: in the process itself; as a process in `process.rs`.
#[tokio::test]
async fn a_stop_ends_streams_and_removes_sockets() {
    let mut rig = Rig::new(Model::V1_37);
    // Streams are ended, not waited for.
    rig.settings.timing.close = Duration::from_secs(3600);
    let agent = rig.start();
    let known = rig
        .kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    let socket = rig.settings.plugin_dir.join(&known.resources[TTY].endpoint);
    assert!(
        dial(&socket)
            .await
            .unwrap()
            .get_device_plugin_options(Empty {})
            .await
            .is_ok()
    );
    agent.stop().await.unwrap();
    assert!(rig.plugin_sockets().is_empty());
    rig.kubelet
        .until("disconnected", |known| !known.is_served(TTY))
        .await;
    assert_eq!(rig.kubelet.open_streams(), 0);
    assert!(dial(&socket).await.is_err());
}

/// A kubelet that answers nothing at all holds up no stop.
#[tokio::test]
async fn a_stop_waits_for_nobody() {
    let rig = Rig::without_kubelet(Model::V1_37);
    let silent = rig.settings.pod_resources_dir.join("kubelet.sock");
    fs::remove_file(&silent).unwrap();
    let _silent = StaleListener::bind(silent).unwrap();
    let _mute = StaleListener::bind(rig.kubelet.socket()).unwrap();
    // One resource is new here, the other is not.
    let known = "example.com/known";
    let state =
        format!(r#"{{"configUid":"uid-1","revision":"0123456789","resources":["{known}"]}}"#);
    fs::write(rig.settings.state_dir.join("test"), state).unwrap();
    let agent = rig.start_with(config(&[tty(), simulated(known, 1)]));
    until("registering", || rig.plugin_sockets().len() == 1).await;
    let started = Instant::now();
    agent.stop().await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

/// The double itself: the two registration models differ as kubelets do.
#[tokio::test]
async fn the_fake_kubelet_has_both_models() {
    for model in [Model::V1_36, Model::V1_37] {
        let rig = Rig::new(model);
        rig.plug("tty0");
        let mut settings = rig.settings.clone();
        // Two agents that know nothing of each other.
        settings.lock_dir = rig.home.path().join("locks-2");
        let first = rig.start();
        rig.kubelet.until_healths(TTY, &["Healthy"]).await;
        rig.until_remembered(TTY).await;
        let second = Rig {
            settings,
            ..rig_of(&rig)
        }
        .start();
        let known = rig
            .kubelet
            .until("two", |known| {
                known.calls.len() == 2 && known.is_served(TTY)
            })
            .await;
        let newest = known.resources[TTY].endpoint.clone();
        first.stop().await.unwrap();
        // 25: on 1.36 the second loses its stream with the first, and registers again.
        let calls = if model == Model::V1_36 { 3 } else { 2 };
        let known = rig
            .kubelet
            .until("served", |known| {
                known.calls.len() == calls && known.is_served(TTY)
            })
            .await;
        assert_eq!(
            known.resources[TTY].endpoint == newest,
            model == Model::V1_37
        );
        second.stop().await.unwrap();
    }
}

/// A rig that shares nothing but settings.
fn rig_of(rig: &Rig) -> Rig {
    let home = tempfile::tempdir().unwrap();
    Rig {
        kubelet: FakeKubelet::stopped(&home.path().join("unused"), Model::V1_37),
        pod_resources: rig.pod_resources.clone(),
        settings: rig.settings.clone(),
        api: None,
        home,
    }
}
