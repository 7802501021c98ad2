//! What goes well, whatever else goes on.

use operator_core::ledger::Phase;
use operator_sim::api::Watch;
use operator_sim::behaviour::Behaviour;
use operator_sim::fault::Fault;
use operator_sim::host::Kubelet;
use operator_sim::random::secs;
use serde_json::json;

use crate::stage::{FUSE, PHASES, RESOURCE, Stage};

const KUBELETS: [Kubelet; 2] = [Kubelet::ByResource, Kubelet::BySocket];

#[test]
fn s01_every_node_is_switched_once_with_five_writes() {
    for kubelet in KUBELETS {
        let rollout = json!({ "gate": { "soakSeconds": 20 } });
        let mut stage = Stage::with(4, kubelet, &rollout);
        stage.edit(2);
        stage.end();
        assert_eq!(stage.serving(), [2, 2, 2, 2]);
        assert_eq!(stage.switches(), [1, 1, 1, 1]);
        for (object, writes) in &stage.world.laws.node_writes {
            let most = if object.starts_with(FUSE) { 3 } else { 2 };
            assert!(
                *writes <= most,
                "{object}: {writes} writes\n{}",
                stage.story()
            );
        }
        assert_eq!(stage.reason("Ready"), "True/Complete");
    }
}

#[test]
fn s02_a_first_installation_claims_nothing() {
    let mut stage = Stage::new(4);
    stage.end();
    assert_eq!(stage.serving(), [1, 1, 1, 1]);
    assert!(!stage.told("claim"), "{}", stage.story());
    assert_eq!(stage.reason("Ready"), "True/Complete");
}

#[test]
fn s09_a_device_that_was_unhealthy_before_is_not_held_against_the_new_agent() {
    let mut stage = Stage::empty(2, Kubelet::ByResource);
    stage.behave("n1", 1, Behaviour::FewerDevices);
    stage.behave("n1", 2, Behaviour::FewerDevices);
    stage
        .world
        .add_config(FUSE, operator_sim::seed::spec(&[RESOURCE], &json!({})), 1);
    stage.run(secs(60));
    stage.edit(2);
    stage.end();
    assert_eq!(stage.serving(), [2, 2]);
}

#[test]
fn s15_a_stale_cache_of_nodes_oversteps_no_budget() {
    let mut stage = Stage::new(4);
    stage.edit(2);
    stage.until_phase(Phase::Staged);
    stage.fault(Fault::Freeze(0, Watch::Nodes, secs(60)));
    stage.end();
    assert_eq!(stage.serving(), [2, 2, 2, 2]);
    assert_eq!(stage.failed(2), None);
}

#[test]
fn s17_a_third_of_all_calls_failing_only_slows_it() {
    let mut stage = Stage::new(3);
    stage.edit(2);
    stage.fault(Fault::ApiErrors(30, secs(600)));
    stage.end();
    assert_eq!(stage.serving(), [2, 2, 2]);
    assert_eq!(stage.switches(), [1, 1, 1]);
}

#[test]
fn s47_another_operator_restarts_no_agent() {
    let mut stage = Stage::new(2);
    let agents: Vec<_> = stage.world.agents.keys().copied().collect();
    let mut settings = (*stage.world.settings).clone();
    settings.agent_image = "registry.example.com/agent:9".to_owned();
    settings.agent_service_account = "another".to_owned();
    stage.world.settings = settings.into();
    stage.fault(Fault::CrashOperator(0, secs(3)));
    stage.end();
    assert!(stage.world.agents.keys().copied().eq(agents));
    assert!(!stage.told("claim"));
}

#[test]
fn s52_an_hour_that_nobody_watched_is_nobodys_fault() {
    let hour = secs(3600);
    let faults = [
        vec![Fault::CrashOperator(0, hour)],
        vec![Fault::ApiDown(hour)],
        vec![Fault::ClockJump(600)],
        vec![Fault::ClockJump(-600)],
        vec![Fault::PauseOperator(0, hour)],
    ];
    for phase in PHASES {
        for faults in &faults {
            let mut stage = Stage::new(2);
            stage.edit(2);
            stage.until_phase(phase);
            for fault in faults {
                stage.fault(fault.clone());
            }
            stage.run(hour + secs(60));
            stage.end();
            assert_eq!(
                stage.failed(2),
                None,
                "{phase:?} {faults:?}\n{}",
                stage.story()
            );
            assert_eq!(stage.serving(), [2, 2], "{phase:?} {faults:?}");
            assert_eq!(stage.switches(), [1, 1], "{phase:?} {faults:?}");
        }
    }
}

#[test]
fn s64_a_slow_daemon_set_controller_is_no_failure() {
    for phase in [None, Some(Phase::Staging), Some(Phase::Committing)] {
        let mut stage = Stage::new(2);
        if phase.is_none() {
            stage.fault(Fault::SlowDaemonSets(secs(300)));
        }
        stage.edit(2);
        if let Some(phase) = phase {
            stage.until_phase(phase);
            stage.fault(Fault::SlowDaemonSets(secs(300)));
        }
        stage.end();
        assert_eq!(stage.failed(2), None, "{phase:?}");
        assert_eq!(stage.serving(), [2, 2], "{phase:?}");
    }
}

#[test]
fn s67_a_late_status_of_the_old_agent_is_no_failure_of_the_new() {
    let mut stage = Stage::new(2);
    stage.world.script.agent_write_lag = secs(4);
    stage.edit(2);
    stage.end();
    assert_eq!(stage.failed(2), None);
    assert_eq!(stage.serving(), [2, 2]);
}

#[test]
fn an_agent_whose_watch_is_late_hands_over_late() {
    let mut stage = Stage::new(2);
    stage.edit(2);
    let node = stage.until_phase(Phase::Staged);
    stage.fault(Fault::FreezeAgents(node, secs(20)));
    stage.end();
    assert_eq!(stage.failed(2), None);
    assert_eq!(stage.serving(), [2, 2]);
}
