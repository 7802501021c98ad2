//! What people do to a change that is under way.

use operator_core::ledger::Phase;
use operator_sim::fault::{Fault, Value};
use operator_sim::host::Kubelet;
use operator_sim::random::secs;
use serde_json::json;

use crate::stage::{FUSE, PHASES, Stage};

#[test]
fn s18_a_pause_lets_finish_what_is_under_way_and_begins_nothing() {
    let rollout = json!({ "maxUnavailable": 2, "gate": { "soakSeconds": 20 } });
    let mut stage = Stage::with(4, Kubelet::BySocket, &rollout);
    stage.edit(2);
    stage.until_phase(Phase::Soaking);
    stage.fault(Fault::Pause(FUSE.to_owned(), true));
    stage.run(secs(2));
    let disruptive = |stage: &Stage| {
        let claims = stage.world.claims();
        let nodes = claims
            .into_iter()
            .filter(|claim| claim.phase.is_disruptive());
        nodes.map(|claim| claim.node).collect::<Vec<_>>()
    };
    let before = disruptive(&stage);
    assert!(!before.is_empty());
    stage.run(secs(300));
    assert_eq!(
        disruptive(&stage),
        Vec::<String>::new(),
        "they have finished"
    );
    let updated = stage.serving().iter().filter(|tag| **tag == 2).count();
    assert_eq!(updated, before.len(), "{}", stage.story());
    assert!(stage.reason("Progressing").ends_with("Paused"));
    stage.fault(Fault::Pause(FUSE.to_owned(), false));
    stage.end();
    assert_eq!(stage.serving(), [2, 2, 2, 2]);
    assert_eq!(stage.switches(), [1, 1, 1, 1]);
}

#[test]
fn s44_labels_that_somebody_wrote_are_repaired() {
    for value in [Value::None, Value::Garbage, Value::Tag(2)] {
        let mut stage = Stage::new(3);
        stage.edit(2);
        stage.end();
        stage.edit(3);
        stage.until_phase(Phase::Soaking);
        for node in ["n1", "n2", "n3"] {
            stage.fault(Fault::Label(node.to_owned(), FUSE.to_owned(), value));
        }
        stage.end();
        assert_eq!(stage.serving(), [3, 3, 3], "{value:?}\n{}", stage.story());
    }
}

#[test]
fn s44_a_label_that_names_the_new_revision_proves_nothing() {
    for phase in PHASES {
        let mut stage = Stage::new(2);
        stage.edit(2);
        let node = stage.until_phase(phase);
        let other = if node == "n1" { "n2" } else { "n1" };
        stage.fault(Fault::Label(
            other.to_owned(),
            FUSE.to_owned(),
            Value::Tag(2),
        ));
        stage.end();
        assert_eq!(stage.serving(), [2, 2], "{phase:?}\n{}", stage.story());
    }
}

#[test]
fn s53_a_lost_status_or_ledger_is_made_again_from_traces() {
    for phase in PHASES {
        for number in 0..3 {
            let mut stage = Stage::new(3);
            stage.edit(2);
            stage.until_phase(phase);
            stage.fault(match number {
                0 => Fault::WipeStatus(FUSE.to_owned()),
                1 => Fault::DeleteLedger,
                _ => Fault::GarbageLedger,
            });
            stage.end();
            assert_eq!(
                stage.serving(),
                [2, 2, 2],
                "{phase:?} {number}\n{}",
                stage.story()
            );
        }
    }
}

#[test]
fn s68_a_lost_object_is_made_again_in_its_phase() {
    for phase in PHASES {
        for deposed in [false, true] {
            let mut stage = Stage::new(3);
            if deposed {
                stage.world.add_operator();
            }
            stage.edit(2);
            let node = stage.until_phase(phase);
            if deposed {
                stage.fault(Fault::PauseOperator(0, secs(40)));
                stage.fault(Fault::DeleteLedger);
            } else {
                stage.fault(Fault::DeleteNodeObject(node.clone(), FUSE.to_owned()));
            }
            stage.end();
            let updated = stage.serving().iter().all(|tag| *tag == 2);
            let is_told =
                stage.failed(2).is_some() || stage.reason("Progressing").starts_with("False");
            assert!(updated || is_told, "{phase:?}\n{}", stage.story());
        }
    }
}

#[test]
fn what_a_revision_is_made_from_may_be_deleted_in_every_phase() {
    for phase in PHASES {
        for tag in [1, 2] {
            for number in 0..3 {
                let mut stage = Stage::new(2);
                stage.edit(2);
                stage.until_phase(phase);
                let config = FUSE.to_owned();
                stage.fault(match number {
                    0 => Fault::DeleteDaemonSet(config, tag),
                    1 => Fault::DeleteRevision(config, tag),
                    _ => Fault::DeleteConfigMap(config, tag),
                });
                stage.end();
            }
        }
    }
}

#[test]
fn edits_in_quick_succession_end_at_the_last_one() {
    let mut stage = Stage::new(3);
    for tag in 2..8 {
        stage.edit(tag);
        stage.run(secs(1));
    }
    stage.end();
    assert_eq!(stage.serving(), [7, 7, 7]);
    stage.edit(8);
    stage.until_phase(Phase::Soaking);
    stage.edit(7);
    stage.end();
    assert_eq!(stage.serving(), [7, 7, 7], "{}", stage.story());
}
