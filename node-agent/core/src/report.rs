//! What the agent that serves tells of itself: its slot of the node's object.

use crds::node::{
    AgentReport, DeviceReport, KubeletList, LastHook, REPORTED_DEVICES_MAX, ReportSummary,
    ResourceReport,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::inventory::{Device, Inventory};
use crate::seen::{KubeletSeen, ResourceSeen, Seen, Standing};

/// Longest texts and lists that the schema takes.
pub(crate) const MESSAGE_MAX: usize = 1024;
const REASON_MAX: usize = 256;
const PATHS_MAX: usize = 32;

/// How many things a message names before it only counts them: a message is read by people.
const NAMED_MAX: usize = 3;

/// Who reports.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Identity {
    /// The revision that the agent runs.
    pub revision: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// Its version.
    pub agent_version: String,
    /// Boot id of the node.
    pub boot_id: String,
}

/// The agent's slot.
pub fn report(identity: &Identity, seen: &Seen) -> AgentReport {
    let resources: Vec<ResourceReport> = seen
        .resources
        .iter()
        .map(|(name, resource)| resource_report(name, resource))
        .collect();
    let registered = resources
        .iter()
        .filter(|resource| resource.registered)
        .count();
    let (devices, truncated) = device_reports(seen);
    AgentReport {
        revision: identity.revision.clone(),
        pod_uid: identity.pod_uid.clone(),
        agent_version: identity.agent_version.clone(),
        boot_id: identity.boot_id.clone(),
        summary: ReportSummary {
            registered: format!("{registered}/{}", resources.len()),
            healthy: resources.iter().map(|resource| resource.healthy).sum(),
            allocated: resources.iter().map(|resource| resource.allocated).sum(),
        },
        resources,
        devices,
        truncated,
        last_hook: seen.last_hook.clone().map(|hook| LastHook {
            message: shortened(&hook.message, MESSAGE_MAX),
            ..hook
        }),
    }
}

fn resource_report(name: &str, seen: &ResourceSeen) -> ResourceReport {
    let inventory = &seen.inventory;
    let stream_since = match &seen.standing {
        Standing::Watching(since) => Some(Time(*since)),
        _ => None,
    };
    ResourceReport {
        name: name.to_owned(),
        registered: seen.standing.is_registered(),
        stream_since,
        registrations: count(usize::try_from(seen.registrations).unwrap_or(usize::MAX)),
        total: count(inventory.total()),
        healthy: count(inventory.healthy()),
        allocated: count(inventory.allocated()),
        missing_allocated: count(inventory.missing_allocated()),
        kubelet: seen.kubelet.map(kubelet_list),
        message: shortened(&resource_message(seen), MESSAGE_MAX),
    }
}

fn kubelet_list(seen: KubeletSeen) -> KubeletList {
    KubeletList {
        devices: count(seen.devices),
        matches: seen.matches,
        since: Time(seen.since),
        read_after_stream: seen.read_after_stream,
    }
}

