//! A changed config spreads over its nodes.

use super::World;
use crate::plan::plan;

/// Asks for another revision, and gives its name.
fn change(world: &mut World, config: &str) -> String {
    world.change_config(config, |config| {
        let paths = config.spec.resources[0].discovery.paths.as_mut().unwrap();
        let next = format!("/dev/other{}", paths.globs.len());
        paths.globs.push(next);
    });
    plan(&world.seen).configs[0]
        .status
        .target_revision
        .clone()
        .unwrap()
}

fn stable(world: &World) -> String {
    let status = world.config("fuse").status.clone().unwrap();
    status.stable_revision.unwrap()
}

#[test]
fn one_node_after_the_other_and_the_label_last() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.settle();
    let old = stable(&world);
    let new = change(&mut world, "fuse");
    let story = world.roll();
    let about = |node: &str| -> Vec<String> {
        let of_node = story.iter().filter(|line| line.contains(node));
        let of_node = of_node.filter(|line| !line.starts_with("ledger"));
        of_node.cloned().collect()
    };
    for node in ["n1", "n2"] {
        assert_eq!(
            about(node),
            [
                format!("patch DevicePluginNode fuse.{node} {old} beside {new}"),
                format!("patch Node {node} {new}"),
                format!("patch DevicePluginNode fuse.{node} {new} beside {old}"),
                format!("patch Node {node} {new} -"),
                format!("patch DevicePluginNode fuse.{node} matched"),
            ],
            "five writes for each node: {story:#?}"
        );
    }
    assert_eq!(world.counts("fuse"), [2, 2, 0, 2, 0, 0, 0]);
    assert_eq!(stable(&world), new);
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=True/Complete Progressing=False/Complete Degraded=False/AsExpected"
    );
    assert_eq!(world.seen.daemon_sets.len(), 1, "the old one is idle");
    assert_eq!(world.claims(), Vec::<String>::new());
    world.wait(3600);
    assert_eq!(world.settle(), Vec::<String>::new(), "converged");
}

#[test]
fn at_most_as_many_nodes_as_the_budget_says() {
    for (limit, most) in [("1", 1), ("2", 2), ("'60%'", 3)] {
        let nodes = ["n1", "n2", "n3", "n4", "n5"];
        let mut world = World::with_fuse(&nodes);
        world.change_config("fuse", |config| {
            let rollout = format!("{{maxUnavailable: {limit}}}");
            config.spec.rollout = Some(serde_yaml::from_str(&rollout).unwrap());
        });
        world.settle();
        change(&mut world, "fuse");
        let mut peak = 0;
        for _ in 0..1_000 {
            world.wait(1);
            world.settle();
            let ledger = world.seen.ledger.ledger().unwrap();
            let claims = ledger.claims.iter();
            peak = peak.max(claims.filter(|one| one.phase.is_disruptive()).count());
        }
        assert_eq!(peak, most, "maxUnavailable {limit}");
        assert_eq!(world.counts("fuse")[1], 5);
    }
}

#[test]
fn an_agent_that_never_registers_is_rolled_back_and_the_rollout_stops() {
    let mut world = World::with_fuse(&["n1", "n2", "n3"]);
    world.settle();
    let old = stable(&world);
    let new = change(&mut world, "fuse");
    world.deaf.push(new.clone());
    world.roll();
    assert_eq!(
        world.conditions("fuse"),
        "Accepted=True/Accepted Ready=False/Halted Progressing=False/Halted Degraded=True/Halted"
    );
    assert_eq!(stable(&world), old);
    let nodes = world.config("fuse").status.clone().unwrap().nodes;
    assert_eq!((nodes.rolled_back, nodes.pending, nodes.ready), (1, 2, 3));
    assert!(
        world.summary("fuse").contains("HandoverTimeout"),
        "{}",
        world.summary("fuse")
    );
    // It stays so, also when somebody applies the same again.
    world.wait(3600);
    world.settle();
    assert_eq!(world.condition("fuse", "Progressing").reason, "Halted");
    // Another revision starts anew.
    let third = change(&mut world, "fuse");
    world.roll();
    assert_eq!(stable(&world), third);
    assert_eq!(world.counts("fuse")[1], 3);
}

#[test]
fn a_kubelet_that_does_not_list_the_devices_is_not_served_by_that_revision() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let old = stable(&world);
    let new = change(&mut world, "fuse");
    world.unheard.push(new);
    world.roll();
    assert_eq!(world.seen.node_objects["fuse.n1"].spec.active, old);
    let summary = world.summary("fuse");
    assert!(summary.contains("KubeletOutOfSync"), "{summary}");
}

