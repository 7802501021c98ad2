//! Revisions that do not work.

use operator_core::ledger::Phase;
use operator_sim::behaviour::Behaviour;
use operator_sim::fault::{Fault, Which};
use operator_sim::host::Kubelet;
use operator_sim::random::{ms, secs};
use serde_json::json;

use crate::stage::{RESOURCE, Stage};

/// A second revision that behaves like this everywhere.
fn spread(behaviour: Behaviour) -> Stage {
    let mut stage = Stage::new(3);
    stage.behave("", 2, behaviour);
    stage.edit(2);
    stage.end();
    stage
}

#[test]
fn s03_a_failing_preflight_switches_nothing() {
    let stage = spread(Behaviour::PreflightFails);
    assert_eq!(stage.serving(), [1, 1, 1]);
    assert_eq!(stage.switches(), [0, 0, 0]);
    assert!(stage.failed(2).is_some());
    assert_eq!(stage.reason("Progressing"), "False/Halted");
}

#[test]
fn s04_an_image_that_nobody_can_pull_halts() {
    let stage = spread(Behaviour::NoImage);
    assert_eq!(stage.serving(), [1, 1, 1]);
    assert_eq!(stage.switches(), [0, 0, 0]);
    assert_eq!(stage.reason("Progressing"), "False/Halted");
}

#[test]
fn s04_an_image_that_one_node_cannot_pull_leaves_it_out() {
    let mut stage = Stage::new(3);
    stage.behave("n2", 2, Behaviour::NoImage);
    stage.edit(2);
    stage.run(secs(1500));
    assert_eq!(stage.serving(), [2, 1, 2]);
    assert_eq!(stage.failed(2), None);
}

#[test]
fn s05_a_hand_over_that_hangs_is_taken_back() {
    for node in ["n1", "n2", "n3"] {
        let mut stage = Stage::empty(3, Kubelet::ByResource);
        stage.behave(node, 1, Behaviour::Hangs);
        let rollout = json!({ "gate": { "soakSeconds": 0 } });
        stage
            .world
            .add_config("fuse", operator_sim::seed::spec(&[RESOURCE], &rollout), 1);
        stage.run(secs(60));
        stage.edit(2);
        stage.end();
        let id = stage.world.host_id(node).unwrap();
        assert_eq!(stage.serving()[id], 1, "{}", stage.story());
        assert!(stage.failed(2).is_some());
    }
}

#[test]
fn s06_an_agent_that_never_registers_is_rolled_back_at_once() {
    let mut stage = Stage::new(3);
    stage.behave("", 2, Behaviour::NeverRegisters);
    stage.edit(2);
    stage.until_phase(Phase::RollingBack);
    stage.until("the old agent", secs(1), |world| {
        world
            .hosts
            .iter()
            .all(|host| host.list(RESOURCE) == host.devices)
    });
    stage.end();
    assert_eq!(stage.serving(), [1, 1, 1]);
    assert_eq!(stage.switches().iter().sum::<u32>(), 2, "there and back");
}

#[test]
fn s07_a_kubelet_that_does_not_follow_is_a_failure() {
    let stage = spread(Behaviour::ListStaysEmpty);
    assert_eq!(stage.serving(), [1, 1, 1]);
    let why = stage.failed(2).unwrap();
    assert!(why.contains("Kubelet"), "{why}");
}

#[test]
fn s08_a_device_less_fails_unless_it_is_tolerated() {
    let stage = spread(Behaviour::FewerDevices);
    assert_eq!(stage.serving(), [1, 1, 1]);
    assert_eq!(stage.switches(), [0, 0, 0], "it is seen before the switch");
    let rollout = json!({ "gate": { "soakSeconds": 0, "toleratedDeviceLoss": 1 } });
    let mut stage = Stage::with(2, Kubelet::ByResource, &rollout);
    stage.behave("", 2, Behaviour::FewerDevices);
    stage.edit(2);
    stage.run(secs(200));
    assert_eq!(stage.serving(), [2, 2]);
}

#[test]
fn s12_a_restart_within_the_soak_starts_it_again_or_fails() {
    for (allowed, expected) in [(0, 1), (1, 2)] {
        let rollout = json!({ "gate": { "soakSeconds": 40, "maxRestarts": allowed } });
        let mut stage = Stage::with(1, Kubelet::BySocket, &rollout);
        stage.edit(2);
        stage.until_phase(Phase::Soaking);
        stage.run(secs(35));
        stage.fault(Fault::KillAgent("n1".to_owned(), Which::Active));
        let killed = stage.world.now;
        stage.until("the end", secs(300), |world| world.claims().is_empty());
        assert_eq!(stage.serving(), [expected], "{}", stage.story());
        if expected == 2 {
            assert!(stage.world.now > killed + secs(40), "the soak began anew");
        }
        stage.end();
    }
}

#[test]
fn s60_going_back_needs_no_image() {
    let mut stage = Stage::new(2);
    stage.behave("", 2, Behaviour::ListStaysEmpty);
    stage.edit(2);
    stage.until_phase(Phase::Verifying);
    stage.behave("", 1, Behaviour::NoImage);
    stage.until_phase(Phase::RollingBack);
    stage.run(secs(2));
    assert_eq!(stage.serving(), [1, 1]);
}

#[test]
fn s65_without_an_operator_the_proven_agent_serves_again() {
    let mut stage = Stage::new(2);
    stage.edit(2);
    let node = stage.until_phase(Phase::Verifying);
    stage.fault(Fault::CrashOperator(0, secs(1000)));
    stage.behave(&node, 2, Behaviour::NoImage);
    stage.run(secs(5));
    let died = stage.world.now;
    stage.fault(Fault::KillAgent(node.clone(), Which::Active));
    stage.run(ms(500));
    let id = stage.world.host_id(&node).unwrap();
    stage.until("the proven agent", secs(182), |world| {
        world.hosts[id].list(RESOURCE) == world.hosts[id].devices
    });
    assert!(
        stage.world.now > died + secs(179),
        "it waits for the operator"
    );
    assert_eq!(stage.serving()[id], 1);
    stage.run(secs(1100));
    assert!(stage.failed(2).is_some(), "{}", stage.story());
    assert_eq!(stage.serving(), [1, 1]);
    stage.end();
}
