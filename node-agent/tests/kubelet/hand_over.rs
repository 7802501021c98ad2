//! Two agents of one config in one host's directories: roles, locks, and who serves when.

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use node_agent::ApiAccess;
use node_agent_core::identity::lock_name;
use node_agent_core::role::InitialRole::{Active, Standby};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::fake_api::FakeApi;
use crate::fake_kubelet::{Knowledge, Model};
use crate::rig::{Rig, Running, TTY, simulated, tty, until};

const OBJECT: &str = "test.n1";
const OLD: &str = "aaaaaaaaaa";
const NEW: &str = "bbbbbbbbbb";

fn rig(model: Model, api: &FakeApi) -> Rig {
    with_api(Rig::new(model), api)
}

fn with_api(mut rig: Rig, api: &FakeApi) -> Rig {
    let config = kube::Config::new(api.url().parse().unwrap());
    rig.api = Some(ApiAccess::Given(Box::new(config)));
    let timing = &mut rig.settings.timing;
    timing.api_retry.first = Duration::from_millis(5);
    timing.api_retry.limit = Duration::from_millis(20);
    timing.reports.ordinary.gap = Duration::from_millis(20);
    timing.reports.urgent.gap = Duration::from_millis(1);
    timing.role.look_around = Duration::from_millis(10);
    if !rig.settings.host_dev_dir.join("tty0").exists() {
        rig.plug("tty0");
    }
    rig
}

/// The long waits for others pass in a fraction of a second.
fn hasty(rig: &mut Rig) {
    rig.settings.timing.role.haste = 300;
    rig.settings.timing.kubelet_first = Duration::ZERO;
}

fn named(active: &str, standby: Option<&str>, baseline: Option<&str>) -> Value {
    let resources = json!([{ "name": TTY, "healthy": 1 }]);
    let baseline = baseline.map(|revision| {
        json!({ "revision": revision, "takenAt": "2026-01-01T00:00:00Z", "resources": resources })
    });
    json!({ "active": active, "standby": standby, "baseline": baseline })
}

fn serves(status: &Value, revision: &str) -> bool {
    status["active"]["revision"] == revision && status["active"]["summary"]["registered"] == "1/1"
}

fn stands_by(status: &Value, revision: &str) -> bool {
    status["standby"]["revision"] == revision && status["standby"]["preflight"]["ok"] == true
}

/// The old agent serves, the new one stands by, nothing was swapped yet.
async fn staged(rig: &Rig, api: &FakeApi) -> (Running, Running) {
    api.set_object(OBJECT, &named(OLD, None, None));
    let old = rig.start_mortal(OLD, Active);
    api.until_status("old serves", |status| serves(status, OLD))
        .await;
    api.set_object(OBJECT, &named(OLD, Some(NEW), None));
    let new = rig.start_mortal(NEW, Standby);
    api.until_status("new stands by", |status| stands_by(status, NEW))
        .await;
    (old, new)
}

/// The new agent serves, the old one stands by.
async fn swapped(rig: &Rig, api: &FakeApi) -> (Running, Running) {
    let (old, new) = staged(rig, api).await;
    api.set_object(OBJECT, &named(NEW, Some(OLD), Some(OLD)));
    let what = "swapped";
    api.until_status(what, |status| serves(status, NEW) && stands_by(status, OLD))
        .await;
    rig.until_remembered(NEW).await;
    (old, new)
}

fn is_served_again(known: &Knowledge, calls: usize) -> bool {
    known.calls.len() > calls && known.healths(TTY) == ["Healthy"]
}

/// Waits for longer than something would take that must not happen.
async fn long_enough(time: Duration) {
    let start = Instant::now();
    until("time passes", || start.elapsed() > time).await;
}

