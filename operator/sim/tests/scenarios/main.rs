//! The scenarios of `rollout.md` section 5 that need no steps, drains or hooks, by their numbers.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected fails"
)]

mod crash_points;
mod deaths;
mod failures;
mod people;
mod progress;
mod stage;
