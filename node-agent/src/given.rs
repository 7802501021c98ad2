//! Which devices were named in Allocate or PreStartContainer a short while ago. The kubelet tells of
//! a pod's devices only once the pod is active: until then they look free, and must not be touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by those who give devices out and those who look after them.
#[derive(Clone, Debug)]
pub struct Given {
    named: Arc<Mutex<Named>>,
    /// How long it matters.
    memory: Duration,
}

#[derive(Debug, Default)]
struct Named {
    at: BTreeMap<String, Instant>,
    allocated: BTreeMap<String, Instant>,
}

impl Given {
    /// Nothing was given yet.
    pub fn new(memory: Duration) -> Self {
        Self {
            named: Arc::default(),
            memory,
        }
    }

    /// Allocate has given these to a container.
    pub fn allocated<'a>(&self, devices: impl Iterator<Item = &'a str>) {
        let now = Instant::now();
        let mut named = self.lock();
        for device in devices {
            named.at.insert(device.to_owned(), now);
            named.allocated.insert(device.to_owned(), now);
        }
    }

    /// PreStartContainer has named this one.
    pub fn prepared(&self, device: &str) {
        self.lock().at.insert(device.to_owned(), Instant::now());
    }

    /// Those that Allocate has given since the last call, and when.
    pub fn newly_allocated(&self) -> BTreeMap<String, Instant> {
        std::mem::take(&mut self.lock().allocated)
    }

    /// Those that still matter.
    pub fn recent(&self) -> BTreeSet<String> {
        let now = Instant::now();
        let mut named = self.lock();
        let matters = |at: &Instant| now.saturating_duration_since(*at) < self.memory;
        named.at.retain(|_, at| matters(at));
        named.at.keys().cloned().collect()
    }

    /// The maps are whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, Named> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
