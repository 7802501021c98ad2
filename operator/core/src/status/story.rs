//! What the conditions of a config say: what happens, what is waited for, and what ends the wait.

use crds::conditions::{ConfigCondition, ConfigReason, Desired, NodeCondition};
use crds::resource::Resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::ledger::{CLAIMS_MAX, Claim, Phase};
use crate::messages::{Names, counted, cut, time};
use crate::rollout::{blocked, is_halted, judge, settings};
use crate::scope::Scope;
use crate::selection::Selection;
use crate::status::counts::{Tally, Told};

/// Longest part of a message that comes from elsewhere.
const FOREIGN_TEXT_MAX: usize = 300;

/// The conditions and the one sentence.
pub struct Story<'a> {
    /// The conditions, each type once.
    pub conditions: Vec<Telling<'a>>,
    /// The sentence of the status and its column.
    pub summary: String,
}

/// A condition, and how an event about it looks.
pub struct Telling<'a> {
    /// The condition.
    pub desired: Desired,
    /// Whether somebody should look.
    pub warning: bool,
    /// The first node that it is about.
    pub node: Option<&'a str>,
}

/// A verdict on one question, before it becomes a condition.
#[derive(Clone)]
struct Verdict<'a> {
    status: bool,
    reason: ConfigReason,
    message: String,
    node: Option<&'a str>,
}

impl<'a> Verdict<'a> {
    fn new(status: bool, reason: ConfigReason, message: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            message: message.into(),
            node: None,
        }
    }

    fn about(self, node: Option<&'a str>) -> Self {
        Self { node, ..self }
    }

    fn condition(self, type_: ConfigCondition, warning: bool) -> Telling<'a> {
        Telling {
            desired: Desired {
                type_: type_.as_str(),
                status: self.status,
                reason: self.reason.as_str(),
                message: self.message,
            },
            warning,
            node: self.node,
        }
    }
}

/// Tells the story of a config.
pub fn story<'a>(scope: &Scope<'a>, tally: &Tally<'a>, wait: &str) -> Story<'a> {
    let accepted = accepted(scope, tally);
    let degraded = degraded(scope, tally, &accepted);
    let (ready, progressing) = rollout(scope, tally, &accepted, wait);
    let mut summary = progressing.message.clone();
    if let Some(text) = parting(tally).filter(|text| !summary.contains(text.as_str())) {
        summary = format!("{summary}; {text}");
    }
    let refused = !accepted.status;
    let stuck = !progressing.status && !ready.status;
    let is_degraded = degraded.status;
    Story {
        summary,
        conditions: vec![
            accepted.condition(ConfigCondition::Accepted, refused),
            ready.condition(ConfigCondition::Ready, false),
            progressing.condition(ConfigCondition::Progressing, stuck && !scope.is_deleting()),
            degraded.condition(ConfigCondition::Degraded, is_degraded),
        ],
    }
}

fn accepted<'a>(scope: &Scope<'a>, tally: &Tally<'a>) -> Verdict<'a> {
    if let Some(problem) = &scope.problem {
        return Verdict::new(false, ConfigReason::InvalidSpec, problem.clone());
    }
    match &scope.selection {
        Selection::NoSelector => Verdict::new(
            false,
            ConfigReason::NoSelector,
            "neither spec.nodeSelector nor spec.machineConfigPoolSelector asks for anything, so no node is selected; to select every Linux node write nodeSelector: {matchLabels: {kubernetes.io/os: linux}}",
        ),
        Selection::NoPools => Verdict::new(
            false,
            ConfigReason::NoMatchingPools,
            "spec.machineConfigPoolSelector matches the labels of no DevicePluginPool; label a pool or change the selector",
        ),
        Selection::Terms(_) if tally.counts.desired == 0 => Verdict::new(
            true,
            ConfigReason::NoMatchingNodes,
            "the spec is valid and no node matches now; agents come with the first node that does",
        ),
        Selection::Terms(_) => {
            let nodes = count(tally.counts.desired);
            let message = format!("the spec is valid and selects {}", counted(nodes, "node"));
            Verdict::new(true, ConfigReason::Accepted, message)
        }
    }
}

