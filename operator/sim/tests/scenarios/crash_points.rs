//! An operator that dies at any of its writes, or stands still there while another one leads.

use operator_sim::fault::Fault;
use operator_sim::host::{Host, Kubelet};
use operator_sim::operator::CrashPoint;
use operator_sim::random::{ms, secs};

use crate::stage::Stage;

/// How many writes a change of three nodes takes, and at which it begins.
fn writes() -> (u64, u64) {
    let mut stage = Stage::new(3);
    let first = stage.world.writes;
    stage.edit(2);
    stage.end();
    (first, stage.world.writes)
}

#[test]
fn s14_a_crash_at_any_write_changes_nothing_in_the_end() {
    let (first, last) = writes();
    assert!(last > first + 30, "{first} {last}");
    for at in first..last {
        for after in [false, true] {
            let mut stage = Stage::new(3);
            stage.world.script.crash = Some(CrashPoint { at, after });
            stage.edit(2);
            stage.end();
            let place = format!("write {at}, after: {after}\n{}", stage.story());
            assert_eq!(stage.serving(), [2, 2, 2], "{place}");
            assert_eq!(stage.switches(), [1, 1, 1], "{place}");
            assert_eq!(stage.failed(2), None, "{place}");
        }
    }
}

#[test]
fn s14_a_crash_in_a_rollback_ends_where_it_would_have() {
    let run = |crash| {
        let mut stage = Stage::new(2);
        stage.behave("", 2, operator_sim::behaviour::Behaviour::ListStaysEmpty);
        stage.world.script.crash = crash;
        let first = stage.world.writes;
        stage.edit(2);
        stage.end();
        (first, stage)
    };
    let (first, whole) = run(None);
    assert_eq!(whole.serving(), [1, 1]);
    for at in first..whole.world.writes {
        for after in [false, true] {
            let (_, stage) = run(Some(CrashPoint { at, after }));
            let place = format!("write {at}, after: {after}\n{}", stage.story());
            assert_eq!(stage.serving(), [1, 1], "{place}");
            assert!(stage.failed(2).is_some(), "{place}");
        }
    }
}

#[test]
fn s16_a_leader_that_was_away_does_no_harm_when_it_is_back() {
    let (first, last) = writes();
    for at in first..last {
        let mut stage = Stage::new(3);
        stage.world.add_operator();
        stage.run(secs(2));
        stage.world.script.stall = Some((at, secs(40)));
        stage.edit(2);
        stage.end();
        let place = format!("write {at}\n{}", stage.story());
        assert_eq!(stage.serving(), [2, 2, 2], "{place}");
        assert_eq!(stage.switches(), [1, 1, 1], "{place}");
    }
}

#[test]
fn s16_a_lease_may_be_stolen_at_any_moment() {
    for tenth in 0..60 {
        let mut stage = Stage::new(3);
        stage.world.add_operator();
        stage.run(secs(2));
        stage.edit(2);
        stage.run(ms(tenth * 700));
        stage.fault(Fault::StealLease);
        stage.end();
        assert_eq!(stage.serving(), [2, 2, 2], "{}", stage.story());
        assert_eq!(stage.failed(2), None, "{}", stage.story());
    }
}

#[test]
fn s61_a_node_that_joins_while_a_promotion_is_interrupted_is_served() {
    let (first, last) = writes();
    let mut stage = Stage::new(3);
    stage.edit(2);
    stage.until("the last claim", secs(600), |world| {
        world
            .api
            .revisions
            .objects
            .values()
            .filter(|one| one.promoted.is_some())
            .count()
            > 1
    });
    let promotion = stage.world.writes.saturating_sub(4).max(first);
    for at in promotion..last {
        for after in [false, true] {
            let mut stage = Stage::new(3);
            stage.world.script.crash = Some(CrashPoint { at, after });
            stage.edit(2);
            // Writes come in other numbers from run to run; the last may never come.
            stage.until("the crash", secs(900), |world| {
                world.script.crash.is_none() || world.is_quiet()
            });
            let host = Host::new("n4", Kubelet::ByResource, 0b11, ms(300));
            stage.world.add_host(host);
            stage.end();
            assert_eq!(
                stage.serving(),
                [2, 2, 2, 2],
                "write {at}\n{}",
                stage.story()
            );
        }
    }
}
