//! What the conditions of a config say: what happens, what is waited for, and what ends the wait.

use crds::conditions::{ConfigCondition, ConfigReason, Desired};
use crds::resource::Resource;

use crate::lineage::Stable;
use crate::messages::{Names, counted, time};
use crate::scope::Scope;
use crate::selection::Selection;
use crate::status::counts::{Tally, Told};

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
        let verdict = Verdict::new(false, ConfigReason::Blocked, message);
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
    let revision = scope.stable.revision().unwrap_or_default();
    if tally.counts.updated == tally.counts.desired {
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
        (&tally.unreachable, "unreachable"),
        (&tally.skipped, "left to another plugin"),
        (&tally.pending, "pending"),
    ];
    parts.extend(told.iter().filter_map(|(told, word)| sentence(told, word)));
    let message = parts.join("; ");
    let worst = [
        (&tally.failed, ConfigReason::NodesFailed),
        (&tally.unreachable, ConfigReason::NodesUnreachable),
        (&tally.skipped, ConfigReason::ForeignPlugin),
        (&tally.pending, ConfigReason::NodesNotReady),
    ];
    let worst = worst.iter().find(|(told, _)| !told.is_empty());
    let reason = worst.map_or(ConfigReason::NodesNotReady, |(_, reason)| *reason);
    let node = worst.and_then(|(told, _)| first(told));
    let ready = Verdict::new(false, reason, message.clone()).about(node);
    let progressing = match failure {
        Some(failure) => write_failed(failure),
        None if tally.pending.is_empty() => ready.clone(),
        None => Verdict::new(true, ConfigReason::RollingOut, message).about(first(&tally.pending)),
    };
    (ready, progressing)
}

fn write_failed<'a>(failure: &str) -> Verdict<'a> {
    let message = format!("{failure}; it is tried again");
    Verdict::new(false, ConfigReason::WriteFailed, message)
}

/// Why what the spec asks for does not reach the nodes.
fn blocked(scope: &Scope<'_>) -> Option<String> {
    let target = scope
        .target
        .as_ref()
        .map(|target| target.revision.as_str())?;
    let stable = scope.stable.revision().filter(|stable| *stable != target)?;
    match &scope.stable {
        Stable::Lost(_) => Some(format!(
            "revision {stable}, which nodes run, is lost: its ControllerRevision, DaemonSet or ConfigMap was deleted and nothing is left to make it from; set spec back to what it was, or delete the config and apply it again to install revision {target}"
        )),
        Stable::None | Stable::Stands(_) | Stable::Rebuild { .. } => Some(format!(
            "changes are not rolled out yet: the spec asks for revision {target} and nodes keep running revision {stable}; set resources and agent back to end the wait, or delete the config and apply it again to install {target}"
        )),
    }
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
    let failed = sentence(&tally.failed, "failed");
    if let Some(message) = failed {
        return Verdict::new(true, ConfigReason::NodesFailed, message).about(first(&tally.failed));
    }
    if let Some(message) = sentence(&tally.skipped, "left to another plugin") {
        let verdict = Verdict::new(true, ConfigReason::ForeignPlugin, message);
        return verdict.about(first(&tally.skipped));
    }
    let without = tally.resources.iter().find(|one| one.total == 0);
    if let Some(resource) = without.filter(|_| !tally.serving.is_empty()) {
        let message = no_devices(scope, &resource.name, tally.serving.len());
        return Verdict::new(true, ConfigReason::NoDevices, message);
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
    match &resource.discovery.paths {
        Some(paths) => {
            let globs: Vec<_> = paths.globs.iter().map(String::as_str).collect();
            format!(": no device node matches {}", Names(&globs))
        }
        None => String::new(),
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