/// `Ready` and `Progressing`.
fn rollout<'a>(
    scope: &Scope<'a>,
    tally: &Tally<'a>,
    accepted: &Verdict<'a>,
    wait: &str,
) -> (Verdict<'a>, Verdict<'a>) {
    if scope.is_deleting() {
        let message = format!("the config is being deleted: {wait}");
        let verdict = |status| Verdict::new(status, ConfigReason::Deleting, message.clone());
        return (verdict(false), verdict(true));
    }
    if !accepted.status {
        let message = match (tally.counts.ready, parting(tally)) {
            (0, None) => accepted.message.clone(),
            (_, Some(parting)) => format!("{}; {parting}", accepted.message),
            (ready, None) => format!(
                "{}; meanwhile {} what it runs",
                accepted.message,
                keeps(count(ready))
            ),
        };
        let verdict = Verdict::new(false, accepted.reason, message);
        return (verdict.clone(), verdict);
    }
    if let Some(message) = blocked(scope) {
        let message = format!("the change is not rolled out: {message}");
        let verdict = Verdict::new(false, ConfigReason::Blocked, message);
        return (verdict.clone(), verdict);
    }
    if let Some(message) = halted(scope) {
        let verdict = Verdict::new(false, ConfigReason::Halted, message);
        return (verdict.clone(), verdict);
    }
    let failure = scope.seen.write_failures.get(scope.name);
    if tally.counts.desired == 0 {
        let message = "no node matches now; agents come with the first node that does";
        let ready = Verdict::new(true, ConfigReason::NoMatchingNodes, message);
        let refused = failure.map(|failure| write_failed(failure));
        return (
            ready.clone(),
            refused.unwrap_or(Verdict {
                status: false,
                ..ready
            }),
        );
    }
    serving(scope, tally, failure)
}

/// `Ready` and `Progressing` of a config whose nodes run, or are to run, what it asks for.
fn serving<'a>(
    scope: &Scope<'a>,
    tally: &Tally<'a>,
    failure: Option<&String>,
) -> (Verdict<'a>, Verdict<'a>) {
    let desired = count(tally.counts.desired);
    let target = scope.target.as_ref().map(|target| target.revision.as_str());
    let revision = target.or(scope.stable.revision()).unwrap_or_default();
    if tally.counts.updated == tally.counts.desired && scope.claims.is_empty() {
        let nodes = counted(desired, "node");
        let verb = if desired == 1 { "serves" } else { "serve" };
        let message = format!("{nodes} {verb} revision {revision}");
        let ready = Verdict::new(true, ConfigReason::Complete, message);
        return (
            ready.clone(),
            Verdict {
                status: false,
                ..ready
            },
        );
    }
    let head = format!(
        "{} of {} updated",
        tally.counts.updated,
        counted(desired, "node")
    );
    let mut parts = vec![head];
    let told = [
        (&tally.failed, "failed"),
        (&tally.rolled_back, "rolled back"),
        (&tally.in_flight, "being changed"),
        (&tally.unreachable, "unreachable"),
        (&tally.foreign, "left to another plugin"),
        (&tally.skipped, "left out"),
        (&tally.pending, "pending"),
    ];
    parts.extend(told.iter().filter_map(|(told, word)| sentence(told, word)));
    let message = parts.join("; ");
    let worst = [
        (&tally.failed, ConfigReason::NodesFailed),
        (&tally.in_flight, ConfigReason::NodesNotReady),
        (&tally.unreachable, ConfigReason::NodesUnreachable),
        (&tally.foreign, ConfigReason::ForeignPlugin),
        (&tally.skipped, ConfigReason::NodesSkipped),
        (&tally.pending, ConfigReason::NodesNotReady),
    ];
    let worst = worst.iter().find(|(told, _)| !told.is_empty());
    let reason = worst.map_or(ConfigReason::NodesNotReady, |(_, reason)| *reason);
    let node = worst.and_then(|(told, _)| first(told));
    let ready = Verdict::new(false, reason, message.clone()).about(node);
    let progressing = match failure {
        Some(failure) => write_failed(failure),
        None => match moving(scope, tally) {
            None => ready.clone(),
            Some((status, reason, text, node)) => {
                let message = match text.is_empty() {
                    true => message,
                    false => format!("{message}; {text}"),
                };
                Verdict::new(status, reason, message).about(node)
            }
        },
    };
    (ready, progressing)
}

