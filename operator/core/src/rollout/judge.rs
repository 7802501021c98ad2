//! Whether an agent is all right on a node: by what the kubelet says, not by what its pod says.

use std::time::Duration;

use crds::DevicePluginNodeSpec;
use crds::node::{AgentReport, Baseline, ResourceReport, StandbyReport};
use k8s_openapi::jiff::SignedDuration;

use super::settings;
use crate::ledger::{Claim, Phase};
use crate::scope::{Member, Scope};
use crate::seen::SeenPod;

/// What speaks against an agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// One word, for counting and for people who search.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

impl Fault {
    /// A fault.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// How strictly the kubelet's list is judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Strictness {
    /// It must be right now: something follows from it that is not taken back.
    Now,
    /// It may differ for as long as the config's gate says: the agent heals what it can.
    Patient,
}

/// The newest pod of a revision on a node that is not on its way out.
pub fn pod<'a>(member: &Member<'a>, revision: &str) -> Option<&'a SeenPod> {
    let pods = member.pods.iter().copied();
    pods.filter(|pod| !pod.deleting && pod.revision == revision)
        .max_by_key(|pod| (pod.created, pod.id.name.as_str()))
}

/// The report of the agent that serves.
pub fn active<'a>(member: &Member<'a>) -> Option<&'a AgentReport> {
    member.object?.status.as_ref()?.active.as_ref()
}

/// The report of the agent that stands by.
pub fn standby<'a>(member: &Member<'a>) -> Option<&'a StandbyReport> {
    member.object?.status.as_ref()?.standby.as_ref()
}

/// Whether the agent of a revision serves every resource, and the kubelet has what it sent.
///
/// # Errors
/// What speaks against it.
pub fn serves<'a>(
    scope: &Scope<'_>,
    member: &Member<'a>,
    revision: &str,
    strictness: Strictness,
) -> Result<&'a AgentReport, Fault> {
    let missing = || {
        Fault::new(
            "AgentMissing",
            format!("no agent of revision {revision} runs"),
        )
    };
    let pod = pod(member, revision).ok_or_else(missing)?;
    if let Some(trouble) = pod.trouble.as_ref().filter(|trouble| trouble.fatal) {
        let message = format!(
            "agent pod {:?}: {}: {}",
            pod.id.name, trouble.reason, trouble.message
        );
        return Err(Fault::new("AgentFailed", message));
    }
    let report = active(member).filter(|report| report.pod_uid == pod.id.uid);
    let report = report
        .filter(|report| report.revision == revision)
        .ok_or_else(|| {
            Fault::new(
                "NotRegistered",
                format!("agent pod {:?} does not serve", pod.id.name),
            )
        })?;
    if !pod.ready {
        let message = format!("agent pod {:?} is not Ready", pod.id.name);
        return Err(Fault::new("AgentNotReady", message));
    }
    for name in scope.resources_of(revision) {
        let of_name = report.resources.iter().find(|one| one.name == *name);
        resource_served(scope, name, of_name, strictness)?;
    }
    Ok(report)
}

fn resource_served(
    scope: &Scope<'_>,
    name: &str,
    report: Option<&ResourceReport>,
    strictness: Strictness,
) -> Result<(), Fault> {
    let Some(report) = report.filter(|one| one.registered) else {
        let why = report.map(|one| one.message.as_str()).unwrap_or_default();
        let message = format!("resource {name:?} is not registered at the kubelet: {why}");
        let message = message.trim_end_matches([':', ' ']);
        return Err(Fault::new("NotRegistered", message));
    };
    let Some(list) = report.kubelet.as_ref().filter(|list| !list.matches) else {
        return Ok(());
    };
    let lasts = scope.seen.now.duration_since(list.since.0);
    let patience = SignedDuration::try_from(settings::kubelet_sync(scope.config));
    let is_short = patience.is_ok_and(|patience| lasts <= patience);
    if strictness == Strictness::Patient && is_short {
        return Ok(());
    }
    let message = format!(
        "resource {name:?}: the kubelet lists {} devices and the agent sent {} healthy ones",
        list.devices, report.healthy
    );
    Err(Fault::new("KubeletOutOfSync", message))
}

