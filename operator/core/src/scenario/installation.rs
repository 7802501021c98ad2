//! The first installation, and objects that get lost.

use std::sync::Arc;

use super::World;
use crate::action::Write;
use crate::plan::plan;

#[test]
fn a_config_is_installed_object_by_object() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    let story = world.settle();
    let revision = world.revision("fuse");
    let name = format!("fuse-{revision}");
    let writes: Vec<_> = story
        .iter()
        .filter(|line| !line.starts_with("status"))
        .collect();
    assert_eq!(
        writes,
        [
            "patch DevicePluginConfig fuse",
            &format!("create ControllerRevision {name}"),
            &format!("create ConfigMap {name}"),
            &format!("create DaemonSet {name}"),
            "create DevicePluginNode fuse.n1",
            "create DevicePluginNode fuse.n2",
            &format!("patch Node n1 {revision}"),
            &format!("patch Node n2 {revision}"),
        ]
    );
    assert_eq!(world.counts("fuse"), [2, 2, 0, 2, 0, 0, 0]);
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=True/Complete Progressing=False/Complete Degraded=False/AsExpected"
    );
    assert_eq!(
        world.summary("fuse"),
        format!("2 nodes serve revision {revision}")
    );
}

#[test]
fn the_status_tells_every_step_before_it_is_ready() {
    let mut world = World::with_fuse(&["n1"]);
    world.pass();
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=False/NodesNotReady Progressing=True/RollingOut Degraded=False/AsExpected"
    );
    assert_eq!(
        world.summary("fuse"),
        "0 of 1 node updated; 1 pending: \"n1\": the first revision is being made"
    );
    let status = world.config("fuse").status.clone().unwrap();
    assert_eq!(
        (status.observed_generation, status.stable_revision),
        (Some(1), None)
    );
    for _ in 0..4 {
        world.pass();
    }
    assert!(
        world
            .summary("fuse")
            .contains("the DaemonSet controller has made no agent pod yet")
    );
}

#[test]
fn a_settled_cluster_is_left_alone() {
    let mut world = World::with_fuse(&["n1", "n2", "n3"]);
    world.settle();
    world.wait(86_400);
    let plan = plan(&world.seen);
    assert_eq!(plan.actions, []);
    assert!(
        plan.configs.iter().all(|status| !status.changed),
        "no status write"
    );
    assert_eq!(plan.look_again, None);
}

#[test]
fn a_config_without_nodes_waits_for_the_first_one() {
    let mut world = World::with_fuse(&[]);
    world.settle();
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/NoMatchingNodes Ready=True/NoMatchingNodes Progressing=False/NoMatchingNodes Degraded=False/AsExpected"
    );
    assert_eq!(
        world.seen.daemon_sets.len(),
        1,
        "a joiner is served with the operator down"
    );
    world.add_node("n1", &[("kubernetes.io/os", "linux")]);
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn lost_objects_are_made_again_from_the_revision() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let (sets, maps) = (
        world.seen.daemon_sets.clone(),
        world.seen.config_maps.clone(),
    );
    world.seen.daemon_sets.clear();
    world.seen.config_maps.clear();
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
    let name = sets.keys().next().unwrap();
    assert_eq!(world.seen.daemon_sets[name].template, sets[name].template);
    assert_eq!(
        world.seen.config_maps[name].agent_config,
        maps[name].agent_config
    );
}

#[test]
fn a_lost_revision_is_made_again_from_its_objects_whatever_the_spec_says_now() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let before = world.seen.revisions.clone();
    for also in ["nothing", "status", "spec"] {
        world.seen.revisions.clear();
        world.change_config("fuse", |config| match also {
            "status" => config.status = None,
            "spec" => config.spec.resources[0].name = "example.com/other".to_owned(),
            _ => {}
        });
        let story = world.settle();
        let made: Vec<_> = story
            .iter()
            .filter(|line| line.contains("ControllerRevision"))
            .collect();
        let name = before.keys().next().unwrap();
        assert_eq!(
            made,
            [&format!("create ControllerRevision {name}")],
            "and lost {also}"
        );
        let (old, new) = (&before[name], &world.seen.revisions[name]);
        let (old, new) = (old.content.clone().unwrap(), new.content.clone().unwrap());
        assert_eq!(
            (old.agent_config, old.agent_image),
            (new.agent_config, new.agent_image)
        );
        assert!(crate::rendering::holds(&new.template, &old.template));
    }
}

#[test]
fn a_status_that_names_garbage_is_not_believed() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let revision = world.revision("fuse");
    for lost in [false, true] {
        if lost {
            world.seen.revisions.clear();
        }
        world.change_config("fuse", |config| {
            config.status.get_or_insert_default().stable_revision = Some("garbage".to_owned());
        });
        world.settle();
        let status = world.config("fuse").status.clone().unwrap();
        assert_eq!(status.stable_revision.as_ref(), Some(&revision));
        assert_eq!(world.revision("fuse"), revision);
        assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
    }
}

