//! A list and then a watch of one kind, for ever: a plain loop, because a decision needs to know
//! whether the watch stands right now, and which version its last list had.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use daemon::Stop;
use futures::StreamExt;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::{Resource, Status};
use operator_core::seen::Identity;
use serde::de::DeserializeOwned;

use crate::client::{CallError, call};
use crate::store::{Health, Store, Watched};

/// The API server's code for a kind that is not served.
const NOT_FOUND: u16 = 404;

/// Its code for a version that is too old to watch from.
const GONE: u16 = 410;

/// Objects in one page of a list. A node with its images may have 50 kB: a page of 100 is taken
/// apart within a few megabytes, and 5,000 nodes are 50 calls, once.
const PAGE: u32 = 100;

/// The longest wait between two attempts. Twice this would leave the operator blind for long after
/// the API server, or its CRDs, came back; half would be felt by a server that struggles.
const RETRY_MAX: Duration = Duration::from_secs(4);

/// The shortest.
const RETRY_MIN: Duration = Duration::from_millis(250);

/// How much longer than asked for a watch may take to end: a longer silence is a dead connection.
const OVERTIME: Duration = Duration::from_secs(5);

/// How long one call of a watch takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Term {
    /// Most of five minutes, as is usual: news come at once either way.
    Long,
    /// So short that a dead connection is known as one before [`FRESH`](crate::store::FRESH) is
    /// over: for kinds that the clocks of claims depend on. The API server sends its bookmark two
    /// seconds before the end, so a quiet kind's version stays young, and what is opened anew is
    /// one cheap call. Half as long would double those, double would be no proof in time.
    Short,
}

impl Term {
    fn seconds(self) -> u32 {
        match self {
            Self::Long => 290,
            Self::Short => 8,
        }
    }
}

/// One kind to watch.
pub struct Watch<K, T> {
    /// Where.
    pub api: Api<K>,
    /// Only objects with these labels.
    pub labels: Option<String>,
    /// Where what is seen is kept.
    pub store: Arc<Store<T>>,
    /// What is kept of an object.
    pub keep: fn(K) -> Option<T>,
    /// How long one call takes.
    pub term: Term,
}

/// Why a watch ended.
enum End {
    /// Its version is too old, or the kind is gone: a new list is needed.
    Relist(Option<Health>),
    /// Its time was up: it goes on where it was, at once.
    Over,
    /// The connection broke: it goes on where it was.
    Resume(Option<Health>),
}

impl<K, T> Watch<K, T>
where
    K: Clone + Debug + DeserializeOwned + Resource,
    T: Watched,
{
    /// With calls so short that a dead connection does not look like one without news.
    pub fn short(self) -> Self {
        Self {
            term: Term::Short,
            ..self
        }
    }

    /// Lists and watches until a stop is asked for.
    pub async fn run(self, stop: Stop) {
        tokio::select! {
            () = self.forever() => {}
            () = stop.requested() => {}
        }
    }

    async fn forever(&self) {
        let mut wait = RETRY_MIN;
        loop {
            let started = tokio::time::Instant::now();
            match self.list().await {
                Ok(version) => self.follow(version).await,
                Err(error) => self.store.set_health(health(&error)),
            }
            // A list is dear: one that was of no use for long is not asked for again at once.
            if started.elapsed() > RETRY_MAX {
                wait = RETRY_MIN;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Lists everything; the version of the list.
    async fn list(&self) -> Result<String, CallError> {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector.clone_from(&self.labels);
        let mut kept = Vec::new();
        loop {
            let page = call(self.api.list(&params)).await?;
            let version = page.metadata.resource_version.unwrap_or_default();
            kept.extend(
                page.items
                    .into_iter()
                    .filter_map(|object| (self.keep)(object)),
            );
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    self.store
                        .replace(kept, version.parse().unwrap_or(u64::MAX));
                    return Ok(version);
                }
            }
        }
    }

    /// Watches from a version on, until a new list is needed.
    async fn follow(&self, mut version: String) {
        let mut wait = RETRY_MIN;
        loop {
            let started = tokio::time::Instant::now();
            match self.watch_once(&mut version).await {
                End::Relist(health) => {
                    if let Some(health) = health {
                        self.store.set_health(health);
                    }
                    return;
                }
                End::Over => {
                    wait = RETRY_MIN;
                    if started.elapsed() > RETRY_MAX {
                        continue;
                    }
                }
                End::Resume(None) => {
                    if started.elapsed() > RETRY_MAX {
                        wait = RETRY_MIN;
                    }
                }
                End::Resume(Some(health)) => self.store.set_health(health),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn watch_once(&self, version: &mut String) -> End {
        let mut params = WatchParams::default().timeout(self.term.seconds());
        let silence_max = Duration::from_secs(self.term.seconds().into()) + OVERTIME;
        params.label_selector.clone_from(&self.labels);
        let stream = match call(self.api.watch(&params, version)).await {
            Ok(stream) => stream,
            Err(error) if error.status().is_some_and(|status| status.code == GONE) => {
                return End::Relist(None);
            }
            Err(error)
                if error
                    .status()
                    .is_some_and(|status| status.code == NOT_FOUND) =>
            {
                return End::Relist(Some(health(&error)));
            }
            // Also a server that is busy: a list would only make it busier.
            Err(error) => return End::Resume(Some(health(&error))),
        };
        self.store.set_health(Health::Synced);
        self.store.prove();
        let mut stream = std::pin::pin!(stream);
        loop {
            match tokio::time::timeout(silence_max, stream.next()).await {
                Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    note(version, &object);
                    if let Some(kept) = (self.keep)(object) {
                        self.store.apply(kept);
                    }
                }
                Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                    note(version, &object);
                    self.store.remove(&Identity::of(object.meta()));
                }
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    *version = bookmark.metadata.resource_version;
                    self.store.bring(version.parse().unwrap_or(u64::MAX));
                }
                Ok(Some(Ok(WatchEvent::Error(status)))) => return End::Relist(refusal(&status)),
                Ok(Some(Err(error))) => {
                    tracing::debug!(error = %error, "a watch broke");
                    return End::Resume(None);
                }
                Ok(None) => {
                    self.store.prove();
                    return End::Over;
                }
                Err(_) => return End::Resume(None),
            }
        }
    }
}

fn note<K: Resource>(version: &mut String, object: &K) {
    if let Some(present) = object.meta().resource_version.as_ref() {
        version.clone_from(present);
    }
}

/// A version that is too old is an ordinary end of a watch.
fn refusal(status: &Status) -> Option<Health> {
    (status.code != GONE).then(|| Health::Failing(status.message.clone()))
}

fn health(error: &CallError) -> Health {
    match error.status() {
        // A kind that is not served is answered in plain text, so there is a code and no reason.
        Some(status) if status.code == NOT_FOUND => Health::Missing,
        _ => Health::Failing(error.chain()),
    }
}