/// Whether the new agent of a claim is all right.
///
/// # Errors
/// What speaks against it.
pub fn verified(
    scope: &Scope<'_>,
    member: &Member<'_>,
    claim: &Claim,
    strictness: Strictness,
) -> Result<(), Fault> {
    if !member.node.ready {
        return Err(Fault::new("NodeNotReady", "the node is not Ready"));
    }
    let report = serves(scope, member, &claim.to, strictness)?;
    let running = member.pods.iter().filter(|pod| pod.revision == claim.to);
    if running.clone().count() > 1 {
        return Err(Fault::new(
            "AgentMissing",
            "an earlier pod of the agent is still ending",
        ));
    }
    let restarts = running.map(|pod| pod.restarts).max().unwrap_or_default();
    let more = restarts.saturating_sub(claim.restarts);
    if more > settings::max_restarts(scope.config) {
        let message = format!("the agent has restarted {more} times since the node was switched");
        return Err(Fault::new("AgentRestarted", message));
    }
    for name in scope.resources_of(&claim.to) {
        let of_name = report.resources.iter().find(|one| one.name == *name);
        if let Some(of_name) = of_name {
            let ticked = has_ticked(scope, claim).then_some(strictness);
            resource_verified(scope, member, of_name, ticked)?;
        }
    }
    Ok(())
}

/// Whether the kubelet has reported to the API server since the switch: a Node status that is older
/// proves nothing. A node soaks only after that.
fn has_ticked(scope: &Scope<'_>, claim: &Claim) -> bool {
    match claim.phase {
        Phase::Soaking | Phase::Committing => true,
        _ => Duration::from_millis(claim.elapsed) >= two_ticks(scope),
    }
}

/// Two reports of a kubelet to the API server.
pub fn two_ticks(scope: &Scope<'_>) -> Duration {
    scope.seen.settings.node_status_period.saturating_mul(2)
}

fn resource_verified(
    scope: &Scope<'_>,
    member: &Member<'_>,
    report: &ResourceReport,
    ticked: Option<Strictness>,
) -> Result<(), Fault> {
    let name = &report.name;
    if !report
        .kubelet
        .as_ref()
        .is_some_and(|list| list.read_after_stream)
    {
        let message = format!("resource {name:?}: the kubelet's own list has not been read yet");
        return Err(Fault::new("KubeletOutOfSync", message));
    }
    let offered = member
        .node
        .allocatable
        .get(name)
        .copied()
        .unwrap_or_default();
    // A device that has just recovered is not in the Node's status yet.
    let least = match ticked {
        None => 0,
        Some(Strictness::Now) => i64::from(report.healthy),
        Some(Strictness::Patient) => i64::from(report.healthy.min(1)),
    };
    if offered < least {
        let message = format!(
            "resource {name:?}: the node offers {offered} devices and the agent has {} healthy ones",
            report.healthy
        );
        return Err(Fault::new("KubeletOutOfSync", message));
    }
    if report.missing_allocated > 0 {
        let message = format!(
            "resource {name:?}: {} devices that containers hold are no longer advertised",
            report.missing_allocated
        );
        return Err(Fault::new("AllocatedDevicesMissing", message));
    }
    let baseline = member
        .object
        .and_then(|object| object.spec.baseline.as_ref());
    enough(scope, name, report.healthy, before(baseline, name))
}

/// What a baseline has of a resource. One that is new has no past.
fn before(baseline: Option<&Baseline>, name: &str) -> i32 {
    let resources = baseline.map_or(&[][..], |baseline| &baseline.resources);
    let of_name = resources.iter().find(|one| one.name == name);
    of_name.map_or(0, |one| one.healthy)
}