/// 25, 26 and 71: back and forth, never two registrations, on both models.
#[tokio::test]
async fn roles_are_swapped_by_one_write() {
    for model in [Model::V1_36, Model::V1_37] {
        let api = FakeApi::start().await;
        let rig = rig(model, &api);
        rig.kubelet.slow_down(Duration::from_millis(3));
        let (old, new) = staged(&rig, &api).await;
        let status = api.status();
        assert_eq!(status["standby"]["resources"][0]["healthy"], 1);
        assert_eq!(status["standby"]["podUID"], format!("pod-{NEW}"));
        assert!(serves(&status, OLD));
        new.until_ready().await;
        let mut changes = Vec::new();
        for round in 0..20 {
            let (active, standby) = if round % 2 == 0 {
                (NEW, OLD)
            } else {
                (OLD, NEW)
            };
            let calls = rig.kubelet.known().calls.len();
            let written = Instant::now();
            api.set_object(OBJECT, &named(active, Some(standby), Some(OLD)));
            let known = rig
                .kubelet
                .until("a new stream", |known| is_served_again(known, calls))
                .await;
            changes.push(known.streams.last().unwrap().at - written);
            let is_swapped = |status: &Value| serves(status, active) && stands_by(status, standby);
            api.until_status("swapped", is_swapped).await;
        }
        let known = rig.kubelet.known();
        assert!(known.overlaps.is_empty(), "{model:?}: {:?}", known.overlaps);
        assert_eq!(known.calls.len(), 21, "{model:?}: one for each change");
        let mut gaps = known.gaps(TTY);
        gaps.sort();
        changes.sort();
        // Far above the goals, which are shown on real kubelets: the machine may be busy.
        let (gap, change) = (gaps[gaps.len() / 2], changes[changes.len() / 2]);
        assert!(gap < Duration::from_millis(200), "{model:?}: {gaps:?}");
        assert!(
            change < Duration::from_millis(300),
            "{model:?}: {changes:?}"
        );
        assert_eq!(rig.plugin_sockets().len(), 1);
        // The change is over: nobody stands by any more, and the holder says so.
        api.set_object(OBJECT, &named(OLD, None, None));
        new.stop().await.unwrap();
        api.until_status("empty", |status| status["standby"].is_null())
            .await;
        assert!(serves(&api.status(), OLD));
        old.stop().await.unwrap();
    }
}

/// The kubelet must have seen the end of the old stream before the new registration, also when it is
/// slow: on 1.36 it would end the new stream with it.
#[tokio::test]
async fn a_slow_kubelet_is_waited_for() {
    let api = FakeApi::start().await;
    let rig = rig(Model::V1_36, &api);
    let slowness = Duration::from_millis(100);
    rig.kubelet.slow_down(slowness);
    let _both = swapped(&rig, &api).await;
    let known = rig.kubelet.known();
    assert_eq!(known.calls.len(), 2, "not thrown out again");
    assert!(known.overlaps.is_empty(), "{:?}", known.overlaps);
    assert!(known.gaps(TTY)[0] > slowness, "{:?}", known.gaps(TTY));
}

/// The death of the old agent promotes nobody: it comes back and serves.
#[tokio::test]
async fn a_staged_agent_never_serves_by_itself() {
    let api = FakeApi::start().await;
    let mut rig = rig(Model::V1_36, &api);
    hasty(&mut rig);
    let (old, new) = staged(&rig, &api).await;
    old.kill().await;
    rig.kubelet
        .until("disconnected", |known| !known.is_served(TTY))
        .await;
    // 600 s and more, for the agent.
    long_enough(Duration::from_secs(2)).await;
    assert_eq!(rig.kubelet.known().calls.len(), 1);
    new.until_ready().await;
    let _old = rig.start_mortal(OLD, Active);
    rig.kubelet
        .until("served", |known| is_served_again(known, 1))
        .await;
    assert_eq!(api.status()["active"]["revision"], OLD);
}

