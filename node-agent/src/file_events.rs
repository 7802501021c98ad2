//! The kernel's word that a directory changed. One inotify instance for the whole process: a node
//! gives each user few of them. Where there is none, or no watch is left, nobody is told and
//! everything is found by polling.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;

/// A kernel event is 16 bytes and a name; a burst that does not fit is read in several turns.
const BUFFER: usize = 4096;

/// Whether an event on a name is of interest; events on the directory itself always are.
type Interest = fn(&OsStr) -> bool;

/// The process's source of events.
#[derive(Clone, Default)]
pub struct FileEvents {
    shared: Option<Arc<Mutex<Shared>>>,
}

struct Shared {
    watches: Watches,
    subscribers: Vec<Subscriber>,
}

struct Subscriber {
    changed: Arc<Notify>,
    interest: Interest,
    directories: BTreeMap<PathBuf, WatchDescriptor>,
    by_descriptor: HashMap<WatchDescriptor, PathBuf>,
}

/// One task's view on directories.
pub struct Subscription {
    changed: Arc<Notify>,
    source: Option<(Arc<Mutex<Shared>>, usize)>,
}

impl FileEvents {
    /// A source that never tells anything.
    pub fn none() -> Self {
        Self::default()
    }

    /// Opens the source, and the stream that must be [`delivered`].
    ///
    /// # Errors
    /// When the node has no inotify instance left.
    pub fn open() -> std::io::Result<(Self, EventStream<Vec<u8>>)> {
        let inotify = Inotify::init()?;
        let shared = Shared {
            watches: inotify.watches(),
            subscribers: Vec::new(),
        };
        let stream = inotify.into_event_stream(vec![0; BUFFER])?;
        Ok((
            Self {
                shared: Some(Arc::new(Mutex::new(shared))),
            },
            stream,
        ))
    }

    /// A new subscription, without directories yet.
    pub fn subscribe(&self, interest: Interest) -> Subscription {
        let changed = Arc::new(Notify::new());
        let source = self.shared.as_ref().map(|shared| {
            let mut locked = lock(shared);
            locked.subscribers.push(Subscriber {
                changed: changed.clone(),
                interest,
                directories: BTreeMap::new(),
                by_descriptor: HashMap::new(),
            });
            (shared.clone(), locked.subscribers.len() - 1)
        });
        Subscription { changed, source }
    }
}

/// Delivers the kernel's events to the subscribers, for ever.
pub async fn delivered(events: FileEvents, mut stream: EventStream<Vec<u8>>) {
    while let Some(event) = stream.next().await {
        match (event, &events.shared) {
            (Ok(event), Some(shared)) => lock(shared).deliver(&event),
            (Err(error), _) => {
                tracing::warn!(%error, "failed to read file events: polling instead");
                return;
            }
            (Ok(_), None) => return,
        }
    }
}

impl Shared {
    fn deliver(&mut self, event: &EventOwned) {
        let overflow = event.mask.contains(EventMask::Q_OVERFLOW);
        for subscriber in &mut self.subscribers {
            let watched = subscriber.by_descriptor.contains_key(&event.wd);
            let name = event.name.as_deref();
            if overflow || watched && name.is_none_or(|name| (subscriber.interest)(name)) {
                subscriber.changed.notify_one();
            }
            if event.mask.contains(EventMask::IGNORED)
                && let Some(directory) = subscriber.by_descriptor.remove(&event.wd)
            {
                subscriber.directories.remove(&directory);
            }
        }
    }
}

impl Subscription {
    /// Returns when something of interest changed since the last return.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Also tells of this directory, and of what replaced it if it was watched before.
    pub fn watch(&self, directory: &Path) {
        let Some((shared, index)) = &self.source else {
            return;
        };
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut shared = lock(shared);
        // A watch on a directory that is watched already is the same watch.
        match shared.watches.add(directory, mask) {
            Ok(descriptor) => {
                if let Some(subscriber) = shared.subscribers.get_mut(*index) {
                    subscriber
                        .by_descriptor
                        .insert(descriptor.clone(), directory.to_owned());
                    subscriber
                        .directories
                        .insert(directory.to_owned(), descriptor);
                }
            }
            // Polling finds what is not told; the kernel's limit is not ours to raise.
            Err(error) => tracing::debug!(?directory, %error, "failed to watch a directory"),
        }
    }

    /// Tells of these directories only.
    pub fn keep_only(&self, wanted: &BTreeSet<PathBuf>) {
        let Some((shared, index)) = &self.source else {
            return;
        };
        let mut shared = lock(shared);
        let Shared {
            watches,
            subscribers,
        } = &mut *shared;
        let Some(subscriber) = subscribers.get_mut(*index) else {
            return;
        };
        let directories = std::mem::take(&mut subscriber.directories);
        let (kept, dropped): (BTreeMap<_, _>, BTreeMap<_, _>) = directories
            .into_iter()
            .partition(|(directory, _)| wanted.contains(directory));
        subscriber.directories = kept;
        subscriber
            .by_descriptor
            .retain(|_, directory| wanted.contains(directory));
        for descriptor in dropped.into_values() {
            if subscribers
                .iter()
                .all(|other| !other.by_descriptor.contains_key(&descriptor))
            {
                // It may be gone with its directory.
                let _gone = watches.remove(descriptor);
            }
        }
    }
}

/// The lists are whole between any two statements: a panic elsewhere leaves nothing half done.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn subscribers_are_told_of_their_directories_only() {
        let home = tempfile::tempdir().unwrap();
        let (one, other) = (home.path().join("one"), home.path().join("other"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&other).unwrap();
        let (events, stream) = FileEvents::open().unwrap();
        let first = events.subscribe(|_| true);
        let second = events.subscribe(|name| name == "wanted");
        for directory in [&one, &other] {
            first.watch(directory);
            second.watch(directory);
        }
        first.keep_only(&BTreeSet::from([one.clone()]));
        tokio::spawn(delivered(events, stream));
        let told = async |subscription: &Subscription| {
            tokio::time::timeout(DEADLINE, subscription.changed())
                .await
                .is_ok()
        };
        // Events come in their order: when the later one is told, the earlier one was delivered.
        fs::write(other.join("any"), "").unwrap();
        fs::write(other.join("wanted"), "").unwrap();
        assert!(
            told(&second).await,
            "the directory is still watched for the other"
        );
        let nothing = tokio::time::timeout(Duration::ZERO, first.changed()).await;
        assert!(nothing.is_err(), "no longer watched");
        fs::write(one.join("any"), "").unwrap();
        assert!(told(&first).await);
        let nothing = tokio::time::timeout(Duration::ZERO, second.changed()).await;
        assert!(nothing.is_err(), "not of interest");
        fs::remove_dir_all(&one).unwrap();
        assert!(told(&first).await);
        fs::create_dir(&one).unwrap();
        first.watch(&one);
        fs::write(one.join("any"), "").unwrap();
        assert!(told(&first).await, "what is made anew is watched again");
    }
}
