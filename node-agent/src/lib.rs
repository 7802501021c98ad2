//! The node agent: looks at `/dev` and `/sys`, speaks the device plugin protocol to the kubelet, and reports to
//! the node's object. What to do about what it sees is decided in `node_agent_core`.

mod actions;
mod agent;
mod allocations;
mod board;
mod cdi;
mod checkpoint;
mod claim;
mod claim_table;
mod claims;
mod comparer;
mod devices;
mod error_chain;
mod farewell;
mod file_events;
mod given;
mod hook_record;
mod hooks;
mod host_dev;
mod host_devices;
mod lock;
pub mod metrics;
mod node_object;
mod observer;
mod plugin_directory;
mod plugin_server;
mod plugin_service;
mod random;
mod register;
mod registrar;
mod reporter;
mod resets;
mod roles;
pub mod runner;
pub mod settings;
mod state_file;
mod sysfs;
mod tick;
mod uevents;

pub use agent::{Agent, run};
pub use settings::ApiAccess;
