//! The plan: everything that is to be written, and why nothing else is.

use std::collections::BTreeSet;

use crds::DevicePluginConfig;
use crds::conditions::{ConfigCondition, ConfigReason};
use crds::names::{CLEANUP_FINALIZER, labelled_config};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::action::{Action, ConfigStatus, Pace, PoolStatus, Write};
use crate::audit::Violation;
use crate::deletion;
use crate::installation;
use crate::ledger::{Claim, LedgerWrite};
use crate::nodes::{self, earliest};
use crate::pools::{self, Serving};
use crate::rollout;
use crate::scope::{Index, Scope};
use crate::snapshot::Snapshot;
use crate::status;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The ledger to write before anything else. Where that fails, nothing is acted on: the pass
    /// ends.
    pub ledger: Option<LedgerWrite>,
    /// The ledger is a later leader's: nothing is written, and whoever executes this asks again
    /// whether it leads.
    pub deposed: bool,
    /// Writes, in order. Those of one config follow one another: when one is refused, the rest of
    /// them wait for the next look.
    pub actions: Vec<Action>,
    /// The status of every config.
    pub configs: Vec<ConfigStatus>,
    /// The statuses of pools that differ.
    pub pools: Vec<PoolStatus>,
    /// When to look again if nothing happens.
    pub look_again: Option<Timestamp>,
}

impl Plan {
    /// Takes back every write for the configs that the plan breaks safety rules for, and the steps
    /// of their claims, and says so on them. The others go on, unless the rule is about all of them.
    pub fn refuse(&mut self, seen: &Snapshot, violations: &[Violation]) {
        let broken: BTreeSet<&str> = violations.iter().map(|one| one.config.as_str()).collect();
        if broken.contains("") {
            self.ledger = None;
            self.actions.clear();
        }
        self.actions
            .retain(|action| !broken.contains(action.config.as_str()));
        if let Some(write) = &mut self.ledger {
            let before = seen.ledger.ledger().map_or(&[][..], |one| &one.claims);
            let is_broken = |claim: &Claim| broken.contains(claim.config.as_str());
            let claims = &mut write.ledger.claims;
            claims.retain(|claim| !is_broken(claim));
            claims.extend(before.iter().filter(|claim| is_broken(claim)).cloned());
        }
        for status in &mut self.configs {
            let name = &status.on.name;
            let Some(violation) = violations.iter().find(|one| one.config == *name) else {
                continue;
            };
            let message = format!("the operator stopped itself, please report it: {violation}");
            let present = seen
                .configs
                .get(name)
                .and_then(|config| config.status.as_ref());
            status.status.summary.clone_from(&message);
            let degraded = ConfigCondition::Degraded.as_str();
            let of_type = |one: &&Condition| one.type_ == degraded && one.status == "True";
            let since = present
                .and_then(|status| status.conditions.iter().find(of_type))
                .map_or(Time(seen.now), |one| one.last_transition_time.clone());
            if let Some(condition) = status
                .status
                .conditions
                .iter_mut()
                .find(|one| one.type_ == degraded)
            {
                condition.status = "True".to_owned();
                condition.reason = ConfigReason::WriteFailed.as_str().to_owned();
                condition.message = message;
                condition.last_transition_time = since;
            }
            status.changed = present != Some(&status.status);
        }
    }

    fn extend(&mut self, config: &str, writes: Vec<Write>) {
        self.actions.extend(writes.into_iter().map(|write| Action {
            config: config.to_owned(),
            write,
        }));
    }
}

/// Decides what is to be written. Equal snapshots give equal plans.
pub fn plan(seen: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    let index = Index::of(seen);
    let configs = seen.configs.values();
    let mut scopes: Vec<_> = configs
        .filter(|config| is_ours(config))
        .map(|config| Scope::of(seen, &index, config))
        .collect();
    let decided = rollout::decide(seen, &mut scopes);
    if decided.deposed {
        plan.deposed = true;
        return plan;
    }
    plan.ledger = decided.ledger;
    plan.look_again = decided.look_again;
    let mut serving = Serving::new();
    let mut node_writes = Vec::new();
    for scope in &scopes {
        let mut wait = String::new();
        if scope.is_deleting() {
            let step = deletion::step(scope);
            let (paced, free) = step
                .writes
                .into_iter()
                .partition(|write| write.pace() != Pace::Free);
            plan.extend(scope.name, free);
            node_writes.push((scope.name, paced));
            plan.look_again = earliest(plan.look_again, step.look_again);
            wait = step.wait;
        } else if seen.kinds_missing {
            continue;
        } else {
            plan.extend(scope.name, installation::writes(scope));
            plan.extend(scope.name, rollout::writes(scope));
            let (writes, look_again) = nodes::writes(scope);
            plan.look_again = earliest(plan.look_again, look_again);
            node_writes.push((scope.name, writes));
        }
        let report = status::report(scope, &wait);
        serving.insert(scope.name, report.serving);
        plan.configs.push(report.status);
    }
    extend_in_turns(&mut plan, node_writes);
    if !seen.kinds_missing {
        remove_orphans(seen, &mut plan);
        let (labels, statuses) = pools::lacking(seen, &serving);
        plan.actions.extend(labels);
        plan.pools.extend(statuses);
    }
    // A second write to one object would carry a resource version that the first has outdated.
    let mut written = BTreeSet::new();
    plan.actions
        .retain(|action| written.insert((action.write.kind(), action.write.name().to_owned())));
    plan
}

/// Whether there is anything to do for a config: one that is being deleted and no longer has our
/// finalizer only waits for somebody else's.
fn is_ours(config: &DevicePluginConfig) -> bool {
    let mut finalizers = config.metadata.finalizers.iter().flatten();
    config.metadata.deletion_timestamp.is_none() || finalizers.any(|one| one == CLEANUP_FINALIZER)
}

/// One write of each config after the other, so that a config with thousands of nodes does not use
/// up the rate of node writes for all the others.
fn extend_in_turns(plan: &mut Plan, of_configs: Vec<(&str, Vec<Write>)>) {
    let mut turns: Vec<_> = of_configs
        .into_iter()
        .map(|(config, writes)| (config, writes.into_iter()))
        .collect();
    while !turns.is_empty() {
        turns.retain_mut(|(config, writes)| match writes.next() {
            Some(write) => {
                plan.extend(config, vec![write]);
                true
            }
            None => false,
        });
    }
}

/// Takes labels off nodes whose config is gone: its finalizer was removed by force, and a config of
/// the same name would find labels that name revisions of another one.
fn remove_orphans(seen: &Snapshot, plan: &mut Plan) {
    for node in seen.nodes.values().filter(|node| !node.deleting) {
        for key in node.labels.keys() {
            let Some(config) = labelled_config(key) else {
                continue;
            };
            if seen.configs.contains_key(config) || seen.unreadable_configs.contains(config) {
                continue;
            }
            let write = Write::LabelNode {
                on: node.id.clone(),
                labels: [(key.clone(), None)].into(),
            };
            plan.extend(config, vec![write]);
        }
    }
}
