//! The rules about claims: nothing disruptive without one, and no more of them than is allowed.

use std::collections::{BTreeMap, BTreeSet};

use crds::names::{node_object, node_revision_label, node_stage_label};
use crds::rollout::{DEFAULT_MAX_UNAVAILABLE, MAX_UNAVAILABLE_MAX};
use crds::{DevicePluginConfig, DevicePluginNode, DevicePluginNodeSpec};

use super::{Violation, has_pod, may_leave, stands};
use crate::action::{Action, Kind, Write};
use crate::ledger::{CLAIMS_MAX, Claim, Phase};
use crate::plan::Plan;
use crate::seen::{SeenPod, controller_uid};
use crate::snapshot::Snapshot;

/// The claims that hold once the plan's ledger is written.
pub fn after<'a>(seen: &'a Snapshot, plan: &'a Plan) -> &'a [Claim] {
    let present = seen
        .ledger
        .ledger()
        .filter(|ledger| ledger.epoch == seen.epoch);
    let ledger = plan.ledger.as_ref().map(|write| &write.ledger).or(present);
    ledger.map_or(&[], |ledger| &ledger.claims)
}

/// What the ledger itself breaks.
pub fn of_ledger(seen: &Snapshot, plan: &Plan) -> Vec<Violation> {
    let Some(write) = &plan.ledger else {
        return Vec::new();
    };
    let before = seen
        .ledger
        .ledger()
        .map_or(&[][..], |ledger| &ledger.claims);
    let after = &write.ledger.claims;
    let mut violations = Vec::new();
    let mut broken = |config: &str, rule: &'static str| {
        violations.push(Violation {
            rule,
            config: config.to_owned(),
            write: "write of the ledger".to_owned(),
        });
    };
    let known = seen.ledger.ledger().map_or(0, |ledger| ledger.epoch);
    if write.ledger.epoch != seen.epoch || known > seen.epoch {
        broken("", "one epoch writes at a time");
    }
    let mut nodes = BTreeSet::new();
    for claim in after.iter().filter(|claim| !nodes.insert(&claim.node)) {
        broken(&claim.config, "a node has one claim");
    }
    if after.len() > CLAIMS_MAX.max(before.len()) {
        broken("", "the ledger never holds more than an object can");
    }
    let (were, are) = (disruptive(before), disruptive(after));
    for (config, count) in are {
        let budget = seen
            .configs
            .get(config)
            .map_or(0, |config| budget(seen, config));
        let rebuilt = after
            .iter()
            .filter(|claim| is_rebuilt(seen, before, claim, config));
        let were = were.get(config).copied().unwrap_or_default() + rebuilt.count();
        if count > budget.max(were) {
            broken(
                config,
                "no more nodes are disrupted at once than the config allows",
            );
        }
    }
    let has = |claims: &[Claim], one: &Claim| {
        let mut claims = claims.iter();
        claims.any(|claim| claim.node == one.node && claim.config == one.config)
    };
    for claim in before.iter().filter(|claim| !has(after, claim)) {
        if !is_over(seen, claim) {
            broken(&claim.config, "a claim goes after its traces");
        }
    }
    violations
}

fn disruptive(claims: &[Claim]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for claim in claims.iter().filter(|claim| claim.disrupts()) {
        *counts.entry(claim.config.as_str()).or_default() += 1;
    }
    counts
}

fn budget(seen: &Snapshot, config: &DevicePluginConfig) -> usize {
    let name = config.metadata.name.as_deref().unwrap_or_default();
    let objects = seen.node_objects.values();
    let nodes = objects
        .filter(|object| object.spec.config_name == name)
        .count();
    let rollout = config.spec.rollout.as_ref();
    let limit = rollout.and_then(|rollout| rollout.max_unavailable.as_ref());
    // Nodes without an object yet belong to the config as well.
    let nodes = i32::try_from(nodes.max(seen.nodes.len())).unwrap_or(i32::MAX);
    let limit = limit.map_or(DEFAULT_MAX_UNAVAILABLE, |limit| limit.0.of(nodes));
    usize::try_from(limit.clamp(1, MAX_UNAVAILABLE_MAX)).unwrap_or(1)
}

