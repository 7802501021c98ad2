//! What dies, goes away or stands still in every phase.

use operator_core::ledger::Phase;
use operator_sim::behaviour::Behaviour;
use operator_sim::fault::{Fault, Value, Which};
use operator_sim::random::{ms, secs};

use crate::stage::{FUSE, PHASES, Stage};

/// Plays a change, does something to the node that is in a phase, and comes to an end.
fn in_phase(phase: Phase, act: impl Fn(&mut Stage, &str)) -> Stage {
    let mut stage = Stage::new(3);
    stage.edit(2);
    let node = stage.until_phase(phase);
    act(&mut stage, &node);
    stage.end();
    stage
}

#[test]
fn s22_agents_that_are_deleted_or_evicted_come_back_as_they_were() {
    for phase in PHASES {
        for evict in [true, false] {
            let stage = in_phase(phase, |stage, node| {
                let other = ["n1", "n2", "n3"]
                    .into_iter()
                    .find(|one| *one != node)
                    .unwrap();
                let before = stage.serving();
                let id = stage.world.host_id(other).unwrap();
                stage.fault(match evict {
                    true => Fault::Evict(other.to_owned()),
                    false => Fault::DeletePods(other.to_owned()),
                });
                stage.until("the devices", secs(40), |world| {
                    world.hosts[id].list(crate::stage::RESOURCE) == world.hosts[id].devices
                });
                if !stage.world.claims().iter().any(|claim| claim.node == other) {
                    assert_eq!(stage.serving()[id], before[id]);
                }
            });
            assert_eq!(stage.failed(2), None, "{phase:?} {evict} {}", stage.story());
            assert_eq!(stage.serving(), [2, 2, 2]);
        }
    }
}

#[test]
fn s26_a_node_that_is_deleted_frees_its_claim() {
    for phase in PHASES {
        let mut stage = in_phase(phase, |stage, node| {
            stage.fault(Fault::DeleteNode(node.to_owned(), None));
            stage.until("the claim's end", secs(5), |world| {
                !world.claims().iter().any(|claim| claim.node == node)
            });
            let object = format!("{FUSE}.{node}");
            stage.until("the object's end", secs(5), |world| {
                !world.api.node_objects.objects.contains_key(&object)
            });
        });
        assert_eq!(stage.failed(2), None, "{phase:?}");
        stage.run(ms(1));
        assert_eq!(
            stage.serving().iter().filter(|tag| **tag == 2).count(),
            2,
            "{phase:?}"
        );
    }
}

#[test]
fn s27_a_node_that_is_made_again_is_another_node() {
    for phase in PHASES {
        for away in [ms(300), secs(60)] {
            let stage = in_phase(phase, |stage, node| {
                stage.fault(Fault::DeleteNode(node.to_owned(), Some(away)));
                stage.run(away + secs(1));
            });
            assert_eq!(stage.serving(), [2, 2, 2], "{phase:?} {away:?}");
        }
    }
}

#[test]
fn s55_an_old_agent_that_dies_promotes_no_staged_one() {
    for paused in [false, true] {
        let mut stage = Stage::new(3);
        stage.edit(2);
        let node = stage.until_phase(Phase::Staged);
        if paused {
            stage.fault(Fault::Pause(FUSE.to_owned(), true));
            stage.run(secs(2));
        }
        let switched = stage
            .world
            .claims()
            .iter()
            .any(|one| one.node == node && one.phase.is_disruptive());
        stage.fault(Fault::KillAgent(node.clone(), Which::Active));
        stage.run(secs(20));
        if paused && !switched {
            assert_eq!(stage.serving(), [1, 1, 1], "{}", stage.story());
        }
        stage.fault(Fault::Pause(FUSE.to_owned(), false));
        stage.end();
        assert_eq!(stage.serving(), [2, 2, 2], "{}", stage.story());
    }
}

#[test]
fn s56_a_reboot_in_every_phase_ends_well() {
    for phase in PHASES {
        for cut_off in [false, true] {
            in_phase(phase, |stage, node| {
                if cut_off {
                    stage.fault(Fault::Disconnect(node.to_owned(), secs(100)));
                }
                stage.fault(Fault::Reboot(node.to_owned(), secs(30)));
                stage.run(secs(120));
            });
        }
    }
}

#[test]
fn s65_kubelets_and_agents_may_die_in_every_phase() {
    for phase in PHASES {
        for number in 0..3 {
            in_phase(phase, |stage, node| {
                let node = node.to_owned();
                stage.fault(match number {
                    0 => Fault::KillAgent(node, Which::Active),
                    1 => Fault::KillAgent(node, Which::Other),
                    _ => Fault::RestartKubelet(node, secs(3)),
                });
            });
        }
    }
}

#[test]
fn s66_no_confusion_about_roles_makes_two_registrations() {
    for phase in PHASES {
        in_phase(phase, |stage, node| {
            stage.fault(Fault::FreezeAgents(node.to_owned(), secs(30)));
            stage.fault(Fault::ForceDelete(node.to_owned()));
            stage.run(secs(40));
        });
        in_phase(phase, |stage, node| {
            stage.fault(Fault::CrashOperator(0, secs(60)));
            stage.fault(Fault::Label(node.to_owned(), FUSE.to_owned(), Value::None));
            stage.run(secs(70));
        });
    }
    let mut stage = Stage::new(2);
    stage.behave("n1", 1, Behaviour::Hangs);
    stage.fault(Fault::ForceDelete("n1".to_owned()));
    stage.run(secs(90));
    assert_eq!(stage.serving(), [1, 1]);
}
