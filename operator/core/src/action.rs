//! What the operator may write. An action names what it was decided on and leaves no choice to
//! whoever executes it.

use std::collections::BTreeMap;

use crds::names::{CONFIG_LABEL, OPERATOR_FIELD_MANAGER, labelled_config, node_revision_label};
use crds::{
    DevicePluginConfigStatus, DevicePluginNode, DevicePluginNodeSpec, DevicePluginPoolStatus,
};
use serde_json::{Value, json};

use crate::seen::Identity;

/// One write, and for which config it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// The config; empty where it is made for none, as with a pool's label.
    pub config: String,
    /// What is written.
    pub write: Write,
}

/// What is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Sets the finalizers of a config.
    SetFinalizers {
        /// The config.
        on: Identity,
        /// All of its finalizers.
        finalizers: Vec<String>,
    },
    /// Makes a ControllerRevision.
    CreateRevision {
        /// Its name.
        name: String,
        /// The whole object.
        object: Value,
    },
    /// Makes a ConfigMap.
    CreateConfigMap {
        /// Its name.
        name: String,
        /// The whole object.
        object: Value,
    },
    /// Makes a DaemonSet.
    CreateDaemonSet {
        /// Its name.
        name: String,
        /// The whole object.
        object: Value,
    },
    /// Brings the template of a DaemonSet back to its revision's, with these affinity terms.
    PatchDaemonSet {
        /// The DaemonSet.
        on: Identity,
        /// Its whole template.
        template: Value,
    },
    /// Makes a `DevicePluginNode`.
    CreateNodeObject {
        /// The whole object.
        object: Box<DevicePluginNode>,
    },
    /// Writes the spec of a `DevicePluginNode`.
    PatchNodeObject {
        /// The object.
        on: Identity,
        /// Its whole spec.
        spec: Box<DevicePluginNodeSpec>,
    },
    /// Sets and removes labels of a node, all at once.
    LabelNode {
        /// The node.
        on: Identity,
        /// The labels; one without a value is removed.
        labels: BTreeMap<String, Option<String>>,
    },
    /// Sets annotations of a ControllerRevision.
    AnnotateRevision {
        /// The ControllerRevision.
        on: Identity,
        /// The annotations.
        annotations: BTreeMap<String, String>,
    },
    /// Sets the membership label of a pool.
    LabelPool {
        /// The pool.
        on: Identity,
        /// The label's key.
        key: String,
    },
    /// Deletes an object.
    Delete {
        /// Of which kind.
        kind: Kind,
        /// Which one.
        on: Identity,
    },
}

/// Kinds of objects that the operator writes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// `DevicePluginConfig`.
    Config,
    /// `DevicePluginPool`.
    Pool,
    /// `DevicePluginNode`.
    NodeObject,
    /// Node.
    Node,
    /// ControllerRevision.
    Revision,
    /// ConfigMap.
    ConfigMap,
    /// DaemonSet.
    DaemonSet,
    /// Pod.
    Pod,
}

impl Kind {
    /// The kind's name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "DevicePluginConfig",
            Self::Pool => "DevicePluginPool",
            Self::NodeObject => "DevicePluginNode",
            Self::Node => "Node",
            Self::Revision => "ControllerRevision",
            Self::ConfigMap => "ConfigMap",
            Self::DaemonSet => "DaemonSet",
            Self::Pod => "Pod",
        }
    }
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Verb {
    /// It is made.
    Create,
    /// It is changed.
    Patch,
    /// It is deleted.
    Delete,
}

impl Verb {
    /// The verb's name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

impl Write {
    /// The kind of the object that is written.
    pub fn kind(&self) -> Kind {
        match self {
            Self::SetFinalizers { .. } => Kind::Config,
            Self::CreateRevision { .. } | Self::AnnotateRevision { .. } => Kind::Revision,
            Self::CreateConfigMap { .. } => Kind::ConfigMap,
            Self::CreateDaemonSet { .. } | Self::PatchDaemonSet { .. } => Kind::DaemonSet,
            Self::CreateNodeObject { .. } | Self::PatchNodeObject { .. } => Kind::NodeObject,
            Self::LabelNode { .. } => Kind::Node,
            Self::LabelPool { .. } => Kind::Pool,
            Self::Delete { kind, .. } => *kind,
        }
    }

