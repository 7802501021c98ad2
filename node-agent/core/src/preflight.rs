//! Whether an agent that stands by could serve, and what it would advertise.

use crds::node::{Preflight, StandbyReport, StandbyResource};

use crate::report::Identity;
use crate::seen::Seen;

/// Longest texts and lists that the schema takes.
const REASON_MAX: usize = 1024;
const REASONS_MAX: usize = 32;

/// The slot of an agent that stands by; nothing until the agent has looked at everything.
pub fn standby_report(identity: &Identity, seen: &Seen) -> Option<StandbyReport> {
    let resources = seen.resources.iter().map(|(name, resource)| {
        let inventory = &resource.inventory;
        StandbyResource {
            name: name.clone(),
            total: count(inventory.total()),
            healthy: count(inventory.promised()),
            missing_allocated: count(inventory.missing_allocated()),
        }
    });
    Some(StandbyReport {
        revision: identity.revision.clone(),
        pod_uid: identity.pod_uid.clone(),
        agent_version: identity.agent_version.clone(),
        preflight: preflight(seen)?,
        resources: resources.collect(),
    })
}

/// What speaks against serving; nothing until it is known. Without the kubelet's word on who holds
/// devices, ids that would be missing cannot be counted.
pub fn preflight(seen: &Seen) -> Option<Preflight> {
    let answered = seen.pod_resources.as_ref()?;
    let mut reasons = Vec::new();
    if !seen.kubelet_socket {
        reasons.push("there is no kubelet.sock in the plugin directory".to_owned());
    }
    if let Err(error) = answered {
        reasons.push(format!(
            "the kubelet does not tell who holds devices: {error}"
        ));
    }
    if !seen.lock_error.is_empty() {
        reasons.push(seen.lock_error.clone());
    }
    for (name, resource) in &seen.resources {
        if !resource.discovery_error.is_empty() {
            reasons.push(format!("{name}: {}", resource.discovery_error));
        }
    }
    let ok = reasons.is_empty();
    let reasons = reasons.into_iter().take(REASONS_MAX);
    Some(Preflight {
        ok,
        reasons: reasons
            .map(|reason| reason.chars().take(REASON_MAX).collect())
            .collect(),
    })
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::ResourceSeen;

    fn good() -> Seen {
        Seen {
            kubelet_socket: true,
            pod_resources: Some(Ok(())),
            resources: [("a.com/x".to_owned(), ResourceSeen::default())].into(),
            ..Seen::default()
        }
    }

    #[test]
    fn nothing_is_told_before_everything_was_looked_at() {
        let unknown = Seen {
            pod_resources: None,
            ..good()
        };
        assert_eq!(standby_report(&Identity::default(), &unknown), None);
    }

    #[test]
    fn what_speaks_against_serving_is_named() {
        let check = |change: fn(&mut Seen), expected: &str| {
            let mut seen = good();
            change(&mut seen);
            let preflight = preflight(&seen).unwrap();
            let told = preflight.reasons.join("; ");
            assert_eq!(preflight.ok, expected.is_empty(), "{told}");
            assert!(told.contains(expected), "{told}");
        };
        check(|_| {}, "");
        check(|seen| seen.kubelet_socket = false, "kubelet.sock");
        check(
            |seen| seen.pod_resources = Some(Err("gone".to_owned())),
            "gone",
        );
        check(|seen| seen.lock_error = "read-only".to_owned(), "read-only");
        let broken = |seen: &mut Seen| {
            for resource in seen.resources.values_mut() {
                resource.discovery_error = "bad glob".to_owned();
            }
        };
        check(broken, "a.com/x: bad glob");
    }

    #[test]
    fn a_report_fits_its_schema() {
        let mut seen = good();
        for number in 0..40 {
            let resource = ResourceSeen {
                discovery_error: "ü".repeat(2_000),
                ..ResourceSeen::default()
            };
            seen.resources.insert(format!("a.com/{number}"), resource);
        }
        let reasons = preflight(&seen).unwrap().reasons;
        assert_eq!(reasons.len(), 32);
        assert_eq!(reasons[0].chars().count(), 1024);
    }
}
