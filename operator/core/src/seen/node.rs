//! What is kept of a Node.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

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
    /// Whether somebody has cordoned it.
    pub unschedulable: bool,
    /// How many devices its kubelet offers to the scheduler, by extended resource.
    pub allocatable: BTreeMap<String, i64>,
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
            unschedulable,
            allocatable,
            deleting,
        } = self;
        id.uid == other.id.uid
            && *labels == other.labels
            && *taints == other.taints
            && *ready == other.ready
            && *ready_since == other.ready_since
            && *unschedulable == other.unschedulable
            && *allocatable == other.allocatable
            && *deleting == other.deleting
    }
}

/// A Node as it is read: the images and managed fields that are most of it are skipped, not even
/// taken apart.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WireNode {
    metadata: WireMetadata,
    spec: WireSpec,
    status: WireStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireMetadata {
    name: String,
    uid: String,
    resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    deletion_timestamp: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireSpec {
    taints: Option<Vec<WireTaint>>,
    unschedulable: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireTaint {
    key: String,
    value: Option<String>,
    effect: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireStatus {
    allocatable: Option<BTreeMap<String, String>>,
    conditions: Option<Vec<WireCondition>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    last_transition_time: Option<Time>,
}

impl From<WireNode> for SeenNode {
    fn from(node: WireNode) -> Self {
        let WireNode {
            metadata,
            spec,
            status,
        } = node;
        let allocatable = status.allocatable.into_iter().flatten();
        let mut conditions = status.conditions.into_iter().flatten();
        let ready = conditions.find(|condition| condition.type_ == "Ready");
        let taints = spec.taints.into_iter().flatten();
        Self {
            id: Identity {
                name: metadata.name,
                uid: metadata.uid,
                version: metadata.resource_version,
            },
            labels: metadata.labels.unwrap_or_default(),
            taints: taints
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
            unschedulable: spec.unschedulable,
            allocatable: allocatable
                .filter(|(name, _)| is_extended(name))
                .filter_map(|(name, amount)| Some((name, count(&amount)?)))
                .collect(),
            deleting: metadata.deletion_timestamp.is_some(),
        }
    }
}

/// A count of devices, which the API server writes in its shortest form: a thousand is `1k`.
fn count(amount: &str) -> Option<i64> {
    let milli = crate::quantity::milli(amount)?;
    i64::try_from(milli / 1000).ok()
}

/// Whether a resource can be a device plugin's: the kubelet's own change with every heartbeat.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> SeenNode {
        let node: WireNode = serde_yaml::from_str(text).unwrap();
        node.into()
    }

    #[test]
    fn a_node_is_read_without_what_nobody_needs() {
        let node = seen(
            "apiVersion: v1
kind: Node
metadata:
  name: n1
  uid: u
  resourceVersion: '7'
  labels: {a: b}
  managedFields: [{manager: kubelet}]
spec:
  podCIDR: 10.0.0.0/24
  unschedulable: true
  taints: [{key: k, effect: NoSchedule}, {key: l, value: v, effect: NoExecute, timeAdded: '2026-11-21T12:00:00Z'}]
status:
  allocatable: {cpu: '2', example.com/fpga: '3', pods: '110', example.com/odd: 1k}
  images: [{names: [x], sizeBytes: 1}]
  conditions:
  - {type: DiskPressure, status: 'False'}
  - {type: Ready, status: 'True', lastTransitionTime: '2026-11-21T12:00:00Z'}",
        );
        let taint = |key: &str, value: &str, effect: &str| Taint {
            key: key.to_owned(),
            value: value.to_owned(),
            effect: effect.to_owned(),
        };
        let wanted = SeenNode {
            id: Identity {
                name: "n1".to_owned(),
                uid: "u".to_owned(),
                version: "7".to_owned(),
            },
            labels: [("a".to_owned(), "b".to_owned())].into(),
            taints: vec![taint("k", "", "NoSchedule"), taint("l", "v", "NoExecute")],
            ready: true,
            ready_since: "2026-11-21T12:00:00Z".parse().ok(),
            unschedulable: true,
            allocatable: [
                ("example.com/fpga".to_owned(), 3),
                ("example.com/odd".to_owned(), 1_000),
            ]
            .into(),
            deleting: false,
        };
        assert_eq!(node, wanted);
    }

    #[test]
    fn a_node_that_says_nothing_is_not_ready() {
        for text in [
            "metadata: {name: n1}",
            "{metadata: {name: n1, labels: null}, spec: {taints: null}, status: {conditions: null}}",
            "{metadata: {name: n1}, status: {conditions: [{type: Ready, status: Unknown}]}}",
        ] {
            assert!(!seen(text).ready, "{text}");
        }
        let deleting = seen("metadata: {name: n1, deletionTimestamp: '2026-11-21T12:00:00Z'}");
        assert!(deleting.deleting);
    }

    #[test]
    fn a_heartbeat_is_no_news() {
        let node = seen("metadata: {name: n1, uid: u, resourceVersion: '7'}");
        let mut other = node.clone();
        other.id.version = "8".to_owned();
        assert!(node.is_same_but_version(&other));
        other.ready = true;
        assert!(!node.is_same_but_version(&other));
    }
}
