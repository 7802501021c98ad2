//! The ledger is written before anything is done, and a leader that has lost it does nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use operator::driver::Planner;
use operator::lease::decision::Timing;
use operator::ledger::{EPOCH_MAX, Ledgers, Recorded};
use operator::metrics::Metrics;
use operator_core::ledger::{Claim, Ledger, LedgerWrite, Phase, SeenLedger};
use operator_core::plan::{Plan, plan};
use operator_core::snapshot::Snapshot;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use crate::bench::{Bench, TIMING, eventually};
use crate::server::Cluster;

const MAPS: &str = "configmaps";
const LEDGER: &str = "rollout-ledger";

/// Makes or replaces the ledger behind everybody's back.
pub fn put(bench: &Bench, text: &str) {
    let is_there = bench
        .server
        .change(|cluster| cluster.get(MAPS, LEDGER).is_some());
    let data = json!({ "data": { "ledger.json": text } });
    if is_there {
        return bench.server.patch(MAPS, LEDGER, &data);
    }
    let mut object = json!({ "metadata": { "name": LEDGER } });
    object["data"] = data["data"].clone();
    bench.server.create(MAPS, object);
}

fn ledger(cluster: &Cluster) -> Option<Value> {
    let text = cluster.get(MAPS, LEDGER)?["data"]["ledger.json"].as_str()?;
    serde_json::from_str(text).ok()
}

fn is_ready(cluster: &Cluster) -> bool {
    cluster.reason("fuse", "Ready") == "Complete"
}

/// What the core plans, with a ledger of this leader's before anything else is done.
fn recording() -> Planner {
    Arc::new(|seen: &Snapshot| {
        let present = seen.ledger.ledger();
        if present.is_some_and(|ledger| ledger.epoch > seen.epoch) {
            return Plan {
                deposed: true,
                ..Plan::default()
            };
        }
        let is_ours = present.is_some_and(|ledger| ledger.epoch == seen.epoch);
        let on = match &seen.ledger {
            SeenLedger::Absent => None,
            SeenLedger::Present { on, .. } => Some(on.clone()),
        };
        let write = LedgerWrite {
            on,
            ledger: Ledger {
                epoch: seen.epoch,
                claims: Vec::new(),
            },
        };
        Plan {
            ledger: (!is_ours).then_some(write),
            deposed: false,
            ..plan(seen)
        }
    })
}

/// Everything that was asked to be written, whatever became of it, without the election.
fn asked(cluster: &Cluster) -> Vec<String> {
    let writes = cluster
        .writes
        .iter()
        .map(|(line, code, _)| format!("{line} {code}"));
    writes.filter(|line| !line.contains(" leases ")).collect()
}

#[tokio::test]
async fn the_ledger_is_written_before_anything_is_done() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    bench.add_config("fuse");
    let operator = bench.another_with("operator-a", TIMING, recording());
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench.server.change(|cluster| {
        assert_eq!(cluster.done()[0], "create configmaps rollout-ledger");
        assert_eq!(
            ledger(cluster).unwrap(),
            json!({ "epoch": 1, "claims": [] })
        );
    });
    let written = "device_plugin_operator_ledger_writes_total{result=\"written\"}";
    assert_eq!(operator.metric(written), 1.0);
}

#[tokio::test]
async fn a_leader_whose_ledger_is_lost_looks_at_the_lease_again() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    bench.add_config("fuse");
    let _operator = bench.another_with("operator-a", TIMING, recording());
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    for harm in [None, Some("{garbage")] {
        let epoch = |cluster: &Cluster| ledger(cluster).and_then(|ledger| ledger["epoch"].as_u64());
        let before = bench.server.change(|cluster| epoch(cluster));
        match harm {
            None => bench.server.delete(MAPS, LEDGER),
            Some(garbage) => put(&bench, garbage),
        }
        // News, so that the operator looks before its rest is over.
        let news =
            json!({ "metadata": { "labels": { "news": before.unwrap_or_default().to_string() } } });
        bench.server.patch("nodes", "n1", &news);
        let is_anew = |cluster: &Cluster| epoch(cluster) > before;
        bench
            .server
            .until("a ledger of a later epoch", is_anew)
            .await;
    }
}

