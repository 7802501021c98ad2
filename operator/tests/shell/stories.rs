//! Stories that need the whole shell.

use std::time::Duration;

use operator::uninstall::{Left, left, refusal};
use serde_json::json;

use crate::bench::{Bench, eventually};
use crate::server::Cluster;

const CONFIGS: &str = "devicepluginconfigs";
const OBJECTS: &str = "devicepluginnodes";

fn is_ready(cluster: &Cluster) -> bool {
    cluster.reason("fuse", "Ready") == "Complete"
}

fn all_unique(cluster: &Cluster) -> bool {
    let done = cluster.done();
    let unique: std::collections::BTreeSet<_> = done.iter().collect();
    unique.len() == done.len()
}

#[tokio::test]
async fn a_config_is_installed_with_one_write_for_each_object() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench.add_node("n2");
    bench.add_config("fuse");
    for node in ["n1", "n2"] {
        bench.serve("fuse", node).await;
    }
    bench.server.until("Ready", is_ready).await;
    bench.server.change(|cluster| {
        let name = cluster
            .names("daemonsets")
            .first()
            .map(|name| (*name).to_owned())
            .unwrap();
        assert_eq!(
            cluster.done(),
            [
                "patch devicepluginconfigs fuse",
                &format!("create controllerrevisions {name}"),
                &format!("create configmaps {name}"),
                &format!("create daemonsets {name}"),
                "create devicepluginnodes fuse.n1",
                "create devicepluginnodes fuse.n2",
                "patch nodes n1",
                "patch nodes n2",
            ]
        );
        let events = cluster.names("events").len();
        assert!(events > 0, "changes are told as events");
        assert_eq!(bench.readiness.get(), Ok(()));
    });
}

#[tokio::test]
async fn a_watch_that_lags_causes_no_second_write() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench
        .server
        .until("the first look", |cluster| cluster.lists >= 8)
        .await;
    bench.server.hold(&[
        "daemonsets",
        "configmaps",
        "controllerrevisions",
        OBJECTS,
        "nodes",
        "pods",
    ]);
    bench.add_config("fuse");
    let pinned = |cluster: &Cluster| cluster.done().contains(&"patch nodes n1");
    bench.server.until("the label", pinned).await;
    // Every change of the config calls for a pass on caches that have seen none of this.
    for number in 0..5 {
        let seconds = 100 + number;
        bench.server.patch(CONFIGS, "fuse", &json!({ "spec": { "labelLossGraceSeconds": seconds }, "metadata": { "generation": seconds } }));
        let observed = move |cluster: &Cluster| {
            cluster
                .get(CONFIGS, "fuse")
                .unwrap()
                .pointer("/status/observedGeneration")
                == Some(&json!(seconds))
        };
        bench.server.until("the status", observed).await;
    }
    bench
        .server
        .change(|cluster| assert!(all_unique(cluster), "{:#?}", cluster.writes));
    bench.server.release();
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench
        .server
        .change(|cluster| assert!(all_unique(cluster), "{:#?}", cluster.writes));
}

#[tokio::test]
async fn a_status_that_the_watch_has_not_told_is_not_written_again() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench.add_config("fuse");
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench.server.hold(&[CONFIGS]);
    let statuses = |cluster: &Cluster| {
        let line = "apply devicepluginconfigs/status fuse";
        cluster
            .writes
            .iter()
            .filter(|(one, _, _)| one == line)
            .count()
    };
    let before = bench.server.change(|cluster| statuses(cluster));
    for (ready, reason) in [("False", "NodesUnreachable"), ("True", "Complete")] {
        let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
        bench.server.patch("nodes", "n1", &status);
        let told = |cluster: &Cluster| cluster.reason("fuse", "Ready") == reason;
        bench.server.until(reason, told).await;
        for number in 0..3 {
            // A pool that gets its status has seen a pass.
            let pool = format!("p-{ready}-{number}").to_lowercase();
            let object = json!({
                "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginPool",
                "metadata": { "name": pool }, "spec": {},
            });
            bench.server.create("devicepluginpools", object);
            let passed = |cluster: &Cluster| {
                let pool = cluster.get("devicepluginpools", &pool);
                pool.is_some_and(|pool| !pool["status"].is_null())
            };
            bench.server.until("a pass", passed).await;
        }
    }
    let after = bench.server.change(|cluster| statuses(cluster));
    assert_eq!(after - before, 2, "one status for each change");
}