#[test]
fn a_revision_that_finds_fewer_devices_never_switches() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.settle();
    let old = stable(&world);
    let new = change(&mut world, "fuse");
    world.healthy.insert(old.clone(), 8);
    world.healthy.insert(new.clone(), 7);
    let story = world.roll();
    let switched = format!("{new} beside {old}");
    assert!(
        !story.iter().any(|line| line.contains(&switched)),
        "{story:#?}"
    );
    assert_eq!(world.condition("fuse", "Progressing").reason, "Halted");
    assert_eq!(world.counts("fuse")[3], 2, "both serve");
    let object = &world.seen.node_objects["fuse.n1"];
    assert_eq!((&object.spec.active, &object.spec.standby), (&old, &None));

    let mut world = World::with_fuse(&["n1", "n2"]);
    world.change_config("fuse", |config| {
        let rollout = "{gate: {toleratedDeviceLoss: 1}}";
        config.spec.rollout = Some(serde_yaml::from_str(rollout).unwrap());
    });
    world.settle();
    let old = stable(&world);
    let new = change(&mut world, "fuse");
    world.healthy.insert(old, 8);
    world.healthy.insert(new, 7);
    world.roll();
    assert_eq!(world.counts("fuse")[1], 2, "one may be lost");
}

#[test]
fn a_pause_lets_what_has_begun_end_and_begins_nothing() {
    let mut world = World::with_fuse(&["n1", "n2", "n3"]);
    world.settle();
    change(&mut world, "fuse");
    world.roll_until(|world| {
        world
            .claims()
            .iter()
            .any(|claim| claim.ends_with("Soaking"))
    });
    world.change_config("fuse", |config| {
        let rollout = config.spec.rollout.get_or_insert_default();
        rollout.paused = Some(true);
    });
    world.roll();
    assert_eq!(world.counts("fuse")[1], 1);
    assert_eq!(world.condition("fuse", "Progressing").reason, "Paused");
    world.change_config("fuse", |config| config.spec.rollout = None);
    world.roll();
    assert_eq!(world.counts("fuse")[1], 3);
}

#[test]
fn a_spec_that_goes_back_takes_every_node_back() {
    let mut world = World::with_fuse(&["n1", "n2", "n3"]);
    world.settle();
    let old = stable(&world);
    change(&mut world, "fuse");
    world.roll_until(|world| world.counts("fuse")[1] == 1);
    world.change_config("fuse", |config| {
        let paths = config.spec.resources[0].discovery.paths.as_mut().unwrap();
        paths.globs.pop();
    });
    world.roll();
    assert_eq!(stable(&world), old);
    assert_eq!(world.counts("fuse"), [3, 3, 0, 3, 0, 0, 0]);
    assert_eq!(world.seen.daemon_sets.len(), 1);
}

#[test]
fn an_agent_that_dies_while_it_soaks_soaks_anew_or_is_rolled_back() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let old = stable(&world);
    let new = change(&mut world, "fuse");
    world.roll_until(|world| world.claims() == ["n1 Soaking"]);
    let name = world
        .seen
        .pods
        .values()
        .find(|pod| pod.revision == new)
        .unwrap();
    let name = name.id.name.clone();
    let pod = std::sync::Arc::make_mut(world.seen.pods.get_mut(&name).unwrap());
    pod.restarts += 1;
    world.roll();
    assert_eq!(world.seen.node_objects["fuse.n1"].spec.active, old);
    let summary = world.summary("fuse");
    assert!(summary.contains("AgentRestarted"), "{summary}");
}

#[test]
fn a_blind_operator_charges_nobody() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let new = change(&mut world, "fuse");
    world.deaf.push(new.clone());
    world.roll_until(|world| world.claims() == ["n1 Switching"]);
    world.wait(3600);
    world.seen.watched = std::time::Duration::ZERO;
    world.settle();
    assert_eq!(world.claims(), ["n1 Switching"]);
    world.deaf.clear();
    world.roll();
    assert_eq!(world.counts("fuse")[1], 1);
}

