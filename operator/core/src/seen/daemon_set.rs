//! What is kept of a DaemonSet.

use crds::names::{CONFIG_LABEL, REVISION_LABEL};
use k8s_openapi::api::apps::v1::DaemonSet;
use serde_json::Value;

use super::{Identity, controller_uid, label};

/// A DaemonSet of ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeenDaemonSet {
    /// Which one.
    pub id: Identity,
    /// Name of the config.
    pub config: String,
    /// The revision that it runs.
    pub revision: String,
    /// UID of the config that owns it.
    pub owner_uid: String,
    /// Its pod template.
    pub template: Value,
    /// Whether its pods are replaced only when somebody deletes them.
    pub on_delete: bool,
    /// Whether its controller has seen its last change.
    pub is_observed: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl SeenDaemonSet {
    /// Whether nothing but the resource version differs: its status moved.
    pub fn is_same_but_version(&self, other: &Self) -> bool {
        let mut same = other.clone();
        same.id.version.clone_from(&self.id.version);
        *self == same
    }
}

impl From<DaemonSet> for SeenDaemonSet {
    fn from(object: DaemonSet) -> Self {
        let spec = object.spec.unwrap_or_default();
        let observed = object.status.and_then(|status| status.observed_generation);
        Self {
            id: Identity::of(&object.metadata),
            config: label(&object.metadata, CONFIG_LABEL),
            revision: label(&object.metadata, REVISION_LABEL),
            owner_uid: controller_uid(&object.metadata, "DevicePluginConfig"),
            on_delete: spec
                .update_strategy
                .is_some_and(|strategy| strategy.type_.as_deref() == Some("OnDelete")),
            // A template that was read as JSON can be written as JSON.
            template: serde_json::to_value(spec.template).unwrap_or_default(),
            is_observed: observed >= object.metadata.generation,
            deleting: object.metadata.deletion_timestamp.is_some(),
        }
    }
}
