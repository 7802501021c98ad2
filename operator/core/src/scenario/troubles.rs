//! Nodes, agents and devices that fare badly, and what is told of them.

use std::sync::Arc;

use crds::conditions::{ConfigReason, NodeCondition, NodeReason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{World, at};
use crate::plan::plan;
use crate::seen::Trouble;

fn settled(nodes: &[&str]) -> World {
    let mut world = World::with_fuse(nodes);
    world.settle();
    world
}

fn crash(world: &mut World, node: &str) {
    world.change_pod_on(node, |pod| {
        pod.ready = false;
        pod.trouble = Some(Trouble {
            reason: "CrashLoopBackOff".to_owned(),
            message: "exit code 3 (Error) cannot read agent.json".to_owned(),
            fatal: true,
        });
    });
}

#[test]
fn a_failing_agent_is_named_with_its_own_words() {
    let mut world = settled(&["n1", "n2", "n3"]);
    crash(&mut world, "n2");
    world.settle();
    assert_eq!(world.counts("fuse"), [3, 2, 0, 2, 1, 0, 0]);
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=False/NodesFailed Progressing=False/NodesFailed Degraded=True/NodesFailed"
    );
    let name = format!("fuse-{}-n2", world.revision("fuse"));
    assert_eq!(
        world.condition("fuse", "Degraded").message,
        format!(
            "1 failed: \"n2\": agent pod {name:?}: CrashLoopBackOff: exit code 3 (Error) cannot read agent.json"
        )
    );
}

#[test]
fn a_crash_looping_pod_is_left_to_the_kubelet() {
    let mut world = settled(&["n1"]);
    crash(&mut world, "n1");
    world.wait(600);
    assert_eq!(plan(&world.seen).actions, []);
}

#[test]
fn many_failing_nodes_are_named_up_to_ten() {
    let names: Vec<_> = (10..22).map(|number| format!("n{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut world = settled(&names);
    for name in &names {
        crash(&mut world, name);
    }
    world.settle();
    let message = world.condition("fuse", "Degraded").message;
    assert!(
        message.starts_with("12 failed (\"n10\", ") && message.contains("\"n19\" and 2 more)"),
        "{message}"
    );
}

#[test]
fn an_event_names_the_node_and_comes_once() {
    let mut world = settled(&["n1", "n2"]);
    crash(&mut world, "n2");
    let plan = plan(&world.seen);
    let events = &plan.configs[0].events;
    assert_eq!(events.len(), 1, "three conditions, one reason: {events:?}");
    assert_eq!((events[0].reason, events[0].warning), ("NodesFailed", true));
    assert_eq!(
        events[0].node.as_ref().map(|node| node.name.as_str()),
        Some("n2")
    );
    world.settle();
    crash(&mut world, "n1");
    let again = crate::plan::plan(&world.seen);
    assert!(
        again.configs[0].changed && again.configs[0].events.is_empty(),
        "the reason is the same"
    );
}

#[test]
fn an_unreachable_node_is_counted_apart_and_left_alone() {
    let mut world = settled(&["n1", "n2"]);
    world.change_node("n2", |node| {
        node.ready = false;
        node.ready_since = Some(at("11:59:00"));
    });
    assert_eq!(plan(&world.seen).actions, []);
    world.settle();
    assert_eq!(world.counts("fuse"), [2, 1, 0, 1, 0, 0, 1]);
    assert_eq!(world.condition("fuse", "Ready").reason, "NodesUnreachable");
    assert_eq!(world.condition("fuse", "Degraded").status, "False");
    assert!(
        world
            .summary("fuse")
            .contains("\"n2\": the node is not Ready since 2026-11-21T11:59:00Z")
    );
}

#[test]
fn a_foreign_plugin_is_told_in_the_agents_words() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.silent.push("n1".to_owned());
    world.settle();
    let uid = world
        .seen
        .pods
        .values()
        .find(|pod| pod.node == "n1")
        .unwrap()
        .id
        .uid
        .clone();
    let revision = world.revision("fuse");
    world.change_object("fuse.n1", |object| {
        let status = object.status.get_or_insert_default();
        let active = status.active.get_or_insert_default();
        active.pod_uid = uid;
        active.revision = revision;
        status.conditions = vec![Condition {
            type_: NodeCondition::Registered.as_str().to_owned(),
            status: "False".to_owned(),
            reason: NodeReason::ForeignPlugin.as_str().to_owned(),
            message: "resource \"example.com/fuse\" is served by something else".to_owned(),
            observed_generation: None,
            last_transition_time: Time(at("12:00:00")),
        }];
    });
    world.settle();
    assert_eq!(world.counts("fuse"), [2, 1, 0, 1, 0, 1, 0]);
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=False/ForeignPlugin Progressing=False/ForeignPlugin Degraded=True/ForeignPlugin"
    );
    assert!(
        world
            .summary("fuse")
            .contains("is served by something else")
    );
}

