//! What must hold at every moment, judged from what is really so in the cluster, never from what
//! the planner believes.
//!
//! | law | asserted |
//! | --- | --- |
//! | I1, O1 | a claim enters Switching only within `maxUnavailable`; so many nodes at most are told to serve an unproven revision, beside those that served nothing before |
//! | I2 | a write that stages, switches or relabels a node finds its claim in the ledger |
//! | I3 | the ledger holds at most one claim for a node |
//! | I4 | one live registration of a resource on a node |
//! | I6, I9 | a label names a revision that is promoted or proven there; what nodes or objects name is not deleted; every node is selected by a DaemonSet |
//! | I7, I8, I11 | no new claim for a failed revision, while paused, or on a node that is away |
//! | I10, I15 | devices that were served are away no longer than the bound |
//! | I12, I13 | writes and switches per node, where nothing goes wrong (`tests/scenarios.rs`) |
//! | I14, O3, O7, O8, O9 | what is so in the end: `end.rs` |
//! | I17 | holds by construction: no write of the operator's can name a config's spec |
//! | I20 | the ledger's epoch never falls |
//! | – | the audit never refuses a plan |
//!
//! I5, I16, I18, I19, O2 and O4 to O6 need steps, drains, approvals, hooks or containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crds::DevicePluginConfig;
use crds::names::revision_object;
use operator_core::ledger::{Claim, Ledger, LedgerWrite, Phase};
use operator_core::plan::Plan;
use operator_core::snapshot::Snapshot;

use crate::event::{Event, HostId};
use crate::fault::Fault;
use crate::host::Pid;
use crate::random::secs;
use crate::story::tell;
use crate::world::World;

/// How long devices may be away after something happened to their node that no hand-over is to
/// blame for.
const BACK_WITHIN: Duration = secs(75);
/// The same within a hand-over: taking over, proving and going back (4.5 min), and the operator's
/// own time.
const HANDOVER_WITHIN: Duration = secs(285);
/// How long somebody's edit of labels, objects or the ledger excuses what follows from it.
const REPAIR_WITHIN: Duration = secs(120);

/// A law that was broken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Broken {
    /// When.
    pub at: Duration,
    /// Where.
    pub place: String,
    /// What is not as it must be.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, place, what } = self;
        write!(f, "{place}: {what} (after {:.3} s)", at.as_secs_f64())
    }
}

/// What is remembered to judge what happens.
#[derive(Clone, Debug, Default)]
pub struct Laws {
    /// Revisions that were proven, by config and UID of the node.
    pub proven: BTreeSet<(String, String, String)>,
    /// Revisions that were promoted, by config.
    pub promoted: BTreeSet<(String, String)>,
    /// Resources that a machine has served.
    served: BTreeSet<(HostId, String)>,
    /// Resources that are away, and since when.
    outages: BTreeMap<(HostId, String), Duration>,
    /// By machine, until when its outages have a reason.
    excused: BTreeMap<HostId, Duration>,
    /// Until when everything may be away.
    all_excused: Duration,
    /// Until when somebody's edits are being repaired.
    pub repair: Duration,
    /// The largest budget that a config had.
    pub(crate) budgets: BTreeMap<String, i32>,
    /// How often an object's active revision was changed, by object.
    pub switches: BTreeMap<String, u32>,
    /// The operator's writes by node object and by node.
    pub node_writes: BTreeMap<String, u32>,
    /// When an operator last wrote anything.
    pub last_write: Duration,
    /// The first registration of a revision on a machine.
    pub(crate) registered: BTreeMap<(HostId, String, String), Duration>,
    /// Whether something took agents, pods or nodes away.
    pub harmed: bool,
    /// Whether somebody deleted what a revision is made from.
    pub lost: bool,
    /// What the ledger said before the write that is under way.
    before: Option<Ledger>,
}

impl Laws {
    /// A config was made or edited.
    pub fn note_config(&mut self, config: Option<&DevicePluginConfig>) {
        let Some(config) = config else {
            return;
        };
        let rollout = config.spec.rollout.as_ref();
        let limit = rollout.and_then(|rollout| rollout.max_unavailable.as_ref());
        // Small worlds have numbers, not percentages; those come to 1 there.
        let limit = limit.map_or(1, |limit| limit.0.of(3).max(1));
        let name = config.metadata.name.clone().unwrap_or_default();
        let budget = self.budgets.entry(name).or_default();
        *budget = limit.max(*budget);
    }