/// Whether a claim only says what a node's object says: the ledger was lost.
fn is_rebuilt(seen: &Snapshot, before: &[Claim], claim: &Claim, config: &str) -> bool {
    let is_new = !before
        .iter()
        .any(|one| one.node == claim.node && one.config == claim.config);
    let object = object(seen, config, &claim.node);
    claim.config == config
        && is_new
        && claim.disrupts()
        && object.is_some_and(|object| object.spec.baseline.is_some())
}

fn object<'a>(seen: &'a Snapshot, config: &str, node: &str) -> Option<&'a DevicePluginNode> {
    let object = seen.node_objects.get(&node_object(config, node))?;
    let uid = seen.configs.get(config)?.metadata.uid.as_deref();
    (Some(controller_uid(&object.metadata, "DevicePluginConfig").as_str()) == uid)
        .then_some(&**object)
}

/// Whether nothing of a claim is left on its node, or there is no such node any more.
fn is_over(seen: &Snapshot, claim: &Claim) -> bool {
    let node = seen.nodes.get(&claim.node);
    let Some(node) = node.filter(|node| node.id.uid == claim.node_uid && !node.deleting) else {
        return true;
    };
    let Some(config) = seen.configs.get(&claim.config) else {
        return true;
    };
    let is_staged = node.labels.contains_key(&node_stage_label(&claim.config));
    let object = object(seen, &claim.config, &claim.node);
    let has_traces = object
        .is_some_and(|object| object.spec.standby.is_some() || object.spec.baseline.is_some());
    let is_pinned = node
        .labels
        .contains_key(&node_revision_label(&claim.config));
    (!is_staged && !has_traces)
        || may_leave(seen, config, &claim.node, &claim.config)
        || (object.is_none() && !is_pinned)
}

/// Whether what an action changes on a node has a claim that calls for it.
pub fn is_claimed(seen: &Snapshot, after: &[Claim], action: &Action) -> bool {
    let claim = |node: &str| {
        let mut claims = after.iter();
        claims.find(|claim| claim.config == action.config && claim.node == node)
    };
    let config = seen.configs.get(&action.config).map(|config| &**config);
    match &action.write {
        Write::PatchNodeObject { on, spec } => {
            let present = seen.node_objects.get(&on.name);
            present.is_none_or(|present| {
                // Also where its ControllerRevision is just being made again.
                let is_live = stands(seen, config, &present.spec.active)
                    || runs(seen, &action.config, &present.spec);
                follows(&present.spec, spec, is_live, claim(&spec.node_name))
            })
        }
        Write::LabelNode { on, labels } => {
            let stage = labels.get(&node_stage_label(&action.config));
            let staged = stage.and_then(Option::as_deref);
            staged.is_none_or(|staged| {
                let claim = claim(&on.name).filter(|claim| claim.to == staged);
                claim.is_some_and(|claim| claim.phase != Phase::Releasing)
            })
        }
        _ => true,
    }
}

/// Whether a node has a pod of the revision that its object names.
fn runs(seen: &Snapshot, config: &str, spec: &DevicePluginNodeSpec) -> bool {
    let is_its = |pod: &SeenPod| {
        pod.config == config && pod.node == spec.node_name && pod.revision == spec.active
    };
    seen.pods.values().any(|pod| is_its(pod) && !pod.deleting)
}

fn follows(
    present: &DevicePluginNodeSpec,
    wanted: &DevicePluginNodeSpec,
    is_live: bool,
    claim: Option<&Claim>,
) -> bool {
    let is_new =
        |before: &Option<String>, after: &Option<String>| after.is_some() && before != after;
    let moves = present.active != wanted.active && is_live;
    let stages = is_new(&present.standby, &wanted.standby);
    let judges = wanted.baseline.is_some() && present.baseline.is_none();
    if !moves && !stages && !judges {
        return true;
    }
    let Some(claim) = claim else {
        return false;
    };
    let is_switched = matches!(
        claim.phase,
        Phase::Switching | Phase::Verifying | Phase::Soaking | Phase::Committing
    );
    let (active, beside) = match is_switched {
        true => (&claim.to, &claim.from),
        false => (&claim.from, &claim.to),
    };
    // A node that is sent to the unproven revision keeps what it is to be judged against.
    let is_judged = !is_switched || !moves || wanted.baseline.is_some();
    (!moves || wanted.active == *active)
        && (!stages || wanted.standby.as_ref() == Some(beside))
        && is_judged
}

