//! What the host has for a rule: its `/dev` and its sysfs in one look.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use node_agent_core::discovery::{Candidate, Look, Numbers, Target};
use node_agent_core::rule::{Rule, Wanted};
use node_agent_core::sight::Sight;
use node_agent_core::uevent::Uevent;

use crate::host_dev::{self, HostDev};
use crate::sysfs::{Sights, Sysfs};

/// The host's devices, for one resource.
pub struct HostDevices {
    dev: HostDev,
    sysfs: Sysfs,
    behind: Arc<Behind>,
}

/// What sysfs has of device nodes. It stays as it is until the kernel tells of the device; where
/// nobody hears the kernel, it is read again each time.
#[derive(Debug, Default)]
pub struct Behind {
    is_told: bool,
    known: Mutex<BTreeMap<Numbers, Option<Arc<Sight>>>>,
}

impl Behind {
    /// Nothing known yet. `is_told`: whether [`Self::forget`] will be told of changes.
    pub fn new(is_told: bool) -> Self {
        Self {
            is_told,
            ..Self::default()
        }
    }

    /// Forgets what a change may have made wrong, or everything; tells whether that was something.
    pub fn forget(&self, event: Option<&Uevent>) -> bool {
        let mut known = self.lock();
        match event {
            None => {
                known.clear();
                true
            }
            Some(event) => event
                .numbers
                .is_some_and(|numbers| known.remove(&numbers).is_some()),
        }
    }

    fn sight(&self, numbers: Numbers, sysfs: &Sysfs) -> Option<Arc<Sight>> {
        if let Some(sight) = self.lock().get(&numbers) {
            return sight.clone();
        }
        let sight = match sysfs.behind(numbers) {
            Ok(sight) => Some(Arc::new(sight)),
            Err(None) => None,
            // It may be readable the next time.
            Err(Some(error)) => {
                let (major, minor) = numbers;
                tracing::debug!(major, minor, error, "failed to look at a device");
                return None;
            }
        };
        if self.is_told {
            self.lock().insert(numbers, sight.clone());
        }
        sight
    }

    /// The map is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Numbers, Option<Arc<Sight>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostDevices {
    /// The devices in these places.
    pub fn new(dev: HostDev, sysfs: Sysfs, behind: Arc<Behind>) -> Self {
        Self { dev, sysfs, behind }
    }

    /// Looks for what a rule matches, and tells in which directories, at their places here, a change
    /// can change the result. `entering` is called with each of them before it is looked into.
    pub fn look(&self, rule: &Rule, entering: impl Fn(&Path)) -> (Look, BTreeSet<PathBuf>) {
        let host_dev::Look {
            candidates,
            unreadable,
            mut directories,
        } = self.dev.look(rule, &entering);
        if let Wanted::Subsystem {
            properties: true, ..
        } = rule.wanted()
        {
            let udev = self.sysfs.udev_data();
            entering(&udev);
            directories.insert(udev);
        }
        let Sights {
            mut sights,
            mut unknown,
        } = self.sysfs.look(rule);
        unknown.directories.extend(unreadable);
        let parents = sights.iter().flat_map(|sight| &sight.nodes);
        let parents = parents.filter_map(|node| self.dev.parent(&node.path));
        let parents: BTreeSet<PathBuf> = parents.collect();
        for parent in &parents {
            entering(parent);
        }
        // What happened before a directory was watched is told by nobody.
        for node in sights.iter_mut().flat_map(|sight| &mut sight.nodes) {
            node.target = self.dev.target(&node.path);
        }
        directories.extend(parents);
        let look = Look {
            behind: self.behind(&candidates),
            candidates,
            sights,
            unknown,
        };
        (look, directories)
    }

    fn behind(&self, candidates: &[Candidate]) -> BTreeMap<Numbers, Arc<Sight>> {
        let numbers = |candidate: &Candidate| match &candidate.target {
            Target::Device { major, minor, .. } => Some((*major, *minor)),
            Target::Other(_) | Target::Outside(_) | Target::Unreadable(_) => None,
        };
        let numbers: BTreeSet<Numbers> = candidates.iter().filter_map(numbers).collect();
        let sight = |one: Numbers| Some((one, self.behind.sight(one, &self.sysfs)?));
        numbers.into_iter().filter_map(sight).collect()
    }
}
