//! Several operators: one acts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::Stop;
use operator::driver;
use operator::lease::decision::Timing;
use operator_core::plan::plan;
use serde_json::{Value, json};

use crate::bench::{Bench, Operator, TIMING, eventually, flags};
use crate::server::Cluster;

const LEASES: &str = "leases";
const LEASE: &str = "device-plugin-operator";

fn is_ready(config: &str) -> impl FnMut(&Cluster) -> bool {
    move |cluster| cluster.reason(config, "Ready") == "Complete"
}

/// Two operators of which the first leads; both have seen everything.
async fn two(bench: &Bench) -> (Operator, Operator) {
    let first = bench.another("operator-a");
    eventually("the first leads", || first.leads()).await;
    let second = bench.another("operator-b");
    for operator in [&first, &second] {
        eventually("readiness", || operator.readiness.get().is_ok()).await;
    }
    (first, second)
}

fn holder(bench: &Bench) -> (String, i64) {
    bench.server.change(|cluster| {
        let (holder, transitions) = cluster.holder();
        (holder.to_owned(), transitions)
    })
}

fn lease(holder: &str, transitions: i64) -> Value {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    json!({
        "metadata": { "name": LEASE },
        "spec": {
            "holderIdentity": holder, "leaseTransitions": transitions,
            "leaseDurationSeconds": 1, "renewTime": now,
        },
    })
}

async fn serve_one_config(bench: &Bench, config: &str) {
    bench.add_config(config);
    bench.serve(config, "n1").await;
    bench.server.until("Ready", is_ready(config)).await;
}

#[tokio::test]
async fn one_of_two_operators_acts_and_hands_over_when_it_stops() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    let (mut first, second) = two(&bench).await;
    serve_one_config(&bench, "fuse").await;
    assert!(first.leads() && !second.leads(), "one leads");
    assert_eq!(holder(&bench).1, 0);
    assert!(holder(&bench).0.starts_with("operator-a_"));
    bench.server.change(|cluster| {
        let done = cluster.done();
        let unique: std::collections::BTreeSet<_> = done.iter().collect();
        assert_eq!(unique.len(), done.len(), "{done:?}");
    });
    first.stop.request();
    let stopped = Instant::now();
    assert_eq!(first.end().await, "", "an orderly stop");
    eventually("the second leads", || second.leads()).await;
    assert!(stopped.elapsed() < TIMING.lease, "{:?}", stopped.elapsed());
    assert_eq!(holder(&bench).1, 1, "the Lease has changed hands");
    serve_one_config(&bench, "kvm").await;
}

#[tokio::test]
async fn a_process_that_is_told_to_stop_releases_the_lease() {
    let bench = Bench::prepared().await;
    let stop = Stop::default();
    let process = tokio::spawn(driver::run(
        bench.client.clone(),
        flags("operator-a", 1_000),
        stop.clone(),
    ));
    let leads = |cluster: &Cluster| !cluster.holder().0.is_empty();
    bench.server.until("a leader", leads).await;
    stop.request();
    process.await.unwrap().unwrap();
    assert_eq!(holder(&bench), (String::new(), 0));
}

#[tokio::test]
async fn a_dead_leader_is_followed_when_its_lease_is_over() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    let (first, second) = two(&bench).await;
    first.ended.abort();
    let died = Instant::now();
    eventually("the second leads", || second.leads()).await;
    // The last renewal may have been a whole interval before the death.
    let least = TIMING.lease - TIMING.retry * 2;
    assert!(died.elapsed() > least, "{:?}", died.elapsed());
    assert_eq!(holder(&bench).1, 1);
    serve_one_config(&bench, "fuse").await;
}

#[tokio::test]
async fn a_restarted_container_follows_itself_at_once() {
    let bench = Bench::prepared().await;
    let timing = Timing {
        lease: Duration::from_secs(3_600),
        ..TIMING
    };
    let first = bench.another_with("operator-a", timing, Arc::new(plan));
    eventually("the first leads", || first.leads()).await;
    let before = holder(&bench);
    first.ended.abort();
    let second = bench.another_with("operator-a", timing, Arc::new(plan));
    eventually("the second leads", || second.leads()).await;
    let after = holder(&bench);
    assert_ne!(before.0, after.0, "it is another process");
    assert_eq!(after.1, before.1 + 1, "with an epoch of its own");
}

#[tokio::test]
async fn a_leader_that_cannot_renew_ends() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    let mut operator = bench.another("operator-a");
    eventually("it leads", || operator.leads()).await;
    let every = ("update", LEASES, "");
    bench.server.refuse(every, 500, usize::MAX);
    let end = operator.end().await;
    assert!(
        end.contains("is lost: it could not be renewed for"),
        "{end:?}"
    );
    bench.add_config("fuse");
    let standby = bench.another("operator-b");
    eventually("readiness", || standby.readiness.get().is_ok()).await;
    bench.server.change(|cluster| {
        assert!(cluster.done().is_empty(), "nobody leads, and nobody acts");
    });
}

#[tokio::test]
async fn a_leader_whose_lease_is_taken_ends() {
    let bench = Bench::prepared().await;
    let mut operator = bench.another("operator-a");
    eventually("it leads", || operator.leads()).await;
    bench.server.patch(LEASES, LEASE, &lease("operator-b_1", 1));
    let end = operator.end().await;
    assert!(end.contains("its holder is \"operator-b_1\""), "{end:?}");
    assert_eq!(holder(&bench), ("operator-b_1".to_owned(), 1));
}

#[tokio::test]
async fn a_deleted_lease_is_made_again_with_the_same_epoch() {
    let bench = Bench::prepared().await;
    bench.server.create(LEASES, lease("", 4));
    let operator = bench.another("operator-a");
    eventually("it leads", || operator.leads()).await;
    let before = holder(&bench);
    assert_eq!(before.1, 5);
    bench.server.delete(LEASES, LEASE);
    bench
        .server
        .until("the Lease", |cluster| cluster.get(LEASES, LEASE).is_some())
        .await;
    assert_eq!(holder(&bench), before);
    assert!(operator.leads());
}

#[tokio::test]
async fn no_later_leader_has_a_lower_epoch_than_the_ledger() {
    let bench = Bench::prepared().await;
    crate::ledger::put(&bench, &json!({ "epoch": 7, "claims": [] }).to_string());
    let operator = bench.another("operator-a");
    eventually("it leads", || operator.leads()).await;
    assert_eq!(holder(&bench).1, 7, "the epoch is one more");
}

#[tokio::test]
async fn an_unreadable_ledger_elects_nobody() {
    let bench = Bench::prepared().await;
    let every = ("get", "configmaps", "rollout-ledger");
    bench.server.refuse(every, 500, 5);
    let operator = bench.another("operator-a");
    eventually("readiness", || operator.readiness.get().is_ok()).await;
    assert!(!operator.leads());
    eventually("it leads when it can be read", || operator.leads()).await;
}
