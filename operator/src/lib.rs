//! The operator's shell: watches the cluster, asks `operator_core` what to do, and does it. It
//! decides nothing.

pub mod bucket;
pub mod caches;
pub mod client;
pub mod driver;
pub mod execute;
pub mod flags;
pub mod lease;
pub mod ledger;
pub mod metrics;
pub mod observe;
pub mod publish;
pub mod slim_node;
pub mod store;
pub mod uninstall;
pub mod watch;
