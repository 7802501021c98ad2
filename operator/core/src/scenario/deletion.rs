//! Taking a config back.

use super::World;

#[test]
fn deletion_takes_agents_first_and_the_finalizer_last() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.settle();
    let name = format!("fuse-{}", world.revision("fuse"));
    world.delete_config("fuse");
    assert_eq!(
        world.pass(),
        [format!("delete DaemonSet {name}"), "status fuse".to_owned()]
    );
    assert_eq!(world.pass(), ["status fuse"]);
    assert_eq!(
        world.summary("fuse"),
        "the config is being deleted: waits for agent pods to end on \"n1\", \"n2\", until 2026-11-21T12:05:00Z at the latest"
    );
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=False/Deleting Progressing=True/Deleting Degraded=False/AsExpected"
    );
    assert_eq!(world.pass(), Vec::<String>::new());
    let story = world.settle();
    let writes: Vec<_> = story
        .iter()
        .filter(|line| !line.starts_with("status"))
        .collect();
    assert_eq!(
        writes,
        [
            "patch Node n1 -",
            "patch Node n2 -",
            "delete DevicePluginNode fuse.n1",
            "delete DevicePluginNode fuse.n2",
            &format!("delete ConfigMap {name}"),
            &format!("delete ControllerRevision {name}"),
            "patch DevicePluginConfig fuse",
        ]
    );
    assert!(world.seen.configs.is_empty());
}

#[test]
fn deletion_waits_neither_for_nodes_nobody_reaches_nor_for_ever() {
    let mut world = World::with_fuse(&["n1", "n2", "n3"]);
    world.settle();
    world.delete_config("fuse");
    world.pass();
    world.change_node("n1", |node| node.ready = false);
    world.seen.nodes.remove("n2");
    world.pass();
    assert!(
        world.summary("fuse").contains("end on \"n3\","),
        "{}",
        world.summary("fuse")
    );
    world.wait(300);
    for _ in 0..6 {
        world.pass();
    }
    assert!(
        world.seen.configs.is_empty(),
        "its pods are still there, and nobody waits"
    );
    assert_eq!(world.seen.pods.len(), 3);
}

#[test]
fn objects_of_nodes_that_are_gone_go_too() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.settle();
    world.seen.nodes.remove("n2");
    world.delete_config("fuse");
    let story = world.settle();
    assert!(
        story.contains(&"delete DevicePluginNode fuse.n2".to_owned()),
        "{story:?}"
    );
    assert!(world.seen.node_objects.is_empty());
}

#[test]
fn deletion_goes_on_without_the_other_kinds() {
    let mut world = World::with_fuse(&["n1"]);
    world.add_config("other", super::FUSE);
    world.settle();
    world.seen.node_objects.clear();
    world.seen.kinds_missing = true;
    world.delete_config("fuse");
    let story = world.settle();
    assert!(!world.seen.configs.contains_key("fuse"));
    assert!(
        story.iter().all(|line| !line.contains("other")),
        "{story:?}"
    );
}

#[test]
fn a_config_that_never_installed_anything_goes_at_once() {
    let mut world = World::new();
    world.add_config(
        "empty",
        "resources: [{name: example.com/a, discovery: {simulated: {count: 1}}}]",
    );
    world.settle();
    world.delete_config("empty");
    world.settle();
    assert!(world.seen.configs.is_empty());
}

#[test]
fn finalizers_of_others_stay() {
    let mut world = World::with_fuse(&["n1"]);
    world.change_config("fuse", |config| {
        config.metadata.finalizers = Some(vec!["example.com/theirs".to_owned()]);
    });
    world.settle();
    world.delete_config("fuse");
    world.settle();
    let finalizers = world.config("fuse").metadata.finalizers.clone();
    assert_eq!(finalizers, Some(vec!["example.com/theirs".to_owned()]));
    assert!(world.seen.daemon_sets.is_empty() && world.seen.node_objects.is_empty());
}

#[test]
fn a_config_applied_again_under_its_name_starts_anew() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let before = world.seen.node_objects["fuse.n1"].metadata.uid.clone();
    world.delete_config("fuse");
    world.settle();
    world.add_config("fuse", super::FUSE);
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
    assert_ne!(world.seen.node_objects["fuse.n1"].metadata.uid, before);
}
