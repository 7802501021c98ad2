//! Reads the kubelet's own list of what this agent serves, and has it registered again where the list
//! is another: does what `comparison` of the core says. One reading answers for all resources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crds::node::Health;
use daemon::Stop;
use jiff::Timestamp;
use node_agent_core::comparison::{Comparison, Limits, Reading, Verdict};
use node_agent_core::inventory::Inventory;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::allocations::{Listed, PodResources};
use crate::board::Board;
use crate::error_chain::chained;
use crate::metrics::Metrics;
use crate::plugin_directory;
use crate::random::jitter;
use crate::tick;

/// What the kubelet was sent, by resource, while it reads.
pub type SentLists = BTreeMap<String, Sent>;

/// The last message of a stream.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When the stream opened.
    pub opened: Instant,
    /// When the message was sent.
    pub at: Instant,
    /// What it held.
    pub inventory: Arc<Inventory>,
}

/// What compares.
pub struct Comparer {
    /// Told when a resource has to be registered again, by resource.
    pub displaced: BTreeMap<String, Arc<Notify>>,
    /// What was sent.
    pub sent: watch::Receiver<SentLists>,
    /// The kubelet's own list.
    pub pod_resources: PodResources,
    /// The plugin directory.
    pub plugin_dir: PathBuf,
    /// Where the answers are posted.
    pub board: Board,
    /// Where differences are counted.
    pub metrics: Metrics,
    /// When it reads.
    pub limits: Limits,
}

/// The comparisons of all resources.
struct Comparisons {
    start: Instant,
    by_resource: BTreeMap<String, Comparison>,
}

impl Comparer {
    /// Compares until a stop is asked for.
    pub async fn keep(self, stop: Stop) {
        tokio::select! {
            () = stop.requested() => {}
            () = self.compare() => {}
        }
    }

    async fn compare(self) {
        let mut sent = self.sent.clone();
        let mut comparisons = Comparisons {
            start: Instant::now(),
            by_resource: self
                .displaced
                .keys()
                .map(|name| (name.clone(), Comparison::default()))
                .collect(),
        };
        loop {
            let lists = sent.borrow_and_update().clone();
            comparisons.follow(&lists, &self.limits);
            self.post(&comparisons);
            let due = comparisons.due();
            let reading_is_due = async {
                match due {
                    Some(due) => tick::until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Ok(()) = sent.changed() => {}
                () = reading_is_due => self.read(&mut comparisons).await,
            }
        }
    }

    async fn read(&self, comparisons: &mut Comparisons) {
        let lists = self.sent.borrow().clone();
        let began = Instant::now();
        let listed = match self.pod_resources.listed().await {
            Ok(listed) => listed,
            Err(error) => {
                let error = chained(&error);
                tracing::debug!(error, "failed to read the kubelet's own list");
                let now = comparisons.since_start(Instant::now());
                for comparison in comparisons.by_resource.values_mut() {
                    comparison.unreadable(now, &self.limits);
                }
                return;
            }
        };
        for (name, before) in &lists {
            // Who sent something meanwhile is read again: the list may be of before or after it.
            let is_unchanged = |now: &Sent| (now.opened, now.at) == (before.opened, before.at);
            if self.sent.borrow().get(name).is_some_and(is_unchanged) {
                self.judge(comparisons, name, before, began, &listed);
            } else if let Some(comparison) = comparisons.by_resource.get_mut(name) {
                let now = began - comparisons.start;
                comparison.unreadable(now, &self.limits);
            }
        }
    }

    fn judge(
        &self,
        comparisons: &mut Comparisons,
        name: &str,
        sent: &Sent,
        began: Instant,
        listed: &Listed,
    ) {
        let (began, sent_at) = (
            comparisons.since_start(began),
            comparisons.since_start(sent.at),
        );
        let Some(comparison) = comparisons.by_resource.get_mut(name) else {
            return;
        };
        let none = BTreeSet::new();
        let healthy = healthy(&sent.inventory);
        let reading = Reading {
            began,
            listed: listed.get(name).unwrap_or(&none),
            sent: &healthy,
            sent_at,
            time: Timestamp::now(),
        };
        match comparison.read(&reading, jitter(), &self.limits) {
            Verdict::Fine => {}
            Verdict::RegisterAgain => {
                let (listed, sent) = (reading.listed.len(), reading.sent.len());
                tracing::warn!(
                    resource = name,
                    listed,
                    sent,
                    "the kubelet lists other devices than it was sent"
                );
                self.metrics.displaced(name);
                if let Some(displaced) = self.displaced.get(name) {
                    displaced.notify_one();
                }
            }
        }
    }

    fn post(&self, comparisons: &Comparisons) {
        for (name, comparison) in &comparisons.by_resource {
            let told = comparison.told();
            let contested = comparison.is_contested();
            self.board.post(name, |seen| {
                let changed = seen.kubelet != told || seen.contested.is_empty() == contested;
                seen.kubelet = told;
                if !contested {
                    seen.contested.clear();
                } else if seen.contested.is_empty() {
                    seen.contested = self.told_of_others();
                }
                changed
            });
        }
    }

    fn told_of_others(&self) -> String {
        let others = plugin_directory::other_sockets(&self.plugin_dir);
        let named = if others.is_empty() {
            "there is no socket of another plugin in the plugin directory".to_owned()
        } else {
            format!(
                "other sockets in the plugin directory: {}",
                others.join(", ")
            )
        };
        format!("the kubelet's list was replaced again and again; {named}")
    }
}

impl Comparisons {
    fn since_start(&self, time: Instant) -> Duration {
        time.saturating_duration_since(self.start)
    }

    fn follow(&mut self, lists: &SentLists, limits: &Limits) {
        let start = self.start;
        for (name, comparison) in &mut self.by_resource {
            let opened = lists.get(name).map(|sent| sent.opened);
            let opened = opened.map(|opened| opened.saturating_duration_since(start));
            comparison.follow(opened, limits);
        }
    }

    fn due(&self) -> Option<Instant> {
        let due = self.by_resource.values().filter_map(Comparison::due);
        due.min().map(|due| self.start + due)
    }
}

fn healthy(inventory: &Inventory) -> BTreeSet<String> {
    let listed = inventory.advertised();
    let healthy = listed.filter(|one| one.health == Health::Healthy);
    healthy.map(|one| one.id.into_owned()).collect()
}
