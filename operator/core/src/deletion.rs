//! Taking a config back: agents first, then their traces, the finalizer last.

use crds::names::CLEANUP_FINALIZER;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::action::{Kind, Write};
use crate::installation::delete;
use crate::messages::{Names, time};
use crate::nodes::unlabelled;
use crate::scope::Scope;
use crate::seen::Identity;

/// How long the pods of a deleted config are waited for. They end within ten seconds where a
/// kubelet answers; half of this would give up on a node that is being restarted, double would
/// only keep the user waiting for nodes that nobody reaches.
pub const PODS_DEADLINE: SignedDuration = SignedDuration::from_mins(5);

/// The next step of a deletion.
pub struct Step {
    /// What is written now.
    pub writes: Vec<Write>,
    /// What is waited for, in words.
    pub wait: String,
    /// When to look again if nothing happens.
    pub look_again: Option<Timestamp>,
}

/// The next step of taking a config back. Each begins when the one before it is done.
pub fn step(scope: &Scope<'_>) -> Step {
    let daemon_sets = daemon_sets(scope);
    if !daemon_sets.is_empty() {
        return writing(daemon_sets, "its DaemonSets are being deleted");
    }
    if let Some(step) = pods(scope) {
        return step;
    }
    let members = scope.members.values();
    let labels: Vec<_> = members
        .filter_map(|member| unlabelled(scope, member))
        .collect();
    if !labels.is_empty() {
        return writing(labels, "its labels are being taken off the nodes");
    }
    let objects = scope.members.values().filter_map(|member| member.object);
    let objects: Vec<_> = objects
        .chain(scope.stale_objects.iter().copied())
        .map(|object| delete(Kind::NodeObject, &Identity::of(&object.metadata)))
        .collect();
    if !objects.is_empty() {
        return writing(objects, "its DevicePluginNodes are being deleted");
    }
    let rest = revisions(scope);
    if !rest.is_empty() {
        return writing(
            rest,
            "its ConfigMaps and ControllerRevisions are being deleted",
        );
    }
    let finalizers = scope.config.metadata.finalizers.iter().flatten();
    let finalizer = Write::SetFinalizers {
        on: Identity::of(&scope.config.metadata),
        finalizers: finalizers
            .filter(|one| *one != CLEANUP_FINALIZER)
            .cloned()
            .collect(),
    };
    writing(vec![finalizer], "everything it made is gone")
}

fn writing(writes: Vec<Write>, wait: &str) -> Step {
    Step {
        writes,
        wait: wait.to_owned(),
        look_again: None,
    }
}

fn daemon_sets(scope: &Scope<'_>) -> Vec<Write> {
    let sets = scope.seen.daemon_sets.values();
    sets.filter(|set| set.config == scope.name && set.owner_uid == scope.uid && !set.deleting)
        .map(|set| delete(Kind::DaemonSet, &set.id))
        .collect()
}

/// Waits for the agents' pods: not for those on nodes that are gone or cannot be reached, and for
/// none of them longer than the deadline.
fn pods(scope: &Scope<'_>) -> Option<Step> {
    let is_reachable = |node: &str| scope.seen.nodes.get(node).is_some_and(|node| node.ready);
    let left: Vec<_> = scope
        .pods
        .iter()
        .filter(|(node, pods)| is_reachable(node) && !pods.is_empty())
        .map(|(node, _)| *node)
        .collect();
    let asked = scope.config.metadata.deletion_timestamp.as_ref()?.0;
    let deadline = asked.saturating_add(PODS_DEADLINE).unwrap_or(asked);
    if left.is_empty() || deadline <= scope.seen.now {
        return None;
    }
    Some(Step {
        writes: Vec::new(),
        wait: format!(
            "waits for agent pods to end on {}, until {} at the latest",
            Names(&left),
            time(deadline)
        ),
        look_again: Some(deadline),
    })
}

fn revisions(scope: &Scope<'_>) -> Vec<Write> {
    let seen = scope.seen;
    let maps = seen.config_maps.values();
    let maps = maps
        .filter(|map| map.config == scope.name && map.owner_uid == scope.uid && !map.deleting)
        .map(|map| delete(Kind::ConfigMap, &map.id));
    let revisions = seen.revisions.values();
    let revisions = revisions
        .filter(|one| one.config == scope.name && one.owner_uid == scope.uid && !one.deleting)
        .map(|one| delete(Kind::Revision, &one.id));
    maps.chain(revisions).collect()
}
