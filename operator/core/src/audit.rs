//! The safety rules, stated without looking at the planner. A plan that breaks one is a fault of
//! the planner: it is not executed, and says so.

mod claims;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crds::DevicePluginConfig;
use crds::config::DEFAULT_LABEL_LOSS_GRACE_SECONDS;
use crds::names::{
    CLEANUP_FINALIZER, CONFIG_LABEL, NODE_LABEL_PREFIX, POOL_LABEL_PREFIX, labelled_config,
    node_object,
};
use k8s_openapi::jiff::SignedDuration;
use serde_json::Value;

use crate::action::{Action, Kind, Verb, Write};
use crate::ledger::Claim;
use crate::plan::Plan;
use crate::rendering::unplaced;
use crate::seen::{Identity, controller_uid};
use crate::snapshot::Snapshot;

/// A rule that a plan breaks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// The config for which the write was planned.
    pub config: String,
    /// The write: verb, kind and name.
    pub write: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            config,
            write,
        } = self;
        write!(f, "{write} for config {config:?} breaks the rule: {rule}")
    }
}

/// Every rule that a plan breaks.
pub fn audit(seen: &Snapshot, plan: &Plan) -> Vec<Violation> {
    let mut violations = claims::of_ledger(seen, plan);
    let after = claims::after(seen, plan);
    let mut written = BTreeSet::new();
    for action in &plan.actions {
        let mut broken = broken(seen, after, action);
        if !written.insert((action.write.kind(), action.write.name())) {
            broken.push("an object is written at most once");
        }
        violations.extend(broken.into_iter().map(|rule| Violation {
            rule,
            config: action.config.clone(),
            write: format!(
                "{} {} {:?}",
                action.write.verb().as_str(),
                action.write.kind().as_str(),
                action.write.name()
            ),
        }));
    }
    violations
}

fn broken(seen: &Snapshot, after: &[Claim], action: &Action) -> Vec<&'static str> {
    let config = seen.configs.get(&action.config).map(|config| &**config);
    let rules: [(bool, &'static str); 10] = [
        (
            names_its_object(&action.write),
            "a write says what it was decided on, and a creation meets nothing",
        ),
        (
            belongs_to_us(seen, action, config),
            "what is written belongs to the operator",
        ),
        (
            keeps_agents(seen, action, config),
            "no agent of a live config is taken away within its grace",
        ),
        (
            keeps_revisions(seen, action, config),
            "the content of a revision never changes",
        ),
        (
            keeps_traces(seen, action, config),
            "the finalizer goes last",
        ),
        (
            names_known_revision(seen, action, config),
            "nodes are sent only to a revision that stands",
        ),
        (
            claims::is_claimed(seen, after, action),
            "what disrupts a node is claimed before",
        ),
        (
            claims::keeps_serving(seen, action),
            "no label takes away the agent that serves",
        ),
        (
            claims::is_idle(seen, after, action),
            "what a node is sent to, or may go back to, stays",
        ),
        (
            claims::is_proven(seen, after, action),
            "a revision becomes stable when nodes have proven it",
        ),
    ];
    rules
        .into_iter()
        .filter(|(holds, _)| !holds)
        .map(|(_, rule)| rule)
        .collect()
}

fn names_its_object(write: &Write) -> bool {
    match write.assumed() {
        Some(on) => !on.name.is_empty() && !on.uid.is_empty() && !on.version.is_empty(),
        None => write.verb() == Verb::Create && !write.name().is_empty(),
    }
}

fn belongs_to_us(seen: &Snapshot, action: &Action, config: Option<&DevicePluginConfig>) -> bool {
    let uid = config.and_then(|config| config.metadata.uid.as_deref());
    let name = action.write.name();
    match &action.write {
        Write::SetFinalizers { on, .. } => uid == Some(&on.uid) && on.name == action.config,
        Write::LabelPool { key, .. } => *key == format!("{POOL_LABEL_PREFIX}{name}"),
        Write::LabelNode { labels, .. } => labels
            .keys()
            .all(|key| labelled_config(key) == Some(&action.config)),
        Write::CreateNodeObject { object } => {
            let owner = controller_uid(&object.metadata, "DevicePluginConfig");
            uid == Some(&owner) && *name == node_object(&action.config, &object.spec.node_name)
        }
        Write::CreateRevision { object, .. }
        | Write::CreateConfigMap { object, .. }
        | Write::CreateDaemonSet { object, .. } => {
            let text = |path: &str| object.pointer(path).and_then(Value::as_str);
            let label = object
                .pointer("/metadata/labels")
                .and_then(|labels| labels.get(CONFIG_LABEL));
            text("/metadata/namespace") == Some(&seen.settings.namespace)
                && uid.is_some()
                && text("/metadata/ownerReferences/0/uid") == uid
                && label.and_then(Value::as_str) == Some(&action.config)
        }
        Write::AnnotateRevision { on, .. } => owner(seen, Kind::Revision, on).as_deref() == uid,
        Write::PatchDaemonSet { on, .. } => owner(seen, Kind::DaemonSet, on).as_deref() == uid,
        Write::PatchNodeObject { on, .. } => owner(seen, Kind::NodeObject, on).as_deref() == uid,
        Write::Delete {
            kind: Kind::Pod,
            on,
        } => seen.pods.get(name).is_some_and(|pod| {
            pod.id == *on
                && pod.config == action.config
                && pod.of_daemon_set
                && pod.phase == "Failed"
        }),
        Write::Delete { kind, on } => uid.is_some() && owner(seen, *kind, on).as_deref() == uid,
    }
}

