//! Which nodes are changed next.

use std::collections::BTreeSet;

use crds::names::short_hash;
use crds::node::OutcomeResult;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::judge::{Strictness, pod, serves};
use super::settings::{self, SKIPPED, STANDBY_MAX, STARTING, max_unavailable};
use super::{blocked, is_halted, is_skipped};
use crate::ledger::{Claim, Phase};
use crate::scope::{Member, Membership, Scope};
use crate::selection::tolerates;

/// Taints of nodes that are about to go, or whose devices are taken away by somebody else.
const GOING: &[&str] = &[
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "node.kubernetes.io/out-of-service",
];

/// A claim in its first phase.
pub fn claim(scope: &Scope<'_>, member: &Member<'_>, to: &str) -> Claim {
    Claim {
        config: scope.name.to_owned(),
        node: member.node.id.name.clone(),
        node_uid: member.node.id.uid.clone(),
        from: scope.proven(member).unwrap_or_default().to_owned(),
        to: to.to_owned(),
        phase: Phase::Staging,
        elapsed: 0,
        verified: 0,
        restarts: 0,
        outside: false,
        blames: false,
        reason: String::new(),
        message: String::new(),
    }
}

/// New claims, in the order in which nodes are changed: those first that serve nothing anyway, then
/// by a hash that is another one for every revision, those that somebody has cordoned last.
pub fn new_claims(scope: &Scope<'_>, taken: &BTreeSet<String>) -> Vec<Claim> {
    if !is_open(scope) {
        return Vec::new();
    }
    let Some(target) = scope.target.as_ref().map(|target| target.revision.as_str()) else {
        return Vec::new();
    };
    let members = scope.members.values();
    let mut wanted: Vec<_> = members
        .filter(|member| !taken.contains(&member.node.id.name))
        .filter_map(|member| Some((member, outside(scope, member, target)?)))
        .map(|(member, outside)| {
            let order = short_hash(&format!("{}{target}", member.node.id.uid));
            // Those that were tried already do not keep the others waiting.
            let was_tried = is_skipped(member, target);
            let key = (member.node.unschedulable, was_tried, !outside, order);
            let claim = Claim {
                outside,
                ..claim(scope, member, target)
            };
            (key, claim)
        })
        .collect();
    wanted.sort_by(|(one, _), (other, _)| one.cmp(other));
    let staged = scope
        .claims
        .values()
        .filter(|claim| !claim.phase.is_disruptive());
    let desired = scope
        .members
        .values()
        .filter(|one| one.is_served_or_waits());
    let ahead = STANDBY_MAX.min(max_unavailable(scope.config, desired.count()));
    let room = ahead.saturating_sub(staged.count());
    wanted
        .into_iter()
        .map(|(_, claim)| claim)
        .take(room)
        .collect()
}

/// Whether nodes may be sent to the target at all.
fn is_open(scope: &Scope<'_>) -> bool {
    let Some(target) = scope.target.as_ref().map(|target| target.revision.as_str()) else {
        return false;
    };
    // Both DaemonSets know their nodes by the present labels, or a staged node could have no agent.
    let sets = [scope.stable.revision(), Some(target)];
    let are_observed = sets.into_iter().flatten().all(|revision| {
        scope.revisions.contains_key(revision)
            && scope
                .daemon_set(revision)
                .is_some_and(|set| set.is_observed)
    });
    are_observed
        && !scope.seen.kinds_missing
        && !settings::is_paused(scope.config)
        && !is_halted(scope)
        && blocked(scope).is_none()
}

/// Whether a node is to be changed, and whether it serves nothing that could be lost.
fn outside(scope: &Scope<'_>, member: &Member<'_>, target: &str) -> Option<bool> {
    let from = scope.proven(member).filter(|from| *from != target)?;
    let object = member.object?;
    let is_going = member
        .node
        .taints
        .iter()
        .any(|taint| GOING.contains(&taint.key.as_str()));
    let is_settled = object.spec.active == from
        && object.spec.standby.is_none()
        && member.pinned == Some(from)
        && member.staged.is_none();
    if member.membership != Membership::Selected
        || !member.node.ready
        || is_going
        || !is_settled
        || !scope.revisions.contains_key(from)
        || !may_run(scope, member, target)
        || rests(scope, member, target).is_some()
    {
        return None;
    }
    if serves(scope, member, from, Strictness::Patient).is_ok() {
        return Some(false);
    }
    let now = scope.seen.now;
    let is_starting = pod(member, from).is_some_and(|pod| {
        let is_failed = pod.trouble.as_ref().is_some_and(|trouble| trouble.fatal);
        let age = pod.created.map(|created| now.duration_since(created));
        let starting = SignedDuration::try_from(STARTING).unwrap_or(SignedDuration::ZERO);
        // A pod made in the future was made before a clock was set back.
        !is_failed && age.is_none_or(|age| !age.is_negative() && age < starting)
    });
    (!is_starting && pod(member, from).is_some()).then_some(true)
}

/// Whether the agents of a revision tolerate a node's taints: no pod would ever come otherwise.
fn may_run(scope: &Scope<'_>, member: &Member<'_>, revision: &str) -> bool {
    let tolerations = scope
        .revisions
        .get(revision)
        .map(|one| one.tolerations.as_slice());
    tolerations.is_some_and(|tolerations| tolerates(tolerations, member.node, false))
}

/// Until when a node is left alone because it was skipped, or for ever because it was brought back,
/// unless other nodes have proven the revision.
fn rests(scope: &Scope<'_>, member: &Member<'_>, target: &str) -> Option<Timestamp> {
    let outcome = member.object?.spec.outcome.as_ref();
    let outcome = outcome.filter(|_| is_skipped(member, target))?;
    // Somebody has deleted or edited its object: nothing speaks against the node or the revision.
    if outcome.reason == "BaselineLost" {
        return None;
    }
    let revision = scope.revisions.get(target);
    let has_failed = revision.is_some_and(|revision| revision.failed.is_some());
    let is_stable = scope.stable.revision() == Some(target);
    match outcome.result {
        OutcomeResult::RolledBack | OutcomeResult::Quarantined if has_failed && !is_stable => {
            Some(Timestamp::MAX)
        }
        _ => {
            let rest = SignedDuration::try_from(SKIPPED).unwrap_or(SignedDuration::ZERO);
            let until = outcome.at.0.saturating_add(rest).unwrap_or(Timestamp::MAX);
            let is_past = outcome.at.0 <= scope.seen.now;
            (is_past && until > scope.seen.now).then_some(until)
        }
    }
}

/// When the first node that was skipped is tried again.
pub fn retry(scope: &Scope<'_>) -> Option<Timestamp> {
    let target = scope
        .target
        .as_ref()
        .map(|target| target.revision.as_str())?;
    let members = scope.members.values();
    let rests = members.filter_map(|member| rests(scope, member, target));
    rests.filter(|until| *until != Timestamp::MAX).min()
}