#[test]
fn a_lost_ledger_is_rebuilt_from_what_is_on_the_nodes() {
    for phase in [
        "Staging",
        "Staged",
        "Switching",
        "Verifying",
        "Soaking",
        "Committing",
    ] {
        let mut world = World::with_fuse(&["n1", "n2"]);
        world.settle();
        let new = change(&mut world, "fuse");
        // One write at a time, so that every phase is met.
        let mut met = false;
        for _ in 0..2_000 {
            world.pass();
            if !met && world.claims().iter().any(|claim| claim.ends_with(phase)) {
                met = true;
                world.seen.ledger = crate::ledger::SeenLedger::Absent;
            }
            world.play();
            world.wait(1);
        }
        assert!(met, "{phase}");
        assert_eq!(
            (stable(&world), world.counts("fuse")[1]),
            (new, 2),
            "{phase}"
        );
    }
}

#[test]
fn a_lost_object_brings_its_node_back_or_changes_nothing() {
    for phase in [
        "Staging",
        "Staged",
        "Switching",
        "Verifying",
        "Soaking",
        "Committing",
    ] {
        let mut world = World::with_fuse(&["n1"]);
        world.settle();
        change(&mut world, "fuse");
        let mut met = false;
        for _ in 0..2_000 {
            world.pass();
            if !met && world.claims().iter().any(|claim| claim.ends_with(phase)) {
                met = true;
                world.seen.node_objects.clear();
            }
            world.play();
            world.wait(1);
        }
        assert!(met, "{phase}");
        assert_eq!(world.counts("fuse")[3], 1, "{phase}: {:?}", world.claims());
        assert_eq!(world.claims(), Vec::<String>::new(), "{phase}");
    }
}

#[test]
fn a_later_leader_is_obeyed() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    change(&mut world, "fuse");
    world.roll_until(|world| world.claims() == ["n1 Soaking"]);
    world.seen.epoch = 0;
    let plan = plan(&world.seen);
    assert!(plan.deposed && plan.actions.is_empty() && plan.ledger.is_none());
    world.seen.epoch = 7;
    world.roll();
    assert_eq!(world.counts("fuse")[1], 1);
}

#[test]
fn a_node_that_cannot_pull_is_left_out_and_tried_again_now_and_then() {
    let mut world = World::with_fuse(&["n1", "n2", "n3", "n4"]);
    world.settle();
    let old = stable(&world);
    let new = change(&mut world, "fuse");
    world.roll_until(|world| world.counts("fuse")[1] == 1);
    let left: Vec<_> = ["n1", "n2", "n3", "n4"]
        .into_iter()
        .filter(|node| world.seen.node_objects[&format!("fuse.{node}")].spec.active == old)
        .collect();
    // One of those that are left, unless it has its pod already.
    let is_staged = |node: &&str| {
        let mut pods = world.seen.pods.values();
        !pods.any(|pod| pod.node == **node && pod.revision == new)
    };
    let node = left.into_iter().find(is_staged).unwrap().to_owned();
    world.cannot_pull.push((node.clone(), new.clone()));
    world.roll_until(|world| world.counts("fuse")[5] == 1);
    assert_eq!(world.condition("fuse", "Degraded").reason, "NodesSkipped");
    assert_eq!(stable(&world), new, "the others have proven it");
    let name = format!("fuse.{node}");
    let skipped_at = |world: &World| {
        let outcome = world.seen.node_objects[&name].spec.outcome.clone();
        outcome.map(|outcome| outcome.at.0)
    };
    let first = skipped_at(&world).unwrap();
    world.roll_until(|world| skipped_at(world).is_some_and(|at| at > first));
    let second = skipped_at(&world).unwrap();
    assert!(
        second.duration_since(first).as_secs() >= 1_200,
        "ten minutes of rest and ten of trying: {first} {second}"
    );
    assert_eq!(world.claims(), Vec::<String>::new(), "it rests again");
    world.cannot_pull.clear();
    world.roll_until(|world| world.counts("fuse")[1] == 4);
}

#[test]
fn a_node_that_goes_takes_its_revision_with_it_one_step_later() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    change(&mut world, "fuse");
    world.roll_until(|world| world.claims() == ["n1 Soaking"]);
    change(&mut world, "fuse");
    world.roll_until(|world| world.claims() == ["n1 Switching"] || world.claims().is_empty());
    world.seen.nodes.clear();
    world.seen.pods.clear();
    world.settle();
    assert_eq!(world.claims(), Vec::<String>::new());
}