/// UID of the config that owns an object that was seen.
fn owner(seen: &Snapshot, kind: Kind, on: &Identity) -> Option<String> {
    let (id, owner) = match kind {
        Kind::DaemonSet => seen
            .daemon_sets
            .get(&on.name)
            .map(|one| (one.id.clone(), one.owner_uid.clone())),
        Kind::ConfigMap => seen
            .config_maps
            .get(&on.name)
            .map(|one| (one.id.clone(), one.owner_uid.clone())),
        Kind::Revision => seen
            .revisions
            .get(&on.name)
            .map(|one| (one.id.clone(), one.owner_uid.clone())),
        Kind::NodeObject => seen.node_objects.get(&on.name).map(|one| {
            (
                Identity::of(&one.metadata),
                controller_uid(&one.metadata, "DevicePluginConfig"),
            )
        }),
        // None of these is ever deleted or patched as something we own.
        Kind::Config | Kind::Pool | Kind::Node | Kind::Pod => None,
    }?;
    (id == *on).then_some(owner)
}

fn keeps_agents(seen: &Snapshot, action: &Action, config: Option<&DevicePluginConfig>) -> bool {
    let is_live = config.is_some_and(|config| config.metadata.deletion_timestamp.is_none());
    match &action.write {
        Write::LabelNode { on, labels } if unpins(&action.config, labels) => match config {
            None => !seen.unreadable_configs.contains(&action.config),
            Some(config) if is_live => may_leave(seen, config, &on.name, &action.config),
            Some(_) => true,
        },
        Write::Delete {
            kind: Kind::NodeObject,
            on,
        } if is_live => {
            let object = seen.node_objects.get(&on.name);
            object.is_none_or(|object| {
                let node = seen.nodes.get(&object.spec.node_name);
                let node = node.filter(|node| node.id.uid == object.spec.node_uid);
                node.is_none_or(|node| {
                    let label = format!("{NODE_LABEL_PREFIX}{}", action.config);
                    !node.labels.contains_key(&label)
                        && !has_pod(seen, &action.config, &node.id.name)
                })
            })
        }
        _ => true,
    }
}

/// Whether labels take away what keeps an agent on its node.
fn unpins(config: &str, labels: &BTreeMap<String, Option<String>>) -> bool {
    let pin = labels.get(&crds::names::node_revision_label(config));
    pin.is_some_and(Option::is_none)
}

fn has_pod(seen: &Snapshot, config: &str, node: &str) -> bool {
    let mut pods = seen.pods.values();
    pods.any(|pod| pod.of_daemon_set && pod.config == config && pod.node == node)
}

/// Whether a node has been unselected for the whole grace, or its label pins it to nothing.
fn may_leave(seen: &Snapshot, config: &DevicePluginConfig, node: &str, name: &str) -> bool {
    // An object of an earlier config of this name, or of an earlier node, says nothing.
    let node_uid = seen.nodes.get(node).map(|node| node.id.uid.as_str());
    let object = seen
        .node_objects
        .get(&node_object(name, node))
        .filter(|object| {
            let owner = controller_uid(&object.metadata, "DevicePluginConfig");
            config.metadata.uid.as_ref() == Some(&owner)
                && Some(object.spec.node_uid.as_str()) == node_uid
        });
    let Some(object) = object else {
        let label = format!("{NODE_LABEL_PREFIX}{name}");
        let value = seen
            .nodes
            .get(node)
            .and_then(|node| node.labels.get(&label));
        return value.is_none_or(|value| {
            let revision = seen
                .revisions
                .get(&crds::names::revision_object(name, value));
            revision
                .is_none_or(|revision| Some(&revision.owner_uid) != config.metadata.uid.as_ref())
        });
    };
    let seconds = config.spec.label_loss_grace_seconds;
    let grace = seconds.unwrap_or(DEFAULT_LABEL_LOSS_GRACE_SECONDS);
    let ends = object.spec.unmatched_since.as_ref().and_then(|since| {
        since
            .0
            .checked_add(SignedDuration::from_secs(grace.into()))
            .ok()
    });
    ends.is_some_and(|ends| ends <= seen.now)
}

