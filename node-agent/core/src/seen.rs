//! What the agent's parts have seen so far: what reports, conditions and readiness are made from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::node::LastHook;
use jiff::Timestamp;

use crate::inventory::Inventory;
use crate::role::Role;

/// Everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// Whether the kubelet's socket is in the plugin directory.
    pub kubelet_socket: bool,
    /// What the agent is on this node.
    pub part: Part,
    /// Whether the kubelet tells who holds devices, or why not; nothing until it was asked.
    pub pod_resources: Option<Result<(), String>>,
    /// Why locks cannot be taken on this host; empty otherwise.
    pub lock_error: String,
    /// The hook that ended last.
    pub last_hook: Option<LastHook>,
    /// The config's resources by name.
    pub resources: BTreeMap<String, ResourceSeen>,
}

/// What the agent is on its node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part {
    /// Its role.
    pub role: Role,
    /// Whether it holds the role lock and goes on holding it: it alone tells what is served here.
    pub holds: bool,
    /// Whether it holds its revision's lock: of two processes of one revision, one alone tells how it
    /// stands by.
    pub shown: bool,
}

impl Default for Part {
    fn default() -> Self {
        Self {
            role: Role::Idle,
            holds: false,
            shown: true,
        }
    }
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
    /// Why the container runtime cannot be told of its devices; empty otherwise.
    pub cdi_error: String,
    /// With fewer Healthy devices the node counts as degraded.
    pub min_devices: usize,
    /// Devices of containers that may have started without their reset.
    pub never_reset: BTreeSet<String>,
    /// The kubelet's own list, once it was read after the stream opened.
    pub kubelet: Option<KubeletSeen>,
    /// Who takes the resource over again and again, in words; empty if nobody does.
    pub contested: String,
    /// How many devices the kubelet lists that nobody serves.
    pub phantom: usize,
}

/// The kubelet's own list of a resource.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KubeletSeen {
    /// Devices in it.
    pub devices: usize,
    /// Whether they are the Healthy ones that were sent.
    pub matches: bool,
    /// Since when that is so, or is not so; in whole seconds.
    pub since: Timestamp,
    /// Whether it was read long enough after the stream opened.
    pub read_after_stream: bool,
}

/// Where a registration stands, in words for users.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Standing {
    /// It is being prepared or is under way.
    #[default]
    Registering,
    /// It is not this agent's turn.
    StandingBy,
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
            Self::StandingBy => "this agent stands by".to_owned(),
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
