//! What is kept of a Node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;

use super::Identity;

/// A Node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SeenNode {
    /// Which one.
    pub id: Identity,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether its kubelet says it is ready. A node that says nothing is not.
    pub ready: bool,
    /// Since when it is, or is not.
    pub ready_since: Option<Timestamp>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// A taint.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value; empty where there is none.
    pub value: String,
    /// Its effect.
    pub effect: String,
}

impl SeenNode {
    /// Whether nothing but the resource version differs: a heartbeat.
    pub fn is_same_but_version(&self, other: &Self) -> bool {
        let Self {
            id,
            labels,
            taints,
            ready,
            ready_since,
            deleting,
        } = self;
        id.uid == other.id.uid
            && *labels == other.labels
            && *taints == other.taints
            && *ready == other.ready
            && *ready_since == other.ready_since
            && *deleting == other.deleting
    }
}

impl From<Node> for SeenNode {
    fn from(node: Node) -> Self {
        let id = Identity::of(&node.metadata);
        let ready = node
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default()
            .into_iter()
            .find(|condition| condition.type_ == "Ready");
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        Self {
            id,
            labels: node.metadata.labels.unwrap_or_default(),
            taints: taints
                .into_iter()
                .map(|taint| Taint {
                    key: taint.key,
                    value: taint.value.unwrap_or_default(),
                    effect: taint.effect,
                })
                .collect(),
            ready: ready.as_ref().is_some_and(|ready| ready.status == "True"),
            ready_since: ready
                .and_then(|ready| ready.last_transition_time)
                .map(|time| time.0),
            deleting: node.metadata.deletion_timestamp.is_some(),
        }
    }
}