    /// What is done to it.
    pub fn verb(&self) -> Verb {
        match self {
            Self::CreateRevision { .. }
            | Self::CreateConfigMap { .. }
            | Self::CreateDaemonSet { .. }
            | Self::CreateNodeObject { .. } => Verb::Create,
            Self::SetFinalizers { .. }
            | Self::PatchDaemonSet { .. }
            | Self::PatchNodeObject { .. }
            | Self::LabelNode { .. }
            | Self::AnnotateRevision { .. }
            | Self::LabelPool { .. } => Verb::Patch,
            Self::Delete { .. } => Verb::Delete,
        }
    }

    /// The name of the object that is written.
    pub fn name(&self) -> &str {
        match self {
            Self::CreateRevision { name, .. }
            | Self::CreateConfigMap { name, .. }
            | Self::CreateDaemonSet { name, .. } => name,
            Self::CreateNodeObject { object } => {
                object.metadata.name.as_deref().unwrap_or_default()
            }
            Self::SetFinalizers { on, .. }
            | Self::PatchDaemonSet { on, .. }
            | Self::PatchNodeObject { on, .. }
            | Self::LabelNode { on, .. }
            | Self::AnnotateRevision { on, .. }
            | Self::LabelPool { on, .. }
            | Self::Delete { on, .. } => &on.name,
        }
    }

    /// What it was decided on; a creation assumes that nothing is there.
    pub fn assumed(&self) -> Option<&Identity> {
        match self {
            Self::CreateRevision { .. }
            | Self::CreateConfigMap { .. }
            | Self::CreateDaemonSet { .. }
            | Self::CreateNodeObject { .. } => None,
            Self::SetFinalizers { on, .. }
            | Self::PatchDaemonSet { on, .. }
            | Self::PatchNodeObject { on, .. }
            | Self::LabelNode { on, .. }
            | Self::AnnotateRevision { on, .. }
            | Self::LabelPool { on, .. }
            | Self::Delete { on, .. } => Some(on),
        }
    }

    /// What limits how fast writes like this one may follow each other.
    pub fn pace(&self) -> Pace {
        match self {
            Self::LabelNode { labels, .. } if is_first_label(labels) => Pace::Pin,
            Self::LabelNode { .. }
            | Self::CreateNodeObject { .. }
            | Self::PatchNodeObject { .. }
            // A node may refuse its agent's pod every time; so do many at once in an outage.
            | Self::Delete {
                kind: Kind::NodeObject | Kind::Pod,
                ..
            } => Pace::Node,
            Self::SetFinalizers { .. }
            | Self::CreateRevision { .. }
            | Self::CreateConfigMap { .. }
            | Self::CreateDaemonSet { .. }
            | Self::PatchDaemonSet { .. }
            | Self::AnnotateRevision { .. }
            | Self::LabelPool { .. }
            | Self::Delete { .. } => Pace::Free,
        }
    }

