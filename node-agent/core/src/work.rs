//! What can be done to the devices of a resource, and what of that a config wants.

use std::time::Duration;

use crds::health::{HealthCheck, HealthCheckType};

use crate::health::Thresholds;
use crate::pace::Pace;

/// What can be done to a device.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Work {
    /// See whether it is well.
    Probe,
    /// Prepare it before it is first advertised.
    Init,
    /// Reset it before a container starts with it.
    Reset,
    /// Clean it after its container has ended.
    Release,
}

impl Work {
    /// The word in reports and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Init => "init",
            Self::Reset => "reset",
            Self::Release => "release",
        }
    }
}

/// How devices are probed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Probes {
    /// What changes a judgement.
    pub thresholds: Thresholds,
    /// Whether a probe would disturb a container that holds the device.
    pub only_free: bool,
    /// How many run at once, at least two.
    pub at_once: usize,
}

impl Probes {
    /// How a health check probes; nothing where the existence of a device is enough.
    pub fn of(check: &HealthCheck) -> Option<Self> {
        let (only_free, at_once) = match check.type_ {
            HealthCheckType::Exists => return None,
            // Reads of a file: each that runs needs a thread.
            HealthCheckType::SysfsEquals => (false, 2),
            // Processes elsewhere: more would load a node with thousands of devices all the time.
            HealthCheckType::Exec => (false, 8),
            HealthCheckType::Open => (true, 8),
        };
        Some(Self {
            thresholds: Thresholds::of(check),
            only_free,
            at_once,
        })
    }
}

/// What a config wants done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// How devices are probed; nothing: their existence is enough.
    pub probes: Option<Probes>,
    /// The hash of the `init` hook, if there is one.
    pub init: Option<String>,
    /// Whether there is a `reset` hook.
    pub reset: bool,
    /// Whether there is a `release` hook.
    pub release: bool,
    /// The boot of the node.
    pub boot_id: String,
    /// Waits after a hook failed.
    pub pace: Pace,
    /// How long after a registration a container that held its device before may still be waiting
    /// for its reset.
    pub reset_grace: Duration,
}

impl Rules {
    /// Whether there is any hook.
    pub fn has_hooks(&self) -> bool {
        self.init.is_some() || self.reset || self.release
    }

    /// Whether a hook decides which device may be given out: then only who runs it can tell.
    pub(crate) fn has_gate(&self) -> bool {
        self.init.is_some() || self.release
    }
}