#[tokio::test]
async fn an_object_that_changed_meanwhile_is_looked_at_again() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench
        .server
        .until("the first look", |cluster| cluster.lists >= 8)
        .await;
    bench.server.hold(&["nodes"]);
    bench.server.patch(
        "nodes",
        "n1",
        &json!({ "metadata": { "annotations": { "somebody": "else" } } }),
    );
    bench.add_config("fuse");
    let conflicted = |cluster: &Cluster| {
        cluster
            .writes
            .iter()
            .any(|(line, code, _)| line == "patch nodes n1" && *code == 409)
    };
    bench.server.until("a conflict", conflicted).await;
    bench.server.release();
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench.server.change(|cluster| {
        assert!(
            !cluster.reasons.contains("WriteFailed"),
            "a conflict is no failure"
        );
        assert_eq!(
            cluster
                .done()
                .iter()
                .filter(|line| **line == "patch nodes n1")
                .count(),
            1
        );
    });
}

#[tokio::test]
async fn without_its_kinds_it_says_what_to_install_and_recovers() {
    let bench = Bench::prepared().await;
    bench.server.change(|cluster| {
        cluster
            .missing
            .extend([CONFIGS, OBJECTS, "devicepluginpools"]);
    });
    bench.run();
    eventually("the complaint", || {
        let state = bench.readiness.get();
        state.is_err_and(|why| why.contains("are not installed: install them with"))
    })
    .await;
    bench.add_node("n1");
    bench.server.change(|cluster| cluster.missing.clear());
    bench.add_config("fuse");
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    assert_eq!(bench.readiness.get(), Ok(()));
}

#[tokio::test]
async fn a_refused_write_is_told_on_the_config_and_tried_again() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench.server.refuse(("create", "daemonsets", ""), 403, 2);
    bench.add_config("fuse");
    bench
        .server
        .until("the refusal in the status", |cluster| {
            let config = cluster.get(CONFIGS, "fuse").unwrap();
            let text = config["status"]["summary"].as_str().unwrap_or_default();
            cluster.reason("fuse", "Degraded") == "WriteFailed"
                && text.starts_with("failed to create DaemonSet \"fuse-")
                && text.contains("the test refuses this")
        })
        .await;
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench
        .server
        .until("no trouble", |cluster| {
            cluster.reason("fuse", "Degraded") == "AsExpected"
        })
        .await;
}

#[tokio::test]
async fn what_follows_a_refused_object_waits_for_it() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    let every = ("create", "configmaps", "");
    bench.server.refuse(every, 500, 1);
    bench.add_config("fuse");
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench.server.change(|cluster| {
        let done = cluster.done();
        let at = |start: &str| done.iter().position(|line| line.starts_with(start));
        assert!(
            at("create configmaps") < at("create daemonsets"),
            "{done:?}"
        );
    });
}

#[tokio::test]
async fn a_config_that_is_refused_holds_back_no_other() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    let every = ("create", "controllerrevisions", "broken");
    bench.server.refuse(every, 500, usize::MAX);
    bench.add_config("broken");
    let refused = |cluster: &Cluster| cluster.reason("broken", "Degraded") == "WriteFailed";
    bench.server.until("the refusal", refused).await;
    bench.add_config("fuse");
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench.server.change(|cluster| assert!(refused(cluster)));
}

#[tokio::test]
async fn a_node_that_cannot_be_written_holds_back_no_other() {
    let bench = Bench::started().await;
    for node in ["n1", "n2", "n3"] {
        bench.add_node(node);
    }
    bench
        .server
        .refuse(("patch", "nodes", "n1"), 403, usize::MAX);
    bench.add_config("fuse");
    for node in ["n2", "n3"] {
        bench.serve("fuse", node).await;
    }
    let refused = |cluster: &Cluster| cluster.reason("fuse", "Degraded") == "WriteFailed";
    bench.server.until("the refusal", refused).await;
}