#[test]
fn an_object_that_a_cache_shows_as_it_was_revives_no_claim() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    change(&mut world, "fuse");
    world.roll_until(|world| world.claims() == ["n1 Soaking"]);
    let behind = world.seen.node_objects["fuse.n1"].clone();
    world.roll();
    let ahead = world.seen.node_objects.insert("fuse.n1".to_owned(), behind);
    // As a new leader sees it whose cache lags.
    world.seen.epoch += 1;
    world.seen.watched = std::time::Duration::ZERO;
    world.pass();
    world.wait(10);
    let written = world.pass();
    assert!(
        !written.iter().any(|line| line.contains("n1")),
        "{written:?}"
    );
    assert_eq!(world.claims(), Vec::<String>::new());
    world
        .seen
        .node_objects
        .insert("fuse.n1".to_owned(), ahead.unwrap());
    world.settle();
    world.wait(3_600);
    assert_eq!(world.settle(), Vec::<String>::new());
}

#[test]
fn what_is_left_of_a_lost_revision_that_nothing_runs_goes() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let new = change(&mut world, "fuse");
    world.roll_until(|world| world.seen.daemon_sets.len() == 2);
    world.seen.revisions.remove(&format!("fuse-{new}"));
    change(&mut world, "fuse");
    world.roll();
    assert_eq!(world.seen.daemon_sets.len(), 1);
    assert_eq!(world.seen.config_maps.len(), 1);
    assert_eq!(world.counts("fuse")[1], 1);
}

#[test]
fn a_node_that_serves_nothing_holds_up_no_other() {
    let mut world = World::with_fuse(&["n1", "n2", "n3"]);
    world.settle();
    // Its agents are Ready for the moment that they live, and register nothing.
    world.silent.push("n1".to_owned());
    world.change_object("fuse.n1", |object| {
        let status = object.status.as_mut().unwrap();
        status.active.as_mut().unwrap().resources[0].registered = false;
    });
    world.wait(120);
    change(&mut world, "fuse");
    world.roll_until(|world| world.counts("fuse")[1] == 2);
}

#[test]
fn a_lost_revision_takes_nobody_back_who_has_proven_it() {
    let mut world = World::with_fuse(&["n1", "n2", "n3"]);
    world.settle();
    let new = change(&mut world, "fuse");
    world.roll_until(|world| world.counts("fuse")[1] == 1);
    let is_there = |world: &World| {
        let mut objects = world.seen.node_objects.values();
        objects.any(|object| object.spec.active == new && object.spec.baseline.is_none())
    };
    assert!(is_there(&world));
    world.seen.revisions.remove(&format!("fuse-{new}"));
    world.pass();
    assert!(is_there(&world), "it is being made again");
    world.roll();
    assert_eq!(world.counts("fuse")[1], 3);
}

#[test]
fn a_node_that_goes_away_while_it_is_staged_holds_up_no_other() {
    let mut world = World::with_fuse(&["n1", "n2", "n3"]);
    world.settle();
    let new = change(&mut world, "fuse");
    for node in ["n1", "n2", "n3"] {
        world.cannot_pull.push((node.to_owned(), new.clone()));
    }
    world.roll_until(|world| {
        world
            .claims()
            .iter()
            .any(|claim| claim.ends_with("Staging"))
    });
    let node = world.claims()[0].split(' ').next().unwrap().to_owned();
    world.change_node(&node, |node| node.ready = false);
    world.cannot_pull.clear();
    world.roll_until(|world| world.counts("fuse")[1] == 2);
    assert_eq!(world.condition("fuse", "Ready").reason, "NodesUnreachable");
}

#[test]
fn a_revision_without_its_mark_is_tried_again() {
    let mut world = World::with_fuse(&["n1"]);
    world.settle();
    let new = change(&mut world, "fuse");
    world.deaf.push(new.clone());
    world.roll();
    assert_eq!(world.condition("fuse", "Progressing").reason, "Halted");
    world.deaf.clear();
    let revision = world
        .seen
        .revisions
        .get_mut(&format!("fuse-{new}"))
        .unwrap();
    std::sync::Arc::make_mut(revision).failed = None;
    world.roll_until(|world| world.counts("fuse")[1] == 1);
}

#[test]
fn a_device_that_breaks_while_its_node_soaks_is_not_the_revisions_fault() {
    let mut world = World::with_fuse(&["n1", "n2"]);
    world.settle();
    let old = stable(&world);
    let new = change(&mut world, "fuse");
    for revision in [&old, &new] {
        world.healthy.insert(revision.clone(), 2);
    }
    world.roll_until(|world| {
        world
            .claims()
            .iter()
            .any(|claim| claim.ends_with("Soaking"))
    });
    for revision in [&old, &new] {
        world.healthy.insert(revision.clone(), 1);
    }
    world.roll();
    let revision = &world.seen.revisions[&format!("fuse-{new}")];
    assert_eq!(revision.failed, None);
}
