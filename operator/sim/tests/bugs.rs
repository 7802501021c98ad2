//! Faults that were put in on purpose are found.

#![expect(clippy::disallowed_methods, reason = "it must not take long")]

use std::time::{Duration, Instant};

use operator_sim::bug::Bug;
use operator_sim::run::{Options, run};

/// Whether some seed breaks a law within a minute.
fn is_found(bug: Bug) -> bool {
    let started = Instant::now();
    let mut seeds = 0..;
    seeds.any(|seed| {
        let options = Options {
            seed,
            bug: Some(bug),
            ..Options::default()
        };
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{bug:?} is not found"
        );
        run(&options).broken.is_some()
    })
}

#[test]
fn acting_before_the_claim_is_found() {
    assert!(is_found(Bug::ClaimAfterAct));
}

#[test]
fn registering_without_a_lock_is_found() {
    assert!(is_found(Bug::NoLock));
}

#[test]
fn a_role_that_follows_from_the_lock_is_found() {
    assert!(is_found(Bug::RoleByLock));
}

#[test]
fn a_label_that_moves_first_is_found() {
    assert!(is_found(Bug::LabelFirst));
}
