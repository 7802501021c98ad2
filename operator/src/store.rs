//! What is known of one kind of object: what the watch brought, and the operator's own writes that
//! it has not brought yet, so that nothing is written twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use operator_core::seen::Identity;
use tokio::sync::Notify;

/// An object as it is kept.
pub trait Watched {
    /// Which one it is, and which version of it.
    fn id(&self) -> Identity;

    /// Whether the other says nothing new to a decision.
    fn is_same(&self, other: &Self) -> bool;
}

/// For how long what a watch has brought counts as fresh after its last sign of life. Half of it
/// would take a watch that is opened anew every few seconds for dead when one attempt fails; double
/// would let a claim's clock run for half a minute while the operator sees nothing.
pub const FRESH: Duration = Duration::from_secs(15);

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
    /// Until when it has been added up for how long nothing was known for certain.
    proven: Instant,
    /// For how long.
    blind: Duration,
    /// The version of a write of ours that the watch has not brought yet, and since when: a watch
    /// that brings only other news is not alive.
    owed: Option<(u64, Instant)>,
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
                // Nothing is known before the first list.
                proven: long_ago(Instant::now()),
                blind: Duration::ZERO,
                owed: None,
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

    /// For how long until now, since the store was made, it was not certain that the watch tells
    /// what happens.
    pub fn blind(&self, now: Instant) -> Duration {
        let state = self.lock();
        state.blind + state.unproven(now)
    }

    /// The watch has shown that it is alive, with or without news.
    pub fn prove(&self) {
        self.lock().prove(Instant::now());
    }

    /// The watch has told everything up to this version.
    pub fn bring(&self, version: u64) {
        let mut state = self.lock();
        state.bring(version);
        state.prove(Instant::now());
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
        // A list is read from the source: it holds whatever was written before.
        state.owed = None;
        state.prove(Instant::now());
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
        state.prove(Instant::now());
        if state.apply(object) {
            self.wake.notify_one();
        }
    }

    /// The answer to a write. An object that is not known although the watch is past this version
    /// of it has been deleted meanwhile.
    pub fn answer(&self, object: T) {
        let mut state = self.lock();
        let id = object.id();
        let version = version(&id);
        let is_gone = !state.objects.contains_key(&id.name) && version <= state.brought;
        if version > state.brought && version != u64::MAX {
            state.owed = state.owed.or(Some((version, Instant::now())));
        }
        if !is_gone && state.apply(object) {
            self.wake.notify_one();
        }
    }

    /// The watch told that an object is gone.
    pub fn remove(&self, id: &Identity) {
        let mut state = self.lock();
        state.bring(version(id));
        state.prove(Instant::now());
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

/// A moment whose proof is worth nothing any more.
fn long_ago(now: Instant) -> Instant {
    now.checked_sub(FRESH).unwrap_or(now)
}

impl<T: Watched> State<T> {
    fn bring(&mut self, version: u64) {
        if version != u64::MAX {
            self.brought = self.brought.max(version);
        }
        let brought = self.brought;
        self.owed = self.owed.filter(|(owed, _)| *owed > brought);
    }

    /// For how long nothing was certain since the last proof.
    fn unproven(&self, now: Instant) -> Duration {
        let proven = now.saturating_duration_since(self.proven);
        proven.saturating_sub(FRESH)
    }

    fn prove(&mut self, now: Instant) {
        let is_behind = |(_, since): (u64, Instant)| now.saturating_duration_since(since) > FRESH;
        if self.owed.is_some_and(is_behind) {
            return;
        }
        self.blind += self.unproven(now);
        self.proven = now;
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

    #[test]
    fn a_watch_is_blind_from_a_while_after_its_last_sign_of_life() {
        let start = Instant::now() + Duration::from_secs(1_000);
        let at = |seconds| start + Duration::from_secs(seconds);
        let store = store();
        let blind = |now| store.blind(now).as_secs();
        let before = blind(start);
        assert!(before >= 999, "nothing is known before the first list");
        store.lock().prove(start);
        for (now, expected) in [(0, 0), (15, 0), (16, 1), (40, 25)] {
            assert_eq!(blind(at(now)) - before, expected, "at {now} s");
        }
        store.lock().prove(at(40));
        assert_eq!(blind(at(55)) - before, 25, "what is over stays");
        assert_eq!(blind(at(60)) - before, 30);
    }

    #[test]
    fn a_watch_that_does_not_bring_our_own_write_is_blind() {
        let store = store();
        store.replace(vec![thing("a", "1", "10", "listed")], 10);
        store.answer(thing("a", "1", "12", "written"));
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        // Other news come, and ours does not.
        store.lock().prove(at(10));
        store.apply(thing("b", "2", "11", "other"));
        store.lock().prove(at(20));
        assert!(store.blind(at(30)) > store.blind(at(20)));
        store.bring(12);
        store.lock().prove(at(40));
        assert_eq!(store.blind(at(50)), store.blind(at(40)));
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
