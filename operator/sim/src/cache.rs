//! What a process knows of a kind: what its watch has brought, and its own writes that the watch
//! has not brought yet. It behaves as the operator's store does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use operator_core::seen::Identity;

use crate::api::{Change, Object, Shelf};

/// The objects of a kind, as a process knows them.
#[derive(Clone, Debug)]
pub struct Cache<T> {
    objects: BTreeMap<String, Arc<T>>,
    /// Objects that the process has deleted itself and that the watch still tells of.
    buried: BTreeSet<String>,
    /// How many changes of the log it has been told of.
    cursor: usize,
    /// The highest version that was brought.
    brought: u64,
    /// Whether the first list has come.
    pub listed: bool,
    /// When the last change that is under way arrives: none overtakes it.
    pub due: Duration,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            buried: BTreeSet::new(),
            cursor: 0,
            brought: 0,
            listed: false,
            due: Duration::ZERO,
        }
    }
}

impl<T: Object> Cache<T> {
    /// The objects.
    pub fn objects(&self) -> BTreeMap<String, Arc<T>> {
        self.objects.clone()
    }

    /// How much of the log is known.
    pub fn cursor(&self) -> usize {
        self.cursor
    }

    /// A whole list. Whether there is anything new in it.
    pub fn list(&mut self, shelf: &Shelf<T>, version: u64) -> bool {
        let before = std::mem::take(&mut self.objects);
        self.objects.clone_from(&shelf.objects);
        self.buried.clear();
        self.cursor = shelf.log.len();
        self.brought = version;
        let was_listed = std::mem::replace(&mut self.listed, true);
        !was_listed || before.len() != self.objects.len() || before != self.objects
    }

    /// Changes that the watch has brought, up to a place in the log; where `lost`, they never come.
    pub fn deliver(&mut self, log: &[Change<T>], upto: usize, lost: bool) -> bool {
        let mut news = false;
        let from = self.cursor;
        for change in log.get(from..upto).into_iter().flatten() {
            news |= !lost && self.apply(change);
        }
        self.cursor = self.cursor.max(upto);
        news
    }

    fn apply(&mut self, change: &Change<T>) -> bool {
        self.brought = self.brought.max(change.version);
        let Some(object) = &change.object else {
            self.buried.remove(&change.uid);
            let present = self.objects.get(&change.name);
            let is_it = present.is_some_and(|one| one.identity().uid == change.uid);
            if is_it {
                self.objects.remove(&change.name);
            }
            return is_it;
        };
        self.keep(object.clone())
    }

    fn keep(&mut self, object: Arc<T>) -> bool {
        let id = object.identity();
        if self.buried.contains(&id.uid) {
            return false;
        }
        let present = self.objects.get(&id.name).map(|one| one.identity());
        if present.is_some_and(|present| version(&present) >= version(&id)) {
            return false;
        }
        self.objects.insert(id.name, object);
        true
    }

    /// The answer to a write.
    pub fn answer(&mut self, object: Arc<T>) -> bool {
        let id = object.identity();
        let is_gone = !self.objects.contains_key(&id.name) && version(&id) <= self.brought;
        !is_gone && self.keep(object)
    }

    /// The process has deleted an object.
    pub fn bury(&mut self, on: &Identity) {
        let present = self.objects.get(&on.name).map(|one| one.identity().uid);
        if present.as_ref() == Some(&on.uid) {
            self.objects.remove(&on.name);
            self.buried.insert(on.uid.clone());
        }
    }
}

fn version(id: &Identity) -> u64 {
    id.version.parse().unwrap_or(u64::MAX)
}
