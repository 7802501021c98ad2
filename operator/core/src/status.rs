//! The status of a config: counts, and the whole story in conditions.

mod counts;
mod story;

use std::collections::BTreeSet;

use crds::conditions::{Desired, merged};
use crds::config::{DevicePluginConfigStatus, NodeFailure, NodeInChange, RolloutStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::action::{ConfigStatus, Event};
use crate::lineage::Stable;
use crate::messages::cut;
use crate::scope::Scope;
use crate::seen::Identity;
use counts::Tally;

/// Longest message of a condition; the API refuses more than 32768 bytes, and nobody reads that.
const MESSAGE_MAX: usize = 2_000;

/// Most nodes that a status names in one place.
const SAMPLE_MAX: usize = 10;

/// A config's status, and what others need of it.
pub struct Report<'a> {
    /// The status.
    pub status: ConfigStatus,
    /// Names of the nodes that serve all resources.
    pub serving: BTreeSet<&'a str>,
}

/// The status of a config. `wait` says what a deletion waits for.
pub fn report<'a>(scope: &Scope<'a>, wait: &str) -> Report<'a> {
    let tally = Tally::of(scope);
    let story = story::story(scope, &tally, wait);
    let present = scope.config.status.clone().unwrap_or_default();
    let conditions: Vec<_> = story
        .conditions
        .iter()
        .map(|one| bounded(&one.desired))
        .collect();
    let status = DevicePluginConfigStatus {
        observed_generation: scope.config.metadata.generation,
        stable_revision: stable_revision(scope, &present),
        target_revision: target_revision(scope),
        nodes: tally.counts,
        devices: tally.devices.clone(),
        resources: tally.resources.clone(),
        rollout: rollout(scope, &tally),
        agent_update: agent_update(scope),
        summary: cut(&story.summary, MESSAGE_MAX),
        conditions: merged(
            &present.conditions,
            &conditions,
            scope.config.metadata.generation,
            &Time(scope.seen.now),
        ),
    };
    // `Ready` and `Progressing` often change for one reason: it is told once, by the later of them.
    let mut told = BTreeSet::new();
    let events = story
        .conditions
        .into_iter()
        .rev()
        .filter(|one| has_new_reason(&present.conditions, &one.desired))
        .filter(|one| told.insert(one.desired.reason))
        .map(|one| Event {
            warning: one.warning,
            condition: one.desired.type_,
            reason: one.desired.reason,
            note: one.desired.message,
            node: one
                .node
                .and_then(|name| scope.seen.nodes.get(name))
                .map(|node| node.id.clone()),
        })
        .collect();
    Report {
        status: ConfigStatus {
            on: Identity::of(&scope.config.metadata),
            changed: scope.config.status.as_ref() != Some(&status),
            status,
            events,
        },
        serving: tally.serving,
    }
}

/// The change that is under way, or has failed.
fn rollout(scope: &Scope<'_>, tally: &Tally<'_>) -> Option<RolloutStatus> {
    let told = &tally.rolled_back;
    if scope.claims.is_empty() && told.is_empty() {
        return None;
    }
    let sample = scope.claims.values().take(SAMPLE_MAX);
    let failures = told.iter().take(SAMPLE_MAX).filter_map(|(name, _)| {
        let outcome = scope.members.get(name)?.object?.spec.outcome.as_ref()?;
        Some(NodeFailure {
            node: (*name).to_owned(),
            reason: outcome.reason.clone(),
            message: outcome.message.clone(),
        })
    });
    Some(RolloutStatus {
        in_flight: tally.counts.in_flight,
        staged: i32::try_from(tally.staged).unwrap_or(i32::MAX),
        sample: sample
            .map(|claim| NodeInChange {
                node: claim.node.clone(),
                phase: claim.phase.as_str().to_owned(),
            })
            .collect(),
        failures: failures.collect(),
    })
}

fn bounded(desired: &Desired) -> Desired {
    Desired {
        message: cut(&desired.message, MESSAGE_MAX),
        ..desired.clone()
    }
}

/// Whether there is news: a condition of another reason than before. A condition that appears with
/// nothing wrong in it is none.
fn has_new_reason(present: &[Condition], desired: &Desired) -> bool {
    let quiet = crds::conditions::ConfigReason::AsExpected.as_str();
    match present.iter().find(|one| one.type_ == desired.type_) {
        Some(old) => old.reason != desired.reason,
        None => desired.reason != quiet,
    }
}

/// Named once it has a DaemonSet: until then a first revision may still become another one.
fn stable_revision(scope: &Scope<'_>, present: &DevicePluginConfigStatus) -> Option<String> {
    let revision = scope.stable.revision();
    let runs = revision.is_some_and(|revision| scope.daemon_set(revision).is_some());
    let is_named = present.stable_revision.as_deref() == revision;
    revision.filter(|_| runs || is_named).map(str::to_owned)
}

fn target_revision(scope: &Scope<'_>) -> Option<String> {
    let target = scope.target.as_ref().map(|target| target.revision.clone());
    // With something wrong in the spec there is no target; what runs is what is wanted.
    target.or_else(|| scope.stable.revision().map(str::to_owned))
}

/// The default image, where it is another one than what runs and the spec names none.
fn agent_update(scope: &Scope<'_>) -> String {
    let default = &scope.seen.settings.agent_image;
    let agent = scope.config.spec.agent.as_ref();
    let names_one = agent.is_some_and(|agent| agent.image.is_some());
    let pinned = match &scope.stable {
        Stable::Stands(_) | Stable::Rebuild { .. } => scope.stable.image(),
        Stable::None | Stable::Lost(_) => None,
    };
    match pinned {
        Some(pinned) if pinned != default && !names_one => default.clone(),
        Some(_) | None => String::new(),
    }
}