fn enough(scope: &Scope<'_>, name: &str, healthy: i32, before: i32) -> Result<(), Fault> {
    let least = before.saturating_sub(settings::tolerated_loss(scope.config, before));
    if healthy >= least {
        return Ok(());
    }
    let message = format!(
        "resource {name:?}: {healthy} healthy devices where there were {before}, and at least {least} are asked for"
    );
    Err(Fault::new("FewerDevices", message))
}

/// Whether the old agent, which serves again, does better than the new one did. Where it lacks the
/// same devices, the node is sick; where somebody has edited its object, nobody is to blame.
pub fn does_better(scope: &Scope<'_>, member: &Member<'_>, claim: &Claim) -> bool {
    match claim.reason.as_str() {
        "BaselineLost" => false,
        "FewerDevices" | "AllocatedDevicesMissing" => {
            let baseline = member
                .object
                .and_then(|object| object.spec.baseline.as_ref());
            let resources = active(member).map_or(&[][..], |report| &report.resources);
            // Once it is taken away, that has been decided.
            let is_known = baseline.is_some();
            is_known
                && resources.iter().all(|one| {
                    let before = before(baseline, &one.name);
                    one.missing_allocated == 0
                        && enough(scope, &one.name, one.healthy, before).is_ok()
                })
        }
        _ => true,
    }
}

/// Whether the agent that stands by could serve now; absent while that is not known yet.
pub fn preflight(
    scope: &Scope<'_>,
    member: &Member<'_>,
    claim: &Claim,
) -> Option<Result<(), Fault>> {
    let pod = pod(member, &claim.to)?;
    let report = standby(member)
        .filter(|report| report.revision == claim.to && report.pod_uid == pod.id.uid)?;
    Some(preflight_of(scope, member, claim, report)).filter(|one| one.is_err() || pod.ready)
}

fn preflight_of(
    scope: &Scope<'_>,
    member: &Member<'_>,
    claim: &Claim,
    report: &StandbyReport,
) -> Result<(), Fault> {
    if !report.preflight.ok {
        let message = format!(
            "the new agent could not serve: {}",
            report.preflight.reasons.join("; ")
        );
        return Err(Fault::new("StandbyFailed", message));
    }
    if claim.outside {
        return Ok(());
    }
    let now = active(member).map_or(&[][..], |report| &report.resources);
    for resource in &report.resources {
        let name = &resource.name;
        let before = now.iter().find(|one| one.name == *name);
        enough(
            scope,
            name,
            resource.healthy,
            before.map_or(0, |one| one.healthy),
        )?;
        if resource.missing_allocated > 0 {
            let message = format!(
                "resource {name:?}: {} devices that containers hold would not be advertised any more",
                resource.missing_allocated
            );
            return Err(Fault::new("AllocatedDevicesMissing", message));
        }
    }
    Ok(())
}

/// Whether the proven agent that stood by has taken over: the new one was gone for minutes.
pub fn took_over(member: &Member<'_>, claim: &Claim) -> bool {
    let report = active(member).filter(|report| report.revision == claim.from);
    let pod = report.and_then(|report| member.pods.iter().find(|pod| pod.id.uid == report.pod_uid));
    pod.is_some_and(|pod| !pod.deleting) && pod_is_away(member, &claim.to)
}

fn pod_is_away(member: &Member<'_>, revision: &str) -> bool {
    pod(member, revision).is_none_or(|pod| !pod.ready)
}

/// Whether the object's spec says that the old agent is to serve again: one that merely has not been
/// switched yet, in a cache that lags, has no outcome.
pub fn is_told_back(spec: &DevicePluginNodeSpec, claim: &Claim) -> bool {
    let outcome = spec.outcome.as_ref();
    spec.active == claim.from && outcome.is_some_and(|outcome| outcome.revision == claim.to)
}

/// Whether an object's spec has what a switched node has.
pub fn is_switched(spec: &DevicePluginNodeSpec, claim: &Claim) -> bool {
    spec.active == claim.to && spec.baseline.is_some()
}
