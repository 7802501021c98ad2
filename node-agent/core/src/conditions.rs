//! The conditions of the node's object, and whether the agent's pod is ready.

use crds::conditions::{Desired, NodeCondition, NodeReason};

use crate::inventory::Inventory;
use crate::preflight::preflight;
use crate::report::{MESSAGE_MAX, listed, refusals, shortened};
use crate::role::Role;
use crate::seen::{ResourceSeen, Seen, Standing};

/// The conditions of the node's object.
pub fn conditions(seen: &Seen) -> Vec<Desired> {
    vec![
        device_manager_available(seen),
        registered(seen),
        devices_healthy(seen),
        contested(seen),
        phantom(seen),
    ]
}

fn desired(condition: NodeCondition, reason: NodeReason, status: bool, message: &str) -> Desired {
    Desired {
        type_: condition.as_str(),
        status,
        reason: reason.as_str(),
        message: shortened(message, MESSAGE_MAX),
    }
}

fn device_manager_available(seen: &Seen) -> Desired {
    let unreachable = seen
        .resources
        .values()
        .find_map(|resource| match &resource.standing {
            Standing::Unreachable(error) => Some(error),
            _ => None,
        });
    let (reason, status, message) = if !seen.kubelet_socket {
        (
            NodeReason::SocketMissing,
            false,
            "kubelet.sock is not in the plugin directory: check that the kubelet runs, and that the \
             chart's value devicePluginDir is its plugin directory (/var/lib/kubelet/device-plugins \
             unless the distribution moves it); no setting of the kubelet is needed, the Device \
             Manager is always on since Kubernetes 1.26"
                .to_owned(),
        )
    } else if let Some(error) = unreachable {
        (
            NodeReason::SocketRefused,
            false,
            format!(
                "kubelet.sock is in the plugin directory but does not answer ({error}): the kubelet \
                 is stopped or is starting; see its log, where the Device Manager tells when it \
                 starts to serve"
            ),
        )
    } else {
        (
            NodeReason::Available,
            true,
            "the kubelet's socket is there".to_owned(),
        )
    };
    desired(
        NodeCondition::DeviceManagerAvailable,
        reason,
        status,
        &message,
    )
}

fn registered(seen: &Seen) -> Desired {
    let waiting: Vec<(&String, &Standing)> = seen
        .resources
        .iter()
        .map(|(name, resource)| (name, &resource.standing))
        .filter(|(_, standing)| !standing.is_registered())
        .collect();
    let any = |is: fn(&Standing) -> bool| waiting.iter().any(|(_, standing)| is(standing));
    // The reason that a person must act on comes first.
    let reason = if waiting.is_empty() {
        NodeReason::Registered
    } else if any(|standing| matches!(standing, Standing::Foreign(_))) {
        NodeReason::ForeignPlugin
    } else if any(|standing| matches!(standing, Standing::Refused(_))) {
        NodeReason::RegistrationRefused
    } else {
        NodeReason::Registering
    };
    let message = if waiting.is_empty() {
        "the kubelet reads the devices of every resource".to_owned()
    } else {
        listed(&not_registered(seen))
    };
    desired(
        NodeCondition::Registered,
        reason,
        waiting.is_empty(),
        &message,
    )
}

fn not_registered(seen: &Seen) -> Vec<String> {
    seen.resources
        .iter()
        .filter(|(_, resource)| !resource.standing.is_registered())
        .map(|(name, resource)| format!("{name}: {}", resource.standing.message()))
        .collect()
}

fn devices_healthy(seen: &Seen) -> Desired {
    let about = |tell: fn(&ResourceSeen) -> String| -> Vec<String> {
        let told = seen
            .resources
            .iter()
            .map(|(name, resource)| (name, tell(resource)));
        told.filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| format!("{name}: {text}"))
            .collect()
    };
    let refused = about(|resource| refusals(&resource.inventory));
    let unhealthy = about(|resource| unhealthy_devices(&resource.inventory));
    let empty = about(|resource| match resource.discovery_error.as_str() {
        "" if resource.inventory.devices.is_empty() => "no device was found".to_owned(),
        error => error.to_owned(),
    });
    let too_few = about(too_few);
    let never_reset = about(never_reset);
    let sum = |of: fn(&Inventory) -> usize| {
        seen.resources
            .values()
            .map(|r| of(&r.inventory))
            .sum::<usize>()
    };
    let (total, healthy) = (sum(Inventory::total), sum(Inventory::healthy));
    let reason = if !never_reset.is_empty() {
        NodeReason::StartedWithoutReset
    } else if !too_few.is_empty() {
        NodeReason::TooFewDevices
    } else if !unhealthy.is_empty() {
        NodeReason::SomeUnhealthy
    } else if !refused.is_empty() {
        NodeReason::DevicesRefused
    } else if !empty.is_empty() {
        NodeReason::NoDevices
    } else {
        NodeReason::AllHealthy
    };
    let wrong = [never_reset, too_few, unhealthy, refused, empty].concat();
    let message = if wrong.is_empty() {
        format!("{healthy} of {total} devices are Healthy")
    } else {
        format!(
            "{healthy} of {total} devices are Healthy; {}",
            listed(&wrong)
        )
    };
    desired(
        NodeCondition::DevicesHealthy,
        reason,
        wrong.is_empty(),
        &message,
    )
}