#[test]
fn everything_lost_with_a_changed_spec_is_no_first_installation() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    world.seen.revisions.clear();
    world.seen.daemon_sets.clear();
    world.seen.config_maps.clear();
    world.change_config("fuse", |config| {
        config.spec.resources[0].name = "example.com/other".to_owned();
    });
    world.settle();
    assert!(world.seen.revisions.is_empty());
    let progressing = world.condition("fuse", "Progressing");
    assert_eq!(progressing.reason, "Blocked");
    assert!(
        progressing.message.contains("is lost"),
        "{}",
        progressing.message
    );
    world.change_config("fuse", |config| {
        config.spec.resources[0].name = "example.com/fuse".to_owned();
    });
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn labels_that_an_earlier_config_left_are_no_revision() {
    let mut world = World::with_fuse(&["n1"]);
    let label = crds::names::node_revision_label("fuse");
    world.change_node("n1", |node| {
        drop(node.labels.insert(label.clone(), "0123456789".to_owned()));
    });
    world.settle();
    assert_eq!(
        world.seen.nodes["n1"].labels[&label],
        world.revision("fuse")
    );
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn labels_of_configs_that_are_gone_are_removed() {
    let mut world = World::with_fuse(&["n1"]);
    let label = crds::names::node_revision_label("gone");
    for name in ["gone", "unreadable"] {
        let label = crds::names::node_revision_label(name);
        world.change_node("n1", |node| {
            drop(node.labels.insert(label, "0123456789".to_owned()));
        });
    }
    world
        .seen
        .unreadable_configs
        .insert("unreadable".to_owned());
    world.settle();
    assert!(!world.seen.nodes["n1"].labels.contains_key(&label));
    let label = crds::names::node_revision_label("unreadable");
    assert!(world.seen.nodes["n1"].labels.contains_key(&label));
}

#[test]
fn revisions_of_an_earlier_config_of_that_name_are_not_believed() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let earlier = world.seen.revisions.clone();
    world.delete_config("fuse");
    world.settle();
    // The garbage collector takes its time.
    world.seen.revisions = earlier;
    world.add_config("fuse", &super::FUSE.replace("/dev/fuse", "/dev/kvm"));
    world.settle();
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
    assert_eq!(world.seen.revisions.len(), 2);
}

#[test]
fn without_a_status_the_revision_promoted_last_is_stable_else_the_one_most_nodes_carry() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let first = world.seen.revisions.values().next().unwrap().clone();
    let mut second = (*first).clone();
    second.id.name = "fuse-0000000000".to_owned();
    second.revision = "0000000000".to_owned();
    for (promoted, wanted) in [
        ([Some(1), Some(2)], "0000000000"),
        ([Some(2), Some(1)], first.revision.as_str()),
        ([Some(1), None], first.revision.as_str()),
        ([None, Some(1)], "0000000000"),
        ([None, None], first.revision.as_str()),
    ] {
        for (revision, promoted) in [(&*first, promoted[0]), (&second, promoted[1])] {
            let revision = crate::seen::SeenRevision {
                promoted,
                ..revision.clone()
            };
            let name = revision.id.name.clone();
            world.seen.revisions.insert(name, Arc::new(revision));
        }
        let config = world.config("fuse").clone();
        let config = crds::DevicePluginConfig {
            status: None,
            ..config
        };
        let stable = crate::lineage::stable(&world.seen, &config, std::iter::empty());
        assert_eq!(stable.revision(), Some(wanted), "{promoted:?}");
    }
}

#[test]
fn a_first_revision_that_was_refused_may_still_change() {
    let mut world = World::with_fuse(&["n1"]);
    world.pass();
    world.pass();
    let refused = world.revision("fuse");
    // The API server refuses its DaemonSet; the user mends the spec.
    world.change_config("fuse", |config| {
        config.spec.resources[0].name = "example.com/other".to_owned();
    });
    let story = world.settle();
    assert!(
        story.contains(&format!("delete ControllerRevision fuse-{refused}")),
        "{story:?}"
    );
    assert_ne!(world.revision("fuse"), refused);
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn a_template_that_somebody_edits_is_put_back() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let name = world.seen.daemon_sets.keys().next().unwrap().clone();
    let good = world.seen.daemon_sets[&name].template.clone();
    for (pointer, value) in [
        ("/spec/containers/0/image", serde_json::json!("evil:1")),
        (
            "/spec/containers/0/securityContext/privileged",
            serde_json::json!(true),
        ),
        ("/spec/affinity", serde_json::json!({ "podAffinity": {} })),
    ] {
        let set = Arc::make_mut(world.seen.daemon_sets.get_mut(&name).unwrap());
        *set.template.pointer_mut(pointer).unwrap() = value;
        assert_eq!(
            world.pass(),
            [format!("patch DaemonSet {name}")],
            "{pointer}"
        );
        assert_eq!(world.seen.daemon_sets[&name].template, good);
    }
    let set = Arc::make_mut(world.seen.daemon_sets.get_mut(&name).unwrap());
    set.template["spec"]["affinity"]["podAffinity"] = serde_json::json!({});
    assert_eq!(world.pass(), [format!("patch DaemonSet {name}")]);
    let set = Arc::make_mut(world.seen.daemon_sets.get_mut(&name).unwrap());
    set.on_delete = false;
    assert_eq!(world.pass(), [format!("patch DaemonSet {name}")]);
    let set = Arc::make_mut(world.seen.daemon_sets.get_mut(&name).unwrap());
    set.template["spec"]["nodeSelector"] = serde_json::json!({ "a": "b" });
    let plan = plan(&world.seen);
    let body = plan.actions[0].write.body().unwrap();
    assert!(matches!(
        plan.actions[0].write,
        Write::PatchDaemonSet { .. }
    ));
    assert_eq!(
        body["spec"]["template"]["spec"]["nodeSelector"],
        serde_json::Value::Null
    );
}

#[test]
fn defaults_of_the_api_server_are_no_edit() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let name = world.seen.daemon_sets.keys().next().unwrap().clone();
    let set = Arc::make_mut(world.seen.daemon_sets.get_mut(&name).unwrap());
    set.template["spec"]["dnsPolicy"] = "ClusterFirst".into();
    set.template["spec"]["containers"][0]["resources"]["limits"]["memory"] = "65536Ki".into();
    set.template["metadata"]["annotations"]["added"] = "by somebody".into();
    assert_eq!(plan(&world.seen).actions, []);
}