    /// A fault begins.
    pub fn note_fault(
        &mut self,
        fault: &Fault,
        now: Duration,
        lasts: Duration,
        host: Option<HostId>,
    ) {
        let until = now + lasts;
        self.harmed |= fault.harms_agents();
        self.lost |= matches!(
            fault,
            Fault::DeleteDaemonSet(..) | Fault::DeleteRevision(..) | Fault::DeleteConfigMap(..)
        );
        match (fault, host) {
            (Fault::Cordon(..) | Fault::Allocate(..), _) => {}
            (_, Some(host)) => {
                let excused = self.excused.entry(host).or_default();
                *excused = until.max(*excused);
            }
            (_, None) => self.all_excused = self.all_excused.max(until),
        }
        let is_edit = matches!(
            fault,
            Fault::Label(..)
                | Fault::StageLabel(..)
                | Fault::DeleteLedger
                | Fault::GarbageLedger
                | Fault::DeleteNodeObject(..)
                | Fault::DeleteDaemonSet(..)
                | Fault::DeleteRevision(..)
                | Fault::DeleteConfigMap(..)
                | Fault::DeleteNode(..)
                | Fault::RecreateNode(..)
        );
        if is_edit {
            self.repair = self.repair.max(until + REPAIR_WITHIN);
        }
    }
}

impl World {
    /// A law is broken: the first one ends the run.
    pub(crate) fn break_law(&mut self, place: &str, what: &str) {
        tell!(self, place, "BROKEN: {what}");
        if self.broken.is_none() {
            self.broken = Some(Broken {
                at: self.now,
                place: place.to_owned(),
                what: what.to_owned(),
            });
        }
    }

    /// The claims as they really are.
    pub fn claims(&self) -> Vec<Claim> {
        let seen = self.api.read_ledger();
        seen.ledger()
            .map(|ledger| ledger.claims.clone())
            .unwrap_or_default()
    }

    pub(crate) fn claim(&self, config: &str, node: &str) -> Option<Claim> {
        let claims = self.claims().into_iter();
        claims
            .into_iter()
            .find(|claim| claim.config == config && claim.node == node)
    }

    pub(crate) fn is_being_repaired(&self) -> bool {
        self.now < self.laws.repair
    }

    /// Whether a node may serve a revision without a claim.
    pub fn is_proven(&self, config: &str, node: &str, revision: &str) -> bool {
        let uid = self.api.nodes.get(node).map(|node| node.id.uid.clone());
        let proven = (
            config.to_owned(),
            uid.unwrap_or_default(),
            revision.to_owned(),
        );
        let promoted = (config.to_owned(), revision.to_owned());
        let object = self.api.revisions.get(&revision_object(config, revision));
        self.laws.proven.contains(&proven)
            || self.laws.promoted.contains(&promoted)
            || object.is_some_and(|object| object.promoted.is_some())
    }

    /// A process has registered.
    pub(crate) fn check_registration(&mut self, pid: Pid, resource: &str) {
        let Some(agent) = self.agents.get(&pid) else {
            return;
        };
        let (id, config, revision) = (agent.host, agent.config.clone(), agent.revision.clone());
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        let node = host.name.clone();
        let live = host.live(resource).count();
        self.laws
            .registered
            .entry((id, config.clone(), revision.clone()))
            .or_insert(self.now);
        if live > 1 {
            let text = format!("{live} live registrations of {resource} (I4)");
            return self.break_law(&node, &text);
        }
        if self.is_proven(&config, &node, &revision) || self.is_being_repaired() {
            return;
        }
        let claim = self.claim(&config, &node);
        let has_claim = claim.is_some_and(|claim| {
            (claim.to == revision || claim.from == revision) && claim.phase.is_disruptive()
        });
        if !has_claim && self.api.nodes.objects.contains_key(&node) {
            let nick = self.nick(&revision);
            self.break_law(
                &node,
                &format!("{nick} serves, is unproven here, and has no claim"),
            );
        }
    }

    /// What the ledger says before a write of it.
    pub(crate) fn check_ledger(&mut self, _at: usize, _write: &LedgerWrite) {
        self.laws.before = self.api.read_ledger().ledger().cloned();
    }

