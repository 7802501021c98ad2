//! Section C: devices that come, go and change.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::fake_kubelet::Model;
use crate::rig::{Rig, TTY, config, paths, until};

/// 30 and 33.
#[tokio::test]
async fn devices_come_and_go() {
    let mut rig = Rig::new(Model::V1_36);
    rig.settings.timing.between_messages = Duration::ZERO;
    let agent = rig.start();
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    rig.plug("ttyB");
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    rig.plug("ttyA");
    rig.kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    rig.unplug("ttyA");
    rig.kubelet
        .until_healths(TTY, &["Unhealthy", "Healthy"])
        .await;
    rig.plug("ttyA");
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    assert_eq!(known.calls.len(), 1, "nothing of this needs a registration");
    assert_eq!(
        known.resources[TTY].messages.len(),
        5,
        "one message for each change"
    );
    let healthy = r#"devices{resource="example.com/tty",health="Healthy"}"#;
    until("shown", || agent.metric(healthy) == Some(2.0)).await;
    agent.stop().await.unwrap();
}

/// A directory that does not exist yet, and one that is made anew.
#[tokio::test]
async fn directories_come_and_go() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.between_messages = Duration::ZERO;
    let slow = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/bus/usb/*/*"] } },
        "healthCheck": { "periodSeconds": 3600 },
    });
    let agent = rig.start_with(config(&[slow]));
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    rig.plug("bus/usb/001/002");
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    fs::remove_dir_all(rig.settings.host_dev_dir.join("bus")).unwrap();
    rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    rig.plug("bus/usb/001/002");
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    agent.stop().await.unwrap();
}

/// Links: by name, absolute, relative, out of `/dev`, dangling, in a circle.
#[tokio::test]
async fn links_are_followed_within_dev() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.between_messages = Duration::ZERO;
    rig.plug("raw/ttyUSB0");
    rig.plug("raw/ttyUSB1");
    rig.link("by-id/absolute", "/dev/raw/ttyUSB0");
    rig.link("by-id/relative", "../raw/ttyUSB1");
    rig.link("by-id/same", "relative");
    rig.link("by-id/circle", "circle");
    rig.link("by-id/dangling", "../nothing");
    rig.link("by-id/up", "../../../../../../dev/null");
    rig.link("by-id/outside", "/etc/passwd");
    let by_id = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/by-id/*"] } },
        "healthCheck": { "periodSeconds": 3600 },
    });
    let agent = rig.start_with(config(&[by_id]));
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    let ids: Vec<&str> = known.resources[TTY]
        .devices
        .keys()
        .map(String::as_str)
        .collect();
    assert!(
        ids[0].starts_with("by-id-absolute-") && ids[1].starts_with("by-id-relative-"),
        "{ids:?}"
    );
    // The device goes, its link stays; no glob leads into the device's directory.
    rig.unplug("raw/ttyUSB0");
    rig.kubelet
        .until_healths(TTY, &["Unhealthy", "Healthy"])
        .await;
    rig.plug("raw/ttyUSB0");
    rig.kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    agent.stop().await.unwrap();
}

/// What is no device is not advertised; what becomes none is Unhealthy.
#[tokio::test]
async fn another_kind_of_file_is_unhealthy() {
    let rig = Rig::new(Model::V1_37);
    rig.plug("tty0");
    fs::write(rig.settings.host_dev_dir.join("tty1"), "x").unwrap();
    fs::create_dir(rig.settings.host_dev_dir.join("tty2")).unwrap();
    let agent = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    rig.unplug("tty0");
    fs::write(rig.settings.host_dev_dir.join("tty0"), "x").unwrap();
    rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
    agent.stop().await.unwrap();
}

/// 38: many, and a glob over everything. (The limit itself is tested in the core.)
#[tokio::test]
async fn many_devices_are_one_message() {
    let rig = Rig::new(Model::V1_37);
    for device in 0..3_000 {
        rig.plug(&format!("many/{device}"));
    }
    let agent = rig.start_with(config(&[paths(TTY, &["/dev/**"])]));
    let expected = vec!["Healthy"; 3_000];
    let known = rig.kubelet.until_healths(TTY, &expected).await;
    assert_eq!(known.resources[TTY].messages.len(), 1);
    agent.stop().await.unwrap();
}

/// 38: far more than a message holds. What does not fit is left out, and said.
#[tokio::test]
async fn a_list_that_is_too_long_is_cut() {
    let rig = Rig::new(Model::V1_37);
    let many = json!({
        "name": TTY,
        "discovery": { "simulated": { "count": 256 } },
        "replicas": 1_000,
    });
    let agent = rig.start_with(config(&[many]));
    // The kubelet of the test reads 4 MiB, as a real one.
    let known = rig
        .kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    let ids = known.resources[TTY].devices.len();
    assert!(
        (50_000..256_000).contains(&ids) && ids % 1_000 == 0,
        "{ids}"
    );
    agent.until_ready().await;
    let healthy = r#"devices{resource="example.com/tty",health="Healthy"}"#;
    until("shown", || agent.metric(healthy) == Some(ids as f64)).await;
    assert_eq!(rig.kubelet.known().calls.len(), 1, "the stream stays");
    agent.stop().await.unwrap();
}

/// A glob that cannot be read is told; the resource is there, with no devices.
#[tokio::test]
async fn a_wrong_glob_is_told_and_the_rest_is_served() {
    let rig = Rig::new(Model::V1_37);
    rig.plug("tty0");
    let wrong = "example.com/wrong";
    let agent = rig.start_with(config(&[
        paths(wrong, &["/dev/["]),
        paths(TTY, &["/dev/tty*"]),
    ]));
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    rig.kubelet
        .until("registered", |known| known.is_served(wrong))
        .await;
    agent.until_ready().await;
    agent.stop().await.unwrap();
}

/// 36: a device that a container holds stays listed.
#[tokio::test]
async fn an_id_that_a_container_holds_is_never_left_out() {
    let mut rig = Rig::new(Model::V1_37);
    rig.settings.timing.between_messages = Duration::ZERO;
    rig.settings.timing.allocations_poll = Duration::from_millis(10);
    rig.pod_resources.answer(|answers| {
        answers
            .held
            .insert(TTY.to_owned(), vec!["of-an-earlier-version".to_owned()]);
    });
    rig.plug("tty0");
    let agent = rig.start();
    let known = rig
        .kubelet
        .until_healths(TTY, &["Unhealthy", "Healthy"])
        .await;
    assert!(
        known.resources[TTY]
            .devices
            .contains_key("of-an-earlier-version")
    );
    // The kubelet has no time for us: what is known stays.
    rig.pod_resources.answer(|answers| answers.exhausted = true);
    let lists = rig.pod_resources.now().lists;
    rig.pod_resources
        .until(|answers| answers.lists > lists)
        .await;
    assert_eq!(rig.kubelet.known().healths(TTY), ["Unhealthy", "Healthy"]);
    agent.stop().await.unwrap();
}