/// Whether something moves, which reason that has, what else is to be said, and about which node.
fn moving<'a>(
    scope: &Scope<'a>,
    tally: &Tally<'a>,
) -> Option<(bool, ConfigReason, String, Option<&'a str>)> {
    let of_phase = |phase: Phase| {
        let mut claims = scope.claims.values();
        let claim = claims.find(|claim| claim.phase == phase)?;
        scope
            .members
            .get_key_value(claim.node.as_str())
            .map(|(name, _)| *name)
    };
    let said = |reason, text: &str, node| Some((true, reason, text.to_owned(), node));
    if let Some(node) = of_phase(Phase::RollingBack) {
        return said(ConfigReason::RollingBack, "", Some(node));
    }
    let waits = scope.target.as_ref().is_some_and(|target| {
        let mut members = scope
            .members
            .values()
            .filter(|one| one.is_served_or_waits());
        members.any(|member| {
            scope
                .proven(member)
                .is_some_and(|one| one != target.revision)
        })
    });
    let is_changing = scope
        .claims
        .values()
        .any(|claim| claim.phase.is_disruptive());
    if waits && settings::is_paused(scope.config) && !is_changing {
        let text = "spec.rollout.paused is true: no further node is changed until it is false";
        return Some((false, ConfigReason::Paused, text.to_owned(), None));
    }
    if let Some(node) = of_phase(Phase::Soaking) {
        let soak = settings::soak(scope.config);
        let text = format!("{node:?} must be all right for {soak:?} before the next node");
        return said(ConfigReason::Soaking, &text, Some(node));
    }
    let slow = scope.claims.values().find(|claim| is_slow(scope, claim));
    if let Some(claim) = slow {
        let set = crds::names::revision_object(scope.name, &claim.to);
        let text = format!(
            "the DaemonSet controller has made no pod of DaemonSet {set:?} on {:?} yet; `kubectl -n {} describe daemonset {set}` tells why",
            claim.node, scope.seen.settings.namespace
        );
        return said(ConfigReason::ActuatorSlow, &text, None);
    }
    let ledger = scope.seen.ledger.ledger();
    let is_full = ledger.is_some_and(|ledger| ledger.claims.len() >= CLAIMS_MAX);
    if waits && is_full && scope.claims.is_empty() {
        let text = format!(
            "the ledger holds {CLAIMS_MAX} claims, which is all it can: the next node is changed when one ends"
        );
        return Some((false, ConfigReason::LedgerFull, text, None));
    }
    let pending = first(&tally.in_flight).or(first(&tally.pending));
    (pending.is_some() || !scope.claims.is_empty())
        .then(|| (true, ConfigReason::RollingOut, String::new(), pending))
}

/// Whether a node waits for a pod that nobody makes.
fn is_slow(scope: &Scope<'_>, claim: &Claim) -> bool {
    let member = scope.members.get(claim.node.as_str());
    claim.phase == Phase::Staging
        && std::time::Duration::from_millis(claim.elapsed) >= settings::ACTUATOR
        && member.is_some_and(|member| {
            member.staged == Some(claim.to.as_str()) && judge::pod(member, &claim.to).is_none()
        })
}

