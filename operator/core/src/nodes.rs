//! What each node of a config still lacks: its object, its label, and the end of both.

use std::collections::BTreeMap;

use crds::names::{CONFIG_LABEL, node_object};
use crds::node::{Baseline, BaselineResource, Outcome, OutcomeResult};
use crds::{DevicePluginNode, DevicePluginNodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::action::{Kind, Write};
use crate::installation::delete;
use crate::ledger::{Claim, Phase};
use crate::lineage::Stable;
use crate::rollout::judge::{Strictness, is_told_back, serves};
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
    // Nodes that are being changed go before all others: some of them are without their devices.
    let is_claimed = |member: &Member<'_>| scope.claims.contains_key(&member.node.id.name);
    let (claimed, others): (Vec<_>, Vec<_>) = scope
        .members
        .values()
        .partition(|member| is_claimed(member));
    for member in claimed.into_iter().chain(others) {
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

/// The next write for one node: the object first and then the labels, and in the other order where
/// an agent goes.
fn member_write(scope: &Scope<'_>, member: &Member<'_>, stable: &str) -> Option<Write> {
    match member.membership {
        Membership::Vanishing => None,
        Membership::Selected | Membership::Grace { .. } => {
            let wanted = Wanted::of(scope, member, stable)?;
            let goes = member.object.is_some() && member.staged.is_some();
            let object = || object_write(scope, member, &wanted);
            let labels = || labels_write(scope, member, &wanted);
            let write = match goes && wanted.staged.is_none() {
                true => labels().or_else(object),
                false => object().or_else(labels),
            };
            write.filter(|write| names_what_stands(scope, write))
        }
        Membership::Leaving => {
            if let Some(write) = unlabelled(scope, member) {
                return Some(write);
            }
            // The object is the agent's: it goes when the agent has gone.
            let object = member.object.filter(|_| member.pods.is_empty())?;
            Some(delete(Kind::NodeObject, &Identity::of(&object.metadata)))
        }
    }
}

/// Whether a write sends a node only to revisions that can run: one that was lost is made again
/// first.
fn names_what_stands(scope: &Scope<'_>, write: &Write) -> bool {
    let stands = |revision: &str| {
        scope.revisions.contains_key(revision) && scope.daemon_set(revision).is_some()
    };
    let of_spec = |spec: &DevicePluginNodeSpec| {
        stands(&spec.active) && spec.standby.as_deref().is_none_or(stands)
    };
    match write {
        Write::PatchNodeObject { spec, .. } => of_spec(spec),
        Write::CreateNodeObject { object } => of_spec(&object.spec),
        Write::LabelNode { labels, .. } => labels.values().flatten().all(|one| stands(one)),
        _ => true,
    }
}

/// Takes a config's labels off a node, where it has any.
pub fn unlabelled(scope: &Scope<'_>, member: &Member<'_>) -> Option<Write> {
    let present = [
        (&scope.label, member.pinned),
        (&scope.stage_label, member.staged),
    ];
    let labels: BTreeMap<_, _> = present
        .into_iter()
        .filter(|(_, value)| value.is_some())
        .map(|(key, _)| (key.clone(), None))
        .collect();
    (!labels.is_empty()).then(|| Write::LabelNode {
        on: member.node.id.clone(),
        labels,
    })
}

/// What a node is to have. It follows from its claim's phase and what the node has already, so that
/// a crash between any two writes is made good by the next look.
struct Wanted<'a> {
    active: &'a str,
    standby: Option<&'a str>,
    baseline: Option<Baseline>,
    outcome: Option<Outcome>,
    pinned: &'a str,
    staged: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    /// Nothing, where the node's object is behind its claim: a later look has a newer one.
    fn of(scope: &'a Scope<'_>, member: &'a Member<'_>, stable: &'a str) -> Option<Self> {
        let spec = member.object.map(|object| &object.spec);
        let Some(claim) = scope.claims.get(member.node.id.name.as_str()) else {
            // With a baseline it is behind the end of its claim, or the claim was lost.
            let is_settled = spec.is_none_or(|spec| spec.baseline.is_none());
            return Self::settled(scope, member, spec, stable).filter(|_| is_settled);
        };
        let is_past = match claim.phase {
            Phase::Verifying | Phase::Soaking => true,
            Phase::Committing => member.pinned != Some(claim.to.as_str()),
            _ => false,
        };
        let is_behind = spec.is_some_and(|spec| spec.active != claim.to);
        (!is_past || !is_behind).then(|| Self::claimed(scope, member, spec, claim))
    }

    /// A node that is not being changed: its label names the revision that it serves. Nothing, where
    /// that revision is just being made again.
    fn settled(
        scope: &'a Scope<'_>,
        member: &'a Member<'_>,
        spec: Option<&'a DevicePluginNodeSpec>,
        stable: &'a str,
    ) -> Option<Self> {
        let can_run = |revision: &&str| scope.revisions.contains_key(revision);
        let named = spec.map(|spec| spec.active.as_str());
        if named.is_some_and(|named| !can_run(&named) && is_being_made(scope, member, named)) {
            return None;
        }
        // The object is the operator's alone; labels have been edited by hand.
        let active = named.filter(can_run).or(member.pinned.filter(can_run));
        let active = active.unwrap_or(stable);
        Some(Self {
            active,
            standby: None,
            baseline: None,
            outcome: spec.and_then(|spec| spec.outcome.clone()),
            pinned: active,
            staged: None,
        })
    }

    fn claimed(
        scope: &'a Scope<'_>,
        member: &'a Member<'_>,
        spec: Option<&'a DevicePluginNodeSpec>,
        claim: &'a Claim,
    ) -> Self {
        let (from, to) = (claim.from.as_str(), claim.to.as_str());
        let present = spec.and_then(|spec| spec.outcome.clone());
        let baseline = spec.and_then(|spec| spec.baseline.clone());
        let staging = Self {
            active: from,
            standby: Some(to),
            baseline: None,
            // How an earlier change ended says nothing about this one.
            outcome: None,
            pinned: from,
            staged: Some(to),
        };
        let switched = |baseline| Self {
            active: to,
            standby: Some(from),
            baseline,
            outcome: None,
            pinned: from,
            staged: Some(to),
        };
        match claim.phase {
            Phase::Staging | Phase::Staged => staging,
            Phase::Switching => switched(baseline.or_else(|| Some(taken(scope, member, from)))),
            Phase::Verifying | Phase::Soaking => switched(baseline),
            Phase::Committing => {
                let is_labelled = member.pinned == Some(to) && member.staged.is_none();
                let kept = switched(baseline);
                Self {
                    standby: kept.standby.filter(|_| !is_labelled),
                    baseline: kept.baseline.filter(|_| !is_labelled),
                    outcome: None,
                    active: to,
                    pinned: to,
                    staged: None,
                }
            }
            Phase::RollingBack | Phase::Quarantined => {
                let is_back = spec.is_some_and(|spec| is_told_back(spec, claim))
                    && (member.staged.is_none()
                        || claim.outside
                        || serves(scope, member, from, Strictness::Patient).is_ok());
                let goes = is_back && member.staged.is_none();
                Self {
                    standby: staging.standby.filter(|_| !goes),
                    baseline: baseline.filter(|_| !goes),
                    outcome: Some(outcome(scope, claim, present)),
                    staged: staging.staged.filter(|_| !is_back),
                    ..staging
                }
            }
            Phase::Releasing => {
                let stays = member.staged.is_some();
                let standby = spec.and_then(|spec| spec.standby.as_deref());
                Self {
                    standby: standby.filter(|_| stays),
                    baseline: baseline.filter(|_| stays),
                    outcome: match claim.reason.is_empty() || stays {
                        true => present,
                        false => Some(outcome(scope, claim, present)),
                    },
                    staged: None,
                    ..staging
                }
            }
        }
    }
}

/// Whether something of a revision whose ControllerRevision is gone is left on a node or to make it
/// from: it comes back within a pass or two.
fn is_being_made(scope: &Scope<'_>, member: &Member<'_>, revision: &str) -> bool {
    let target = scope.target.as_ref().map(|target| target.revision.as_str());
    target == Some(revision)
        || scope.daemon_set(revision).is_some()
        || member
            .pods
            .iter()
            .any(|pod| !pod.deleting && pod.revision == revision)
}

/// What the agent of a revision serves now: what its successor is judged against.
fn taken(scope: &Scope<'_>, member: &Member<'_>, revision: &str) -> Baseline {
    let report = serves(scope, member, revision, Strictness::Patient).ok();
    let resources = report.map_or(&[][..], |report| &report.resources);
    Baseline {
        taken_at: Time(whole_seconds(scope.seen.now)),
        revision: revision.to_owned(),
        resources: resources
            .iter()
            .map(|one| BaselineResource {
                name: one.name.clone(),
                healthy: one.healthy,
            })
            .collect(),
    }
}

/// How the claim ends, with the time at which that was first said.
fn outcome(scope: &Scope<'_>, claim: &Claim, present: Option<Outcome>) -> Outcome {
    let result = match claim.phase {
        Phase::Quarantined => OutcomeResult::Quarantined,
        Phase::Releasing => OutcomeResult::Skipped,
        _ => OutcomeResult::RolledBack,
    };
    let outcome = Outcome {
        revision: claim.to.clone(),
        result,
        reason: claim.reason.clone(),
        message: claim.message.clone(),
        at: Time(whole_seconds(scope.seen.now)),
    };
    let is_same = |present: &Outcome| {
        let at = present.at.clone();
        *present
            == Outcome {
                at,
                ..outcome.clone()
            }
    };
    match present.filter(is_same) {
        Some(present) => present,
        None => outcome,
    }
}

/// The API stores whole seconds: the present as it will be read back.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn labels_write(scope: &Scope<'_>, member: &Member<'_>, wanted: &Wanted<'_>) -> Option<Write> {
    let mut labels = BTreeMap::new();
    if member.pinned != Some(wanted.pinned) {
        labels.insert(scope.label.clone(), Some(wanted.pinned.to_owned()));
    }
    if member.staged != wanted.staged {
        labels.insert(scope.stage_label.clone(), wanted.staged.map(str::to_owned));
    }
    (!labels.is_empty()).then(|| Write::LabelNode {
        on: member.node.id.clone(),
        labels,
    })
}

fn object_write(scope: &Scope<'_>, member: &Member<'_>, wanted: &Wanted<'_>) -> Option<Write> {
    let is_selected = member.membership == Membership::Selected;
    let since = member
        .object
        .and_then(|object| object.spec.unmatched_since.clone());
    let now = whole_seconds(scope.seen.now);
    let agent = scope.config.spec.agent.as_ref();
    let spec = DevicePluginNodeSpec {
        config_name: scope.name.to_owned(),
        node_name: member.node.id.name.clone(),
        node_uid: member.node.id.uid.clone(),
        active: wanted.active.to_owned(),
        standby: wanted.standby.map(str::to_owned),
        baseline: wanted.baseline.clone(),
        outcome: wanted.outcome.clone(),
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
        // A time that lies ahead is of a clock that was set back since.
        let created = pod.created.filter(|created| *created <= scope.seen.now);
        let due = created.map(|created| created.saturating_add(FAILED_POD_AGE));
        match due.and_then(Result::ok).filter(|due| *due > scope.seen.now) {
            Some(due) => look_again = earliest(look_again, Some(due)),
            None => writes.push(delete(Kind::Pod, &pod.id)),
        }
    }
    look_again
}
