//! What is reported to the API server, and when. Nothing of it touches the serving of devices.

use std::fs;
use std::time::Duration;

use node_agent::ApiAccess;
use node_agent_core::writing::ORDINARY;
use serde_json::{Value, json};

use crate::fake_api::{FakeApi, Write};
use crate::fake_kubelet::Model;
use crate::rig::{Rig, TTY};

const OBJECT: &str = "test.n1";

fn rig(api: &FakeApi) -> Rig {
    let mut rig = Rig::new(Model::V1_37);
    let config = kube::Config::new(api.url().parse().unwrap());
    rig.api = Some(ApiAccess::Given(Box::new(config)));
    rig.settings.timing.reports.ordinary.gap = Duration::from_millis(20);
    rig.settings.timing.api_retry.first = Duration::from_millis(5);
    rig.settings.timing.api_retry.limit = Duration::from_millis(20);
    rig.plug("tty0");
    rig
}

fn condition<'a>(write: &'a Write, kind: &str) -> &'a Value {
    let conditions = write.body["status"]["conditions"].as_array().unwrap();
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
        .unwrap()
}

fn is_registered(write: &Write) -> bool {
    write.body["status"]["active"]["summary"]["registered"] == "1/1"
}

#[tokio::test]
async fn the_report_is_applied_as_a_whole() {
    let api = FakeApi::start().await;
    api.set_object(OBJECT, &json!({}));
    let rig = rig(&api);
    let agent = rig.start();
    let write = api.until("registered", is_registered).await.pop().unwrap();
    assert_eq!(
        (write.name.as_str(), write.content_type.as_str()),
        (OBJECT, "application/apply-patch+yaml")
    );
    assert!(
        write.query.contains("fieldManager=agent-active"),
        "{}",
        write.query
    );
    assert!(write.query.contains("force=true"), "{}", write.query);
    let active = &write.body["status"]["active"];
    assert_eq!(
        (&active["revision"], &active["podUID"]),
        (&json!("0123456789"), &json!("pod-0123456789"))
    );
    assert_eq!(active["bootID"], "boot-1");
    assert_eq!(active["resources"][0]["name"], TTY);
    assert_eq!(active["resources"][0]["registrations"], 1);
    assert_eq!(
        (
            &active["devices"][0]["health"],
            &active["devices"][0]["paths"][0]
        ),
        (&json!("Healthy"), &json!("/dev/tty0"))
    );
    for kind in ["DeviceManagerAvailable", "Registered", "DevicesHealthy"] {
        assert_eq!(condition(&write, kind)["status"], "True", "{kind}");
        assert_eq!(condition(&write, kind)["observedGeneration"], 1);
    }
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn changes_are_written_but_not_each_of_them() {
    let api = FakeApi::start().await;
    api.set_object(OBJECT, &json!({}));
    let mut rig = rig(&api);
    let gap = Duration::from_millis(300);
    rig.settings.timing.reports.ordinary.gap = gap;
    rig.settings.timing.between_looks = Duration::ZERO;
    rig.settings.timing.between_messages = Duration::ZERO;
    let agent = rig.start();
    api.until("registered", is_registered).await;
    for healths in [
        ["Unhealthy"],
        ["Healthy"],
        ["Unhealthy"],
        ["Healthy"],
        ["Unhealthy"],
    ] {
        if healths == ["Healthy"] {
            rig.plug("tty0");
        } else {
            rig.unplug("tty0");
        }
        rig.kubelet.until_healths(TTY, &healths).await;
    }
    let writes = api
        .until("unhealthy", |write| {
            write.body["status"]["active"]["devices"][0]["health"] == "Unhealthy"
        })
        .await;
    assert_eq!(
        condition(writes.last().unwrap(), "DevicesHealthy")["reason"],
        "SomeUnhealthy"
    );
    // A few at once, and then one in each gap.
    for some in writes.windows(usize::try_from(ORDINARY.burst).unwrap() + 1) {
        let apart = some.last().unwrap().at - some[0].at;
        assert!(apart > gap - Duration::from_millis(50), "{apart:?}");
    }
    let changes = 5;
    assert!(writes.len() < 2 + changes, "{writes:#?}");
    agent.stop().await.unwrap();
}

/// Converged means no writes, whatever the API server tells.
#[tokio::test]
async fn what_is_there_already_is_not_written() {
    let api = FakeApi::start().await;
    api.set_object(OBJECT, &json!({}));
    let rig = rig(&api);
    let agent = rig.start();
    api.until("registered", is_registered).await;
    let before = api.writes().len();
    for round in 1..=3 {
        // Each of these is told to the agent; only the last one calls for a write.
        for _ in 0..5 {
            api.change_status(|_| {});
        }
        api.change_status(|status| status["active"]["podUID"] = json!("somebody-else"));
        api.until_written(before + round).await;
        assert_eq!(api.writes().len(), before + round);
    }
    assert!(
        api.writes()
            .iter()
            .all(|write| write.body["status"]["active"]["podUID"] == "pod-0123456789")
    );
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_object_that_comes_later_is_waited_for() {
    let api = FakeApi::start().await;
    let rig = rig(&api);
    let agent = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    agent.until_ready().await;
    assert!(api.writes().is_empty());
    api.set_object(OBJECT, &json!({}));
    api.until("registered", is_registered).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_api_server_that_is_away_disturbs_nothing() {
    let mut api = FakeApi::away().await;
    let rig = rig(&api);
    let agent = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    agent.until_ready().await;
    api.set_object(OBJECT, &json!({}));
    api.come_back().await;
    api.until("registered", is_registered).await;
    agent.stop().await.unwrap();
}

/// 41: a directory that cannot be read is told, and what was known stays.
#[tokio::test]
async fn what_cannot_be_looked_at_is_told() {
    let api = FakeApi::start().await;
    api.set_object(OBJECT, &json!({}));
    let rig = rig(&api);
    let quick = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/tty*"] } },
        "healthCheck": { "periodSeconds": 1 },
    });
    let agent = rig.start_with(crate::rig::config(&[quick]));
    api.until("registered", is_registered).await;
    let dev = &rig.settings.host_dev_dir;
    let aside = rig.home.path().join("aside");
    fs::rename(dev, &aside).unwrap();
    let told = |write: &Write| {
        let message = &write.body["status"]["active"]["resources"][0]["message"];
        message
            .as_str()
            .is_some_and(|message| message.contains(r#"failed to look at "/dev""#))
    };
    let write = api.until("told", told).await.pop().unwrap();
    assert_eq!(
        write.body["status"]["active"]["devices"][0]["health"],
        "Healthy"
    );
    assert_eq!(
        condition(&write, "DevicesHealthy")["reason"],
        "DevicesRefused"
    );
    fs::rename(&aside, dev).unwrap();
    rig.plug("tty1");
    let known = rig
        .kubelet
        .until_healths(TTY, &["Healthy", "Healthy"])
        .await;
    assert_eq!(
        (known.calls.len(), known.resources[TTY].messages.len()),
        (1, 2),
        "one stream"
    );
    agent.stop().await.unwrap();
}

/// What a user must act on is told with the reason.
#[tokio::test]
async fn a_foreign_plugin_is_told() {
    let api = FakeApi::start().await;
    api.set_object(OBJECT, &json!({}));
    let rig = rig(&api);
    let socket = rig.settings.plugin_dir.join("other.sock");
    let _other = std::os::unix::net::UnixListener::bind(socket).unwrap();
    rig.pod_resources.answer(|answers| {
        answers
            .allocatable
            .insert(TTY.to_owned(), vec!["a".to_owned()]);
    });
    let agent = rig.start();
    let foreign = |write: &Write| condition(write, "Registered")["reason"] == "ForeignPlugin";
    let write = api.until("told", foreign).await.pop().unwrap();
    let message = condition(&write, "Registered")["message"].as_str().unwrap();
    assert!(message.contains("another plugin serves it"), "{message}");
    agent.stop().await.unwrap();
}