    /// The object to create, or the merge patch to send; a deletion has none.
    pub fn body(&self) -> Option<Value> {
        match self {
            Self::CreateRevision { object, .. }
            | Self::CreateConfigMap { object, .. }
            | Self::CreateDaemonSet { object, .. } => Some(object.clone()),
            Self::CreateNodeObject { object } => serde_json::to_value(object).ok(),
            Self::SetFinalizers { on, finalizers } => Some(patch(
                on,
                json!({ "metadata": { "finalizers": finalizers } }),
            )),
            Self::PatchDaemonSet { on, template } => Some(patch(
                on,
                json!({ "spec": {
                    "template": without_node_selector(template),
                    "updateStrategy": { "type": "OnDelete", "rollingUpdate": null },
                }}),
            )),
            Self::PatchNodeObject { on, spec } => Some(patch(on, node_object_spec(spec))),
            Self::LabelNode { on, labels } => {
                Some(patch(on, json!({ "metadata": { "labels": labels } })))
            }
            Self::AnnotateRevision { on, annotations } => Some(patch(
                on,
                json!({ "metadata": { "annotations": annotations } }),
            )),
            Self::LabelPool { on, key } => {
                Some(patch(on, json!({ "metadata": { "labels": { key: "" } } })))
            }
            Self::Delete { .. } => None,
        }
    }
}

/// Whether labels only say which revision is proven on a node, as the first ones do.
fn is_first_label(labels: &BTreeMap<String, Option<String>>) -> bool {
    let names_proven = |(key, value): (&String, &Option<String>)| {
        let config = labelled_config(key).unwrap_or_default();
        value.is_some() && *key == node_revision_label(config)
    };
    labels.iter().all(names_proven)
}

/// What limits a kind of write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// Nothing.
    Free,
    /// The rate of node writes: each reaches every agent, or every watcher of nodes.
    Node,
    /// The rate of node writes, and that of first labels.
    Pin,
}

/// A merge patch that the API server refuses if the object is another one, or has changed.
fn patch(on: &Identity, mut content: Value) -> Value {
    let metadata = json!({ "uid": on.uid, "resourceVersion": on.version });
    if let (Some(content), Value::Object(guard)) = (content.as_object_mut(), metadata) {
        match content.get_mut("metadata").and_then(Value::as_object_mut) {
            Some(present) => present.extend(guard),
            None => {
                content.insert("metadata".to_owned(), Value::Object(guard));
            }
        }
    }
    content
}

/// A merge patch keeps what it does not name, and a `nodeSelector` that somebody added would take
/// agents off their nodes.
fn without_node_selector(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("nodeSelector".to_owned(), Value::Null);
    }
    template
}

/// The spec with every member named, because a merge patch keeps what it does not name.
fn node_object_spec(spec: &DevicePluginNodeSpec) -> Value {
    let DevicePluginNodeSpec {
        config_name,
        node_name,
        node_uid,
        active,
        standby,
        baseline,
        outcome,
        unmatched_since,
        log_level,
    } = spec;
    json!({ "spec": {
        "configName": config_name,
        "nodeName": node_name,
        "nodeUID": node_uid,
        "active": active,
        "standby": standby,
        "baseline": baseline,
        "outcome": outcome,
        "unmatchedSince": unmatched_since,
        "logLevel": log_level,
    }})
}

/// The status of a config as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigStatus {
    /// The config.
    pub on: Identity,
    /// Its whole status.
    pub status: DevicePluginConfigStatus,
    /// Whether it differs from what the config has.
    pub changed: bool,
    /// What to tell as events once it is written.
    pub events: Vec<Event>,
}

/// The status of a pool as it should be, where it differs.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolStatus {
    /// The pool.
    pub on: Identity,
    /// Its whole status.
    pub status: DevicePluginPoolStatus,
}

/// Something to tell about a config.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// Whether somebody should look.
    pub warning: bool,
    /// The condition that changed.
    pub condition: &'static str,
    /// Its reason.
    pub reason: &'static str,
    /// Its message.
    pub note: String,
    /// The first node that it is about.
    pub node: Option<Identity>,
}

/// The metadata of an object that belongs to a config.
pub fn metadata(name: &str, namespace: Option<&str>, config: &str, config_uid: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {
            CONFIG_LABEL: config,
            "app.kubernetes.io/managed-by": OPERATOR_FIELD_MANAGER,
        },
        // Without blockOwnerDeletion: setting it needs a right on the config's finalizers where
        // OwnerReferencesPermissionEnforcement runs, and our own finalizer keeps the order anyway.
        "ownerReferences": [{
            "apiVersion": format!("{}/{}", crds::names::GROUP, crds::names::VERSION),
            "kind": "DevicePluginConfig",
            "name": config,
            "uid": config_uid,
            "controller": true,
        }],
    });
    if let (Some(namespace), Some(metadata)) = (namespace, metadata.as_object_mut()) {
        metadata.insert("namespace".to_owned(), Value::from(namespace));
    }
    metadata
}