    /// The ledger has been written.
    pub(crate) fn ledger_written(&mut self, at: usize, write: &LedgerWrite) {
        let place = format!("op{at}");
        let before = self.laws.before.take().unwrap_or_default();
        if self.story.kept {
            self.tell_claims(&place, &before, &write.ledger);
        }
        self.laws.last_write = self.now;
        let mut nodes = BTreeSet::new();
        for claim in &write.ledger.claims {
            if !nodes.insert(&claim.node) {
                let text = format!("two claims on {} (I3)", claim.node);
                self.break_law(&place, &text);
            }
        }
        if write.ledger.epoch < before.epoch {
            self.break_law(&place, "writes a ledger of an earlier epoch (I20)");
        }
        if self.is_being_repaired() {
            return;
        }
        let configs: BTreeSet<_> = write
            .ledger
            .claims
            .iter()
            .map(|one| one.config.clone())
            .collect();
        for config in configs {
            let own = || {
                write
                    .ledger
                    .claims
                    .iter()
                    .filter(|one| one.config == config)
            };
            let enters = own().any(|claim| {
                let was = before
                    .claims
                    .iter()
                    .find(|one| one.config == config && one.node == claim.node);
                claim.phase == Phase::Switching
                    && !claim.outside
                    && was.is_none_or(|was| !was.phase.is_disruptive())
            });
            let count = own().filter(|one| one.disrupts()).count();
            let limit = self.laws.budgets.get(&config).copied().unwrap_or(1);
            if enters && i32::try_from(count).unwrap_or(i32::MAX) > limit {
                let text = format!("{count} nodes are being changed and {limit} may be (I1)");
                self.break_law(&place, &text);
            }
        }
    }

    pub(crate) fn tell_claims(&mut self, place: &str, before: &Ledger, after: &Ledger) {
        for claim in &after.claims {
            let key = |one: &&Claim| one.config == claim.config && one.node == claim.node;
            let was = before.claims.iter().find(key);
            if was.is_some_and(|was| was.phase == claim.phase && was.to == claim.to) {
                continue;
            }
            let was = was.map_or("-", |was| was.phase.as_str());
            let (from, to) = (self.nick(&claim.from), self.nick(&claim.to));
            let phase = claim.phase.as_str();
            let why = match claim.reason.is_empty() {
                true => String::new(),
                false => format!(" ({})", claim.reason),
            };
            let (node, config) = (&claim.node, &claim.config);
            tell!(
                self,
                place,
                "claim {config}/{node} {from}→{to}: {was} → {phase}{why}"
            );
        }
        for claim in &before.claims {
            let mut after = after.claims.iter();
            if !after.any(|one| one.config == claim.config && one.node == claim.node) {
                let (node, config, phase) = (&claim.node, &claim.config, claim.phase.as_str());
                tell!(self, place, "claim {config}/{node}: {phase} → dropped");
            }
        }
    }

    /// What a plan does, in the light of what it was made on.
    pub(crate) fn check_plan(&mut self, at: usize, seen: &Snapshot, plan: &Plan) {
        let Some(write) = &plan.ledger else {
            return;
        };
        let none = Ledger::default();
        let before = seen.ledger.ledger().unwrap_or(&none);
        if seen.ledger.ledger().is_none() {
            // What is rebuilt from traces was claimed before.
            return;
        }
        for claim in &write.ledger.claims {
            let was = before
                .claims
                .iter()
                .find(|one| one.config == claim.config && one.node == claim.node);
            let is_new = was.is_none_or(|was| was.to != claim.to);
            let enters = claim.phase == Phase::Switching
                && was.is_some_and(|was| !was.phase.is_disruptive());
            let Some(complaint) = claim_complaint(seen, claim, is_new, enters) else {
                continue;
            };
            let (node, to) = (&claim.node, self.nick(&claim.to));
            let text = format!("claims {node} for {to} although {complaint}");
            if !self.is_being_repaired() {
                self.break_law(&format!("op{at}"), &text);
            }
        }
    }

    /// The status of a config has been written.
    pub(crate) fn status_written(&mut self, at: usize, config: &DevicePluginConfig) {
        self.laws.last_write = self.now;
        if self.story.kept {
            let name = config.metadata.name.clone().unwrap_or_default();
            let summary = config.status.as_ref().map(|status| status.summary.clone());
            let mut summary = summary.unwrap_or_default();
            for (revision, tag) in &self.script.tags {
                summary = summary.replace(revision, &format!("r{tag}"));
            }
            tell!(self, format!("op{at}"), "{name}: {summary}");
            if let Some(line) = self.story.lines.last_mut() {
                line.is_minor = true;
            }
        }
    }

