//! A config that changes: what is part of a revision waits, the rest acts at once.

use crds::placement::{AgentSettings, LogLevel, Toleration};

use super::World;
use crate::plan::plan;
use crate::seen::Taint;

#[test]
fn a_resource_that_is_no_longer_served_touches_nothing_and_says_so() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.settle();
    let stable = world.revision("fuse");
    let (pods, nodes) = (world.seen.pods.clone(), world.seen.nodes.clone());
    let sets = world.seen.daemon_sets.clone();
    world.change_config("fuse", |config| {
        config.spec.resources[0].name = "example.com/other".to_owned();
    });
    assert_eq!(world.settle(), ["status fuse"]);
    assert_eq!((&world.seen.pods, &world.seen.nodes), (&pods, &nodes));
    assert_eq!(world.seen.daemon_sets, sets);
    assert_eq!(world.counts("fuse"), [2, 0, 2, 2, 0, 0, 0]);
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=False/Blocked Progressing=False/Blocked Degraded=False/AsExpected"
    );
    let status = world.config("fuse").status.clone().unwrap();
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(status.stable_revision.as_deref(), Some(stable.as_str()));
    let target = status.target_revision.unwrap();
    assert_ne!(target, stable);
    let message = world.summary("fuse");
    assert!(
        message.starts_with("the change is not rolled out: ")
            && message.contains("example.com/fuse")
            && message.contains(&target),
        "{message}"
    );
}

#[test]
fn another_driver_touches_nothing_and_says_so() {
    let driver = |image: &str| {
        let text = format!("driver: {{image: {image}, command: [/install]}}");
        Some(serde_yaml::from_str(&text).unwrap())
    };
    let mut world = World::with_fuse(&["n1", "n2"]);
    // On the first installation a driver is like any other part.
    world.change_config("fuse", |config| config.spec.hooks = driver("one"));
    world.settle();
    assert_eq!(world.condition("fuse", "Ready").reason, "Complete");
    let pods = world.seen.pods.clone();
    world.change_config("fuse", |config| config.spec.hooks = driver("two"));
    assert_eq!(world.settle(), ["status fuse"]);
    assert_eq!(world.seen.pods, pods);
    assert_eq!(world.condition("fuse", "Progressing").reason, "Blocked");
    let message = world.summary("fuse");
    for words in [
        "hooks.driver",
        "devices that are in use",
        "set hooks.driver back",
    ] {
        assert!(message.contains(words), "{message}");
    }
    // Whether the node has it is not asked of the one that goes.
    world.change_config("fuse", |config| config.spec.hooks = None);
    world.settle();
    assert_ne!(world.condition("fuse", "Progressing").reason, "Blocked");
}

#[test]
fn tolerations_that_wait_add_and_remove_no_node() {
    let taint = |effect: &str| Taint {
        key: "dedicated".to_owned(),
        value: String::new(),
        effect: effect.to_owned(),
    };
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.change_node("n2", |node| node.taints = vec![taint("NoSchedule")]);
    world.settle();
    assert_eq!(world.counts("fuse")[0], 1);
    world.change_config("fuse", |config| {
        let everything: Toleration = serde_yaml::from_str("{operator: Exists}").unwrap();
        let agent = config.spec.agent.get_or_insert_default();
        agent.tolerations.push(everything);
        config.spec.rollout = Some(serde_yaml::from_str("{paused: true}").unwrap());
    });
    assert_eq!(world.settle(), ["status fuse"]);
    assert_eq!(world.condition("fuse", "Progressing").reason, "Paused");
    assert_eq!(
        world.counts("fuse")[0],
        1,
        "n2 gets no agent before the change is rolled out"
    );
    world.change_config("fuse", |config| config.spec.rollout = None);
    world.roll();
    assert_eq!(world.counts("fuse"), [2, 2, 0, 2, 0, 0, 0]);
}

#[test]
fn a_change_that_is_taken_back_ends_the_wait() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    for name in ["example.com/other", "example.com/fuse"] {
        world.change_config("fuse", |config| {
            config.spec.resources[0].name = name.to_owned();
        });
        world.settle();
    }
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn nodes_that_join_during_the_wait_run_the_stable_revision() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let stable = world.revision("fuse");
    world.change_config("fuse", |config| {
        config.spec.resources[0].name = "example.com/other".to_owned();
    });
    world.settle();
    world.add_node("n2", &[("kubernetes.io/os", "linux")]);
    world.settle();
    assert_eq!(world.seen.node_objects["fuse.n2"].spec.active, stable);
    assert_eq!(world.counts("fuse"), [2, 0, 2, 2, 0, 0, 0]);
}