fn too_few(seen: &ResourceSeen) -> String {
    let (healthy, minimum) = (seen.inventory.healthy(), seen.min_devices);
    if healthy >= minimum {
        return String::new();
    }
    format!("{healthy} Healthy, and minDevices is {minimum}")
}

fn never_reset(seen: &ResourceSeen) -> String {
    let ids: Vec<String> = seen
        .never_reset
        .iter()
        .map(|id| format!("{id:?}"))
        .collect();
    if ids.is_empty() {
        return String::new();
    }
    format!(
        "held by a container that may have started without a reset: {}",
        listed(&ids)
    )
}

fn unhealthy_devices(inventory: &Inventory) -> String {
    let unhealthy: Vec<String> = inventory
        .devices
        .iter()
        .filter(|(_, device)| device.health != crds::node::Health::Healthy)
        .map(|(id, device)| format!("{id:?} ({})", device.reason))
        .collect();
    listed(&unhealthy)
}

fn contested(seen: &Seen) -> Desired {
    let told: Vec<String> = seen
        .resources
        .iter()
        .filter(|(_, resource)| !resource.contested.is_empty())
        .map(|(name, resource)| format!("{name}: {}", resource.contested))
        .collect();
    let (reason, message) = if told.is_empty() {
        let message = "nobody else registers our resources".to_owned();
        (NodeReason::Uncontested, message)
    } else {
        (NodeReason::TakenOver, listed(&told))
    };
    desired(NodeCondition::Contested, reason, !told.is_empty(), &message)
}

fn phantom(seen: &Seen) -> Desired {
    let told: Vec<String> = seen
        .resources
        .iter()
        .filter(|(_, resource)| resource.phantom > 0)
        .map(|(name, resource)| format!("{name}: {} devices", resource.phantom))
        .collect();
    let (reason, message) = if told.is_empty() {
        let message = "the kubelet lists nothing that nobody serves".to_owned();
        (NodeReason::NoPhantom, message)
    } else {
        let message = format!(
            "the kubelet lists devices that no plugin serves ({}); only its restart removes them: \
             restart the kubelet of this node when it suits",
            listed(&told)
        );
        (NodeReason::StaleRegistration, message)
    };
    desired(
        NodeCondition::PhantomResource,
        reason,
        !told.is_empty(),
        &message,
    )
}

