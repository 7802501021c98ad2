//! A deterministic simulation of a cluster that the operator's planner works in.
//!
//! Everything follows from a seed: an API server with resource versions and stale watches, a
//! DaemonSet controller, kubelets of both registration models, agents with their locks and state
//! files (they decide their role with the code of the real ones), and operators that execute plans
//! write by write. Faults are chosen by the seed; [`laws`] says what must hold at every moment and
//! [`end`] what must be so in the end.
//!
//! It knows no threads, clocks or files. It deliberately does not know *why* the planner does
//! something: laws are judged from what is so in the cluster.

mod act;
pub mod agent;
pub mod api;
pub mod behaviour;
pub mod bug;
pub mod cache;
pub mod daemon_sets;
pub mod end;
pub mod event;
pub mod fault;
pub mod host;
mod law_of_writes;
pub mod laws;
pub mod operator;
mod pods;
pub mod random;
mod registration;
mod report;
pub mod run;
pub mod script;
pub mod seed;
pub mod story;
pub mod world;
