//! One claim, a step further.

use std::time::Duration;

use super::judge::{self, Fault, Strictness, pod, serves, two_ticks, verified};
use super::settings::{self, HANDOVER, PREFLIGHT, ROLLBACK, STAGE, STARTING, VERIFY};
use super::{belongs, blocked};
use crate::ledger::{Claim, Phase};
use crate::scope::{Member, Scope};

/// The claim as it is to be from now on; nothing: it ends, because nothing of it is left.
pub fn advanced(scope: &Scope<'_>, claim: Claim, may_switch: bool, halted: bool) -> Option<Claim> {
    let member = scope
        .members
        .get(claim.node.as_str())
        .filter(|member| member.node.id.uid == claim.node_uid && belongs(member))?;
    match claim.phase {
        Phase::Staging | Phase::Staged => staging(scope, member, claim, may_switch, halted),
        Phase::Switching => Some(switching(scope, member, claim)),
        Phase::Verifying => Some(verifying(scope, member, claim)),
        Phase::Soaking => Some(soaking(scope, member, claim)),
        Phase::Committing => committing(scope, member, claim),
        Phase::RollingBack | Phase::Quarantined => rolling_back(scope, member, claim),
        Phase::Releasing => releasing(scope, member, claim),
    }
}

fn enter(claim: Claim, phase: Phase) -> Claim {
    Claim {
        phase,
        elapsed: 0,
        verified: 0,
        ..claim
    }
}

fn fail(claim: Claim, phase: Phase, fault: Fault) -> Claim {
    Claim {
        reason: fault.reason.to_owned(),
        message: crate::messages::cut(&fault.message, MESSAGE_MAX),
        ..enter(claim, phase)
    }
}

/// Longest message in a claim: 250 of them stay far below what an object may hold.
const MESSAGE_MAX: usize = 500;

fn elapsed(claim: &Claim) -> Duration {
    Duration::from_millis(claim.elapsed)
}

/// The node still serves as before: nothing is lost whatever happens here.
fn staging(
    scope: &Scope<'_>,
    member: &Member<'_>,
    claim: Claim,
    may_switch: bool,
    halted: bool,
) -> Option<Claim> {
    let target = scope.target.as_ref().map(|target| target.revision.as_str());
    if target != Some(claim.to.as_str()) || halted || blocked(scope).is_some() {
        // Without a reason: nothing speaks against this node.
        return releasing(scope, member, enter(claim, Phase::Releasing));
    }
    if !member.node.ready {
        // It was never touched, and others need not wait for it.
        return releasing(scope, member, enter(claim, Phase::Releasing));
    }
    // A node that serves again has something to lose again.
    let serves_now = serves(scope, member, &claim.from, Strictness::Patient).is_ok();
    let claim = Claim {
        outside: claim.outside && !serves_now,
        ..claim
    };
    let is_staged = member.staged == Some(claim.to.as_str())
        && member
            .object
            .is_some_and(|one| one.spec.standby.as_deref() == Some(claim.to.as_str()));
    let preflight = judge::preflight(scope, member, &claim).filter(|_| is_staged);
    let still = serves_now || claim.outside;
    let is_good = preflight == Some(Ok(())) && still;
    if claim.phase == Phase::Staged && !is_good {
        // An agent that comes and goes has no more time than one that never comes.
        return Some(Claim {
            elapsed: claim.verified,
            ..enter(claim, Phase::Staging)
        });
    }
    if is_good {
        // What stands by for a moment only is not given a node.
        let stays = elapsed(&claim) >= scope.seen.settings.node_status_period;
        let may_switch =
            may_switch && stays && !settings::is_paused(scope.config) && member.node.ready;
        return Some(match (claim.phase, may_switch) {
            (Phase::Staged, true) => Claim {
                restarts: pod(member, &claim.to).map_or(0, |pod| pod.restarts),
                ..enter(claim, Phase::Switching)
            },
            (Phase::Staged, false) => claim,
            _ => Claim {
                verified: claim.elapsed,
                ..enter(claim, Phase::Staged)
            },
        });
    }
    if preflight == Some(Ok(())) {
        // The old agent has died meanwhile: there is nothing left to lose, and nobody to blame.
        let is_lost = elapsed(&claim) >= STARTING;
        return Some(Claim {
            outside: claim.outside || is_lost,
            ..claim
        });
    }
    // The agent before it must serve for the new one to be compared with it.
    let objection = preflight.and_then(Result::err).filter(|_| still);
    if let Some(fault) = objection.filter(|_| elapsed(&claim) >= PREFLIGHT) {
        let blames = is_first(scope, &claim);
        return Some(Claim {
            blames,
            ..fail(claim, Phase::Releasing, fault)
        });
    }
    let pod = pod(member, &claim.to);
    if pod.is_none() && elapsed(&claim) >= STAGE {
        // Nobody has made one, which no revision is blamed for.
        let message = format!("the DaemonSet controller has made no agent pod within {STAGE:?}");
        return Some(fail(
            claim,
            Phase::Releasing,
            Fault::new("ActuatorSlow", message),
        ));
    }
    if let Some(pod) = pod.filter(|_| elapsed(&claim) >= STAGE) {
        let trouble = pod.trouble.as_ref();
        let reason = match trouble.map(|trouble| trouble.reason.as_str()) {
            Some(
                "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull",
            ) => "ImagePull",
            Some("Unschedulable" | "OutOfpods" | "OutOfcpu" | "OutOfmemory") => "NoSurgeRoom",
            _ => "StandbyFailed",
        };
        let why = trouble.map_or("it is not Ready", |trouble| trouble.message.as_str());
        let message = format!(
            "agent pod {:?} is not ready after {STAGE:?}: {why}",
            pod.id.name
        );
        let blames = is_first(scope, &claim) && reason != "NoSurgeRoom";
        return Some(Claim {
            blames,
            ..fail(claim, Phase::Releasing, Fault::new(reason, message))
        });
    }
    Some(claim)
}