#[tokio::test]
async fn what_a_webhook_keeps_otherwise_is_told_and_not_fought() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench.add_config("fuse");
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    let name = bench
        .server
        .change(|cluster| cluster.names("daemonsets")[0].to_owned());
    bench
        .server
        .change(|cluster| cluster.frozen.insert("daemonsets"));
    let other = json!({ "spec": { "template": { "spec": { "containers": [] } } } });
    bench.server.patch("daemonsets", &name, &other);
    bench
        .server
        .until("the webhook in the status", |cluster| {
            let config = cluster.get(CONFIGS, "fuse").unwrap();
            let text = config["status"]["conditions"].to_string();
            cluster.reason("fuse", "Degraded") == "WriteFailed"
                && text.contains("stays other than the operator writes it")
        })
        .await;
    bench.add_node("n2");
    bench.serve("fuse", "n2").await;
    bench.server.change(|cluster| {
        let patches = |line: &&str| line.starts_with("patch daemonsets");
        assert_eq!(cluster.done().into_iter().filter(patches).count(), 1);
    });
}

#[tokio::test]
async fn a_name_that_is_taken_is_told_in_the_end() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench.server.refuse(("create", "configmaps", ""), 500, 1);
    bench.add_config("fuse");
    bench
        .server
        .until("the revision", |cluster| {
            !cluster.names("controllerrevisions").is_empty()
        })
        .await;
    let name = bench
        .server
        .change(|cluster| cluster.names("controllerrevisions")[0].to_owned());
    bench.server.hold(&["daemonsets"]);
    bench
        .server
        .create("daemonsets", json!({ "metadata": { "name": name } }));
    bench
        .server
        .until("the taken name in the status", |cluster| {
            let config = cluster.get(CONFIGS, "fuse").unwrap();
            let text = config["status"]["summary"].as_str().unwrap_or_default();
            text.contains("one of that name exists and is not this config's; delete it")
        })
        .await;
}

#[tokio::test]
async fn a_deleted_config_leaves_nothing() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench.add_node("n2");
    bench.add_config("fuse");
    for node in ["n1", "n2"] {
        bench.serve("fuse", node).await;
    }
    bench.server.until("Ready", is_ready).await;
    bench.server.delete(CONFIGS, "fuse");
    bench
        .server
        .until("no DaemonSet", |cluster| {
            cluster.names("daemonsets").is_empty()
        })
        .await;
    bench
        .server
        .until("the wait", |cluster| {
            cluster.reason("fuse", "Progressing") == "Deleting"
        })
        .await;
    bench
        .server
        .change(|cluster| assert_eq!(cluster.names(OBJECTS).len(), 2, "agents are still there"));
    for pod in bench.server.change(|cluster| {
        cluster
            .names("pods")
            .iter()
            .map(|one| (*one).to_owned())
            .collect::<Vec<_>>()
    }) {
        bench.server.delete("pods", &pod);
    }
    bench
        .server
        .until("nothing", |cluster| cluster.names(CONFIGS).is_empty())
        .await;
    bench.server.change(|cluster| {
        for kind in ["configmaps", "controllerrevisions", OBJECTS] {
            assert_eq!(cluster.names(kind), Vec::<&str>::new(), "{kind}");
        }
        for node in ["n1", "n2"] {
            let labels = &cluster.get("nodes", node).unwrap()["metadata"]["labels"];
            assert_eq!(labels, &json!({ "kubernetes.io/os": "linux" }));
        }
    });
}

#[tokio::test]
async fn a_kind_that_is_removed_keeps_no_config_from_going() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench.add_config("fuse");
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    bench.server.change(|cluster| {
        cluster.missing.extend([OBJECTS, "devicepluginpools"]);
        cluster.objects.remove(OBJECTS);
    });
    eventually("the complaint", || bench.readiness.get().is_err()).await;
    bench.server.delete(CONFIGS, "fuse");
    let no_set = |cluster: &Cluster| cluster.names("daemonsets").is_empty();
    bench.server.until("no DaemonSet", no_set).await;
    bench
        .server
        .change(|cluster| cluster.objects.remove("pods"));
    bench.server.compact();
    let gone = |cluster: &Cluster| cluster.names(CONFIGS).is_empty();
    bench.server.until("nothing", gone).await;
}

