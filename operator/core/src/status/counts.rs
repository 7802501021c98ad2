//! Nodes and devices of a config, counted.

use std::collections::{BTreeMap, BTreeSet};

use crds::config::{DeviceCounts, NodeCounts, ResourceCounts};

use crate::lineage::Stable;
use crate::scope::{Member, Membership, Scope};
use crate::standing::{Standing, standing};

/// What is said of a node that serves and is not at the target yet.
const WAITS: &str = "serves what it served before, until its turn comes";

/// Nodes with what is said about each, by where they stand.
pub type Told<'a> = Vec<(&'a str, String)>;

/// What the status counts and its messages name.
#[derive(Default)]
pub struct Tally<'a> {
    /// Nodes.
    pub counts: NodeCounts,
    /// Devices.
    pub devices: DeviceCounts,
    /// Devices by resource.
    pub resources: Vec<ResourceCounts>,
    /// Nodes that serve every resource.
    pub serving: BTreeSet<&'a str>,
    /// Nodes on their way.
    pub pending: Told<'a>,
    /// Nodes whose new agent stands by.
    pub staged: usize,
    /// Nodes that are being changed.
    pub in_flight: Told<'a>,
    /// Nodes that were brought back.
    pub rolled_back: Told<'a>,
    /// Nodes whose agent fails.
    pub failed: Told<'a>,
    /// Nodes where something else serves a resource.
    pub foreign: Told<'a>,
    /// Nodes that were left out of the change to the target.
    pub skipped: Told<'a>,
    /// Nodes that nobody reaches.
    pub unreachable: Told<'a>,
    /// Nodes within the grace, with the time of its end.
    pub grace: Vec<(&'a str, k8s_openapi::jiff::Timestamp)>,
    /// Nodes that are being left.
    pub leaving: Vec<&'a str>,
    /// Nodes with Unhealthy devices, by resource.
    pub unhealthy: BTreeMap<String, Vec<&'a str>>,
    /// Nodes with fewer Healthy devices than `minDevices`, by resource, and that number.
    pub too_few: BTreeMap<String, (i32, Vec<&'a str>)>,
}

impl<'a> Tally<'a> {
    /// Counts a config's nodes and devices.
    pub fn of(scope: &Scope<'a>) -> Self {
        let resources = resources(scope);
        let mut tally = Self::default();
        let mut devices: BTreeMap<String, ResourceCounts> = BTreeMap::new();
        for (name, member) in &scope.members {
            match member.membership {
                Membership::Selected => {}
                Membership::Grace { until } => tally.grace.push((name, until)),
                Membership::Leaving => {
                    tally.leaving.push(name);
                    continue;
                }
                Membership::Vanishing => continue,
            }
            tally.counts.desired += 1;
            let (standing, report) = standing(scope, member);
            for resource in report.iter().flat_map(|report| &report.resources) {
                let counts = devices.entry(resource.name.clone()).or_default();
                counts.total = counts.total.saturating_add(resource.total);
                counts.healthy = counts.healthy.saturating_add(resource.healthy);
                counts.allocated = counts.allocated.saturating_add(resource.allocated);
                let minimum = min_devices(scope, &resource.name);
                if resource.healthy < minimum {
                    let too_few = tally.too_few.entry(resource.name.clone());
                    too_few.or_insert((minimum, Vec::new())).1.push(name);
                }
                if resource.healthy < resource.total {
                    tally
                        .unhealthy
                        .entry(resource.name.clone())
                        .or_default()
                        .push(name);
                }
            }
            if let Some(claim) = scope.claims.get(*name) {
                tally.staged += usize::from(!claim.phase.is_disruptive());
            }
            tally.book(name, standing, report.is_some(), is_updated(scope, member));
        }
        tally.resources = resources
            .into_iter()
            .map(|name| counted(name, &devices))
            .collect();
        tally.devices = total(&tally.resources);
        tally
    }

    fn book(&mut self, name: &'a str, standing: Standing, serves: bool, is_updated: bool) {
        if serves {
            self.serving.insert(name);
            self.counts.ready += 1;
        }
        match standing {
            Standing::Serving => {
                if is_updated {
                    self.counts.updated += 1;
                } else {
                    self.counts.pending += 1;
                    self.pending.push((name, WAITS.to_owned()));
                }
            }
            Standing::Pending(text) => {
                self.counts.pending += 1;
                self.pending.push((name, text));
            }
            Standing::InFlight(text) => {
                self.counts.in_flight += 1;
                self.in_flight.push((name, text));
            }
            Standing::RolledBack(text) => {
                self.counts.rolled_back += 1;
                self.rolled_back.push((name, text));
            }
            Standing::Failed(text) => {
                self.counts.failed += 1;
                self.failed.push((name, text));
            }
            Standing::Foreign(text) => {
                self.counts.skipped += 1;
                self.foreign.push((name, text));
            }
            Standing::Skipped(text) => {
                self.counts.skipped += 1;
                self.skipped.push((name, text));
            }
            Standing::Unreachable(text) => {
                self.counts.unreachable += 1;
                self.unreachable.push((name, text));
            }
        }
    }
}

/// How many Healthy devices of a resource each node is to have.
fn min_devices(scope: &Scope<'_>, name: &str) -> i32 {
    let resources = &scope.config.spec.resources;
    let resource = resources.iter().find(|one| one.name == name);
    resource.map_or(0, |resource| resource.min_devices)
}

/// Whether a node's label and its agent are at what the spec asks for. Where nothing can be asked
/// for, what runs is what is wanted.
fn is_updated(scope: &Scope<'_>, member: &Member<'_>) -> bool {
    let active = member.object.map(|object| object.spec.active.as_str());
    match (&scope.target, scope.stable.revision()) {
        (Some(target), Some(_)) => {
            let target = Some(target.revision.as_str());
            active == target && (member.pinned == target || target == scope.stable.revision())
        }
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

/// The resources that agents of the live revisions serve; before there is one, those of the spec.
fn resources(scope: &Scope<'_>) -> Vec<String> {
    match &scope.stable {
        Stable::Stands(_) => {
            let live = scope.live();
            let names = live
                .iter()
                .flat_map(|revision| scope.resources_of(revision));
            names
                .cloned()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect()
        }
        Stable::None | Stable::Rebuild { .. } | Stable::Lost(_) => {
            let names = scope
                .config
                .spec
                .resources
                .iter()
                .map(|one| one.name.clone());
            names.collect::<BTreeSet<_>>().into_iter().collect()
        }
    }
}

fn counted(name: String, devices: &BTreeMap<String, ResourceCounts>) -> ResourceCounts {
    let counts = devices.get(&name).cloned().unwrap_or_default();
    ResourceCounts { name, ..counts }
}

fn total(resources: &[ResourceCounts]) -> DeviceCounts {
    let sum =
        |of: fn(&ResourceCounts) -> i32| resources.iter().map(of).fold(0, i32::saturating_add);
    let (total, healthy) = (sum(|one| one.total), sum(|one| one.healthy));
    DeviceCounts {
        total,
        healthy,
        allocated: sum(|one| one.allocated),
        text: format!("{healthy}/{total}"),
    }
}