/// Whether nothing has proven the revision yet: then what speaks against it here speaks against it
/// everywhere.
fn is_first(scope: &Scope<'_>, claim: &Claim) -> bool {
    let mut members = scope.members.values();
    !claim.outside && !members.any(|member| member.pinned == Some(claim.to.as_str()))
}

/// Where the node's object has lost what the new agent is judged by, the old one serves again.
fn lost_baseline(member: &Member<'_>, claim: &Claim) -> Option<Fault> {
    let spec = member.object.map(|object| &object.spec);
    let is_lost = spec.is_none_or(|spec| spec.baseline.is_none() && spec.active == claim.to);
    let message = "the node's DevicePluginNode was deleted or changed while the node was changed";
    is_lost.then(|| Fault::new("BaselineLost", message))
}

fn switching(scope: &Scope<'_>, member: &Member<'_>, claim: Claim) -> Claim {
    if let Some(fault) = lost_baseline(member, &claim) {
        return fail(claim, Phase::RollingBack, fault);
    }
    let is_switched = member
        .object
        .is_some_and(|object| judge::is_switched(&object.spec, &claim));
    let report = judge::active(member).filter(|report| report.revision == claim.to);
    let registered = report.is_some_and(|report| {
        let is_here = pod(member, &claim.to).is_some_and(|pod| pod.id.uid == report.pod_uid);
        let names = scope.resources_of(&claim.to);
        is_here
            && names.iter().all(|name| {
                let of_name = report.resources.iter().find(|one| one.name == *name);
                of_name.is_some_and(|one| one.registered)
            })
    });
    if is_switched && registered {
        return enter(claim, Phase::Verifying);
    }
    if !is_switched {
        // The write that swaps the roles has not come through: the clock of the hand-over stands.
        return Claim {
            elapsed: 0,
            ..claim
        };
    }
    if elapsed(&claim) < HANDOVER {
        return claim;
    }
    let fault = serves(scope, member, &claim.to, Strictness::Now).err();
    let why = fault.map_or_else(String::new, |fault| format!(": {}", fault.message));
    let message = format!("the new agent did not serve within {HANDOVER:?}{why}");
    fail(
        claim,
        Phase::RollingBack,
        Fault::new("HandoverTimeout", message),
    )
}

