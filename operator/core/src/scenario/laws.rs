//! What holds in every cluster: thousands of random ones, each from a seed that a failure names.

use std::sync::Arc;

use super::World;
use crate::action::{Kind, Write};
use crate::plan::plan;
use crate::seen::{Taint, Trouble};

/// A small generator (xorshift): equal seeds give equal clusters.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn is_lucky(&mut self, one_in: u64) -> bool {
        self.roll(one_in) == 0
    }
}

const SPECS: &[&str] = &[
    super::FUSE,
    "nodeSelector: {matchExpressions: [{key: role, operator: In, values: [a, b]}]}
resources: [{name: example.com/a, discovery: {simulated: {count: 2}}}, {name: example.com/b, discovery: {simulated: {count: 1}}}]",
    "machineConfigPoolSelector: {matchLabels: {devices: yes}}
labelLossGraceSeconds: 0
resources: [{name: example.com/p, discovery: {simulated: {count: 2}}}]",
    "resources: [{name: example.com/none, discovery: {simulated: {count: 2}}}]",
    "nodeSelector: {matchLabels: {role: a}}
resources: [{name: example.com/g, discovery: {paths: {globs: [\"/dev/[\"]}}}]",
];

fn random_world(dice: &mut Dice) -> World {
    let mut world = World::new();
    for number in 0..dice.roll(6) {
        let role = ["a", "b", "c"][usize::try_from(dice.roll(3)).unwrap()];
        world.add_node(
            &format!("n{number}"),
            &[("kubernetes.io/os", "linux"), ("role", role)],
        );
    }
    world.add_pool(
        "p",
        &[("devices", "yes")],
        "nodeSelector: {matchLabels: {role: b}}",
    );
    for number in 0..1 + dice.roll(3) {
        let spec = SPECS[usize::try_from(dice.roll(5)).unwrap()];
        world.add_config(&format!("c{number}"), spec);
    }
    world
}

/// Something happens that nobody planned.
fn disturb(world: &mut World, dice: &mut Dice) {
    let nodes: Vec<_> = world.seen.nodes.keys().cloned().collect();
    let configs: Vec<_> = world.seen.configs.keys().cloned().collect();
    let node = nodes.get(usize::try_from(dice.roll(6)).unwrap());
    let config = configs.get(usize::try_from(dice.roll(3)).unwrap());
    match (dice.roll(14), node, config) {
        (0, Some(node), _) => world.change_node(node, |one| drop(one.labels.remove("role"))),
        (1, Some(node), _) => world.change_node(node, |one| {
            drop(one.labels.insert("role".into(), "b".into()));
        }),
        (2, Some(node), _) => world.change_node(node, |one| one.ready = !one.ready),
        (3, Some(node), _) => drop(world.seen.nodes.remove(node)),
        (4, Some(node), Some(config)) => {
            let label = crds::names::node_revision_label(config);
            world.change_node(node, |one| drop(one.labels.insert(label, "garbage".into())));
        }
        (5, Some(node), _) => {
            let taint = Taint {
                key: "t".into(),
                effect: "NoExecute".into(),
                ..Taint::default()
            };
            world.change_node(node, |one| {
                one.taints = if one.taints.is_empty() {
                    vec![taint]
                } else {
                    vec![]
                }
            });
        }
        (6, _, _) => drop(world.seen.daemon_sets.pop_first()),
        (7, _, _) => drop(world.seen.revisions.pop_first()),
        (8, _, _) => drop(world.seen.config_maps.pop_first()),
        (9, _, _) => drop(world.seen.node_objects.pop_first()),
        (10, _, _) => {
            if let Some(mut pod) = world.seen.pods.first_entry() {
                let pod = Arc::make_mut(pod.get_mut());
                pod.phase = "Failed".into();
                pod.trouble = Some(Trouble {
                    fatal: true,
                    ..Trouble::default()
                });
            }
        }
        (11, _, Some(config)) => world.change_config(config, |one| one.status = None),
        (12, _, Some(config)) => {
            world.change_config(config, |one| one.spec.resources[0].name.push('x'));
        }
        (_, _, _) => world.wait(200),
    }
}

#[test]
fn every_cluster_comes_to_rest_and_every_plan_passes_the_audit() {
    for seed in 1..=400 {
        let mut dice = Dice::new(seed);
        let mut world = random_world(&mut dice);
        for _ in 0..12 {
            if dice.is_lucky(2) {
                disturb(&mut world, &mut dice);
            }
            if dice.is_lucky(3) {
                world.pass();
            } else {
                let _story = world.settle();
                assert_eq!(plan(&world.seen).actions, [], "seed {seed}");
            }
        }
        world.wait(1_000);
        world.settle();
        for config in world.seen.configs.keys() {
            let _partition = world.counts(config);
        }
    }
}

#[test]
fn deletion_leaves_nothing_in_any_cluster() {
    for seed in 1..=300 {
        let mut dice = Dice::new(seed);
        let mut world = random_world(&mut dice);
        for _ in 0..dice.roll(8) {
            world.pass();
            world.play();
            if dice.is_lucky(3) {
                disturb(&mut world, &mut dice);
            }
        }
        let configs: Vec<_> = world.seen.configs.keys().cloned().collect();
        for config in configs {
            world.delete_config(&config);
        }
        world.settle();
        world.wait(300);
        world.settle();
        assert!(
            world.seen.configs.is_empty(),
            "seed {seed}: {:?}",
            world.seen.configs.keys()
        );
        assert!(
            world.seen.revisions.is_empty(),
            "seed {seed}: {:?}",
            world.seen.revisions
        );
        assert!(world.seen.config_maps.is_empty(), "seed {seed}");
        assert!(world.seen.daemon_sets.is_empty(), "seed {seed}");
        assert!(world.seen.node_objects.is_empty(), "seed {seed}");
        let keys = world
            .seen
            .nodes
            .values()
            .flat_map(|node| node.labels.keys());
        let ours: Vec<_> = keys
            .filter(|key| key.starts_with(crds::names::NODE_LABEL_PREFIX))
            .collect();
        assert!(ours.is_empty(), "seed {seed}: {ours:?}");
    }
}

#[test]
fn a_changed_config_touches_no_node_in_any_cluster() {
    for seed in 1..=200 {
        let mut dice = Dice::new(seed);
        let mut world = random_world(&mut dice);
        world.settle();
        let configs: Vec<_> = world.seen.configs.keys().cloned().collect();
        for config in configs {
            world.change_config(&config, |one| one.spec.resources[0].name.push('x'));
        }
        let plan = plan(&world.seen);
        let touches = |write: &Write| {
            matches!(
                write.kind(),
                Kind::Node | Kind::NodeObject | Kind::DaemonSet | Kind::Pod
            )
        };
        assert!(
            !plan.actions.iter().any(|action| touches(&action.write)),
            "seed {seed}: {:?}",
            plan.actions
        );
        let pods = world.seen.pods.clone();
        world.settle();
        assert_eq!(world.seen.pods, pods, "seed {seed}");
    }
}