/// Whether a change of labels leaves the agent that serves on its node.
pub fn keeps_serving(seen: &Snapshot, action: &Action) -> bool {
    let Write::LabelNode { on, labels } = &action.write else {
        return true;
    };
    let Some(config) = seen.configs.get(&action.config) else {
        return true;
    };
    let keys = [
        node_revision_label(&action.config),
        node_stage_label(&action.config),
    ];
    let node = seen.nodes.get(&on.name);
    let value = |key: &String| match labels.get(key) {
        Some(value) => value.as_deref(),
        None => node
            .and_then(|node| node.labels.get(key))
            .map(String::as_str),
    };
    let is_leaving = value(&keys[0]).is_none();
    let object = object(seen, &action.config, &on.name);
    let active = object.map(|object| object.spec.active.as_str());
    let active = active.filter(|active| stands(seen, Some(config), active));
    is_leaving || active.is_none_or(|active| keys.iter().any(|key| value(key) == Some(active)))
}

/// Whether the objects of a revision that goes are named by nothing.
pub fn is_idle(seen: &Snapshot, after: &[Claim], action: &Action) -> bool {
    let Write::Delete {
        kind: kind @ (Kind::DaemonSet | Kind::Revision | Kind::ConfigMap),
        on,
    } = &action.write
    else {
        return true;
    };
    let config = seen.configs.get(&action.config);
    if config.is_none_or(|config| config.metadata.deletion_timestamp.is_some()) {
        return true;
    }
    let name = on.name.strip_prefix(&action.config);
    let Some(revision) = name.and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    let keys = [
        node_revision_label(&action.config),
        node_stage_label(&action.config),
    ];
    let is_labelled = seen.nodes.values().any(|node| {
        let mut values = keys.iter().filter_map(|key| node.labels.get(key));
        values.any(|value| value == revision)
    });
    let is_named = seen.node_objects.values().any(|object| {
        let spec = &object.spec;
        let baseline = spec.baseline.as_ref().map(|baseline| &baseline.revision);
        spec.config_name == action.config
            && [Some(&spec.active), spec.standby.as_ref(), baseline]
                .into_iter()
                .flatten()
                .any(|one| one == revision)
    });
    let is_claimed = after.iter().any(|claim| {
        claim.config == action.config && (claim.from == revision || claim.to == revision)
    });
    // A first revision that never ran has nothing to lose.
    let own = seen
        .revisions
        .values()
        .filter(|one| one.config == action.config);
    let newest = own
        .filter(|one| one.promoted.is_some())
        .max_by_key(|one| one.promoted);
    let is_stable = newest.is_some_and(|newest| newest.revision == revision);
    let has_set = seen
        .daemon_sets
        .values()
        .any(|set| set.config == action.config);
    let is_used = match kind {
        Kind::ConfigMap => seen
            .pods
            .values()
            .any(|pod| pod.config == action.config && pod.revision == revision),
        _ => false,
    };
    !(is_labelled || is_named || is_claimed || is_used || is_stable && has_set)
}

/// Whether a revision becomes the stable one only when no node would be sent to it by that.
pub fn is_proven(seen: &Snapshot, after: &[Claim], action: &Action) -> bool {
    let Write::AnnotateRevision { on, annotations } = &action.write else {
        return true;
    };
    if !annotations.contains_key(crds::names::PROMOTED_ANNOTATION) {
        return true;
    }
    let of_config = |config: &str| config == action.config;
    let mut own = seen.revisions.values().filter(|one| of_config(&one.config));
    if !own.any(|one| one.promoted.is_some()) {
        return true;
    }
    let revision = seen
        .revisions
        .get(&on.name)
        .map(|one| one.revision.as_str());
    let label = node_revision_label(&action.config);
    let serves = |node: &str| has_pod(seen, &action.config, node);
    let proven = seen.nodes.values().filter(|node| {
        node.labels.get(&label).map(String::as_str) == revision && serves(&node.id.name)
    });
    let has_failed = seen
        .revisions
        .get(&on.name)
        .is_some_and(|one| one.failed.is_some());
    !after.iter().any(|claim| of_config(&claim.config)) && proven.count() > 0 && !has_failed
}
