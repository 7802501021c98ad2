//! Every type that a user and a process, or two processes, agree on: the three custom resources,
//! the configuration that an agent reads, and the names of everything the operator makes.
//!
//! This crate deliberately knows no behaviour: it never decides, matches or talks to anybody.

pub mod agent_config;
pub mod conditions;
pub mod config;
pub mod container;
pub mod discovery;
pub mod health;
pub mod hooks;
pub mod manifests;
pub mod names;
pub mod node;
pub mod placement;
pub mod pool;
pub mod resource;
pub mod rollout;
pub mod selector;

pub use agent_config::AgentConfig;
pub use config::{DevicePluginConfig, DevicePluginConfigSpec, DevicePluginConfigStatus};
pub use node::{DevicePluginNode, DevicePluginNodeSpec, DevicePluginNodeStatus};
pub use pool::{DevicePluginPool, DevicePluginPoolSpec, DevicePluginPoolStatus};
pub use resource::Resource;