fn keeps_revisions(seen: &Snapshot, action: &Action, config: Option<&DevicePluginConfig>) -> bool {
    match &action.write {
        Write::CreateRevision { name, .. } => {
            config.is_some() && !seen.revisions.contains_key(name)
        }
        Write::CreateDaemonSet { name, object } => {
            is_of_revision(seen, name, object.pointer("/spec/template"))
        }
        Write::PatchDaemonSet { on, template } => is_of_revision(seen, &on.name, Some(template)),
        Write::CreateConfigMap { name, object } => {
            let content = seen
                .revisions
                .get(name)
                .and_then(|one| one.content.as_ref());
            let text = object
                .pointer("/data")
                .and_then(|data| data.get(crds::names::AGENT_CONFIG_KEY));
            content
                .is_some_and(|content| text.and_then(Value::as_str) == Some(&content.agent_config))
        }
        _ => true,
    }
}

fn is_of_revision(seen: &Snapshot, name: &str, template: Option<&Value>) -> bool {
    let content = seen
        .revisions
        .get(name)
        .and_then(|one| one.content.as_ref());
    let wanted = content.map(|content| unplaced(&content.template));
    wanted.is_some() && template.map(unplaced) == wanted
}

fn keeps_traces(seen: &Snapshot, action: &Action, config: Option<&DevicePluginConfig>) -> bool {
    let Write::SetFinalizers { finalizers, .. } = &action.write else {
        return true;
    };
    let Some(config) = config else {
        return false;
    };
    let present: BTreeSet<_> = config
        .metadata
        .finalizers
        .iter()
        .flatten()
        .cloned()
        .collect();
    let wanted: BTreeSet<_> = finalizers.iter().cloned().collect();
    let mut others = present.symmetric_difference(&wanted);
    if others.any(|one| one != CLEANUP_FINALIZER) {
        return false;
    }
    if wanted.contains(CLEANUP_FINALIZER) {
        return config.metadata.deletion_timestamp.is_none();
    }
    let uid = config.metadata.uid.as_deref().unwrap_or_default();
    let label = format!("{NODE_LABEL_PREFIX}{}", action.config);
    let owns = |owner: &str, deleting: bool| owner == uid && !deleting;
    config.metadata.deletion_timestamp.is_some()
        && !seen
            .nodes
            .values()
            .any(|node| !node.deleting && node.labels.contains_key(&label))
        && !seen
            .daemon_sets
            .values()
            .any(|one| owns(&one.owner_uid, one.deleting))
        && !seen
            .revisions
            .values()
            .any(|one| owns(&one.owner_uid, one.deleting))
        && !seen
            .config_maps
            .values()
            .any(|one| owns(&one.owner_uid, one.deleting))
}

fn names_known_revision(
    seen: &Snapshot,
    action: &Action,
    config: Option<&DevicePluginConfig>,
) -> bool {
    let spec = match &action.write {
        Write::LabelNode { labels, .. } => {
            let mut named = labels.values().flatten();
            return named.all(|revision| stands(seen, config, revision));
        }
        Write::CreateNodeObject { object } => &object.spec,
        Write::PatchNodeObject { spec, .. } => spec,
        _ => return true,
    };
    let mut named = std::iter::once(&spec.active).chain(&spec.standby);
    named.all(|revision| stands(seen, config, revision))
}

/// Whether a revision can run: its content is known and its DaemonSet is there.
fn stands(seen: &Snapshot, config: Option<&DevicePluginConfig>, revision: &str) -> bool {
    let Some((name, uid)) = config.and_then(|config| {
        let metadata = &config.metadata;
        metadata.name.as_deref().zip(metadata.uid.as_deref())
    }) else {
        return false;
    };
    let name = crds::names::revision_object(name, revision);
    let set = seen.daemon_sets.get(&name).filter(|one| !one.deleting);
    let content = seen
        .revisions
        .get(&name)
        .and_then(|one| one.content.as_ref());
    content.is_some() && set.is_some_and(|set| set.owner_uid == uid)
}

#[cfg(test)]
mod tests;
