//! Where each node of a config stands.

use crds::DevicePluginNode;
use crds::conditions::{NodeCondition, NodeReason};
use crds::node::{AgentReport, OutcomeResult};

use crate::ledger::{Claim, Phase};
use crate::messages::{cut, time};
use crate::rollout::judge;
use crate::scope::{Member, Scope};

/// Longest part of a message that comes from elsewhere.
const FOREIGN_TEXT_MAX: usize = 300;

/// Where a node stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Its agent serves every resource at the revision that its object names.
    Serving,
    /// It is being changed, and runs something unproven or nothing; how far, in words.
    InFlight(String),
    /// It is on its way; why, in words.
    Pending(String),
    /// It was brought back from the target revision; why, in words.
    RolledBack(String),
    /// Its agent fails; how, in words.
    Failed(String),
    /// Something else serves a resource there.
    Foreign(String),
    /// It was left out of the change to the target; why, in words.
    Skipped(String),
    /// Kubernetes does not reach it.
    Unreachable(String),
}

/// Where a node stands, and the report that counts: only that of a serving agent does.
pub fn standing<'a>(scope: &Scope<'_>, member: &Member<'a>) -> (Standing, Option<&'a AgentReport>) {
    let (standing, report) = of_agent(scope, member);
    let claim = scope.claims.get(member.node.id.name.as_str());
    let said = claim
        .filter(|claim| claim.phase.is_disruptive())
        .map(claimed);
    let said = match (&standing, said) {
        (Standing::Unreachable(_), _) => None,
        (_, None) => left_out(scope, member),
        (_, said) => said,
    };
    (said.unwrap_or(standing), report)
}

/// Where a node stands whose claim is in a disruptive phase.
fn claimed(claim: &Claim) -> Standing {
    let (to, from) = (&claim.to, &claim.from);
    let why = cut(&claim.message, FOREIGN_TEXT_MAX);
    match claim.phase {
        Phase::Quarantined => Standing::Failed(format!(
            "neither revision {to} nor revision {from} serves: {}: {why}",
            claim.reason
        )),
        Phase::RollingBack => Standing::InFlight(format!(
            "is brought back from revision {to} to {from}: {}: {why}",
            claim.reason
        )),
        phase => Standing::InFlight(format!("revision {to} is {}", phase.as_str())),
    }
}

/// What became of a node on its way to the target, where it is not going there any more.
fn left_out(scope: &Scope<'_>, member: &Member<'_>) -> Option<Standing> {
    let target = scope.target.as_ref().map(|target| target.revision.as_str());
    let spec = &member.object?.spec;
    let outcome = spec.outcome.as_ref();
    let outcome = outcome.filter(|outcome| Some(outcome.revision.as_str()) == target)?;
    if Some(spec.active.as_str()) == target {
        return None;
    }
    let text = format!(
        "{}: {}",
        outcome.reason,
        cut(&outcome.message, FOREIGN_TEXT_MAX)
    );
    Some(match outcome.result {
        OutcomeResult::RolledBack | OutcomeResult::Quarantined => Standing::RolledBack(text),
        OutcomeResult::Skipped => Standing::Skipped(text),
    })
}

fn of_agent<'a>(scope: &Scope<'_>, member: &Member<'a>) -> (Standing, Option<&'a AgentReport>) {
    if !member.node.ready {
        let since = member
            .node
            .ready_since
            .map(|at| format!(" since {}", time(at)));
        let since = since.unwrap_or_default();
        let text =
            format!("the node is not Ready{since}; it counts again when its kubelet is back");
        return (Standing::Unreachable(text), None);
    }
    let Some(object) = member.object else {
        return (Standing::Pending(without_object(scope)), None);
    };
    let report = object
        .status
        .as_ref()
        .and_then(|status| status.active.as_ref());
    let resources = scope.resources_of(&object.spec.active);
    let pod = judge::pod(member, &object.spec.active);
    let serving = report.filter(|report| is_serving(report, member, object, resources));
    if serving.is_some() {
        return (Standing::Serving, serving);
    }
    let Some(pod) = pod else {
        return (Standing::Pending(without_pod(scope, member)), None);
    };
    let report = report.filter(|report| report.pod_uid == pod.id.uid);
    let name = &pod.id.name;
    if let Some(foreign) = report.and_then(|_| foreign_plugin(object)) {
        return (Standing::Foreign(foreign), None);
    }
    if let Some(trouble) = &pod.trouble {
        let message = cut(&trouble.message, FOREIGN_TEXT_MAX);
        let text = format!("agent pod {name:?}: {}: {message}", trouble.reason);
        let text = text.trim_end_matches([':', ' ']).to_owned();
        let standing = if trouble.fatal {
            Standing::Failed
        } else {
            Standing::Pending
        };
        return (standing(text), None);
    }
    let since = pod
        .created
        .map(|at| format!(" since {}", time(at)))
        .unwrap_or_default();
    let unserved = report.and_then(|report| unserved(report, resources));
    let text = unserved.unwrap_or_else(|| format!("agent pod {name:?} is starting{since}"));
    (Standing::Pending(text), None)
}

fn without_object(scope: &Scope<'_>) -> String {
    match scope.stable.revision() {
        None => "the first revision is being made".to_owned(),
        Some(_) => "its DevicePluginNode is being made".to_owned(),
    }
}

fn without_pod(scope: &Scope<'_>, member: &Member<'_>) -> String {
    if let Some(pod) = member.pods.iter().find(|pod| pod.deleting) {
        return format!("agent pod {:?} is ending, a new one follows", pod.id.name);
    }
    let active = member.object.map(|object| object.spec.active.as_str());
    let revision = active.or(scope.stable.revision()).unwrap_or_default();
    let set = crds::names::revision_object(scope.name, revision);
    format!(
        "the DaemonSet controller has made no agent pod yet; if it stays so, `kubectl -n {} describe daemonset {set}` tells why",
        scope.seen.settings.namespace
    )
}

fn is_serving(
    report: &AgentReport,
    member: &Member<'_>,
    object: &DevicePluginNode,
    resources: &[String],
) -> bool {
    let pod = member.pods.iter().find(|pod| pod.id.uid == report.pod_uid);
    let is_registered = |name: &String| {
        let of_name = report.resources.iter().find(|one| one.name == *name);
        of_name.is_some_and(|one| one.registered)
    };
    pod.is_some_and(|pod| pod.ready && !pod.deleting)
        && report.revision == object.spec.active
        && resources.iter().all(is_registered)
}

fn foreign_plugin(object: &DevicePluginNode) -> Option<String> {
    let conditions = &object.status.as_ref()?.conditions;
    conditions
        .iter()
        .find(|one| {
            one.type_ == NodeCondition::Registered.as_str()
                && one.status == "False"
                && one.reason == NodeReason::ForeignPlugin.as_str()
        })
        .map(|one| cut(&one.message, FOREIGN_TEXT_MAX))
}

/// The first resource that the kubelet does not have from this agent.
fn unserved(report: &AgentReport, resources: &[String]) -> Option<String> {
    resources.iter().find_map(|name| {
        let of_name = report.resources.iter().find(|one| one.name == *name);
        if of_name.is_some_and(|one| one.registered) {
            return None;
        }
        let message = of_name.map(|one| cut(&one.message, FOREIGN_TEXT_MAX));
        let message = message.filter(|message| !message.is_empty());
        let message = message.unwrap_or_else(|| "registration is under way".to_owned());
        Some(format!(
            "resource {name:?} is not registered at the kubelet: {message}"
        ))
    })
}