#[tokio::test]
async fn a_ledger_that_somebody_else_has_written_ends_the_pass() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    bench.add_config("fuse");
    // A third attempt would wait for its turn.
    bench.server.refuse(("create", MAPS, LEDGER), 409, 2);
    let operator = bench.another_with("operator-a", TIMING, recording());
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench.server.change(|cluster| {
        let asked = asked(cluster);
        let refused = ["create configmaps rollout-ledger 409"; 2];
        assert_eq!(asked[..2], refused, "not even a status was written");
        let is_act = |line: &&String| !line.contains("/status") && !line.contains("events");
        let mut rest = asked[2..].iter().filter(is_act);
        assert_eq!(rest.next().unwrap(), "create configmaps rollout-ledger 201");
    });
    let outdated = "device_plugin_operator_ledger_writes_total{result=\"outdated\"}";
    assert_eq!(operator.metric(outdated), 2.0);
}

#[tokio::test]
async fn a_ledger_that_is_refused_holds_everything_back_but_statuses() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    bench.add_config("fuse");
    bench.server.refuse(("create", MAPS, LEDGER), 403, 2);
    let _operator = bench.another_with("operator-a", TIMING, recording());
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench.server.change(|cluster| {
        let asked = asked(cluster);
        let at = asked
            .iter()
            .position(|line| line.ends_with("rollout-ledger 201"));
        let before = &asked[..at.unwrap()];
        let refused = |line: &&String| line.ends_with("rollout-ledger 403");
        assert_eq!(before.iter().filter(refused).count(), 2);
        for line in before {
            let is_harmless =
                line.contains(LEDGER) || line.contains("status") || line.contains("events");
            assert!(is_harmless, "{line}");
        }
    });
}

#[tokio::test]
async fn a_leader_that_was_deposed_ends_and_does_nothing() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    // Only the ledger tells it.
    let timing = Timing {
        retry: Duration::from_secs(3_600),
        deadline: Duration::from_secs(7_200),
        lease: Duration::from_secs(9_000),
    };
    let mut operator = bench.another_with("operator-a", timing, recording());
    eventually("it leads", || operator.leads()).await;
    let written = |cluster: &Cluster| ledger(cluster).is_some();
    bench.server.until("its ledger", written).await;
    let other = json!({ "spec": { "holderIdentity": "operator-b_1", "leaseTransitions": 1 } });
    bench
        .server
        .patch("leases", "device-plugin-operator", &other);
    put(&bench, &json!({ "epoch": 2, "claims": [] }).to_string());
    bench.add_config("fuse");
    let end = operator.end().await;
    assert!(end.contains("its holder is \"operator-b_1\""), "{end:?}");
    bench.server.change(|cluster| {
        assert_eq!(cluster.done(), ["create configmaps rollout-ledger"]);
        assert_eq!(ledger(cluster).unwrap()["epoch"], 2);
    });
}

#[tokio::test]
async fn a_ledger_of_nobody_is_taken_over_with_a_later_epoch() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    let operator = bench.another_with("operator-a", TIMING, recording());
    eventually("it leads", || operator.leads()).await;
    put(&bench, &json!({ "epoch": 40, "claims": [] }).to_string());
    bench.add_config("fuse");
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench.server.change(|cluster| {
        assert_eq!(cluster.holder().1, 40);
        assert_eq!(ledger(cluster).unwrap()["epoch"], 41);
    });
}

