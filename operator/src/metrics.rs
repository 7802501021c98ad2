//! What the operator counts.

use std::time::Duration;

use operator_core::ledger::{Ledger, Phase};
use operator_core::plan::Plan;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Start of every name.
pub const PREFIX: &str = "device_plugin_operator";

/// Every metric as it appears in the text, and its help; docs/metrics.md is compared with it.
pub const METRICS: &[(&str, &str)] = &[
    (RECONCILE_DURATION.0, RECONCILE_DURATION.1),
    (RECONCILE_ERRORS.0, RECONCILE_ERRORS.1),
    (NODES.0, NODES.1),
    (CONDITION.0, CONDITION.1),
    (WRITES.0, WRITES.1),
    (LEADER.0, LEADER.1),
    (LEDGER_WRITES.0, LEDGER_WRITES.1),
    (CLAIMS.0, CLAIMS.1),
    (BUILD.0, BUILD.1),
];

const RECONCILE_DURATION: (&str, &str) = (
    "device_plugin_operator_reconcile_duration_seconds",
    "How long one pass over everything takes, from looking to publishing",
);
const RECONCILE_ERRORS: (&str, &str) = (
    "device_plugin_operator_reconcile_errors_total",
    "Failures by step of a pass: observe, audit, record, execute or publish",
);
const NODES: (&str, &str) = (
    "device_plugin_operator_nodes",
    "Nodes of each config by state: desired, updated, pending, inFlight, ready, failed, rolledBack, skipped or unreachable",
);
const CONDITION: (&str, &str) = (
    "device_plugin_operator_condition",
    "Conditions of each config: 1 is True, 0 is False",
);
const WRITES: (&str, &str) = (
    "device_plugin_operator_writes_total",
    "Writes to the API server that succeeded, by kind of object and verb",
);
const LEADER: (&str, &str) = (
    "device_plugin_operator_leader",
    "Whether this operator is the one that acts",
);
const LEDGER_WRITES: (&str, &str) = (
    "device_plugin_operator_ledger_writes_total",
    "Writes of the ledger by result: written, outdated or refused",
);
const CLAIMS: (&str, &str) = (
    "device_plugin_operator_claims",
    "Nodes that are being changed, by phase",
);
const BUILD: (&str, &str) = (
    "device_plugin_operator_build_info",
    "Version of the operator",
);

/// Phases of claims.
const PHASES: [Phase; 9] = [
    Phase::Staging,
    Phase::Staged,
    Phase::Switching,
    Phase::Verifying,
    Phase::Soaking,
    Phase::Committing,
    Phase::RollingBack,
    Phase::Quarantined,
    Phase::Releasing,
];

/// A step of a pass that can fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// The caches are not complete, or the ledger cannot be read.
    Observe,
    /// A plan broke a safety rule.
    Audit,
    /// The ledger was not written.
    Record,
    /// A write was refused.
    Execute,
    /// A status was refused.
    Publish,
}

impl Step {
    fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Audit => "audit",
            Self::Record => "record",
            Self::Execute => "execute",
            Self::Publish => "publish",
        }
    }
}

/// How a write of the ledger ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Recording {
    /// It is written.
    Written,
    /// It had changed since it was read.
    Outdated,
    /// It was refused, or no answer came.
    Refused,
}