/// The one exception: the operator may be away when the new agent dies for good.
#[tokio::test]
async fn the_proven_standby_takes_over_when_the_new_one_is_gone() {
    for model in [Model::V1_36, Model::V1_37] {
        let api = FakeApi::start().await;
        let mut rig = rig(model, &api);
        hasty(&mut rig);
        let (old, new) = swapped(&rig, &api).await;
        let died = Instant::now();
        new.kill().await;
        api.until_status("taken over", |status| serves(status, OLD))
            .await;
        let waited = died.elapsed();
        assert!(waited > Duration::from_millis(550), "180 s: {waited:?}");
        // Until the object changes it stays, whoever comes.
        let new = rig.start_mortal(NEW, Standby);
        let told = || {
            new.readiness
                .get()
                .is_err_and(|why| why.contains("to leave"))
        };
        until("the new one waits", told).await;
        let (calls, writes) = (rig.kubelet.known().calls.len(), api.writes().len());
        long_enough(Duration::from_millis(300)).await;
        assert!(serves(&api.status(), OLD));
        let written = format!("{:?}", &api.writes()[writes..]);
        assert!(
            !written.contains(&format!("pod-{NEW}")),
            "who waits tells nothing"
        );
        // The operator is back: what serves already is not touched by that.
        api.set_object(OBJECT, &named(OLD, Some(NEW), Some(OLD)));
        api.until_status("rolled back", |status| stands_by(status, NEW))
            .await;
        assert!(serves(&api.status(), OLD));
        let known = rig.kubelet.known();
        assert_eq!(known.calls.len(), calls, "{model:?}");
        assert!(known.overlaps.is_empty());
        old.stop().await.unwrap();
    }
}

/// A start needs nobody's word, and a standby that restarts does not serve.
#[tokio::test]
async fn without_an_api_server_the_host_remembers() {
    let mut api = FakeApi::start().await;
    let rig = rig(Model::V1_37, &api);
    let (old, new) = swapped(&rig, &api).await;
    api.go_away();
    new.kill().await;
    old.kill().await;
    let calls = rig.kubelet.known().calls.len();
    // The pods' templates say the opposite of what was so.
    let old = rig.start_mortal(OLD, Active);
    let new = rig.start_mortal(NEW, Standby);
    rig.kubelet
        .until("served", |known| is_served_again(known, calls))
        .await;
    new.until_ready().await;
    assert!(old.readiness.get().is_err());
    api.come_back().await;
    let what = "the same as before";
    api.until_status(what, |status| serves(status, NEW) && stands_by(status, OLD))
        .await;
    assert_eq!(rig.kubelet.known().calls.len(), calls + 1);
}

/// An agent that nobody names and nobody can replace: it keeps what it has, and serves after a while.
#[tokio::test]
async fn a_stale_object_leaves_no_node_without_devices() {
    let api = FakeApi::start().await;
    let mut rig = rig(Model::V1_36, &api);
    hasty(&mut rig);
    api.set_object(OBJECT, &named("cccccccccc", Some("dddddddddd"), None));
    let staged = rig.start_mortal(NEW, Standby);
    let old = rig.start_mortal(OLD, Active);
    long_enough(Duration::from_millis(120)).await;
    // Who is named anew gets its time from then on.
    api.set_object(OBJECT, &named("ffffffffff", Some("dddddddddd"), None));
    let started = Instant::now();
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    let waited = started.elapsed();
    assert!(waited > Duration::from_millis(180), "60 s: {waited:?}");
    api.until_status("told", |status| serves(status, OLD)).await;
    // Somebody else is named, and nobody of that revision is here.
    api.set_object(OBJECT, &named("eeeeeeeeee", None, None));
    long_enough(Duration::from_millis(300)).await;
    assert_eq!(rig.kubelet.known().calls.len(), 1);
    assert!(serves(&api.status(), OLD));
    // Now somebody is.
    let named = rig.start_mortal("eeeeeeeeee", Standby);
    api.until_status("replaced", |status| serves(status, "eeeeeeeeee"))
        .await;
    assert!(rig.kubelet.known().overlaps.is_empty());
    assert!(old.readiness.get().is_err() && staged.readiness.get().is_err());
    named.stop().await.unwrap();
}