#[tokio::test]
async fn garbage_is_handed_to_the_plan_as_such() {
    let bench = Bench::prepared().await;
    bench.server.hold(&["nodes"]);
    let seen: Arc<Mutex<Vec<SeenLedger>>> = Arc::default();
    let noted = seen.clone();
    let note: Planner = Arc::new(move |seen: &Snapshot| {
        noted.lock().unwrap().push(seen.ledger.clone());
        Plan::default()
    });
    let _operator = bench.another_with("operator-a", TIMING, note);
    let too_high = json!({ "epoch": EPOCH_MAX + 1, "claims": [] }).to_string();
    for text in ["", "no JSON", r#"{"epoch":-1,"claims":[]}"#, &too_high] {
        put(&bench, text);
        let version = bench.server.change(|cluster| {
            let version = &cluster.get(MAPS, LEDGER).unwrap()["metadata"]["resourceVersion"];
            version.as_str().unwrap().to_owned()
        });
        // Any config calls for a pass.
        bench.add_config(&format!("c{version}"));
        eventually("a pass on it", || {
            let seen = seen.lock().unwrap();
            let mut present = seen.iter().filter_map(|seen| match seen {
                SeenLedger::Absent => None,
                SeenLedger::Present { on, content } => Some((on, content)),
            });
            present.any(|(on, content)| on.version == version && content.is_err())
        })
        .await;
    }
}

#[tokio::test]
async fn a_ledger_that_cannot_be_read_stops_everything() {
    let bench = Bench::prepared().await;
    bench.add_node("n1");
    let operator = bench.another_with("operator-a", TIMING, recording());
    let written = |cluster: &Cluster| ledger(cluster).is_some();
    bench.server.until("its ledger", written).await;
    bench.server.refuse(("get", MAPS, LEDGER), 500, 3);
    bench.add_config("fuse");
    let errors = "device_plugin_operator_reconcile_errors_total{step=\"observe\"}";
    let before = operator.metric(errors);
    eventually("three failures", || operator.metric(errors) >= before + 3.0).await;
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
}

fn claim(config: &str) -> Claim {
    serde_json::from_value(json!({
        "config": config, "node": "n1", "nodeUID": "u", "from": "0123456789", "to": "9876543210",
        "phase": Phase::Staging, "elapsed": 0, "verified": 0, "restarts": 0,
    }))
    .unwrap()
}

#[tokio::test]
async fn a_refusal_is_told_on_every_config_with_claims_and_rests_longer_each_time() {
    let bench = Bench::prepared().await;
    let metrics = Metrics::registered(&mut Registry::default());
    let mut ledgers = Ledgers::new(bench.client.clone(), "dps");
    let write = LedgerWrite {
        on: None,
        ledger: Ledger {
            epoch: 1,
            claims: vec![claim("fuse"), claim("kvm")],
        },
    };
    bench.server.refuse(("create", MAPS, LEDGER), 403, 2);
    let mut waits = Vec::new();
    loop {
        match ledgers.write(&write, &metrics).await {
            Recorded::NotNow(wait) => {
                assert_eq!(
                    ledgers.failures().keys().collect::<Vec<_>>(),
                    ["fuse", "kvm"]
                );
                let message = ledgers.failures().remove("kvm").unwrap();
                assert!(
                    message.contains("without which no node is changed"),
                    "{message}"
                );
                assert!(message.contains("the test refuses this"), "{message}");
                waits.push(wait);
                tokio::time::sleep(wait).await;
            }
            Recorded::Written => break,
            Recorded::Outdated(_) => panic!("nobody else writes"),
        }
    }
    assert_eq!(waits[..2], [Duration::from_secs(1), Duration::from_secs(2)]);
    assert!(ledgers.failures().is_empty(), "it is written");
    // What it was made on is no longer so.
    assert!(matches!(
        ledgers.write(&write, &metrics).await,
        Recorded::Outdated(_)
    ));
    bench.server.change(|cluster| {
        let claims = &ledger(cluster).unwrap()["claims"];
        assert_eq!(claims.as_array().unwrap().len(), 2);
    });
}
