//! Which nodes are served, and how they leave.

use std::sync::Arc;

use super::{World, at};
use crate::plan::plan;
use crate::seen::Taint;

fn os(world: &mut World, node: &str, value: Option<&str>) {
    world.change_node(node, |node| {
        let key = "kubernetes.io/os".to_owned();
        match value {
            Some(value) => drop(node.labels.insert(key, value.to_owned())),
            None => drop(node.labels.remove(&key)),
        }
    });
}

#[test]
fn a_node_that_loses_its_label_keeps_its_agent_for_the_grace() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.settle();
    os(&mut world, "n2", None);
    assert_eq!(
        world.settle(),
        [
            "patch DevicePluginNode fuse.n2 unmatched since 2026-11-21T12:00:00Z",
            "status fuse"
        ]
    );
    assert_eq!(plan(&world.seen).look_again, Some(at("12:05:00")));
    assert_eq!(world.counts("fuse"), [2, 2, 0, 2, 0, 0, 0]);
    assert!(
        world.summary("fuse").ends_with(
            "no longer selected: \"n2\", kept until 2026-11-21T12:05:00Z in case labels come back"
        ),
        "{}",
        world.summary("fuse")
    );
    world.wait(299);
    assert_eq!(world.settle(), Vec::<String>::new());
    world.wait(1);
    let story = world.settle();
    assert_eq!(
        story,
        [
            "patch Node n2 -",
            "status fuse",
            "delete DevicePluginNode fuse.n2",
            "status fuse"
        ]
    );
    assert!(!world.seen.pods.values().any(|pod| pod.node == "n2"));
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn a_label_that_comes_back_within_the_grace_changes_nothing() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let pods = world.seen.pods.clone();
    for _ in 0..3 {
        os(&mut world, "n1", None);
        world.settle();
        world.wait(299);
        world.settle();
        os(&mut world, "n1", Some("linux"));
        world.settle();
        assert_eq!(
            world.seen.node_objects["fuse.n1"].spec.unmatched_since,
            None
        );
    }
    assert_eq!(world.seen.pods, pods);
}

#[test]
fn a_node_object_outlives_the_label_until_the_agent_is_gone() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    world.change_config("fuse", |config| {
        config.spec.label_loss_grace_seconds = Some(0);
    });
    os(&mut world, "n1", None);
    world.pass();
    assert_eq!(world.pass(), ["patch Node n1 -", "status fuse"]);
    assert!(
        world.summary("fuse").contains("agents leave \"n1\""),
        "{}",
        world.summary("fuse")
    );
    assert_eq!(
        world.pass(),
        Vec::<String>::new(),
        "the agent's pod is still there"
    );
    world.play();
    assert_eq!(world.pass(), ["delete DevicePluginNode fuse.n1"]);
}

#[test]
fn an_empty_selector_selects_nothing_and_says_what_to_write() {
    for spec in ["{}", "nodeSelector: {}", "machineConfigPoolSelector: {}"] {
        let mut world = World::new();
        world.add_node("n1", &[("kubernetes.io/os", "linux")]);
        let resources = "resources: [{name: example.com/a, discovery: {simulated: {count: 1}}}]";
        let spec = spec
            .strip_suffix("{}")
            .map(|head| format!("{head}{}", if head.is_empty() { "" } else { "{}" }));
        world.add_config("empty", &format!("{}\n{resources}", spec.unwrap()));
        world.settle();
        assert_eq!(
            world.conditions("empty"),
            "Accepted=False/NoSelector Ready=False/NoSelector Progressing=False/NoSelector Degraded=False/AsExpected"
        );
        assert!(world.seen.revisions.is_empty() && world.seen.node_objects.is_empty());
        assert!(world.summary("empty").contains("kubernetes.io/os: linux"));
    }
}