/// Why no further node is sent to the target.
fn halted(scope: &Scope<'_>) -> Option<String> {
    let target = scope.target.as_ref()?.revision.as_str();
    let revision = scope.revisions.get(target)?;
    let why = revision.failed.as_ref().filter(|_| is_halted(scope))?;
    Some(format!(
        "revision {target} failed and is not rolled out any further: {why}; correct the spec, or annotate ControllerRevision {:?} with {}- to try the same again",
        revision.id.name,
        crds::names::FAILED_ANNOTATION
    ))
}

fn write_failed<'a>(failure: &str) -> Verdict<'a> {
    let message = format!("{failure}; it is tried again");
    Verdict::new(false, ConfigReason::WriteFailed, message)
}

fn degraded<'a>(scope: &Scope<'a>, tally: &Tally<'a>, accepted: &Verdict<'a>) -> Verdict<'a> {
    if let Some(failure) = scope.seen.write_failures.get(scope.name) {
        return Verdict {
            status: true,
            ..write_failed(failure)
        };
    }
    // A selector or a pool that was taken away by mistake is noticed before the grace ends.
    if let (false, false, Some(parting)) = (accepted.status, tally.grace.is_empty(), parting(tally))
    {
        return Verdict::new(true, accepted.reason, parting);
    }
    let mut claims = scope.claims.values();
    let failed = sentence(&tally.failed, "failed");
    if claims.any(|claim| claim.phase == Phase::Quarantined) {
        let message = failed.unwrap_or_default();
        return Verdict::new(true, ConfigReason::Quarantined, message).about(first(&tally.failed));
    }
    if let Some(message) = halted(scope) {
        let node = first(&tally.rolled_back);
        return Verdict::new(true, ConfigReason::Halted, message).about(node);
    }
    let mut claims = scope.claims.values();
    if let Some(claim) = claims.find(|claim| claim.phase == Phase::RollingBack) {
        let message = format!(
            "{:?} is brought back: {}: {}",
            claim.node, claim.reason, claim.message
        );
        return Verdict::new(true, ConfigReason::RollingBack, message);
    }
    if let Some(message) = failed {
        return Verdict::new(true, ConfigReason::NodesFailed, message).about(first(&tally.failed));
    }
    for (told, word, reason) in [
        (
            &tally.foreign,
            "left to another plugin",
            ConfigReason::ForeignPlugin,
        ),
        (&tally.skipped, "left out", ConfigReason::NodesSkipped),
    ] {
        if let Some(message) = sentence(told, word) {
            return Verdict::new(true, reason, message).about(first(told));
        }
    }
    for (type_, reason) in [
        (NodeCondition::Contested, ConfigReason::Contested),
        (
            NodeCondition::PhantomResource,
            ConfigReason::PhantomResource,
        ),
    ] {
        let told = said_by_nodes(scope, type_);
        if let Some(message) = sentence(&told, type_.as_str()) {
            return Verdict::new(true, reason, message).about(first(&told));
        }
    }
    let without = tally.resources.iter().find(|one| one.total == 0);
    if let Some(resource) = without.filter(|_| !tally.serving.is_empty()) {
        let message = no_devices(scope, &resource.name, tally.serving.len());
        return Verdict::new(true, ConfigReason::NoDevices, message);
    }
    if let Some((resource, (minimum, nodes))) = tally.too_few.iter().next() {
        let message = format!(
            "resource {resource:?}: fewer than {} Healthy (minDevices) on {}; `kubectl get dpn` tells how many, and `-o yaml` why",
            counted(usize::try_from(*minimum).unwrap_or_default(), "device"),
            Names(nodes)
        );
        let verdict = Verdict::new(true, ConfigReason::TooFewDevices, message);
        return verdict.about(nodes.first().copied());
    }
    if let Some((resource, nodes)) = tally.unhealthy.iter().next() {
        let counts = tally.resources.iter().find(|one| one.name == *resource);
        let (healthy, total) = counts.map_or((0, 0), |one| (one.healthy, one.total));
        let message = format!(
            "resource {resource:?}: {} of {} Unhealthy on {}; `kubectl get dpn -o yaml` tells why for each device",
            total - healthy,
            counted(count(total), "device"),
            Names(nodes)
        );
        let verdict = Verdict::new(true, ConfigReason::DevicesUnhealthy, message);
        return verdict.about(nodes.first().copied());
    }
    Verdict::new(false, ConfigReason::AsExpected, "nothing is wrong")
}

