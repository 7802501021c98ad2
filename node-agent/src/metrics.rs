//! The agent's metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crds::node::Health;
use node_agent_core::health::Ended;
use node_agent_core::seen::Seen;
use node_agent_core::work::Work;

const PREFIX: &str = "device_plugin_agent";

/// Devices that are advertised, by resource and health (`Healthy`, `Unhealthy`).
const DEVICES: (&str, &str) = (
    "device_plugin_agent_devices",
    "Devices that are advertised, by resource and health",
);
/// Registrations at the kubelet since the start, by resource and result: `accepted`, `refused` (also
/// when the kubelet did not answer in time), `unreachable` (nobody listens at the kubelet's socket).
const REGISTRATIONS: (&str, &str) = (
    "device_plugin_agent_registrations_total",
    "Registrations at the kubelet, by resource and result",
);
/// 1 while the kubelet reads the list of a resource's devices, else 0.
const REGISTERED: (&str, &str) = (
    "device_plugin_agent_registered",
    "Whether the kubelet reads the list of a resource's devices",
);
/// Allocate calls since the start, by resource and result: `given`, `refused`.
const ALLOCATIONS: (&str, &str) = (
    "device_plugin_agent_allocations_total",
    "Allocate calls, by resource and result",
);
/// Streams to the kubelet that ended although the agent did not end them, by resource.
const STREAM_LOST: (&str, &str) = (
    "device_plugin_agent_stream_lost_total",
    "Streams to the kubelet that were lost, by resource",
);
/// Registrations that were repeated because the kubelet's own list was another, by resource.
const DISPLACED: (&str, &str) = (
    "device_plugin_agent_displaced_total",
    "Registrations repeated because the kubelet listed other devices, by resource",
);
/// Probes since the start, by resource and result: `passed`, `failed`, `not_run` (which says nothing of
/// the device).
const PROBES: (&str, &str) = (
    "device_plugin_agent_probes_total",
    "Probes of devices, by resource and result",
);
/// Hooks since the start, by resource, hook (`init`, `reset`, `release`) and result: `passed`,
/// `failed`, `not_run`.
const HOOKS: (&str, &str) = (
    "device_plugin_agent_hooks_total",
    "Hooks that ended, by resource, hook and result",
);
/// Devices of containers that may have started without their reset, by resource.
const STARTED_WITHOUT_RESET: (&str, &str) = (
    "device_plugin_agent_started_without_reset",
    "Devices of containers that may have started without a reset, by resource",
);
/// 1, with the agent's version and revision as labels.
const BUILD_INFO: (&str, &str) = (
    "device_plugin_agent_build_info",
    "The agent's version and revision",
);

