//! What is known of one kind of object: what the watch brought, and the operator's own writes that
//! it has not brought yet, so that nothing is written twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use operator_core::seen::Identity;
use tokio::sync::Notify;

/// An object as it is kept.
pub trait Watched {
    /// Which one it is, and which version of it.
    fn id(&self) -> Identity;

    /// Whether the other says nothing new to a decision.
    fn is_same(&self, other: &Self) -> bool;
}

/// How a watch fares.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Health {
    /// The first list has not come yet.
    Starting,
    /// What is known is as fresh as a watch can be.
    Synced,
    /// The kind is not served.
    Missing,
    /// The API server refuses, or cannot be reached; in words.
    Failing(String),
}

/// The objects of one kind, by name.
#[derive(Debug)]
pub struct Store<T> {
    state: Mutex<State<T>>,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct State<T> {
    objects: BTreeMap<String, Held<T>>,
    /// UIDs of objects that the operator deleted and whose end the watch has not told yet.
    buried: BTreeSet<String>,
    health: Health,
}

#[derive(Debug)]
struct Held<T> {
    object: Arc<T>,
    uid: String,
    version: u64,
}

impl<T: Watched> Store<T> {
    /// Knows nothing yet; tells `wake` what is new.
    pub fn new(wake: Arc<Notify>) -> Self {
        Self {
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                buried: BTreeSet::new(),
                health: Health::Starting,
            }),
            wake,
        }
    }

    /// How the watch fares.
    pub fn health(&self) -> Health {
        self.lock().health.clone()
    }

    /// The objects now.
    pub fn objects(&self) -> BTreeMap<String, Arc<T>> {
        let state = self.lock();
        let objects = state.objects.iter();
        objects
            .map(|(name, held)| (name.clone(), held.object.clone()))
            .collect()
    }

    /// Notes how the watch fares.
    pub fn set_health(&self, health: Health) {
        let mut state = self.lock();
        if health == Health::Missing {
            // With its definition, every object of a kind is gone.
            state.objects.clear();
            state.buried.clear();
        }
        if state.health != health {
            state.health = health;
            self.wake.notify_one();
        }
    }

    /// A whole list at one version. What was written after it stays.
    pub fn replace(&self, list: Vec<T>, version: u64) {
        let mut state = self.lock();
        let listed: BTreeSet<_> = list.iter().map(|object| object.id().uid).collect();
        let before = state.objects.len();
        state
            .objects
            .retain(|_, held| listed.contains(&held.uid) || held.version > version);
        state.buried.retain(|uid| listed.contains(uid));
        let mut is_new = state.objects.len() != before;
        for object in list {
            is_new |= state.apply(object);
        }
        if is_new || state.health != Health::Synced {
            state.health = Health::Synced;
            self.wake.notify_one();
        }
    }

    /// A version of an object, from the watch or from the answer to a write. An older one than the
    /// one that is known is ignored.
    pub fn apply(&self, object: T) {
        if self.lock().apply(object) {
            self.wake.notify_one();
        }
    }

    /// The watch told that an object is gone.
    pub fn remove(&self, id: &Identity) {
        let mut state = self.lock();
        state.buried.remove(&id.uid);
        if state.take(id) {
            self.wake.notify_one();
        }
    }

    /// The operator deleted an object: it is gone whatever the watch still tells of it.
    pub fn bury(&self, id: &Identity) {
        let mut state = self.lock();
        if state.take(id) {
            state.buried.insert(id.uid.clone());
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while it holds the lock; if something did, the maps would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Watched> State<T> {
    /// Whether it was news.
    fn apply(&mut self, object: T) -> bool {
        let id = object.id();
        if self.buried.contains(&id.uid) {
            return false;
        }
        // Resource versions are numbers that grow; one that is not is always taken as news.
        let version = id.version.parse().unwrap_or(u64::MAX);
        if let Some(held) = self.objects.get(&id.name) {
            let is_older = version != u64::MAX && version <= held.version;
            if is_older {
                return false;
            }
            let is_same = held.uid == id.uid && held.object.is_same(&object);
            self.insert(id, object, version);
            return !is_same;
        }
        self.insert(id, object, version);
        true
    }

    fn insert(&mut self, id: Identity, object: T, version: u64) {
        let held = Held {
            object: Arc::new(object),
            uid: id.uid,
            version: if version == u64::MAX { 0 } else { version },
        };
        self.objects.insert(id.name, held);
    }

    fn take(&mut self, id: &Identity) -> bool {
        let is_it = self
            .objects
            .get(&id.name)
            .is_some_and(|held| held.uid == id.uid);
        if is_it {
            self.objects.remove(&id.name);
        }
        is_it
    }
}