/// An object of a config that was deleted and made again under its name is nobody's object.
#[tokio::test]
async fn an_object_of_another_config_is_left_alone() {
    let api = FakeApi::start().await;
    let rig = rig(Model::V1_37, &api);
    api.set_object_of(OBJECT, "uid-0", &named(NEW, None, None));
    let agent = rig.start_mortal(OLD, Active);
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    agent.until_ready().await;
    let other = rig.start_mortal(NEW, Standby);
    other.until_ready().await;
    assert!(api.writes().is_empty());
    api.set_object(OBJECT, &named(OLD, None, None));
    api.until_status("ours", |status| serves(status, OLD)).await;
}

#[tokio::test]
async fn an_object_that_is_deleted_changes_nothing() {
    let api = FakeApi::start().await;
    let mut rig = rig(Model::V1_36, &api);
    hasty(&mut rig);
    let (old, new) = swapped(&rig, &api).await;
    let calls = rig.kubelet.known().calls.len();
    api.delete_object();
    long_enough(Duration::from_secs(1)).await;
    assert_eq!(rig.kubelet.known().calls.len(), calls);
    new.until_ready().await;
    assert!(
        old.readiness.get().is_err(),
        "the old one waits for its time"
    );
    api.set_object(OBJECT, &named(NEW, Some(OLD), Some(OLD)));
    let what = "told again";
    api.until_status(what, |status| serves(status, NEW) && stands_by(status, OLD))
        .await;
    assert_eq!(rig.kubelet.known().calls.len(), calls);
}

/// What another config of the name, or nobody, wrote is no reason to serve.
#[tokio::test]
async fn a_state_file_counts_only_for_its_config() {
    for (uid, expected) in [("uid-1", true), ("uid-2", false)] {
        let api = FakeApi::away().await;
        let rig = rig(Model::V1_37, &api);
        let state = json!({ "configUid": uid, "revision": OLD, "resources": [TTY] });
        let path = rig.settings.state_dir.join("test");
        std::fs::write(path, state.to_string()).unwrap();
        let agent = rig.start_mortal(OLD, Standby);
        agent.until_ready().await;
        if expected {
            rig.kubelet.until_healths(TTY, &["Healthy"]).await;
        }
        assert_eq!(rig.kubelet.known().is_served(TTY), expected, "{uid}");
    }
}

#[tokio::test]
async fn a_kubelet_that_restarts_in_a_hand_over_is_served_by_the_new_one() {
    for model in [Model::V1_36, Model::V1_37] {
        let api = FakeApi::start().await;
        let mut rig = rig(model, &api);
        let (_old, new) = staged(&rig, &api).await;
        rig.kubelet.stop();
        api.set_object(OBJECT, &named(NEW, Some(OLD), Some(OLD)));
        api.until_status("handed over", |status| status["active"]["revision"] == NEW)
            .await;
        rig.kubelet.start();
        api.until_status("served", |status| serves(status, NEW))
            .await;
        new.until_ready().await;
        assert!(rig.kubelet.known().overlaps.is_empty());
        assert_eq!(rig.plugin_sockets().len(), 1);
    }
}

