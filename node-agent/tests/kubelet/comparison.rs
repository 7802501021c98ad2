//! 79 and 80: the kubelet's own list is compared with the one it was sent.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use node_agent::ApiAccess;
use node_agent_core::pace::Pace;
use serde_json::{Value, json};

use crate::fake_api::FakeApi;
use crate::fake_kubelet::Model;
use crate::rig::{Rig, TTY, until};

const OBJECT: &str = "test.n1";

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A rig whose agents compare all the time.
fn quick(model: Model) -> Rig {
    let mut rig = Rig::new(model);
    let timing = &mut rig.settings.timing;
    let limits = &mut timing.comparison;
    limits.first = [millis(20), millis(40), millis(60)];
    limits.period = millis(20);
    limits.again = millis(10);
    limits.settling = millis(5);
    limits.after_stream = millis(30);
    limits.contested = Pace {
        first: millis(300),
        limit: millis(300),
    };
    limits.window = millis(1_500);
    timing.reports.ordinary.gap = millis(20);
    timing.reports.urgent.gap = millis(1);
    timing.api_retry.first = millis(5);
    rig.plug("tty0");
    rig
}

fn with_api(mut rig: Rig, api: &FakeApi) -> Rig {
    let config = kube::Config::new(api.url().parse().unwrap());
    rig.api = Some(ApiAccess::Given(Box::new(config)));
    api.set_object(OBJECT, &json!({}));
    rig
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let conditions = status["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|one| one["type"] == kind));
    found.unwrap_or(&Value::Null)
}

/// What the end of an older instance's stream does on 1.25 to 1.36, and a naive plugin on any.
#[tokio::test]
async fn a_list_that_was_replaced_is_healed_by_a_fresh_registration() {
    for (model, ids) in [
        (Model::V1_36, &[][..]),
        (Model::V1_36, &["other-1", "other-2"]),
        (Model::V1_37, &["other-1"]),
    ] {
        let rig = quick(model);
        // On 1.36 the end of our own old stream must not end the new one.
        rig.kubelet.slow_down(millis(20));
        let agent = rig.start();
        rig.kubelet.until_healths(TTY, &["Healthy"]).await;
        rig.kubelet.overwrite(TTY, ids);
        let known = rig
            .kubelet
            .until("healed", |known| {
                known.calls.len() == 2 && known.healths(TTY) == ["Healthy"]
            })
            .await;
        let endpoints = known.endpoints(TTY);
        assert_ne!(endpoints[0], endpoints[1], "a fresh name");
        assert!(known.overlaps.is_empty(), "{model:?}: {:?}", known.overlaps);
        let displaced = format!("displaced_total{{resource=\"{TTY}\"}}");
        assert_eq!(agent.metric(&displaced), Some(1.0));
        agent.stop().await.unwrap();
    }
}

#[tokio::test]
async fn the_comparison_is_reported() {
    let api = FakeApi::start().await;
    let rig = with_api(quick(Model::V1_37), &api);
    let agent = rig.start();
    let matches = |status: &Value| {
        let list = &status["active"]["resources"][0]["kubelet"];
        list["matches"] == true && list["readAfterStream"] == true && list["devices"] == 1
    };
    let status = api.until_status("matches", matches).await;
    assert_eq!(condition(&status, "Contested")["reason"], "Uncontested");
    assert_eq!(condition(&status, "PhantomResource")["reason"], "NoPhantom");
    // A list that nobody can read says nothing.
    rig.pod_resources.answer(|answers| {
        answers
            .allocatable
            .insert(TTY.to_owned(), vec!["x".to_owned()]);
    });
    let differs = |status: &Value| status["active"]["resources"][0]["kubelet"]["matches"] == false;
    api.until_status("differs", differs).await;
    agent.stop().await.unwrap();
}

/// Devices that come and go are no difference, however often they do.
#[tokio::test]
async fn messages_on_their_way_are_no_difference() {
    let mut rig = quick(Model::V1_36);
    rig.settings.timing.between_looks = Duration::ZERO;
    rig.settings.timing.between_messages = Duration::ZERO;
    let agent = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    for _ in 0..100 {
        rig.unplug("tty0");
        rig.kubelet.until_healths(TTY, &["Unhealthy"]).await;
        rig.plug("tty0");
        rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    }
    assert_eq!(rig.kubelet.known().calls.len(), 1);
    agent.stop().await.unwrap();
}

/// Two who fight give pods to both: the third time it is told, and answered seldom.
#[tokio::test]
async fn somebody_who_comes_back_is_named() {
    let api = FakeApi::start().await;
    let rig = with_api(quick(Model::V1_36), &api);
    let _naive = UnixListener::bind(rig.settings.plugin_dir.join("naive.sock")).unwrap();
    let agent = rig.start();
    for calls in 1..=3 {
        rig.kubelet
            .until("registered", |known| {
                known.calls.len() == calls && known.healths(TTY) == ["Healthy"]
            })
            .await;
        rig.kubelet.overwrite(TTY, &["other-1"]);
    }
    let contested = |status: &Value| condition(status, "Contested")["reason"] == "TakenOver";
    let status = api.until_status("contested", contested).await;
    let message = condition(&status, "Contested")["message"].to_string();
    assert!(
        message.contains(TTY) && message.contains("naive.sock"),
        "{message}"
    );
    assert_eq!(rig.kubelet.known().calls.len(), 3, "not at once");
    // It goes on slowly, and when the other one is gone it is over.
    let known = rig
        .kubelet
        .until("again", |known| {
            known.calls.len() == 4 && known.healths(TTY) == ["Healthy"]
        })
        .await;
    let waited = known.calls[3].at - known.calls[2].at;
    assert!(waited > millis(150), "{waited:?}");
    let over = |status: &Value| condition(status, "Contested")["reason"] == "Uncontested";
    api.until_status("over", over).await;
    assert_eq!(rig.kubelet.known().calls.len(), 4);
    agent.stop().await.unwrap();
}

/// A kubelet that does not tell is not a kubelet that lost the list.
#[tokio::test]
async fn a_list_that_cannot_be_read_is_no_difference() {
    let rig = quick(Model::V1_36);
    let agent = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    std::fs::remove_file(rig.settings.pod_resources_dir.join("kubelet.sock")).unwrap();
    rig.kubelet.overwrite(TTY, &[]);
    let readings = rig.pod_resources.now().readings;
    let start = std::time::Instant::now();
    until("time passes", || start.elapsed() > millis(200)).await;
    assert_eq!(rig.pod_resources.now().readings, readings);
    assert_eq!(rig.kubelet.known().calls.len(), 1);
    agent.stop().await.unwrap();
}

/// A phantom is nobody: the resource is served, it is named, and a new kubelet has forgotten it.
#[tokio::test]
async fn a_phantom_is_served_over_and_named() {
    let api = FakeApi::start().await;
    let mut rig = with_api(quick(Model::V1_37), &api);
    rig.kubelet.haunt(TTY, &["ghost-1", "ghost-2"]);
    let agent = rig.start();
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    let named = |status: &Value| {
        condition(status, "PhantomResource")["status"] == "True"
            && status["active"]["summary"]["registered"] == "1/1"
    };
    let status = api.until_status("named", named).await;
    let phantom = condition(&status, "PhantomResource");
    assert_eq!(phantom["reason"], "StaleRegistration");
    let message = phantom["message"].to_string();
    let told = format!("{TTY}: 2 devices");
    assert!(
        message.contains(&told) && message.contains("restart the kubelet"),
        "{message}"
    );
    rig.kubelet.stop();
    rig.kubelet.start();
    let gone = |status: &Value| {
        condition(status, "PhantomResource")["reason"] == "NoPhantom"
            && status["active"]["summary"]["registered"] == "1/1"
    };
    api.until_status("gone", gone).await;
    agent.stop().await.unwrap();
}

/// 80: what an orderly end leaves behind is looked for, and told before the agent is gone.
#[tokio::test]
async fn what_stays_after_the_last_stop_is_named() {
    for (haunted, expected) in [(true, "True"), (false, "False")] {
        let api = FakeApi::start().await;
        let rig = with_api(quick(Model::V1_37), &api);
        let agent = rig.start();
        let served = |status: &Value| status["active"]["summary"]["registered"] == "1/1";
        api.until_status("served", served).await;
        if haunted {
            let known = rig.kubelet.known();
            let ids: Vec<&str> = known.resources[TTY]
                .devices
                .keys()
                .map(String::as_str)
                .collect();
            rig.kubelet.haunt(TTY, &ids);
        }
        agent.stop().await.unwrap();
        let status = api.status();
        assert_eq!(condition(&status, "PhantomResource")["status"], expected);
    }
}
