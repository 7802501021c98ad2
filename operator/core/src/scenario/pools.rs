//! Selection by pools, and what pools tell.

use super::World;

const BY_POOL: &str = "
machineConfigPoolSelector: {matchLabels: {custom-devices: serial}}
resources: [{name: example.com/serial, discovery: {simulated: {count: 2}}}]
";

fn world() -> World {
    let mut world = World::new();
    world.add_node("e1", &[("role", "edge")]);
    world.add_node("e2", &[("role", "edge")]);
    world.add_node("l1", &[("role", "lab")]);
    world.add_node("x1", &[("role", "other")]);
    world.add_pool(
        "edge",
        &[("custom-devices", "serial")],
        "nodeSelector: {matchLabels: {role: edge}}",
    );
    world.add_pool(
        "lab",
        &[("custom-devices", "serial")],
        "nodeSelector: {matchLabels: {role: lab}}",
    );
    world.add_pool("other", &[], "nodeSelector: {matchLabels: {role: other}}");
    world
}

#[test]
fn the_nodes_of_all_matching_pools_are_selected() {
    let mut world = world();
    world.add_config("serial", BY_POOL);
    world.settle();
    assert_eq!(world.counts("serial"), [3, 3, 0, 3, 0, 0, 0]);
    assert!(!world.seen.node_objects.contains_key("serial.x1"));
    let status = |name: &str| {
        let status = world.seen.pools[name].status.clone().unwrap();
        (status.node_count, status.ready_node_count, status.configs)
    };
    assert_eq!(status("edge"), (2, 2, vec!["serial".to_owned()]));
    assert_eq!(status("lab"), (1, 1, vec!["serial".to_owned()]));
    assert_eq!(status("other"), (1, 1, vec![]));
}

#[test]
fn a_pool_is_labelled_with_its_own_name() {
    let mut world = world();
    world.settle();
    for name in ["edge", "lab", "other"] {
        let labels = world.seen.pools[name].metadata.labels.clone().unwrap();
        assert_eq!(
            labels.get(&format!("pools.deviceplugins.dev/{name}")),
            Some(&String::new())
        );
    }
    let by_name = "
machineConfigPoolSelector: {matchExpressions: [{key: pools.deviceplugins.dev/lab, operator: Exists}]}
resources: [{name: example.com/serial, discovery: {simulated: {count: 2}}}]
";
    world.add_config("lab-only", by_name);
    world.settle();
    assert_eq!(world.counts("lab-only")[0], 1);
}

#[test]
fn a_selector_that_matches_no_pool_says_so() {
    let mut world = World::new();
    world.add_node("e1", &[("role", "edge")]);
    world.add_config("serial", BY_POOL);
    world.settle();
    assert_eq!(
        world.conditions("serial"),
        "Accepted=False/NoMatchingPools Ready=False/NoMatchingPools Progressing=False/NoMatchingPools Degraded=False/AsExpected"
    );
}

#[test]
fn a_pool_without_selector_selects_nothing() {
    let mut world = World::new();
    world.add_node("e1", &[("role", "edge")]);
    world.add_pool("none", &[("custom-devices", "serial")], "{}");
    world.add_pool("empty", &[("custom-devices", "serial")], "nodeSelector: {}");
    world.add_config("serial", BY_POOL);
    world.settle();
    assert_eq!(world.counts("serial")[0], 0);
    assert_eq!(
        world.condition("serial", "Accepted").reason,
        "NoMatchingNodes"
    );
    assert_eq!(
        world.seen.pools["empty"].status.clone().unwrap().node_count,
        0
    );
}

#[test]
fn a_pool_that_is_taken_away_lets_its_nodes_go_after_the_grace() {
    let mut world = world();
    world.add_config("serial", BY_POOL);
    world.settle();
    world.seen.pools.remove("lab");
    world.settle();
    assert_eq!(world.counts("serial")[0], 3);
    world.wait(300);
    world.settle();
    assert_eq!(world.counts("serial"), [2, 2, 0, 2, 0, 0, 0]);
    world.seen.pools.clear();
    world.settle();
    assert_eq!(
        world.condition("serial", "Accepted").reason,
        "NoMatchingPools"
    );
    let degraded = world.condition("serial", "Degraded");
    assert_eq!(
        (degraded.status.as_str(), degraded.reason.as_str()),
        ("True", "NoMatchingPools")
    );
    for message in [degraded.message, world.condition("serial", "Ready").message] {
        assert!(
            message.contains("no longer selected: ") && message.contains("kept until"),
            "{message}"
        );
    }
    world.wait(300);
    world.settle();
    assert_eq!(world.counts("serial")[0], 0);
    assert!(world.seen.pods.is_empty());
}

#[test]
fn a_pool_counts_nodes_on_which_every_config_serves() {
    let mut world = world();
    world.add_config("serial", BY_POOL);
    world.add_config(
        "second",
        &BY_POOL.replace("example.com/serial", "example.com/second"),
    );
    world.settle();
    world.change_object("second.e2", |object| object.status = None);
    world.silent.push("e2".to_owned());
    world.settle();
    let status = world.seen.pools["edge"].status.clone().unwrap();
    assert_eq!((status.node_count, status.ready_node_count), (2, 1));
    assert_eq!(status.configs, ["second", "serial"]);
}

#[test]
fn a_pool_with_a_wrong_selector_is_named() {
    let mut world = world();
    world.add_pool(
        "wrong",
        &[("custom-devices", "serial")],
        "nodeSelector: {matchLabels: {role: \"not a value\"}}",
    );
    world.add_config("serial", BY_POOL);
    world.settle();
    let accepted = world.condition("serial", "Accepted");
    assert_eq!(accepted.reason, "InvalidSpec");
    assert!(
        accepted.message.starts_with("DevicePluginPool \"wrong\": spec.nodeSelector.matchLabels[\"role\"]: \"not a value\" is not a label value"),
        "{}",
        accepted.message
    );
}