/// What ends a claim after the switch whatever the gates say.
fn broken(member: &Member<'_>, claim: &Claim) -> Option<Fault> {
    let message = "the new agent was away, and the old one has taken over by itself";
    let took_over = judge::took_over(member, claim);
    lost_baseline(member, claim)
        .or_else(|| took_over.then(|| Fault::new("StandbyTookOver", message)))
}

fn verifying(scope: &Scope<'_>, member: &Member<'_>, claim: Claim) -> Claim {
    if let Some(fault) = broken(member, &claim) {
        return fail(claim, Phase::RollingBack, fault);
    }
    match verified(scope, member, &claim, Strictness::Now) {
        Ok(()) if elapsed(&claim) >= two_ticks(scope) => enter(claim, Phase::Soaking),
        Err(fault) if elapsed(&claim) >= VERIFY => {
            let message = format!("not right {VERIFY:?} after the switch: {}", fault.message);
            fail(claim, Phase::RollingBack, Fault { message, ..fault })
        }
        _ => claim,
    }
}

fn soaking(scope: &Scope<'_>, member: &Member<'_>, claim: Claim) -> Claim {
    if let Some(fault) = broken(member, &claim) {
        return fail(claim, Phase::RollingBack, fault);
    }
    let is_sound = claim.elapsed == 0;
    match verified(scope, member, &claim, Strictness::Patient) {
        Ok(()) if !is_sound => enter(claim, Phase::Soaking),
        Ok(()) => {
            let is_over = Duration::from_millis(claim.verified) >= soak(scope, &claim);
            let now = verified(scope, member, &claim, Strictness::Now);
            match is_over && now.is_ok() {
                true => enter(claim, Phase::Committing),
                false => claim,
            }
        }
        Err(_) if is_sound => Claim {
            // From 1, because 0 says that all is right.
            elapsed: 1,
            verified: 0,
            ..claim
        },
        Err(fault) if elapsed(&claim) >= VERIFY => {
            let message = format!(
                "not right for {VERIFY:?} while it soaked: {}",
                fault.message
            );
            fail(claim, Phase::RollingBack, Fault { message, ..fault })
        }
        Err(_) => claim,
    }
}

/// How long a node soaks. On the way back to the stable revision there is nothing to find out.
fn soak(scope: &Scope<'_>, claim: &Claim) -> Duration {
    if Some(claim.to.as_str()) == scope.stable.revision() {
        return Duration::ZERO;
    }
    settings::soak(scope.config).max(two_ticks(scope))
}

fn committing(scope: &Scope<'_>, member: &Member<'_>, claim: Claim) -> Option<Claim> {
    let spec = member.object.map(|object| &object.spec);
    let is_labelled = member.pinned == Some(claim.to.as_str());
    if is_labelled {
        let is_clean = member.staged.is_none()
            && spec.is_some_and(|spec| {
                spec.active == claim.to && spec.standby.is_none() && spec.baseline.is_none()
            });
        return (!is_clean).then_some(claim);
    }
    // An object without baseline has been told already; only the node's label is behind in a cache.
    if spec.is_some_and(|spec| spec.active == claim.to && spec.baseline.is_none()) {
        return Some(claim);
    }
    if let Some(fault) = broken(member, &claim) {
        return Some(fail(claim, Phase::RollingBack, fault));
    }
    match verified(scope, member, &claim, Strictness::Now) {
        Ok(()) => Some(claim),
        Err(_) => Some(enter(claim, Phase::Soaking)),
    }
}