/// Name and help of every metric.
pub const METRICS: &[(&str, &str)] = &[
    DEVICES,
    REGISTRATIONS,
    REGISTERED,
    ALLOCATIONS,
    STREAM_LOST,
    DISPLACED,
    PROBES,
    HOOKS,
    STARTED_WITHOUT_RESET,
    BUILD_INFO,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResourceLabel {
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    resource: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HookLabels {
    resource: String,
    hook: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HealthLabels {
    resource: String,
    health: &'static str,
}

/// How a registration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationResult {
    /// The kubelet accepted.
    Accepted,
    /// The kubelet refused, or did not answer in time.
    Refused,
    /// Nobody listens at the kubelet's socket.
    Unreachable,
}

/// How an Allocate call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocationResult {
    /// The container got its devices.
    Given,
    /// It did not.
    Refused,
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    devices: Family<HealthLabels, Gauge>,
    registrations: Family<ResultLabels, Counter>,
    registered: Family<ResourceLabel, Gauge>,
    allocations: Family<ResultLabels, Counter>,
    stream_lost: Family<ResourceLabel, Counter>,
    displaced: Family<ResourceLabel, Counter>,
    probes: Family<ResultLabels, Counter>,
    hooks: Family<HookLabels, Counter>,
    started_without_reset: Family<ResourceLabel, Gauge>,
}

impl Metrics {
    /// Registers everything, with the version and revision of this agent.
    pub fn register(&self, registry: &mut Registry, revision: &str) {
        let registry = registry.sub_registry_with_prefix(PREFIX);
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("revision", revision.to_owned()),
        ]);
        registry.register(short(DEVICES), DEVICES.1, self.devices.clone());
        registry.register(
            short(REGISTRATIONS),
            REGISTRATIONS.1,
            self.registrations.clone(),
        );
        registry.register(short(REGISTERED), REGISTERED.1, self.registered.clone());
        registry.register(short(ALLOCATIONS), ALLOCATIONS.1, self.allocations.clone());
        registry.register(short(STREAM_LOST), STREAM_LOST.1, self.stream_lost.clone());
        registry.register(short(DISPLACED), DISPLACED.1, self.displaced.clone());
        registry.register(short(PROBES), PROBES.1, self.probes.clone());
        registry.register(short(HOOKS), HOOKS.1, self.hooks.clone());
        registry.register(
            short(STARTED_WITHOUT_RESET),
            STARTED_WITHOUT_RESET.1,
            self.started_without_reset.clone(),
        );
        registry.register(short(BUILD_INFO), BUILD_INFO.1, build);
    }

    /// Counts a registration.
    pub fn registration(&self, resource: &str, result: RegistrationResult) {
        let result = match result {
            RegistrationResult::Accepted => "accepted",
            RegistrationResult::Refused => "refused",
            RegistrationResult::Unreachable => "unreachable",
        };
        let labels = ResultLabels {
            resource: resource.to_owned(),
            result,
        };
        self.registrations.get_or_create(&labels).inc();
    }

    /// Counts an Allocate call.
    pub fn allocation(&self, resource: &str, result: AllocationResult) {
        let result = match result {
            AllocationResult::Given => "given",
            AllocationResult::Refused => "refused",
        };
        let labels = ResultLabels {
            resource: resource.to_owned(),
            result,
        };
        self.allocations.get_or_create(&labels).inc();
    }

    /// Counts a lost stream.
    pub fn stream_lost(&self, resource: &str) {
        self.stream_lost
            .get_or_create(&ResourceLabel {
                resource: resource.to_owned(),
            })
            .inc();
    }

    /// Counts a registration that is repeated because the kubelet has another list.
    pub fn displaced(&self, resource: &str) {
        self.displaced
            .get_or_create(&ResourceLabel {
                resource: resource.to_owned(),
            })
            .inc();
    }

    /// Counts a probe or a hook.
    pub fn work(&self, resource: &str, work: Work, ended: &Ended) {
        let resource = resource.to_owned();
        let result = match ended {
            Ended::Passed => "passed",
            Ended::Failed(_) => "failed",
            Ended::NotRun(_) => "not_run",
        };
        if work == Work::Probe {
            let labels = ResultLabels { resource, result };
            self.probes.get_or_create(&labels).inc();
        } else {
            let labels = HookLabels {
                resource,
                hook: work.as_str(),
                result,
            };
            self.hooks.get_or_create(&labels).inc();
        }
    }

    /// Shows what was seen. An agent that only stands by tells nothing of devices and registrations:
    /// who looks for trouble must not find it there.
    pub fn show(&self, seen: &Seen) {
        if !seen.part.role.may_keep() {
            self.registered.clear();
            self.devices.clear();
            self.started_without_reset.clear();
            return;
        }
        for (name, resource) in &seen.resources {
            let registered = i64::from(resource.standing.is_registered());
            let label = ResourceLabel {
                resource: name.clone(),
            };
            self.registered.get_or_create(&label).set(registered);
            let never_reset = i64::try_from(resource.never_reset.len()).unwrap_or(i64::MAX);
            let gauge = self.started_without_reset.get_or_create(&label);
            gauge.set(never_reset);
            let healthy = resource.inventory.healthy();
            let unhealthy = resource.inventory.total() - healthy;
            for (health, count) in [(Health::Healthy, healthy), (Health::Unhealthy, unhealthy)] {
                let labels = HealthLabels {
                    resource: name.clone(),
                    health: health.as_str(),
                };
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.devices.get_or_create(&labels).set(count);
            }
        }
    }
}

/// The name without what the library adds: prefix, and the ending of its kind.
fn short(metric: (&'static str, &'static str)) -> &'static str {
    let name = metric.0;
    let name = name
        .strip_prefix(PREFIX)
        .unwrap_or(name)
        .trim_start_matches('_');
    let without = name
        .strip_suffix("_total")
        .or_else(|| name.strip_suffix("_info"));
    without.unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_agent_core::role::Role;
    use node_agent_core::seen::Part;

    #[test]
    fn every_metric_is_exposed_under_its_name_and_help() {
        let mut registry = Registry::default();
        let metrics = Metrics::default();
        metrics.register(&mut registry, "0123456789");
        metrics.registration("a.com/x", RegistrationResult::Accepted);
        metrics.allocation("a.com/x", AllocationResult::Given);
        metrics.stream_lost("a.com/x");
        metrics.displaced("a.com/x");
        metrics.work("a.com/x", Work::Probe, &Ended::Passed);
        metrics.work("a.com/x", Work::Reset, &Ended::Failed(String::new()));
        let seen = [("a.com/x".to_owned(), Default::default())];
        metrics.show(&Seen {
            part: Part {
                role: Role::Active,
                holds: true,
                shown: true,
            },
            resources: seen.into(),
            ..Seen::default()
        });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for (name, help) in METRICS {
            assert!(
                text.lines()
                    .any(|line| line.starts_with(&format!("{name}{{"))),
                "{name}: {text}"
            );
            let family = name.trim_end_matches("_total").trim_end_matches("_info");
            assert!(
                text.contains(&format!("# HELP {family} {help}.\n")),
                "{name}: {text}"
            );
        }
        let families = text
            .lines()
            .filter(|line| line.starts_with("# TYPE "))
            .count();
        assert_eq!(families, METRICS.len(), "{text}");
        metrics.show(&Seen::default());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for of_the_other_agent in [
            "device_plugin_agent_registered{",
            "device_plugin_agent_devices{",
        ] {
            assert!(!text.contains(of_the_other_agent), "{text}");
        }
    }
}