impl Recording {
    fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Outdated => "outdated",
            Self::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfStep {
    step: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfNodes {
    config: String,
    state: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfCondition {
    config: String,
    r#type: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfResult {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfClaim {
    phase: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfWrite {
    kind: &'static str,
    verb: &'static str,
}

/// The operator's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    duration: Histogram,
    errors: Family<OfStep, Counter>,
    nodes: Family<OfNodes, Gauge>,
    conditions: Family<OfCondition, Gauge>,
    writes: Family<OfWrite, Counter>,
    leader: Gauge,
    ledger_writes: Family<OfResult, Counter>,
    claims: Family<OfClaim, Gauge>,
}

impl Metrics {
    /// Registers all of them.
    pub fn registered(registry: &mut Registry) -> Self {
        // From a pass over an empty cluster to one over thousands of nodes that writes.
        let buckets = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
        let metrics = Self {
            duration: Histogram::new(buckets),
            errors: Family::default(),
            nodes: Family::default(),
            conditions: Family::default(),
            writes: Family::default(),
            leader: Gauge::default(),
            ledger_writes: Family::default(),
            claims: Family::default(),
        };
        metrics.start_at_zero();
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register(
            own_name(RECONCILE_DURATION.0),
            RECONCILE_DURATION.1,
            metrics.duration.clone(),
        );
        registry.register(
            own_name(RECONCILE_ERRORS.0),
            RECONCILE_ERRORS.1,
            metrics.errors.clone(),
        );
        registry.register(own_name(NODES.0), NODES.1, metrics.nodes.clone());
        registry.register(
            own_name(CONDITION.0),
            CONDITION.1,
            metrics.conditions.clone(),
        );
        registry.register(own_name(WRITES.0), WRITES.1, metrics.writes.clone());
        registry.register(own_name(LEADER.0), LEADER.1, metrics.leader.clone());
        registry.register(
            own_name(LEDGER_WRITES.0),
            LEDGER_WRITES.1,
            metrics.ledger_writes.clone(),
        );
        registry.register(own_name(CLAIMS.0), CLAIMS.1, metrics.claims.clone());
        registry.register(own_name(BUILD.0), BUILD.1, build);
        metrics
    }

    /// What never happened is a zero, not an absence.
    fn start_at_zero(&self) {
        for step in [
            Step::Observe,
            Step::Audit,
            Step::Record,
            Step::Execute,
            Step::Publish,
        ] {
            let step = step.as_str();
            drop(self.errors.get_or_create(&OfStep { step }));
        }
        for result in [Recording::Written, Recording::Outdated, Recording::Refused] {
            let result = result.as_str();
            drop(self.ledger_writes.get_or_create(&OfResult { result }));
        }
        self.claim(None);
    }

    /// A pass ended.
    pub fn passed(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
    }

    /// A step failed.
    pub fn failed(&self, step: Step) {
        let step = step.as_str();
        self.errors.get_or_create(&OfStep { step }).inc();
    }

    /// A write succeeded.
    pub fn wrote(&self, kind: &'static str, verb: &'static str) {
        self.writes.get_or_create(&OfWrite { kind, verb }).inc();
    }

    /// Whether this process leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// A write of the ledger ended.
    pub fn recorded(&self, result: Recording) {
        let result = result.as_str();
        self.ledger_writes.get_or_create(&OfResult { result }).inc();
    }

    /// What the ledger says now.
    pub fn claim(&self, ledger: Option<&Ledger>) {
        for phase in PHASES {
            let claims = ledger.iter().flat_map(|ledger| &ledger.claims);
            let count = claims.filter(|claim| claim.phase == phase).count();
            let phase = phase.as_str();
            let gauge = self.claims.get_or_create(&OfClaim { phase });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Where configs stand. Those that are gone vanish.
    pub fn show(&self, plan: &Plan) {
        self.nodes.clear();
        self.conditions.clear();
        for config in &plan.configs {
            let counts = config.status.nodes;
            for (state, count) in [
                ("desired", counts.desired),
                ("updated", counts.updated),
                ("pending", counts.pending),
                ("inFlight", counts.in_flight),
                ("rolledBack", counts.rolled_back),
                ("ready", counts.ready),
                ("failed", counts.failed),
                ("skipped", counts.skipped),
                ("unreachable", counts.unreachable),
            ] {
                let labels = OfNodes {
                    config: config.on.name.clone(),
                    state,
                };
                self.nodes.get_or_create(&labels).set(count.into());
            }
            for condition in &config.status.conditions {
                let labels = OfCondition {
                    config: config.on.name.clone(),
                    r#type: condition.type_.clone(),
                };
                let value = i64::from(condition.status == "True");
                self.conditions.get_or_create(&labels).set(value);
            }
        }
    }
}

/// The name as the library wants it: it appends `_total` and `_info` itself.
fn own_name(name: &'static str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    name.strip_suffix("_info").unwrap_or(name)
}
