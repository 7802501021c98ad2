//! The conformance suite: plays kubelets to any device plugin that a command line starts, and tells
//! which behaviours of the kubelet's contract it shows.
//!
//! It knows the contract and nothing of any plugin's inside: what it cannot bring about from the
//! outside (a device that vanishes, say) is an action that the caller supplies, and a behaviour whose
//! action is missing is skipped. `docs/conformance.md` says how to use it.

mod behaviour;
mod checks;
mod driver;
mod hook;
mod junit;
mod process;
mod report;
mod rig;
mod run;
mod selection;
mod verdict;

pub use behaviour::{BEHAVIOURS, Behaviour, Level, Models};
pub use driver::{Action, Driver, Feature};
pub use junit::junit;
pub use report::{Finding, Outcome, Report};
pub use run::{Options, run};
pub use selection::Selection;