/// What nodes say whose condition of a type is True.
fn said_by_nodes<'a>(scope: &Scope<'a>, type_: NodeCondition) -> Told<'a> {
    let members = scope
        .members
        .iter()
        .filter(|(_, one)| one.is_served_or_waits());
    let told = members.filter_map(|(name, member)| {
        let conditions = &member.object?.status.as_ref()?.conditions;
        let is_true = |one: &&Condition| one.type_ == type_.as_str() && one.status == "True";
        Some((
            *name,
            cut(&conditions.iter().find(is_true)?.message, FOREIGN_TEXT_MAX),
        ))
    });
    told.collect()
}

fn no_devices(scope: &Scope<'_>, name: &str, nodes: usize) -> String {
    let resource = scope
        .config
        .spec
        .resources
        .iter()
        .find(|one| one.name == name);
    let looked_for = resource.map(looked_for).unwrap_or_default();
    format!(
        "resource {name:?} has no device on any of {}{looked_for}; devices are advertised as soon as they appear",
        counted(nodes, "serving node")
    )
}

fn looked_for(resource: &Resource) -> String {
    let discovery = &resource.discovery;
    if let Some(paths) = &discovery.paths {
        let globs: Vec<_> = paths.globs.iter().map(String::as_str).collect();
        format!(": no device node matches {}", Names(&globs))
    } else if let Some(groups) = &discovery.groups {
        let ids: Vec<_> = groups.iter().map(|group| group.id.as_str()).collect();
        format!(": no device node of these groups is there: {}", Names(&ids))
    } else if let Some(udev) = &discovery.udev {
        let subsystem = &udev.subsystem;
        format!(": no device of subsystem {subsystem:?} has a device node and what is asked for")
    } else if discovery.pci.is_some() {
        ": no PCI function that matches has a character device node".to_owned()
    } else if discovery.usb.is_some() {
        ": no USB device matches".to_owned()
    } else {
        String::new()
    }
}

/// What happens to nodes that the config leaves.
fn parting(tally: &Tally<'_>) -> Option<String> {
    let mut parts = Vec::new();
    if let Some((_, until)) = tally.grace.iter().min_by_key(|(_, until)| until) {
        let names: Vec<_> = tally.grace.iter().map(|(name, _)| *name).collect();
        let first = time(*until);
        parts.push(format!(
            "no longer selected: {}, kept until {first} in case labels come back",
            Names(&names)
        ));
    }
    if !tally.leaving.is_empty() {
        parts.push(format!("agents leave {}", Names(&tally.leaving)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// How many nodes are so, which, and what is said about the first.
fn sentence(told: &Told<'_>, word: &str) -> Option<String> {
    let (name, text) = told.first()?;
    let names: Vec<_> = told.iter().map(|(name, _)| *name).collect();
    let others = match names.len() {
        1 => String::new(),
        _ => format!(" ({})", Names(&names)),
    };
    Some(format!("{} {word}{others}: {name:?}: {text}", names.len()))
}

fn first<'a>(told: &Told<'a>) -> Option<&'a str> {
    told.first().map(|(name, _)| *name)
}

fn keeps(nodes: usize) -> String {
    match nodes {
        1 => "1 node keeps serving".to_owned(),
        _ => format!("{nodes} nodes keep serving"),
    }
}

fn count(number: i32) -> usize {
    usize::try_from(number).unwrap_or_default()
}
