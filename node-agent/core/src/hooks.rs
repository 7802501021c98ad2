//! What hooks have done to a device, and what is still to be done.
//!
//! How a hook is run, and where what is remembered is kept, is not known here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pace::Pace;

/// What is remembered on the host of the devices of one resource, over restarts of the agent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// The boot that `initialised` is about: another one starts with devices that nobody prepared.
    pub boot_id: String,
    /// Devices that `init` has prepared, and the hash of the hook that did.
    pub initialised: BTreeMap<String, String>,
    /// Devices that a container holds or held, and that were not released since.
    pub used: BTreeSet<String>,
    /// Devices that were reset since they were given to a container.
    pub reset: BTreeSet<String>,
}

impl Record {
    /// Whether `init` of this hash has prepared a device in this boot.
    pub fn is_initialised(&self, id: &str, boot_id: &str, hash: &str) -> bool {
        self.boot_id == boot_id && self.initialised.get(id).is_some_and(|done| done == hash)
    }

    /// Remembers that it has.
    pub fn initialised(&mut self, id: &str, boot_id: &str, hash: &str) {
        if self.boot_id != boot_id {
            self.initialised.clear();
            boot_id.clone_into(&mut self.boot_id);
        }
        self.initialised.insert(id.to_owned(), hash.to_owned());
    }
}

/// How often something has failed in a row, and when it may be tried again.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Trials {
    failures: u32,
    again_at: Duration,
    error: Option<String>,
}

impl Trials {
    /// Why it failed last, until it succeeds.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// When it may be tried, as time since the start of the process.
    pub(crate) fn not_before(&self) -> Duration {
        self.again_at
    }

    /// Whether a failure is so recent that it still counts, should the device come back.
    pub(crate) fn is_remembered(&self, now: Duration, pace: Pace) -> bool {
        self.error.is_some() && now < self.again_at.saturating_add(pace.limit)
    }

    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn failed(&mut self, error: &str, now: Duration, pace: Pace) {
        self.failures = self.failures.saturating_add(1);
        self.again_at = now.saturating_add(pace.wait(self.failures, 0.0));
        self.error = Some(error.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_or_another_hook_begins_anew() {
        let mut record = Record::default();
        record.initialised("a", "boot-1", "h1");
        record.initialised("b", "boot-1", "h2");
        assert!(record.is_initialised("a", "boot-1", "h1"));
        assert!(!record.is_initialised("a", "boot-1", "h2"));
        assert!(!record.is_initialised("a", "boot-2", "h1"));
        assert!(!record.is_initialised("c", "boot-1", "h1"));
        record.initialised("b", "boot-2", "h2");
        assert!(!record.is_initialised("a", "boot-1", "h1"));
        assert!(record.is_initialised("b", "boot-2", "h2"));
    }

    #[test]
    fn failures_wait_longer_and_longer() {
        let pace = Pace {
            first: Duration::from_secs(10),
            limit: Duration::from_secs(25),
        };
        let mut trials = Trials::default();
        let mut waits = Vec::new();
        for _ in 0..3 {
            trials.failed("x", Duration::from_secs(100), pace);
            waits.push(trials.not_before().as_secs());
        }
        assert_eq!(waits, [110, 120, 125]);
        assert_eq!(trials.error(), Some("x"));
        trials.succeeded();
        assert_eq!(
            (trials.error(), trials.not_before()),
            (None, Duration::ZERO)
        );
    }
}