/// Whether the agent does all its work: the kubelet reads the list of every resource, or it is known
/// whether it could.
///
/// # Errors
/// What it waits for.
pub fn readiness(seen: &Seen) -> Result<(), String> {
    match seen.part.role {
        Role::Active | Role::Kept => {
            let waiting = not_registered(seen);
            if waiting.is_empty() {
                Ok(())
            } else {
                Err(waiting.join("\n"))
            }
        }
        Role::Standby => match preflight(seen) {
            Some(_) => Ok(()),
            None => Err("standing by: the kubelet was not asked yet who holds devices".to_owned()),
        },
        Role::Leaving => Err("another revision serves from now on".to_owned()),
        Role::Idle => Err("the node's object names other revisions than this agent's".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Refusal;
    use crate::report::tests::{HEALTHY, at, resource, seen};
    use crds::node::Health;
    use std::sync::Arc;

    fn condition(seen: &Seen, index: usize) -> (bool, &'static str, String) {
        let condition = conditions(seen).remove(index);
        (condition.status, condition.reason, condition.message)
    }

    #[test]
    fn the_kubelets_socket_is_explained() {
        let mut watched = seen(vec![resource(Standing::Watching(at(1)), &[HEALTHY])]);
        assert!(condition(&watched, 0).0);
        watched.kubelet_socket = false;
        let (status, reason, message) = condition(&watched, 0);
        assert_eq!((status, reason), (false, "SocketMissing"));
        assert!(message.contains("devicePluginDir"), "{message}");
        let refused = seen(vec![resource(
            Standing::Unreachable("os error 111".to_owned()),
            &[],
        )]);
        let (status, reason, message) = condition(&refused, 0);
        assert_eq!((status, reason), (false, "SocketRefused"));
        assert!(message.contains("os error 111"), "{message}");
    }

    #[test]
    fn the_reason_that_needs_a_person_comes_first() {
        let check = |standings: Vec<Standing>, expected: (bool, &str)| {
            let seen = seen(
                standings
                    .into_iter()
                    .map(|s| resource(s, &[HEALTHY]))
                    .collect(),
            );
            let (status, reason, message) = condition(&seen, 1);
            assert_eq!((status, reason), expected, "{message}");
            assert_eq!(readiness(&seen).is_ok(), expected.0);
        };
        check(
            vec![Standing::Watching(at(1)), Standing::Watching(at(2))],
            (true, "Registered"),
        );
        check(
            vec![Standing::Watching(at(1)), Standing::AwaitingStream],
            (false, "Registering"),
        );
        check(
            vec![Standing::Registering, Standing::Refused("x".to_owned())],
            (false, "RegistrationRefused"),
        );
        check(
            vec![
                Standing::Refused("x".to_owned()),
                Standing::Foreign("y".to_owned()),
            ],
            (false, "ForeignPlugin"),
        );
    }

    #[test]
    fn devices_are_judged_with_names() {
        let mut one = resource(Standing::Watching(at(1)), &[HEALTHY, HEALTHY]);
        let healthy = seen(vec![one.clone()]);
        assert_eq!(
            condition(&healthy, 2),
            (true, "AllHealthy", "2 of 2 devices are Healthy".to_owned())
        );
        let reason = "is a block device (8:0)".to_owned();
        Arc::make_mut(&mut one.inventory).refusals = vec![Refusal {
            path: "/dev/sda".to_owned(),
            reason,
        }];
        let (status, reason, message) = condition(&seen(vec![one.clone()]), 2);
        assert_eq!((status, reason), (false, "DevicesRefused"));
        assert!(
            message.contains(r#""/dev/sda" is a block device (8:0)"#),
            "{message}"
        );
        let sick = resource(Standing::Watching(at(1)), &[(Health::Unhealthy, false)]);
        let (status, reason, message) = condition(&seen(vec![one, sick]), 2);
        assert_eq!((status, reason), (false, "SomeUnhealthy"));
        assert!(
            message.contains(r#"example.com/r1: "id0" (device node is gone)"#),
            "{message}"
        );
        let (status, reason, message) =
            condition(&seen(vec![resource(Standing::Registering, &[])]), 2);
        assert_eq!((status, reason), (false, "NoDevices"));
        assert!(
            message.ends_with("example.com/r0: no device was found"),
            "{message}"
        );
    }

    #[test]
    fn who_takes_over_and_what_stays_is_named() {
        let mut one = resource(Standing::Watching(at(1)), &[HEALTHY]);
        let calm = seen(vec![one.clone()]);
        assert_eq!(
            (condition(&calm, 3).0, condition(&calm, 3).1),
            (false, "Uncontested")
        );
        assert_eq!(
            (condition(&calm, 4).0, condition(&calm, 4).1),
            (false, "NoPhantom")
        );
        one.contested = "taken over by x.sock".to_owned();
        one.phantom = 3;
        let seen = seen(vec![one]);
        let (status, reason, message) = condition(&seen, 3);
        assert_eq!((status, reason), (true, "TakenOver"));
        assert!(
            message.contains("example.com/r0: taken over by x.sock"),
            "{message}"
        );
        let (status, reason, message) = condition(&seen, 4);
        assert_eq!((status, reason), (true, "StaleRegistration"));
        assert!(
            message.contains("example.com/r0: 3 devices")
                && message.contains("restart the kubelet"),
            "{message}"
        );
    }

    #[test]
    fn a_standby_is_ready_when_it_knows_whether_it_could_serve() {
        let mut seen = seen(vec![resource(Standing::StandingBy, &[HEALTHY])]);
        seen.part.role = Role::Standby;
        assert!(readiness(&seen).is_err());
        seen.pod_resources = Some(Err("no such file".to_owned()));
        assert!(readiness(&seen).is_ok(), "also when it could not");
        for role in [Role::Leaving, Role::Idle, Role::Active, Role::Kept] {
            seen.part.role = role;
            assert!(readiness(&seen).is_err(), "{role:?}");
        }
    }
}
