//! What an agent reads from its revision's ConfigMap.

use serde::{Deserialize, Serialize};

use crate::hooks::Hooks;
use crate::resource::Resource;

/// The agent's whole configuration, as JSON under [`crate::names::AGENT_CONFIG_KEY`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentConfig {
    /// Name of the config.
    pub config: String,
    /// UID of the config: what an agent remembers on the host is bound to it, so that a config
    /// that was deleted and made again under its old name starts anew.
    pub config_uid: String,
    /// The revision, ten hex digits.
    pub revision: String,
    /// The resources to serve.
    pub resources: Vec<Resource>,
    /// What is done to the devices beside listing them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
}
