//! What the agent's parts have seen so far: what reports, conditions and readiness are made from.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::inventory::Inventory;

/// Everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// Whether the kubelet's socket is in the plugin directory.
    pub kubelet_socket: bool,
    /// The config's resources by name.
    pub resources: BTreeMap<String, ResourceSeen>,
}

/// One resource.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ResourceSeen {
    /// Where its registration stands.
    pub standing: Standing,
    /// How often it was registered.
    pub registrations: u32,
    /// Its devices.
    pub inventory: Arc<Inventory>,
    /// Why its devices cannot be looked for at all; empty otherwise.
    pub discovery_error: String,
}

/// Where a registration stands, in words for users.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Standing {
    /// It is being prepared or is under way.
    #[default]
    Registering,
    /// The kubelet's socket is missing.
    AwaitingKubelet,
    /// Another process of this config still holds the resource's lock.
    AwaitingLock,
    /// The kubelet's list cannot be read; what to tell.
    Unreadable(String),
    /// Somebody else serves the resource; what to tell.
    Foreign(String),
    /// The kubelet does not answer; the error.
    Unreachable(String),
    /// The kubelet refused, or our server could not start; the error.
    Refused(String),
    /// The kubelet accepted and has not asked for the list yet.
    AwaitingStream,
    /// The kubelet has read the list since.
    Watching(Timestamp),
}

impl Standing {
    /// Whether the kubelet has the resource.
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Watching(_))
    }

    /// Why the resource is not registered; empty when it is.
    pub fn message(&self) -> String {
        match self {
            Self::Registering => "registration is under way".to_owned(),
            Self::AwaitingKubelet => "waiting for the kubelet's socket".to_owned(),
            Self::AwaitingLock => {
                "waiting for the agent that served this resource until now to leave".to_owned()
            }
            Self::Unreadable(told) | Self::Foreign(told) => told.clone(),
            Self::Unreachable(error) => format!("the kubelet does not answer: {error}"),
            Self::Refused(error) => format!("registration failed: {error}"),
            Self::AwaitingStream => {
                "the kubelet accepted the registration and has not asked for the devices yet"
                    .to_owned()
            }
            Self::Watching(_) => String::new(),
        }
    }
}