    /// A kubelet's list has changed.
    pub(crate) fn check_outage(&mut self, id: HostId, resource: &str) {
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        let key = (id, resource.to_owned());
        if host.list(resource) == host.devices {
            self.laws.served.insert(key.clone());
            self.laws.outages.remove(&key);
        } else if self.laws.served.contains(&key) && !self.laws.outages.contains_key(&key) {
            self.laws.outages.insert(key, self.now);
            self.after(
                BACK_WITHIN,
                Event::Outage(id, resource.to_owned(), self.now),
            );
        }
    }

    /// Whether what a node has proven cannot serve there: it fails late, or was never tried there
    /// because the node was away.
    pub fn is_hopeless(&self, node: &str, resource: &str) -> bool {
        let objects = self.api.node_objects.objects.values();
        let mut here = objects.filter(|object| object.spec.node_name == node);
        here.any(|object| {
            let spec = &object.spec;
            let config = self.api.configs.get(&spec.config_name);
            let resources = config.map(|config| config.spec.resources.as_slice());
            let mut resources = resources.unwrap_or_default().iter();
            resources.any(|one| one.name == resource)
                && self.is_proven(&spec.config_name, node, &spec.active)
                && self.is_bad(node, &spec.active)
        })
    }

    /// Whether agents of a revision cannot serve on a node.
    pub fn is_bad(&self, node: &str, revision: &str) -> bool {
        let tag = self.script.tags.get(revision).copied().unwrap_or_default();
        self.script.behaviour(node, tag).is_bad()
    }

    /// Devices have been away for some time.
    pub(crate) fn outage_lasts(&mut self, id: HostId, resource: &str, since: Duration) {
        let key = (id, resource.to_owned());
        if self.laws.outages.get(&key) != Some(&since) {
            return;
        }
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        let node = host.name.clone();
        let excused = self.laws.excused.get(&id).copied().unwrap_or_default();
        let excused = excused
            .max(self.laws.all_excused)
            .max(self.laws.repair.min(self.now));
        let objects = self.api.node_objects.objects.values();
        let mut here = objects.filter(|object| object.spec.node_name == node);
        let is_in_change = here.any(|object| object.spec.baseline.is_some())
            || self.claims().iter().any(|claim| claim.node == node);
        let bound = if is_in_change {
            HANDOVER_WITHIN
        } else {
            BACK_WITHIN
        };
        let end = since.max(excused) + bound;
        let runs = host.up && host.kubelet_since.is_some();
        let is_hopeless = self.is_hopeless(&node, resource);
        if self.now < end || !runs || is_hopeless || !self.api.nodes.objects.contains_key(&node) {
            let wait = end.saturating_sub(self.now).max(secs(5));
            return self.after(wait, Event::Outage(id, resource.to_owned(), since));
        }
        let seconds = self.now.saturating_sub(since).as_secs();
        let text =
            format!("{resource} has been away for {seconds} s, and nothing excuses that (I15)");
        self.break_law(&node, &text);
    }
}

fn claim_complaint(
    seen: &Snapshot,
    claim: &Claim,
    is_new: bool,
    enters: bool,
) -> Option<&'static str> {
    let config = seen.configs.get(&claim.config)?;
    let rollout = config.spec.rollout.as_ref();
    let is_paused = rollout.and_then(|rollout| rollout.paused) == Some(true);
    let to = seen
        .revisions
        .get(&revision_object(&claim.config, &claim.to));
    let is_promoted = to.is_some_and(|one| one.promoted.is_some());
    let is_failed = to.is_some_and(|one| one.failed.is_some()) && !is_promoted;
    let is_away = seen
        .nodes
        .get(&claim.node)
        .is_none_or(|node| !node.ready || node.deleting);
    if !(is_new && claim.phase == Phase::Staging || enters) {
        return None;
    }
    if is_paused && !is_promoted {
        Some("it is paused (I8)")
    } else if is_failed {
        Some("it has failed (I7)")
    } else if is_away && is_new {
        Some("it is away (I11)")
    } else {
        None
    }
}
