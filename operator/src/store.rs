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
    /// The highest version that the list or the watch has brought.
    brought: u64,
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
                brought: 0,
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
        state.bring(version);
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

    /// A version of an object, from the watch. An older one than the one that is known is ignored.
    pub fn apply(&self, object: T) {
        let mut state = self.lock();
        state.bring(version(&object.id()));
        if state.apply(object) {
            self.wake.notify_one();
        }
    }

    /// The answer to a write. An object that is not known although the watch is past this version
    /// of it has been deleted meanwhile.
    pub fn answer(&self, object: T) {
        let mut state = self.lock();
        let id = object.id();
        let is_gone = !state.objects.contains_key(&id.name) && version(&id) <= state.brought;
        if !is_gone && state.apply(object) {
            self.wake.notify_one();
        }
    }

    /// The watch told that an object is gone.
    pub fn remove(&self, id: &Identity) {
        let mut state = self.lock();
        state.bring(version(id));
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

/// Resource versions are numbers that grow; one that is not is always taken as news.
fn version(id: &Identity) -> u64 {
    id.version.parse().unwrap_or(u64::MAX)
}

impl<T: Watched> State<T> {
    fn bring(&mut self, version: u64) {
        if version != u64::MAX {
            self.brought = self.brought.max(version);
        }
    }

    /// Whether it was news.
    fn apply(&mut self, object: T) -> bool {
        let id = object.id();
        if self.buried.contains(&id.uid) {
            return false;
        }
        let version = version(&id);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Thing(Identity, &'static str);

    impl Watched for Thing {
        fn id(&self) -> Identity {
            self.0.clone()
        }

        fn is_same(&self, other: &Self) -> bool {
            self.1 == other.1
        }
    }

    fn thing(name: &str, uid: &str, version: &str, content: &'static str) -> Thing {
        let id = Identity {
            name: name.to_owned(),
            uid: uid.to_owned(),
            version: version.to_owned(),
        };
        Thing(id, content)
    }

    fn store() -> Store<Thing> {
        Store::new(Arc::new(Notify::new()))
    }

    fn contents(store: &Store<Thing>) -> Vec<&'static str> {
        store.objects().values().map(|thing| thing.1).collect()
    }

    #[test]
    fn what_was_written_is_not_undone_by_what_was_seen_before() {
        let store = store();
        store.replace(vec![thing("a", "1", "10", "listed")], 10);
        store.apply(thing("a", "1", "12", "written"));
        store.apply(thing("a", "1", "11", "late"));
        assert_eq!(contents(&store), ["written"]);
        store.replace(vec![thing("a", "1", "10", "older list")], 11);
        assert_eq!(contents(&store), ["written"]);
        store.apply(thing("b", "2", "13", "made"));
        store.replace(vec![thing("a", "1", "12", "written")], 12);
        assert_eq!(
            contents(&store),
            ["written", "made"],
            "the list was older than the creation"
        );
        store.replace(vec![thing("a", "1", "12", "written")], 14);
        assert_eq!(
            contents(&store),
            ["written"],
            "by now somebody has deleted it"
        );
    }

    #[test]
    fn what_was_deleted_does_not_come_back_and_its_successor_does() {
        let store = store();
        let first = thing("a", "1", "10", "first");
        store.replace(vec![first.clone()], 10);
        store.bury(&first.0);
        store.apply(thing("a", "1", "11", "late"));
        store.replace(vec![thing("a", "1", "11", "older list")], 11);
        assert_eq!(contents(&store), Vec::<&str>::new());
        store.apply(thing("a", "2", "13", "second"));
        store.remove(&thing("a", "1", "12", "first").0);
        assert_eq!(contents(&store), ["second"]);
    }

    #[test]
    fn a_late_answer_does_not_bring_back_what_the_watch_has_seen_end() {
        let store = store();
        store.replace(vec![thing("a", "1", "10", "listed")], 10);
        store.apply(thing("a", "1", "11", "labelled"));
        store.remove(&thing("a", "1", "12", "labelled").0);
        store.answer(thing("a", "1", "11", "labelled"));
        assert_eq!(contents(&store), Vec::<&str>::new());
        store.answer(thing("b", "2", "13", "made"));
        assert_eq!(
            contents(&store),
            ["made"],
            "the watch has not brought it yet"
        );
    }

    #[test]
    fn a_kind_that_is_gone_has_no_objects() {
        let store = store();
        store.replace(vec![thing("a", "1", "10", "listed")], 10);
        assert_eq!(store.health(), Health::Synced);
        store.set_health(Health::Failing("down".to_owned()));
        assert_eq!(contents(&store), ["listed"]);
        store.set_health(Health::Missing);
        assert_eq!(contents(&store), Vec::<&str>::new());
    }

    #[tokio::test]
    async fn only_news_wakes() {
        let wake = Arc::new(Notify::new());
        let store = Store::new(wake.clone());
        store.replace(vec![thing("a", "1", "10", "x")], 10);
        wake.notified().await;
        store.apply(thing("a", "1", "11", "x"));
        store.replace(vec![thing("a", "1", "11", "x")], 12);
        let woken = || tokio::time::timeout(std::time::Duration::ZERO, wake.notified());
        assert!(woken().await.is_err(), "a heartbeat is no news");
        for news in [thing("a", "1", "13", "y"), thing("a", "2", "14", "y")] {
            store.apply(news);
            assert!(woken().await.is_ok());
        }
        store.remove(&thing("a", "2", "15", "y").0);
        assert!(woken().await.is_ok());
    }
}