#[tokio::test]
async fn a_watch_whose_version_is_too_old_lists_again() {
    let bench = Bench::started().await;
    bench
        .server
        .until("the first look", |cluster| cluster.lists >= 8)
        .await;
    bench.server.hold(&["nodes"]);
    bench.add_node("n1");
    bench.server.compact();
    bench.add_config("fuse");
    bench.serve("fuse", "n1").await;
    bench.server.release();
    bench.server.until("Ready", is_ready).await;
}

#[tokio::test]
async fn statuses_of_one_config_are_a_second_apart() {
    let bench = Bench::started().await;
    bench.add_node("n1");
    bench.add_config("fuse");
    bench.serve("fuse", "n1").await;
    bench.server.until("Ready", is_ready).await;
    for total in 2..6 {
        bench.server.patch(
            OBJECTS,
            "fuse.n1",
            &json!({ "status": { "active": { "resources": [{ "name": "example.com/fuse", "registered": true, "registrations": 1, "total": total, "healthy": total, "allocated": 0 }] } } }),
        );
        let counted = move |cluster: &Cluster| {
            cluster
                .get(CONFIGS, "fuse")
                .unwrap()
                .pointer("/status/devices/total")
                == Some(&json!(total))
        };
        bench.server.until("the count", counted).await;
    }
    bench.server.change(|cluster| {
        let statuses = cluster
            .writes
            .iter()
            .filter(|(line, _, _)| line == "apply devicepluginconfigs/status fuse");
        let times: Vec<_> = statuses.map(|(_, _, at)| *at).collect();
        for pair in times.windows(2) {
            // Measured where they arrive: the first may have been on its way for a moment longer.
            assert!(
                pair[1] - pair[0] > Duration::from_millis(900),
                "{:?}",
                pair[1] - pair[0]
            );
        }
    });
}

#[tokio::test]
async fn node_writes_keep_their_pace_and_hold_up_nothing_else() {
    let bench = Bench::prepared().await;
    for number in 0..12 {
        bench.add_node(&format!("n{number}"));
    }
    bench.run_with(5);
    bench.add_config("fuse");
    bench
        .server
        .until("a status", |cluster| {
            cluster.reason("fuse", "Progressing") == "RollingOut"
        })
        .await;
    bench
        .server
        .change(|cluster| assert!(cluster.names(OBJECTS).len() < 12, "the status waited"));
    bench
        .server
        .until("all objects", |cluster| cluster.names(OBJECTS).len() == 12)
        .await;
    bench.server.change(|cluster| {
        let node_write = |line: &str| {
            line.starts_with("create devicepluginnodes") || line.starts_with("patch nodes")
        };
        let times: Vec<_> = cluster
            .writes
            .iter()
            .filter(|(line, _, _)| node_write(line))
            .map(|(_, _, at)| *at)
            .collect();
        for window in times.windows(11) {
            // A full bucket of five, and five more in a second.
            assert!(
                window[10] - window[0] > Duration::from_millis(950),
                "{:?}",
                window[10] - window[0]
            );
        }
    });
}

#[tokio::test]
async fn an_uninstall_is_refused_while_configs_exist() {
    let bench = Bench::prepared().await;
    assert_eq!(left(bench.client.clone()).await.unwrap(), Left::Nothing);
    bench.add_config("fuse");
    let configs = Left::Configs(vec!["fuse".to_owned()]);
    assert_eq!(left(bench.client.clone()).await.unwrap(), configs);
    let text = refusal(&["fuse".to_owned()]);
    assert!(text.contains("\"fuse\"") && text.contains("kubectl delete devicepluginconfigs --all"));
    assert!(text.contains("helm uninstall --no-hooks"));
    bench
        .server
        .change(|cluster| cluster.missing.insert(CONFIGS));
    assert_eq!(left(bench.client.clone()).await.unwrap(), Left::Nothing);
}