/// A new revision takes over what was served, and comes between nobody who serves what is new in it.
#[tokio::test]
async fn only_what_was_served_is_taken_over_at_once() {
    let api = FakeApi::start().await;
    let rig = rig(Model::V1_36, &api);
    let (fresh, taken) = ("example.com/fresh", "example.com/taken");
    api.set_object(OBJECT, &named(OLD, Some(NEW), None));
    let _old = rig.start_mortal(OLD, Active);
    api.until_status("old serves", |status| serves(status, OLD))
        .await;
    // Somebody else serves one of the new resources, and holds the lock of the other.
    let _other = UnixListener::bind(rig.settings.plugin_dir.join("other.sock")).unwrap();
    rig.pod_resources.answer(|answers| {
        answers
            .allocatable
            .insert(fresh.to_owned(), vec!["theirs".to_owned()]);
    });
    let lock = File::create(rig.settings.lock_dir.join(lock_name(taken))).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let resources = [tty(), simulated(fresh, 1), simulated(taken, 1)];
    let new = rig.start_mortal_with(NEW, Standby, &resources);
    api.until_status("new stands by", |status| stands_by(status, NEW))
        .await;
    api.set_object(OBJECT, &named(NEW, Some(OLD), Some(OLD)));
    let some = |status: &Value| {
        status["active"]["revision"] == NEW && status["active"]["summary"]["registered"] == "1/3"
    };
    api.until_status("one of three", some).await;
    let foreign = |status: &Value| {
        let told = status["conditions"].to_string();
        told.contains("another plugin serves it") && told.contains("holds its lock")
    };
    api.until_status("told", foreign).await;
    drop(lock);
    let more = |status: &Value| status["active"]["summary"]["registered"] == "2/3";
    api.until_status("two of three", more).await;
    assert!(rig.kubelet.known().endpoints(fresh).is_empty());
    // Back again: what only the new revision has is let go of.
    api.set_object(OBJECT, &named(OLD, Some(NEW), Some(OLD)));
    api.until_status("back", |status| serves(status, OLD)).await;
    rig.kubelet
        .until("let go", |known| !known.is_served(taken))
        .await;
    drop(new);
}

/// The role comes before the resources: who waits for it takes not even those that nobody holds.
#[tokio::test]
async fn who_waits_for_the_role_takes_nothing() {
    let api = FakeApi::start().await;
    let rig = rig(Model::V1_37, &api);
    let free = "example.com/free";
    api.set_object(OBJECT, &named(NEW, None, None));
    // It hears of nothing, and so goes on.
    let deaf = Rig { api: None, ..rig };
    let old = deaf.start_mortal(OLD, Active);
    deaf.kubelet.until_healths(TTY, &["Healthy"]).await;
    let rig = with_api(deaf, &api);
    let new = rig.start_mortal_with(NEW, Active, &[tty(), simulated(free, 1)]);
    let told = || {
        new.readiness
            .get()
            .is_err_and(|why| why.contains("to leave"))
    };
    until("waits", told).await;
    long_enough(Duration::from_millis(300)).await;
    assert_eq!(rig.kubelet.known().calls.len(), 1);
    assert!(api.writes().is_empty());
    old.stop().await.unwrap();
    rig.kubelet.until_healths(free, &["Healthy"]).await;
    new.until_ready().await;
}

/// The role is let go of last: with it goes the right to tell who serves.
#[tokio::test]
async fn the_role_follows_the_resources() {
    let api = FakeApi::start().await;
    let mut rig = rig(Model::V1_37, &api);
    let close = Duration::from_millis(600);
    rig.settings.timing.close = close;
    let _both = staged(&rig, &api).await;
    // A client that says nothing: the server waits for it, within limits.
    let endpoint = rig.kubelet.known().resources[TTY].endpoint.clone();
    let _mute = UnixStream::connect(rig.settings.plugin_dir.join(endpoint)).unwrap();
    let written = Instant::now();
    api.set_object(OBJECT, &named(NEW, Some(OLD), Some(OLD)));
    api.until_status("the new one", |status| status["active"]["revision"] == NEW)
        .await;
    let waited = written.elapsed();
    assert!(waited > close - Duration::from_millis(100), "{waited:?}");
}

/// What the object says of the time before the change is as good as what the host remembers.
#[tokio::test]
async fn garbage_in_the_state_file_holds_up_no_hand_over() {
    let api = FakeApi::start().await;
    let mut rig = rig(Model::V1_36, &api);
    let (old, _new) = staged(&rig, &api).await;
    rig.until_remembered(OLD).await;
    old.kill().await;
    // For who comes the first time there would be no end of it.
    rig.settings.timing.first_time.between_readings = Duration::from_secs(3600);
    rig.settings.timing.first_time.after_kubelet_start = Duration::from_secs(3600);
    let _old = rig.start_mortal(OLD, Active);
    let _new = rig.start_mortal("cccccccccc", Standby);
    api.until_status("serves", |status| serves(status, OLD))
        .await;
    let path = rig.settings.state_dir.join("test");
    std::fs::write(&path, "garbage").unwrap();
    api.set_object(OBJECT, &named("cccccccccc", Some(OLD), Some(OLD)));
    api.until_status("handed over", |status| serves(status, "cccccccccc"))
        .await;
    rig.until_remembered("cccccccccc").await;
}