#[test]
fn a_taint_keeps_agents_off_unless_they_tolerate_it() {
    let mut world = World::with_fuse(&["n1"]);
    let taint = Taint {
        key: "dedicated".to_owned(),
        value: "gpu".to_owned(),
        effect: "NoSchedule".to_owned(),
    };
    world.change_node("n1", |node| node.taints = vec![taint.clone()]);
    world.settle();
    assert_eq!(world.counts("fuse"), [0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        world.condition("fuse", "Accepted").reason,
        "NoMatchingNodes"
    );
    let mut tolerant = World::new();
    tolerant.add_node("n1", &[("kubernetes.io/os", "linux")]);
    tolerant.change_node("n1", |node| node.taints = vec![taint]);
    let agent = "agent: {tolerations: [{key: dedicated, value: gpu, effect: NoSchedule}]}";
    tolerant.add_config("fuse", &format!("{}{agent}", super::FUSE));
    tolerant.settle();
    assert_eq!(tolerant.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn a_later_taint_takes_no_agent_away_unless_it_evicts() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let taint = |effect: &str| Taint {
        key: "mine".to_owned(),
        effect: effect.to_owned(),
        ..Taint::default()
    };
    world.change_node("n1", |node| node.taints = vec![taint("NoSchedule")]);
    assert_eq!(plan(&world.seen).actions, []);
    world.change_node("n1", |node| node.taints = vec![taint("NoExecute")]);
    world.pass();
    assert!(
        world.seen.node_objects["fuse.n1"]
            .spec
            .unmatched_since
            .is_some()
    );
}

#[test]
fn a_node_made_again_under_its_name_gets_another_object() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let before = world.seen.node_objects["fuse.n1"].clone();
    world.add_node("n1", &[("kubernetes.io/os", "linux")]);
    world.seen.pods.clear();
    let story = world.settle();
    assert_eq!(story[0], "delete DevicePluginNode fuse.n1");
    let after = &world.seen.node_objects["fuse.n1"];
    assert_ne!(before.metadata.uid, after.metadata.uid);
    assert_eq!(after.spec.node_uid, world.seen.nodes["n1"].id.uid);
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn the_object_of_a_node_that_is_gone_is_deleted() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.settle();
    world.seen.nodes.remove("n2");
    assert_eq!(
        world.settle(),
        ["delete DevicePluginNode fuse.n2", "status fuse"]
    );
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn garbage_in_label_and_object_is_repaired() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let (pods, revision) = (world.seen.pods.clone(), world.revision("fuse"));
    let label = crds::names::node_revision_label("fuse");
    for garbage in [Some(""), Some("garbage"), Some("0123456789"), None] {
        world.change_node("n1", |node| match garbage {
            Some(value) => drop(node.labels.insert(label.clone(), value.to_owned())),
            None => drop(node.labels.remove(&label)),
        });
        world.play();
        assert_eq!(
            world.seen.pods, pods,
            "{garbage:?}: the agent stays meanwhile"
        );
        assert_eq!(world.settle(), [format!("patch Node n1 {revision}")]);
    }
    world.change_object("fuse.n1", |object| {
        object.spec.active = "garbage".to_owned();
        object.spec.unmatched_since = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            at("00:00:00"),
        ));
    });
    world.settle();
    assert_eq!(world.seen.node_objects["fuse.n1"].spec.active, revision);
    assert_eq!(
        world.seen.node_objects["fuse.n1"].spec.unmatched_since,
        None
    );
}

#[test]
fn a_node_that_is_being_deleted_is_left_alone() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.settle();
    world.change_node("n2", |node| {
        node.deleting = true;
        node.labels.clear();
    });
    assert_eq!(plan(&world.seen).actions, []);
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn a_node_that_is_on_its_way_out_is_not_selected() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.change_node("n2", |node| node.deleting = true);
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
    assert!(!world.seen.node_objects.contains_key("fuse.n2"));
}

#[test]
fn objects_of_somebody_else_are_not_ours() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let mut foreign = (*world.seen.node_objects["fuse.n1"]).clone();
    foreign.metadata.owner_references = None;
    foreign.metadata.name = Some("handmade".to_owned());
    world
        .seen
        .node_objects
        .insert("handmade".to_owned(), Arc::new(foreign));
    let mut pod = world.seen.pods.values().next().unwrap().as_ref().clone();
    pod.id.name = "handmade".to_owned();
    pod.of_daemon_set = false;
    pod.phase = "Failed".to_owned();
    world.seen.pods.insert("handmade".to_owned(), Arc::new(pod));
    world.wait(60);
    assert_eq!(plan(&world.seen).actions, []);
}