#[test]
fn a_resource_that_is_not_registered_is_named() {
    let mut world = settled(&["n1"]);
    world.change_object("fuse.n1", |object| {
        let active = object.status.as_mut().unwrap().active.as_mut().unwrap();
        active.resources[0].registered = false;
        active.resources[0].message = "the kubelet refused: no".to_owned();
    });
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 0, 1, 0, 0, 0, 0]);
    assert!(
        world.summary("fuse").ends_with("resource \"example.com/fuse\" is not registered at the kubelet: the kubelet refused: no"),
        "{}",
        world.summary("fuse")
    );
}

#[test]
fn a_report_of_another_pod_proves_nothing() {
    let mut world = settled(&["n1"]);
    world.change_object("fuse.n1", |object| {
        object
            .status
            .as_mut()
            .unwrap()
            .active
            .as_mut()
            .unwrap()
            .pod_uid = "older".to_owned();
    });
    world.silent.push("n1".to_owned());
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 0, 1, 0, 0, 0, 0]);
    let mut unready = settled(&["n1"]);
    unready.silent.push("n1".to_owned());
    unready.change_pod_on("n1", |pod| pod.ready = false);
    unready.settle();
    assert_eq!(unready.counts("fuse"), [1, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn a_report_of_another_revision_proves_nothing() {
    let mut world = settled(&["n1"]);
    world.change_object("fuse.n1", |object| {
        object
            .status
            .as_mut()
            .unwrap()
            .active
            .as_mut()
            .unwrap()
            .revision = "0123456789".to_owned();
    });
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn an_older_pods_words_are_not_the_new_ones() {
    let mut world = settled(&["n1"]);
    world.change_object("fuse.n1", |object| {
        let active = object.status.as_mut().unwrap().active.as_mut().unwrap();
        active.pod_uid = "older".to_owned();
        active.resources[0].registered = false;
        active.resources[0].message = "the older one's words".to_owned();
    });
    world.silent.push("n1".to_owned());
    world.settle();
    assert!(
        world
            .summary("fuse")
            .ends_with("is starting since 2026-11-21T12:00:00Z"),
        "{}",
        world.summary("fuse")
    );
}

#[test]
fn a_resource_without_devices_names_what_was_looked_for() {
    let mut world = settled(&["n1", "n2"]);
    for name in ["fuse.n1", "fuse.n2"] {
        world.change_object(name, |object| {
            let active = object.status.as_mut().unwrap().active.as_mut().unwrap();
            active.resources[0].total = 0;
            active.resources[0].healthy = 0;
        });
    }
    world.settle();
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=True/Complete Progressing=False/Complete Degraded=True/NoDevices"
    );
    assert_eq!(
        world.condition("fuse", "Degraded").message,
        "resource \"example.com/fuse\" has no device on any of 2 serving nodes: no device node matches \"/dev/fuse\"; devices are advertised as soon as they appear"
    );
    assert_eq!(
        world.config("fuse").status.clone().unwrap().devices.text,
        "0/0"
    );
}

#[test]
fn unhealthy_devices_are_counted_and_their_nodes_named() {
    let mut world = settled(&["n1", "n2"]);
    world.change_object("fuse.n2", |object| {
        let active = object.status.as_mut().unwrap().active.as_mut().unwrap();
        active.resources[0].total = 3;
        active.resources[0].healthy = 1;
        active.resources[0].allocated = 1;
    });
    world.settle();
    let status = world.config("fuse").status.clone().unwrap();
    assert_eq!(
        (
            status.devices.total,
            status.devices.healthy,
            status.devices.allocated
        ),
        (4, 2, 1)
    );
    assert_eq!(status.devices.text, "2/4");
    assert_eq!(status.resources[0].name, "example.com/fuse");
    let degraded = world.condition("fuse", "Degraded");
    assert_eq!(degraded.reason, ConfigReason::DevicesUnhealthy.as_str());
    assert!(
        degraded
            .message
            .contains("2 of 4 devices Unhealthy on \"n2\""),
        "{}",
        degraded.message
    );
}

#[test]
fn fewer_devices_than_wanted_are_told_even_if_none_is_unhealthy() {
    let mut world = settled(&["n1", "n2"]);
    world.change_config("fuse", |config| config.spec.resources[0].min_devices = 1);
    world.settle();
    let degraded = world.condition("fuse", "Degraded");
    assert_eq!(degraded.reason, ConfigReason::AsExpected.as_str());
    world.change_object("fuse.n2", |object| {
        let active = object.status.as_mut().unwrap().active.as_mut().unwrap();
        active.resources[0].total = 0;
        active.resources[0].healthy = 0;
    });
    world.settle();
    let degraded = world.condition("fuse", "Degraded");
    assert_eq!(degraded.reason, ConfigReason::TooFewDevices.as_str());
    assert!(
        degraded
            .message
            .contains("fewer than 1 device Healthy (minDevices) on \"n2\""),
        "{}",
        degraded.message
    );
}

#[test]
fn a_failed_pod_is_deleted_but_not_in_a_hurry() {
    let mut world = settled(&["n1"]);
    let trouble = Trouble {
        reason: "Evicted".to_owned(),
        message: "disk".to_owned(),
        fatal: true,
    };
    let created = world.seen.now;
    world.change_pod_on("n1", |pod| {
        pod.phase = "Failed".to_owned();
        pod.ready = false;
        pod.trouble = Some(trouble);
        pod.created = Some(created);
    });
    assert_eq!(
        plan(&world.seen).actions,
        [],
        "a node that refuses pods must not become a mill"
    );
    assert_eq!(plan(&world.seen).look_again, Some(at("12:00:10")));
    world.wait(10);
    let name = format!("fuse-{}-n1", world.revision("fuse"));
    assert_eq!(world.pass()[0], format!("delete Pod {name}"));
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn a_write_that_is_refused_is_told() {
    let mut world = World::with_fuse(&["n1"]);
    world.pass();
    let refusal = "failed to create DaemonSet \"fuse-1\": forbidden";
    world
        .seen
        .write_failures
        .insert("fuse".to_owned(), refusal.to_owned());
    world.pass();
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=False/NodesNotReady Progressing=False/WriteFailed Degraded=True/WriteFailed"
    );
    assert!(
        world
            .condition("fuse", "Degraded")
            .message
            .starts_with(refusal)
    );
    world.seen.write_failures.clear();
    world.settle();
    assert_eq!(world.condition("fuse", "Degraded").status, "False");
}

#[test]
fn a_name_that_somebody_else_took_is_left_to_the_api_server_to_refuse() {
    let mut world = World::with_fuse(&["n1"]);
    world.pass();
    world.pass();
    let name = format!("fuse-{}", world.revision("fuse"));
    let foreign = crate::seen::SeenDaemonSet {
        config: "fuse".to_owned(),
        ..Default::default()
    };
    world
        .seen
        .daemon_sets
        .insert(name.clone(), Arc::new(foreign));
    assert_eq!(
        world.pass(),
        [format!("create ConfigMap {name}"), "status fuse".to_owned()]
    );
    let plan = plan(&world.seen);
    assert_eq!(plan.actions, [], "nothing of somebody else is written");
}

#[test]
fn a_refused_plan_moves_no_claim_of_its_config_and_those_of_others() {
    let mut world = settled(&["n1", "n2"]);
    let other = "
nodeSelector: {matchLabels: {only: n2}}
resources:
- name: example.com/other
  discovery: {paths: {globs: [/dev/other]}}
";
    world.add_config("other", other);
    world.change_node("n2", |node| {
        drop(node.labels.insert("only".to_owned(), "n2".to_owned()));
    });
    world.settle();
    for config in ["fuse", "other"] {
        world.change_config(config, |config| {
            let paths = config.spec.resources[0].discovery.paths.as_mut().unwrap();
            paths.globs.push("/dev/more".to_owned());
        });
    }
    // Until a plan moves claims of both.
    let mut plan = plan(&world.seen);
    while plan
        .ledger
        .as_ref()
        .is_none_or(|one| one.ledger.claims.len() < 2)
    {
        world.pass();
        world.play();
        plan = crate::plan::plan(&world.seen);
    }
    let violation = |config: &str| crate::audit::Violation {
        rule: "no rule",
        config: config.to_owned(),
        write: "write of the ledger".to_owned(),
    };
    let of = |plan: &crate::plan::Plan, config: &str| -> Vec<_> {
        let ledger = plan.ledger.as_ref().map(|one| &one.ledger.claims);
        let claims = ledger.into_iter().flatten();
        claims.filter(|one| one.config == config).cloned().collect()
    };
    let mut refused = plan.clone();
    refused.refuse(&world.seen, &[violation("fuse")]);
    assert_eq!(of(&refused, "other"), of(&plan, "other"));
    let ledger = world.seen.ledger.ledger().cloned().unwrap_or_default();
    let before = ledger.claims.into_iter();
    let before: Vec<_> = before.filter(|one| one.config == "fuse").collect();
    assert_eq!(of(&refused, "fuse"), before);
    plan.refuse(&world.seen, &[violation("")]);
    assert!(plan.ledger.is_none() && plan.actions.is_empty());
}

#[test]
fn a_refused_plan_writes_nothing_and_tells_why() {
    let mut world = settled(&["n1"]);
    crash(&mut world, "n1");
    let mut plan = plan(&world.seen);
    let violation = crate::audit::Violation {
        rule: "no rule",
        config: "fuse".to_owned(),
        write: "delete DaemonSet \"x\"".to_owned(),
    };
    plan.refuse(&world.seen, &[violation]);
    assert_eq!(plan.actions, []);
    let status = &plan.configs[0].status;
    let degraded = status
        .conditions
        .iter()
        .find(|one| one.type_ == "Degraded")
        .unwrap();
    assert_eq!(degraded.reason, "WriteFailed");
    assert!(
        degraded.message.contains("breaks the rule: no rule"),
        "{}",
        degraded.message
    );
}