/// Garbage in the slots, and somebody who writes them: only the spec decides who serves.
#[tokio::test]
async fn what_others_write_into_the_slots_is_replaced() {
    let api = FakeApi::start().await;
    let rig = rig(Model::V1_37, &api);
    let _both = swapped(&rig, &api).await;
    let calls = rig.kubelet.known().calls.len();
    let good = |status: &Value| serves(status, NEW) && stands_by(status, OLD);
    let garbage = [
        json!({ "active": 7, "conditions": "none" }),
        json!([]),
        json!({ "active": { "revision": OLD, "podUID": "pod-9", "agentVersion": "9" } }),
    ];
    for garbage in garbage {
        api.change_status(|status| *status = garbage.clone());
        api.until_status("replaced", good).await;
    }
    assert_eq!(rig.kubelet.known().calls.len(), calls);
}

/// An agent that cannot take locks says so before anything depends on it.
#[tokio::test]
async fn a_preflight_that_fails_says_why() {
    let api = FakeApi::start().await;
    let mut rig = rig(Model::V1_37, &api);
    let nowhere = rig.home.path().join("file");
    std::fs::write(&nowhere, "").unwrap();
    rig.settings.lock_dir = nowhere;
    rig.kubelet.stop();
    std::fs::remove_file(rig.kubelet.socket()).unwrap();
    api.set_object(OBJECT, &named(OLD, Some(NEW), None));
    let agent = rig.start_mortal(NEW, Standby);
    let status = api
        .until_status("told", |status| {
            status["standby"]["preflight"]["ok"] == false
        })
        .await;
    let reasons = status["standby"]["preflight"]["reasons"].to_string();
    assert!(reasons.contains("failed to lock"), "{reasons}");
    assert!(reasons.contains("no kubelet.sock"), "{reasons}");
    agent.until_ready().await;
    assert!(status["active"].is_null());
}

/// Ids that containers hold and that the new revision would not advertise are counted beforehand.
#[tokio::test]
async fn a_standby_counts_the_ids_that_it_would_not_advertise() {
    let api = FakeApi::start().await;
    let rig = rig(Model::V1_37, &api);
    let held = vec!["old-scheme-1".to_owned()];
    rig.pod_resources.answer(|answers| {
        answers.held.insert(TTY.to_owned(), held);
    });
    api.set_object(OBJECT, &named(OLD, Some(NEW), None));
    let _agent = rig.start_mortal(NEW, Standby);
    let status = api
        .until_status("counted", |status| {
            status["standby"]["resources"][0]["missingAllocated"] == 1
        })
        .await;
    let resource = &status["standby"]["resources"][0];
    assert_eq!(
        (&resource["total"], &resource["healthy"]),
        (&json!(2), &json!(1))
    );
}

/// 80: devices of somebody who is no more stay in the kubelet's list for ever. Where somebody else is
/// there, they may be that one's.
#[tokio::test]
async fn a_phantom_is_served_over() {
    for somebody in [false, true] {
        let api = FakeApi::start().await;
        let rig = rig(Model::V1_37, &api);
        let (_old, _new) = staged(&rig, &api).await;
        let socket = rig.settings.plugin_dir.join("other.sock");
        let _other = somebody.then(|| UnixListener::bind(socket).unwrap());
        rig.kubelet.haunt(TTY, &["ghost-1", "ghost-2"]);
        api.set_object(OBJECT, &named(NEW, Some(OLD), Some(OLD)));
        let status = api
            .until_status("served", |status| serves(status, NEW))
            .await;
        rig.kubelet.until_healths(TTY, &["Healthy"]).await;
        let conditions = status["conditions"].to_string();
        assert_eq!(
            !conditions.contains("StaleRegistration"),
            somebody,
            "{conditions}"
        );
    }
}