#[test]
fn a_log_level_is_handed_over_and_restarts_nothing() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let pods = world.seen.pods.clone();
    for level in [Some(LogLevel::Debug), None] {
        world.change_config("fuse", |config| {
            config.spec.agent = Some(AgentSettings {
                log_level: level,
                ..AgentSettings::default()
            });
        });
        let story = world.settle();
        assert_eq!(
            story,
            ["patch DevicePluginNode fuse.n1 matched", "status fuse"]
        );
        assert_eq!(world.seen.node_objects["fuse.n1"].spec.log_level, level);
        assert_eq!(world.seen.pods, pods);
        assert_eq!(world.condition("fuse", "Ready").status, "True");
        let generation = world.config("fuse").metadata.generation;
        assert_eq!(
            world.condition("fuse", "Ready").observed_generation,
            generation
        );
    }
}

#[test]
fn an_operator_with_another_default_image_changes_no_agent() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let mut settings = (*world.seen.settings).clone();
    settings.agent_image = "registry.example.com/agent:2".to_owned();
    settings.agent_service_account = "renamed".to_owned();
    world.seen.settings = std::sync::Arc::new(settings);
    assert_eq!(world.settle(), ["status fuse"]);
    let status = world.config("fuse").status.clone().unwrap();
    assert_eq!(status.agent_update, "registry.example.com/agent:2");
    assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn an_image_in_the_spec_is_a_change_and_no_update_is_offered() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let mut settings = (*world.seen.settings).clone();
    settings.agent_image = "registry.example.com/agent:2".to_owned();
    world.seen.settings = std::sync::Arc::new(settings);
    world.change_config("fuse", |config| {
        let image = Some("registry.example.com/agent:3".to_owned());
        config.spec.agent = Some(AgentSettings {
            image,
            ..AgentSettings::default()
        });
    });
    world.roll();
    assert_eq!(world.counts("fuse")[1], 1);
    assert_eq!(
        world.config("fuse").status.clone().unwrap().agent_update,
        ""
    );
}

#[test]
fn a_selection_that_widens_acts_at_once_also_while_a_change_waits() {
    let mut world = World::with_fuse(&["n1"]);
    world.add_node("w1", &[("kubernetes.io/os", "windows")]);
    world.settle();
    world.change_config("fuse", |config| {
        config.spec.resources[0].name = "example.com/other".to_owned();
        let selector =
            serde_yaml::from_str("matchExpressions: [{key: kubernetes.io/os, operator: Exists}]");
        config.spec.node_selector = Some(selector.unwrap());
    });
    world.settle();
    assert_eq!(world.counts("fuse"), [2, 0, 2, 2, 0, 0, 0]);
    assert_eq!(plan(&world.seen).actions, []);
}

#[test]
fn a_wrong_spec_stops_nothing_that_runs() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let sets = world.seen.daemon_sets.clone();
    for wrong in [
        "globs: [\"/dev/fu[se\"]",
        "globs: [/dev/fuse]\nexclude: [\"/dev/{a\"]",
    ] {
        world.change_config("fuse", |config| {
            config.spec.resources[0].discovery.paths = Some(serde_yaml::from_str(wrong).unwrap());
        });
        world.add_node("late", &[("kubernetes.io/os", "linux")]);
        assert_eq!(world.pass(), ["status fuse"]);
        assert_eq!(world.seen.daemon_sets, sets);
        assert_eq!(world.counts("fuse"), [1, 1, 0, 1, 0, 0, 0]);
        let accepted = world.condition("fuse", "Accepted");
        assert_eq!(
            (accepted.status.as_str(), accepted.reason.as_str()),
            ("False", "InvalidSpec")
        );
        assert!(
            accepted
                .message
                .contains("spec.resources[\"example.com/fuse\"].discovery.paths.")
                && accepted.message.contains("is not a glob"),
            "{}",
            accepted.message
        );
        assert_eq!(world.condition("fuse", "Ready").reason, "InvalidSpec");
        world.seen.nodes.remove("late");
    }
    world.change_config("fuse", |config| {
        let selector = "matchLabels: {\"bad key!\": x}";
        config.spec.node_selector = Some(serde_yaml::from_str(selector).unwrap());
        config.spec.resources[0].discovery.paths =
            Some(serde_yaml::from_str("globs: [/dev/fuse]").unwrap());
    });
    assert_eq!(
        world.pass(),
        ["status fuse"],
        "no node leaves because of a key that no node can have"
    );
    assert!(
        world
            .condition("fuse", "Accepted")
            .message
            .contains("\"bad key!\" is not a label key")
    );
}
