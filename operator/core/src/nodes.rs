//! What each node of a config still lacks: its object, its label, and the end of both.

use crds::names::{CONFIG_LABEL, node_object};
use crds::{DevicePluginNode, DevicePluginNodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::action::{Kind, Write};
use crate::installation::delete;
use crate::lineage::Stable;
use crate::scope::{Member, Membership, Scope};
use crate::seen::{Identity, SeenPod};

/// How long a pod that failed is left before it is deleted and so made again: its node may refuse
/// it every time, and at a tenth of this the operator and the DaemonSet controller would chase each
/// other; the controller itself waits up to 15 minutes.
const FAILED_POD_AGE: SignedDuration = SignedDuration::from_secs(10);

/// The writes, and when to look again if nothing happens.
pub fn writes(scope: &Scope<'_>) -> (Vec<Write>, Option<Timestamp>) {
    let mut writes: Vec<_> = scope
        .stale_objects
        .iter()
        .map(|object| delete(Kind::NodeObject, &Identity::of(&object.metadata)))
        .collect();
    let mut look_again = failed_pods(scope, &mut writes);
    let Stable::Stands(revision) = &scope.stable else {
        return (writes, look_again);
    };
    if scope.daemon_set(&revision.revision).is_none() {
        return (writes, look_again);
    }
    for member in scope.members.values() {
        if let Membership::Grace { until } = member.membership {
            look_again = earliest(look_again, Some(until));
        }
        writes.extend(member_write(scope, member, &revision.revision));
    }
    (writes, look_again)
}

/// The earlier of two times that may be absent.
pub fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// The next write for one node: the object first, then the label, and in the other order at the end.
fn member_write(scope: &Scope<'_>, member: &Member<'_>, revision: &str) -> Option<Write> {
    match member.membership {
        Membership::Vanishing => None,
        Membership::Selected | Membership::Grace { .. } => object_write(scope, member, revision)
            .or_else(|| {
                let is_pinned = member.pinned == Some(revision);
                (!is_pinned).then(|| label(scope, member, Some(revision)))
            }),
        Membership::Leaving => {
            if member.pinned.is_some() {
                return Some(label(scope, member, None));
            }
            // The object is the agent's: it goes when the agent has gone.
            let object = member.object.filter(|_| member.pods.is_empty())?;
            Some(delete(Kind::NodeObject, &Identity::of(&object.metadata)))
        }
    }
}

/// Sets or removes the label of a node.
pub fn label(scope: &Scope<'_>, member: &Member<'_>, value: Option<&str>) -> Write {
    Write::LabelNode {
        on: member.node.id.clone(),
        labels: [(scope.label.clone(), value.map(str::to_owned))].into(),
    }
}

fn object_write(scope: &Scope<'_>, member: &Member<'_>, revision: &str) -> Option<Write> {
    let is_selected = member.membership == Membership::Selected;
    let since = member
        .object
        .and_then(|object| object.spec.unmatched_since.clone());
    // The API stores whole seconds; the present as it will be read back.
    let now = Timestamp::from_second(scope.seen.now.as_second()).unwrap_or(scope.seen.now);
    let agent = scope.config.spec.agent.as_ref();
    let spec = DevicePluginNodeSpec {
        config_name: scope.name.to_owned(),
        node_name: member.node.id.name.clone(),
        node_uid: member.node.id.uid.clone(),
        active: revision.to_owned(),
        standby: None,
        baseline: None,
        outcome: None,
        unmatched_since: (!is_selected).then(|| since.unwrap_or(Time(now))),
        log_level: agent.and_then(|agent| agent.log_level),
    };
    match member.object {
        None => Some(Write::CreateNodeObject {
            object: Box::new(DevicePluginNode {
                metadata: object_metadata(scope, &spec.node_name),
                spec,
                status: None,
            }),
        }),
        Some(object) if object.spec != spec => Some(Write::PatchNodeObject {
            on: Identity::of(&object.metadata),
            spec: Box::new(spec),
        }),
        Some(_) => None,
    }
}

fn object_metadata(scope: &Scope<'_>, node: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(node_object(scope.name, node)),
        labels: Some([(CONFIG_LABEL.to_owned(), scope.name.to_owned())].into()),
        owner_references: Some(vec![OwnerReference {
            api_version: format!("{}/{}", crds::names::GROUP, crds::names::VERSION),
            kind: "DevicePluginConfig".to_owned(),
            name: scope.name.to_owned(),
            uid: scope.uid.to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

fn failed_pods(scope: &Scope<'_>, writes: &mut Vec<Write>) -> Option<Timestamp> {
    let is_failed = |pod: &&&SeenPod| pod.phase == "Failed" && !pod.deleting;
    let mut look_again = None;
    for pod in scope.pods.values().flatten().filter(is_failed) {
        let due = pod
            .created
            .map(|created| created.saturating_add(FAILED_POD_AGE));
        match due.and_then(Result::ok).filter(|due| *due > scope.seen.now) {
            Some(due) => look_again = earliest(look_again, Some(due)),
            None => writes.push(delete(Kind::Pod, &pod.id)),
        }
    }
    look_again
}