fn resource_message(seen: &ResourceSeen) -> String {
    let parts = [
        seen.standing.message(),
        seen.discovery_error.clone(),
        seen.cdi_error.clone(),
        refusals(&seen.inventory),
        remarks(&seen.inventory),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

/// What users should know of devices although nothing is wrong.
fn remarks(inventory: &Inventory) -> String {
    let told = inventory.remarks.iter();
    let told: Vec<String> = told
        .map(|one| format!("{:?} {}", one.path, one.reason))
        .collect();
    listed(&told)
}

/// What is not advertised although it matches, and what could not be looked at.
pub(crate) fn refusals(inventory: &Inventory) -> String {
    let mut parts = Vec::new();
    let refused: Vec<String> = inventory
        .refusals
        .iter()
        .map(|one| format!("{:?} {}", one.path, one.reason))
        .collect();
    if !refused.is_empty() {
        parts.push(format!("refused: {}", listed(&refused)));
    }
    if inventory.left_out > 0 {
        parts.push(format!(
            "{} devices are left out: the kubelet reads lists of at most 4 MiB, and {} devices are served at most",
            inventory.left_out,
            crate::inventory::DEVICES_MAX
        ));
    }
    let unknown = inventory
        .unknown
        .directories
        .iter()
        .chain(&inventory.unknown.paths);
    let unknown: Vec<String> = unknown
        .map(|(path, error)| format!("{path:?}: {error}"))
        .collect();
    if !unknown.is_empty() {
        parts.push(format!("failed to look at {}", listed(&unknown)));
    }
    parts.join("; ")
}

fn device_reports(seen: &Seen) -> (Vec<DeviceReport>, bool) {
    let all = seen.resources.iter().flat_map(|(resource, seen)| {
        seen.inventory
            .devices
            .iter()
            .map(move |(id, device)| (resource, id, device))
    });
    let total = seen
        .resources
        .values()
        .map(|seen| seen.inventory.devices.len())
        .sum::<usize>();
    let reports = all
        .take(REPORTED_DEVICES_MAX)
        .map(|(resource, id, device)| device_report(resource, id, device))
        .collect();
    (reports, total > REPORTED_DEVICES_MAX)
}

fn device_report(resource: &str, id: &str, device: &Device) -> DeviceReport {
    DeviceReport {
        id: id.to_owned(),
        resource: resource.to_owned(),
        health: device.health,
        reason: shortened(&device.reason, REASON_MAX),
        numa_node: device
            .hardware
            .numa_nodes
            .first()
            .and_then(|node| i32::try_from(*node).ok()),
        paths: device.paths.iter().take(PATHS_MAX).cloned().collect(),
        allocated: device.allocated,
        last_transition_time: Some(Time(device.since)),
    }
}

/// The first few texts, and how many more there are.
pub(crate) fn listed(texts: &[String]) -> String {
    let named: Vec<&str> = texts.iter().take(NAMED_MAX).map(String::as_str).collect();
    let named = named.join(", ");
    match texts.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// A text of at most so many characters.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let kept: String = text.chars().take(limit.saturating_sub(1)).collect();
    format!("{kept}…")
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::discovery::{Hardware, Refusal};
    use crate::role::Role;
    use crate::seen::Part;
    use crds::node::Health;
    use jiff::Timestamp;
    use std::sync::Arc;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    pub(crate) fn device(health: Health, allocated: bool) -> Device {
        let reason = match health {
            Health::Healthy => String::new(),
            Health::Unhealthy => "device node is gone".to_owned(),
        };
        Device {
            paths: vec!["/dev/x".to_owned()],
            hardware: Hardware::default(),
            health,
            reason,
            since: at(7),
            idle_since: None,
            allocated,
            discovered: true,
        }
    }

    pub(crate) fn resource(standing: Standing, devices: &[(Health, bool)]) -> ResourceSeen {
        let devices = devices.iter().enumerate();
        let devices = devices.map(|(n, (health, held))| (format!("id{n}"), device(*health, *held)));
        ResourceSeen {
            standing,
            registrations: 2,
            inventory: Arc::new(Inventory {
                devices: devices.collect(),
                ..Inventory::default()
            }),
            ..ResourceSeen::default()
        }
    }

    pub(crate) fn seen(resources: Vec<ResourceSeen>) -> Seen {
        let named = resources.into_iter().enumerate();
        Seen {
            kubelet_socket: true,
            part: Part {
                role: Role::Active,
                holds: true,
                shown: true,
            },
            resources: named
                .map(|(n, seen)| (format!("example.com/r{n}"), seen))
                .collect(),
            ..Seen::default()
        }
    }

    pub(crate) const HEALTHY: (Health, bool) = (Health::Healthy, false);

    #[test]
    fn a_report_counts_and_lists() {
        let seen = seen(vec![
            resource(
                Standing::Watching(at(5)),
                &[(Health::Healthy, true), (Health::Unhealthy, false)],
            ),
            resource(Standing::Refused("no".to_owned()), &[HEALTHY]),
        ]);
        let identity = Identity {
            revision: "abc".to_owned(),
            ..Identity::default()
        };
        let report = report(&identity, &seen);
        assert_eq!(
            (
                report.summary.registered.as_str(),
                report.summary.healthy,
                report.summary.allocated
            ),
            ("1/2", 2, 1)
        );
        assert_eq!(report.revision, "abc");
        let first = &report.resources[0];
        assert_eq!(
            (
                first.total,
                first.healthy,
                first.allocated,
                first.registrations
            ),
            (2, 1, 1, 2)
        );
        assert_eq!(
            (first.registered, first.stream_since.clone()),
            (true, Some(Time(at(5))))
        );
        assert_eq!(report.resources[1].message, "registration failed: no");
        let healths: Vec<Health> = report.devices.iter().map(|device| device.health).collect();
        assert_eq!(
            healths,
            [Health::Healthy, Health::Unhealthy, Health::Healthy]
        );
        assert_eq!(report.devices[1].reason, "device node is gone");
        assert!(!report.truncated);
    }

    #[test]
    fn a_report_fits_its_schema() {
        let mut many = resource(Standing::Foreign("x".repeat(5_000)), &[HEALTHY; 300]);
        let long = device(Health::Unhealthy, false);
        let long = Device {
            reason: "ü".repeat(999),
            paths: vec![String::new(); 99],
            ..long
        };
        Arc::make_mut(&mut many.inventory)
            .devices
            .insert("id0".to_owned(), long);
        let report = report(&Identity::default(), &seen(vec![many]));
        assert_eq!((report.devices.len(), report.truncated), (256, true));
        assert_eq!(report.resources[0].total, 300, "counts tell all");
        assert_eq!(report.resources[0].message.chars().count(), 1024);
        assert_eq!(report.devices[0].reason.chars().count(), 256);
        assert_eq!(report.devices[0].paths.len(), 32);
    }

    #[test]
    fn remarks_and_places_are_reported() {
        let mut one = resource(Standing::Watching(at(1)), &[HEALTHY, HEALTHY]);
        let inventory = Arc::make_mut(&mut one.inventory);
        inventory.remarks = vec![Refusal {
            path: "/dev/x".to_owned(),
            reason: "shares its serial number".to_owned(),
        }];
        for device in inventory.devices.values_mut().skip(1) {
            device.hardware.numa_nodes = vec![1, 3];
        }
        let report = report(&Identity::default(), &seen(vec![one]));
        let expected = r#""/dev/x" shares its serial number"#;
        assert_eq!(report.resources[0].message, expected);
        let near: Vec<Option<i32>> = report.devices.iter().map(|one| one.numa_node).collect();
        assert_eq!(near, [None, Some(1)]);
    }

    #[test]
    fn the_kubelets_list_is_reported() {
        let mut one = resource(Standing::Watching(at(1)), &[HEALTHY]);
        one.kubelet = Some(KubeletSeen {
            devices: 1,
            matches: true,
            since: at(9),
            read_after_stream: true,
        });
        let report = report(&Identity::default(), &seen(vec![one]));
        let list = report.resources[0].kubelet.clone().unwrap();
        assert_eq!(
            (list.devices, list.matches, list.read_after_stream),
            (1, true, true)
        );
        assert_eq!(list.since, Time(at(9)));
    }

    #[test]
    fn long_lists_are_counted() {
        let texts: Vec<String> = (0..5).map(|n| n.to_string()).collect();
        assert_eq!(listed(&texts), "0, 1, 2 and 2 more");
        assert_eq!(listed(&texts[..3]), "0, 1, 2");
    }
}
