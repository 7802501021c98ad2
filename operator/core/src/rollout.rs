//! How nodes move from one revision to another: every claim's next phase, and new claims.
//!
//! A claim is a line in the ledger. What its phase calls for on the node is worked out from the
//! claim and the node's objects alone (`nodes`), so that a crash between any two writes leaves
//! nothing to remember.

mod advance;
mod candidates;
pub mod judge;
pub mod settings;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::action::Write;
use crate::installation::promote;
use crate::ledger::{CLAIMS_MAX, Claim, Ledger, LedgerWrite, Phase, SeenLedger};
use crate::lineage::Stable;
use crate::nodes::earliest;
use crate::scope::{Member, Membership, Scope};
use crate::snapshot::Snapshot;
use advance::{advanced, deadline};
use settings::{LAG, PERSIST, max_unavailable};

/// What was decided about all rollouts.
#[derive(Debug, Default)]
pub struct Decided {
    /// The ledger to write.
    pub ledger: Option<LedgerWrite>,
    /// The ledger is a later leader's.
    pub deposed: bool,
    /// When to look again if nothing happens.
    pub look_again: Option<Timestamp>,
}

/// Moves every claim on, and makes new ones while budgets allow. Each scope gets its claims.
pub fn decide(seen: &Snapshot, scopes: &mut [Scope<'_>]) -> Decided {
    let present = seen.ledger.ledger();
    if present.is_some_and(|ledger| ledger.epoch > seen.epoch) {
        return Decided {
            deposed: true,
            ..Decided::default()
        };
    }
    let before = present
        .map(|ledger| ledger.claims.clone())
        .unwrap_or_default();
    let mut claims = sorted(scopes, before.clone());
    for scope in scopes.iter_mut() {
        scope.claims = claims.remove(scope.name).unwrap_or_default();
        for claim in scope.claims.values_mut() {
            advance_clock(seen, claim);
        }
        if may_rebuild(seen) && !scope.is_deleting() && !seen.kinds_missing {
            rebuild(scope);
        }
    }
    // What belongs to configs that cannot be read now stays as it is.
    let mut kept: Vec<Claim> = claims
        .into_values()
        .flat_map(BTreeMap::into_values)
        .collect();
    kept.retain(|claim| seen.unreadable_configs.contains(&claim.config));
    let mut room = CLAIMS_MAX.saturating_sub(kept.len());
    for scope in scopes.iter_mut() {
        move_on(scope);
        room = room.saturating_sub(scope.claims.len());
    }
    let mut taken: BTreeSet<String> = kept.iter().map(|claim| claim.node.clone()).collect();
    for scope in &*scopes {
        taken.extend(scope.claims.keys().cloned());
    }
    for scope in scopes.iter_mut().filter(|scope| !scope.is_deleting()) {
        for claim in candidates::new_claims(scope, &taken) {
            if room == 0 {
                break;
            }
            room -= 1;
            taken.insert(claim.node.clone());
            scope.claims.insert(claim.node.clone(), claim);
        }
    }
    let look_again = scopes.iter().fold(None, |soonest, scope| {
        let left = scope
            .claims
            .values()
            .filter_map(|claim| deadline(scope, claim));
        let retry = candidates::retry(scope);
        let due = left.min().map(|left| {
            let left = SignedDuration::try_from(left).unwrap_or(SignedDuration::MAX);
            seen.now.saturating_add(left).unwrap_or(seen.now)
        });
        earliest(earliest(soonest, due), retry)
    });
    let look_again = earliest(look_again, rebuilding(seen, scopes));
    kept.extend(
        scopes
            .iter()
            .flat_map(|scope| scope.claims.values().cloned()),
    );
    kept.sort_by(|one, other| (&one.config, &one.node).cmp(&(&other.config, &other.node)));
    Decided {
        ledger: ledger_write(seen, &before, kept),
        deposed: false,
        look_again,
    }
}

/// Claims by config and node; those of configs that are gone are left out.
fn sorted(scopes: &[Scope<'_>], claims: Vec<Claim>) -> BTreeMap<String, BTreeMap<String, Claim>> {
    let mut sorted: BTreeMap<String, BTreeMap<String, Claim>> = scopes
        .iter()
        .map(|scope| (scope.name.to_owned(), BTreeMap::new()))
        .collect();
    for claim in claims {
        let of_config = sorted.entry(claim.config.clone()).or_default();
        of_config.insert(claim.node.clone(), claim);
    }
    sorted
}

/// Adds the time that the operator has watched. Time in which it was blind, or in which the node
/// did not answer, is nobody's fault.
fn advance_clock(seen: &Snapshot, claim: &mut Claim) {
    let is_ready = seen.nodes.get(&claim.node).is_some_and(|node| node.ready);
    if !is_ready {
        return;
    }
    let watched = u64::try_from(seen.watched.as_millis()).unwrap_or(u64::MAX);
    if claim.phase == Phase::Soaking && claim.elapsed == 0 {
        claim.verified = claim.verified.saturating_add(watched);
    } else {
        claim.elapsed = claim.elapsed.saturating_add(watched);
    }
}

/// Whether a switched node without a claim means that the claim was lost. The ledger is read after
/// everything else: where it can be read, the claim has most likely ended and a cache is behind,
/// until every cache has been fresh for longer than caches may lag.
fn may_rebuild(seen: &Snapshot) -> bool {
    seen.ledger.ledger().is_none() || seen.watched >= LAG
}

/// When claims of switched nodes that have none are looked for again.
fn rebuilding(seen: &Snapshot, scopes: &[Scope<'_>]) -> Option<Timestamp> {
    let is_without = |scope: &Scope<'_>| {
        let mut members = scope.members.iter();
        members.any(|(name, member)| {
            let spec = member.object.map(|object| &object.spec);
            spec.is_some_and(|spec| spec.baseline.is_some()) && !scope.claims.contains_key(*name)
        })
    };
    let left = LAG.saturating_sub(seen.watched);
    let left = SignedDuration::try_from(left).unwrap_or(SignedDuration::ZERO);
    let is_waiting = !left.is_zero() && scopes.iter().any(is_without);
    is_waiting.then(|| seen.now.saturating_add(left).unwrap_or(seen.now))
}

/// Claims that are missing although their node was switched: the ledger was lost. The object says
/// from where and to what.
fn rebuild(scope: &mut Scope<'_>) {
    let mut rebuilt = Vec::new();
    for (name, member) in &scope.members {
        let spec = member.object.map(|object| &object.spec);
        let Some((spec, baseline)) = spec.and_then(|spec| Some((spec, spec.baseline.as_ref()?)))
        else {
            continue;
        };
        if scope.claims.contains_key(*name) || !member.is_served_or_waits() {
            continue;
        }
        let is_back = spec.active == baseline.revision;
        let (to, phase) = match (is_back, &spec.standby) {
            (true, Some(standby)) => (standby, Phase::RollingBack),
            (true, None) => (&spec.active, Phase::Releasing),
            (false, _) => (&spec.active, Phase::Switching),
        };
        rebuilt.push(Claim {
            from: baseline.revision.clone(),
            to: to.clone(),
            phase,
            ..candidates::claim(scope, member, to)
        });
    }
    for claim in rebuilt {
        scope.claims.insert(claim.node.clone(), claim);
    }
}

/// Every claim of a config, a step further where its guard holds.
fn move_on(scope: &mut Scope<'_>) {
    if scope.is_deleting() || scope.seen.kinds_missing {
        // The deletion takes the traces; claims go with the last of them.
        let seen = scope.seen;
        let gone = |claim: &Claim| !seen.nodes.contains_key(&claim.node);
        let members = &scope.members;
        let has_traces = |claim: &Claim| {
            let member = members.get(claim.node.as_str());
            member.is_some_and(|one| one.object.is_some() || one.staged.is_some())
        };
        scope
            .claims
            .retain(|_, claim| !gone(claim) && has_traces(claim));
        return;
    }
    let desired = scope
        .members
        .values()
        .filter(|one| one.is_served_or_waits());
    let budget = max_unavailable(scope.config, desired.count());
    let halted = is_halted(scope);
    // Those that are furthest go first: what they free is there for the others.
    let mut claims: Vec<Claim> = scope.claims.values().cloned().collect();
    claims.sort_by_key(|claim| (std::cmp::Reverse(claim.phase), claim.node.clone()));
    let mut disruptive = claims.iter().filter(|claim| claim.disrupts()).count();
    let mut left = BTreeMap::new();
    for claim in claims {
        let was_disruptive = claim.disrupts();
        let may_switch = (disruptive < budget || claim.outside) && !halted;
        let next = advanced(scope, claim, may_switch, halted);
        let is_disruptive = next.as_ref().is_some_and(Claim::disrupts);
        disruptive = match (was_disruptive, is_disruptive) {
            (true, false) => disruptive.saturating_sub(1),
            (false, true) => disruptive + 1,
            _ => disruptive,
        };
        if let Some(next) = next {
            left.insert(next.node.clone(), next);
        }
    }
    scope.claims = left;
}

/// Whether the target has failed: no further node is sent there.
pub fn is_halted(scope: &Scope<'_>) -> bool {
    let Some(target) = scope.target.as_ref() else {
        return false;
    };
    let target = target.revision.as_str();
    if Some(target) == scope.stable.revision() {
        return false;
    }
    let is_marked = scope
        .revisions
        .get(target)
        .is_some_and(|one| one.failed.is_some());
    let mut claims = scope.claims.values();
    is_marked
        || claims.any(|claim| {
            let is_back = matches!(claim.phase, Phase::RollingBack | Phase::Quarantined);
            claim.to == target && !claim.outside && (is_back || claim.blames)
        })
}

/// Why what the spec asks for cannot be rolled out at all.
pub fn blocked(scope: &Scope<'_>) -> Option<String> {
    let target = scope
        .target
        .as_ref()
        .map(|target| target.revision.as_str())?;
    let stable = scope.stable.revision().filter(|stable| *stable != target)?;
    if let Stable::Lost(_) = &scope.stable {
        return Some(format!(
            "revision {stable}, which nodes run, is lost: its ControllerRevision, DaemonSet or ConfigMap was deleted and nothing is left to make it from; set spec back to what it was, or delete the config and apply it again to install revision {target}"
        ));
    }
    if let Some(message) = blocked_by_driver(scope, target) {
        return Some(message);
    }
    let kept: BTreeSet<&str> = match scope.revisions.get(target) {
        Some(revision) => revision.resources.iter().map(String::as_str).collect(),
        None => scope
            .config
            .spec
            .resources
            .iter()
            .map(|one| one.name.as_str())
            .collect(),
    };
    for (name, member) in &scope.members {
        let report = judge::active(member).filter(|_| member.is_served_or_waits());
        let resources = report.map_or(&[][..], |report| &report.resources);
        let removed = resources
            .iter()
            .find(|one| one.registered && !kept.contains(one.name.as_str()));
        if let Some(removed) = removed {
            return Some(format!(
                "the spec no longer serves resource {:?}, which node {name:?} does: pods may hold its devices, and a container that restarts after the resource is gone would not start again; serve it again to end the wait, or delete the config and apply it again to install revision {target}",
                removed.name
            ));
        }
    }
    None
}

/// A new agent's pod starts beside the old one, and would load another driver under devices that
/// containers use. The same driver's program runs at every start of a pod and finds all ready.
fn blocked_by_driver(scope: &Scope<'_>, target: &str) -> Option<String> {
    let own = scope.config.spec.hooks.as_ref();
    let wanted = match scope.revisions.get(target) {
        Some(revision) => revision.driver.as_ref(),
        None => own.and_then(|hooks| hooks.driver.as_ref()),
    }?;
    let runs = match &scope.stable {
        Stable::Stands(seen) => seen.driver.clone(),
        Stable::Rebuild { content, .. } => content.driver(),
        Stable::None | Stable::Lost(_) => return None,
    };
    if runs.as_ref() == Some(wanted) {
        return None;
    }
    Some(format!(
        "hooks.driver is another one than nodes run: its program would run beside devices that are in use; set hooks.driver back, or free the devices, delete the config and apply it again to install revision {target}"
    ))
}

/// The writes that are about revisions and not about one node: a failure is marked before its claim
/// goes, and a revision that every node has proven becomes the stable one.
pub fn writes(scope: &Scope<'_>) -> Vec<Write> {
    let mut writes = Vec::new();
    for claim in scope.claims.values().filter(|claim| claim.blames) {
        let revision = scope.revisions.get(claim.to.as_str());
        let Some(revision) = revision.filter(|one| one.failed.is_none()) else {
            continue;
        };
        if Some(claim.to.as_str()) != scope.stable.revision() {
            writes.push(Write::AnnotateRevision {
                on: revision.id.clone(),
                annotations: [(
                    crds::names::FAILED_ANNOTATION.to_owned(),
                    format!("node {:?}: {}: {}", claim.node, claim.reason, claim.message),
                )]
                .into(),
            });
        }
    }
    writes.extend(promotion(scope));
    writes
}

/// Makes the target the stable revision when every node that can be reached has proven it.
fn promotion(scope: &Scope<'_>) -> Option<Write> {
    let target = scope.target.as_ref()?.revision.as_str();
    let is_new = scope
        .stable
        .revision()
        .is_some_and(|stable| stable != target);
    let revision = scope
        .revisions
        .get(target)
        .filter(|one| is_new && one.failed.is_none())?;
    if !scope.claims.is_empty() {
        return None;
    }
    let members = scope
        .members
        .values()
        .filter(|one| one.is_served_or_waits());
    let mut counted = members
        .filter(|one| one.node.ready && !is_skipped(one, target))
        .peekable();
    counted.peek()?;
    let serves = |member: &Member<'_>| {
        judge::serves(scope, member, target, judge::Strictness::Patient).is_ok()
    };
    let mut is_served = false;
    let is_everywhere = counted.all(|member| {
        is_served |= serves(member);
        member.pinned == Some(target) && is_at(member, target)
    });
    (is_everywhere && is_served).then(|| promote(scope, revision))
}

fn is_at(member: &Member<'_>, revision: &str) -> bool {
    let object = member.object.map(|object| &object.spec);
    object.is_some_and(|spec| spec.active == revision)
}

/// Whether a node was left out of the change to a revision.
pub fn is_skipped(member: &Member<'_>, target: &str) -> bool {
    let outcome = member
        .object
        .and_then(|object| object.spec.outcome.as_ref());
    outcome.is_some_and(|outcome| outcome.revision == target)
}

/// Whether a node belongs to the config with its agent.
pub fn belongs(member: &Member<'_>) -> bool {
    matches!(
        member.membership,
        Membership::Selected | Membership::Grace { .. }
    )
}

/// The ledger is written where anything but clocks has changed, and from time to time for those.
fn ledger_write(seen: &Snapshot, before: &[Claim], claims: Vec<Claim>) -> Option<LedgerWrite> {
    let (on, epoch) = match &seen.ledger {
        SeenLedger::Absent => (None, None),
        SeenLedger::Present { on, content } => {
            let epoch = content.as_ref().ok().map(|ledger| ledger.epoch);
            (Some(on.clone()), epoch)
        }
    };
    let is_other_leaders = on.is_some() && epoch != Some(seen.epoch);
    let has_changed = before.len() != claims.len()
        || before.iter().zip(&claims).any(|(before, after)| {
            let mut same = after.clone();
            let was_sound = before.phase == Phase::Soaking && before.elapsed == 0;
            let is_sound = after.phase == Phase::Soaking && after.elapsed == 0;
            (same.elapsed, same.verified) = (before.elapsed, before.verified);
            same != *before || was_sound != is_sound
        });
    let is_due = !claims.is_empty() && seen.watched >= PERSIST;
    (is_other_leaders || has_changed || is_due).then_some(LedgerWrite {
        on,
        ledger: Ledger {
            epoch: seen.epoch,
            claims,
        },
    })
}
