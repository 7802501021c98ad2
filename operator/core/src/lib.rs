//! What the operator decides: a snapshot of the cluster in, a plan of writes and statuses out.
//!
//! [`plan::plan`] is pure, total and global: it looks at all configs, pools and nodes at once, never
//! fails, and gives equal plans for equal snapshots. [`audit::audit`] states the safety rules
//! without looking at the planner. This crate deliberately knows no clock, no client and no cache:
//! whoever calls it says what was seen and when.

pub mod action;
pub mod audit;
mod deletion;
mod installation;
pub mod ledger;
mod lineage;
pub mod messages;
mod nodes;
pub mod plan;
mod pools;
pub mod quantity;
pub mod rendering;
pub mod revision;
mod rollout;
mod scope;
pub mod seen;
pub mod selection;
pub mod settings;
pub mod snapshot;
mod standing;
mod status;
mod validation;

#[cfg(test)]
mod scenario;
