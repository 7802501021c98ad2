//! Condition types and reasons, a closed set: each is explained in docs/operations.md, which a
//! test compares with this file.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every one of them, for the tests that compare them with the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Types of conditions on a `DevicePluginConfig`.
    ConfigCondition {
        /// Whether the spec can be acted on.
        Accepted,
        /// Whether every selected node serves the target revision.
        Ready,
        /// Whether a rollout is under way.
        Progressing,
        /// Whether something is wrong that somebody should look at.
        Degraded,
    }
}

words! {
    /// Reasons of conditions on a `DevicePluginConfig`.
    ConfigReason {
        /// The spec is valid and selects nodes.
        Accepted,
        /// The spec cannot be acted on; the message names field and value.
        InvalidSpec,
        /// Neither selector is given, or it is empty: nothing is selected.
        NoSelector,
        /// `machineConfigPoolSelector` matches no pool.
        NoMatchingPools,
        /// The selection matches no node now; agents come with the first node that matches.
        NoMatchingNodes,
        /// Every selected node serves the target revision.
        Complete,
        /// Agents are starting on selected nodes, or a changed config spreads over them.
        RollingOut,
        /// A changed config waits for a new agent to prove itself.
        Soaking,
        /// A changed config waits because `rollout.paused` says so.
        Paused,
        /// A changed config cannot be rolled out; the message says why.
        Blocked,
        /// The ledger holds as many claims as it can; the change waits for some to end.
        LedgerFull,
        /// The DaemonSet controller has not made a pod that is waited for.
        ActuatorSlow,
        /// A node is being brought back to the revision that it served before.
        RollingBack,
        /// A changed config failed on a node, and no further node is changed.
        Halted,
        /// A node serves neither the new nor the old revision.
        Quarantined,
        /// Another plugin takes a resource over again and again.
        Contested,
        /// A kubelet lists devices that no plugin serves.
        PhantomResource,
        /// The config is being deleted.
        Deleting,
        /// Agents fail on some nodes.
        NodesFailed,
        /// Kubernetes cannot reach some selected nodes.
        NodesUnreachable,
        /// Some selected nodes do not serve the target revision yet.
        NodesNotReady,
        /// Some nodes were left out of a change, because the new agent could not run there.
        NodesSkipped,
        /// Something else serves one of the resources on some nodes.
        ForeignPlugin,
        /// A resource has no device on any node.
        NoDevices,
        /// Devices are Unhealthy.
        DevicesUnhealthy,
        /// A node has fewer Healthy devices of a resource than `minDevices`.
        TooFewDevices,
        /// The operator could not write an object; the message says which and why.
        WriteFailed,
        /// Nothing is wrong.
        AsExpected,
    }
}

words! {
    /// Types of conditions on a `DevicePluginNode`.
    NodeCondition {
        /// Whether the kubelet's Device Manager answers at its socket.
        DeviceManagerAvailable,
        /// Whether every resource is registered at the kubelet.
        Registered,
        /// Whether every device is Healthy.
        DevicesHealthy,
        /// Whether another plugin takes a resource over again and again.
        Contested,
        /// Whether the kubelet lists devices of a resource that no plugin serves.
        PhantomResource,
    }
}

words! {
    /// Reasons of conditions on a `DevicePluginNode`.
    NodeReason {
        /// The kubelet's socket answers.
        Available,
        /// The plugin directory holds no kubelet socket.
        SocketMissing,
        /// The kubelet's socket does not answer.
        SocketRefused,
        /// Every resource is registered and its list is read.
        Registered,
        /// Registration is under way or is being tried again.
        Registering,
        /// The kubelet refused a registration.
        RegistrationRefused,
        /// Something else serves the resource on this node.
        ForeignPlugin,
        /// Every device is Healthy.
        AllHealthy,
        /// Some devices are Unhealthy.
        SomeUnhealthy,
        /// Fewer devices are Healthy than the config wants.
        TooFewDevices,
        /// A container may have started with a device that was not reset for it.
        StartedWithoutReset,
        /// No device was found for some resource.
        NoDevices,
        /// Device nodes were refused for what they are.
        DevicesRefused,
        /// Nobody else registers our resources.
        Uncontested,
        /// The kubelet's list keeps being replaced by another plugin's.
        TakenOver,
        /// The kubelet lists nothing that nobody serves.
        NoPhantom,
        /// The kubelet lists devices that nobody serves; only its restart removes them.
        StaleRegistration,
    }
}

/// A condition as it should be, before it is merged with what is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Desired {
    /// The type.
    pub type_: &'static str,
    /// `True`, or `False`.
    pub status: bool,
    /// The reason.
    pub reason: &'static str,
    /// A sentence for the user.
    pub message: String,
}

/// Merges conditions by type: the time of a condition moves only when its status changes.
pub fn merged(
    present: &[Condition],
    desired: &[Desired],
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    desired
        .iter()
        .map(|desired| {
            let status = if desired.status { "True" } else { "False" };
            let since = present
                .iter()
                .find(|old| old.type_ == desired.type_ && old.status == status)
                .map_or_else(|| now.clone(), |old| old.last_transition_time.clone());
            Condition {
                type_: desired.type_.to_owned(),
                status: status.to_owned(),
                reason: desired.reason.to_owned(),
                message: desired.message.clone(),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap_or_default())
    }

    fn desired(status: bool, reason: &'static str) -> Desired {
        Desired {
            type_: "Ready",
            status,
            reason,
            message: String::new(),
        }
    }

    #[test]
    fn time_moves_only_when_the_status_changes() {
        let first = merged(&[], &[desired(false, "RollingOut")], Some(1), &at(10));
        let reworded = merged(&first, &[desired(false, "NodesFailed")], Some(2), &at(20));
        assert_eq!(reworded[0].last_transition_time, at(10));
        assert_eq!(
            (reworded[0].reason.as_str(), reworded[0].observed_generation),
            ("NodesFailed", Some(2))
        );
        let turned = merged(&reworded, &[desired(true, "Complete")], Some(2), &at(30));
        assert_eq!(turned[0].last_transition_time, at(30));
    }
}
