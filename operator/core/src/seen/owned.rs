//! What is kept of ControllerRevisions and ConfigMaps.

use crds::agent_config::AgentConfig;
use crds::hooks::Driver;
use crds::names::{AGENT_CONFIG_KEY, CONFIG_LABEL, FAILED_ANNOTATION, PROMOTED_ANNOTATION};
use crds::placement::Toleration;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::ConfigMap;
use serde::Deserialize;
use serde_json::Value;

use super::{Identity, controller_uid, label};
use crate::revision::RevisionContent;

/// A ControllerRevision of ours. The DaemonSet controller makes some of its own; those are owned
/// by a DaemonSet and have an empty `owner_uid`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeenRevision {
    /// Which one.
    pub id: Identity,
    /// Name of the config.
    pub config: String,
    /// The revision, ten hex digits.
    pub revision: String,
    /// UID of the config that owns it.
    pub owner_uid: String,
    /// Its number in the order of making.
    pub number: i64,
    /// Its number in the order of promotions.
    pub promoted: Option<u64>,
    /// Why it failed on a node, if it did.
    pub failed: Option<String>,
    /// What it holds; absent where it cannot be read.
    pub content: Option<RevisionContent>,
    /// The resources that its agents serve.
    pub resources: Vec<String>,
    /// What makes its devices' driver ready.
    pub driver: Option<Driver>,
    /// The taints that its agents tolerate.
    pub tolerations: Vec<Toleration>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl From<ControllerRevision> for SeenRevision {
    fn from(object: ControllerRevision) -> Self {
        let id = Identity::of(&object.metadata);
        let config = label(&object.metadata, CONFIG_LABEL);
        let content: Option<RevisionContent> = object
            .data
            .and_then(|data| serde_json::from_value(data.0).ok());
        let config_of_agents = content
            .as_ref()
            .and_then(|content| serde_json::from_str::<AgentConfig>(&content.agent_config).ok());
        let (resources, driver) = config_of_agents.map_or_else(Default::default, |config| {
            let names = config.resources.into_iter().map(|one| one.name);
            (names.collect(), config.hooks.and_then(|hooks| hooks.driver))
        });
        let tolerations = content
            .as_ref()
            .and_then(|content| content.template.pointer("/spec/tolerations"))
            .and_then(Value::as_array)
            .map(|all| {
                all.iter()
                    .filter_map(|one| Toleration::deserialize(one).ok())
                    .collect()
            });
        Self {
            revision: id
                .name
                .strip_prefix(&config)
                .and_then(|rest| rest.strip_prefix('-'))
                .unwrap_or_default()
                .to_owned(),
            config,
            owner_uid: controller_uid(&object.metadata, "DevicePluginConfig"),
            number: object.revision,
            failed: object
                .metadata
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get(FAILED_ANNOTATION))
                .cloned(),
            promoted: object
                .metadata
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get(PROMOTED_ANNOTATION))
                .and_then(|number| number.parse().ok()),
            content,
            resources,
            driver,
            tolerations: tolerations.unwrap_or_default(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            id,
        }
    }
}

/// A ConfigMap of ours.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SeenConfigMap {
    /// Which one.
    pub id: Identity,
    /// Name of the config.
    pub config: String,
    /// UID of the config that owns it.
    pub owner_uid: String,
    /// The agent's configuration; absent where the key is missing.
    pub agent_config: Option<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl From<ConfigMap> for SeenConfigMap {
    fn from(object: ConfigMap) -> Self {
        Self {
            id: Identity::of(&object.metadata),
            config: label(&object.metadata, CONFIG_LABEL),
            owner_uid: controller_uid(&object.metadata, "DevicePluginConfig"),
            agent_config: object
                .data
                .and_then(|mut data| data.remove(AGENT_CONFIG_KEY)),
            deleting: object.metadata.deletion_timestamp.is_some(),
        }
    }
}