fn rolling_back(scope: &Scope<'_>, member: &Member<'_>, claim: Claim) -> Option<Claim> {
    let spec = member.object.map(|object| &object.spec);
    let is_back = spec.is_some_and(|spec| judge::is_told_back(spec, &claim));
    let is_clean = is_back
        && member.staged.is_none()
        && spec.is_some_and(|spec| spec.standby.is_none() && spec.baseline.is_none());
    // What served nothing before is not waited for.
    let serves = is_back
        && (claim.outside || serves(scope, member, &claim.from, Strictness::Patient).is_ok());
    // Blamed once the old revision does better here than the new one.
    let does_better = serves && !claim.outside && judge::does_better(scope, member, &claim);
    let blames = claim.blames || does_better;
    let claim = Claim { blames, ..claim };
    if is_clean && is_marked(scope, &claim) && is_gone(member, &claim) {
        return None;
    }
    if claim.phase == Phase::RollingBack && !serves && elapsed(&claim) >= ROLLBACK {
        return Some(enter(claim, Phase::Quarantined));
    }
    if claim.phase == Phase::Quarantined && !serves {
        return Some(another_chance(scope, claim));
    }
    Some(claim)
}

/// A node that serves nothing is not kept from a revision that may mend it.
fn another_chance(scope: &Scope<'_>, claim: Claim) -> Claim {
    let target = scope.target.as_ref().map(|target| target.revision.as_str());
    let target = target.filter(|target| {
        *target != claim.to
            && *target != claim.from
            && scope.revisions.contains_key(target)
            && scope.daemon_set(target).is_some_and(|set| set.is_observed)
    });
    match target.filter(|_| blocked(scope).is_none() && !settings::is_paused(scope.config)) {
        None => claim,
        Some(target) => Claim {
            to: target.to_owned(),
            outside: true,
            blames: false,
            reason: String::new(),
            message: String::new(),
            ..enter(claim, Phase::Staging)
        },
    }
}

fn releasing(scope: &Scope<'_>, member: &Member<'_>, claim: Claim) -> Option<Claim> {
    let spec = member.object.map(|object| &object.spec);
    let is_clean = member.staged.is_none()
        && spec.is_none_or(|spec| spec.standby.is_none() && spec.baseline.is_none());
    let is_over = is_clean && is_marked(scope, &claim) && is_gone(member, &claim);
    (!is_over).then_some(claim)
}

/// Whether the agent that has to go is on its way: one that hears late of what it no longer is must
/// still have a claim.
fn is_gone(member: &Member<'_>, claim: &Claim) -> bool {
    claim.to == claim.from || pod(member, &claim.to).is_none()
}

/// Whether the revision has its mark, if it is to have one.
fn is_marked(scope: &Scope<'_>, claim: &Claim) -> bool {
    let revision = scope.revisions.get(claim.to.as_str());
    !claim.blames
        || Some(claim.to.as_str()) == scope.stable.revision()
        || revision.is_none_or(|revision| revision.failed.is_some())
}

/// How long until the claim's clock calls for a look; nothing: it waits for news alone.
pub fn deadline(scope: &Scope<'_>, claim: &Claim) -> Option<Duration> {
    let left = |limit: Duration| limit.saturating_sub(elapsed(claim));
    // Something is due at once where a limit has passed already and another guard did not hold.
    let next = |limits: &[Duration]| {
        let ahead = limits.iter().map(|limit| left(*limit));
        ahead.filter(|left| !left.is_zero()).min()
    };
    let due = match claim.phase {
        Phase::Staging => next(&[PREFLIGHT, STAGE]),
        Phase::Staged => next(&[scope.seen.settings.node_status_period]),
        Phase::Switching => next(&[HANDOVER]),
        Phase::Verifying => next(&[two_ticks(scope), VERIFY]),
        Phase::Soaking if claim.elapsed == 0 => {
            let soaked = Duration::from_millis(claim.verified);
            Some(soak(scope, claim).saturating_sub(soaked)).filter(|left| !left.is_zero())
        }
        Phase::Soaking => next(&[VERIFY]),
        Phase::RollingBack => next(&[ROLLBACK]),
        Phase::Committing | Phase::Quarantined | Phase::Releasing => None,
    };
    let persist = settings::PERSIST;
    Some(due.unwrap_or(persist).min(persist))
}
