//! What is left at the kubelet when the agent has stopped and nobody follows it: the last look of an
//! orderly end.

use std::path::PathBuf;
use std::time::Duration;

use node_agent_core::identity::{lock_name, socket_prefix};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::allocations::PodResources;
use crate::board::Board;
use crate::lock::FileLock;
use crate::plugin_directory;
use crate::settings::Drain;

/// How long the last report may take: the pod has ten seconds in all.
pub const LAST_REPORT: Duration = Duration::from_secs(2);

/// How long the last look may take: what is left is found when the kubelet has had its time, and the
/// end of a pod is waited for by its successor.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What the last look needs.
pub struct Farewell {
    /// The resources that were served.
    pub resources: Vec<String>,
    /// The plugin directory.
    pub plugin_dir: PathBuf,
    /// The directory of the locks.
    pub lock_dir: PathBuf,
    /// The kubelet's own list.
    pub pod_resources: PodResources,
    /// Where what was found is posted.
    pub board: Board,
    /// How the end of our streams is waited for.
    pub drain: Drain,
    /// Who reports it.
    pub reporter: LastWord,
}

/// Asks the reporter for one more report.
pub struct LastWord {
    /// Asks.
    pub ask: oneshot::Sender<()>,
    /// Answers when it is written, or never will be.
    pub done: oneshot::Receiver<()>,
}

/// The reporter's side of it.
pub struct LastReport {
    /// Asked for; an error means that nobody will ask.
    pub asked: oneshot::Receiver<()>,
    /// Dropped when it is written.
    pub done: oneshot::Sender<()>,
}

/// Both sides.
pub fn last_word() -> (LastWord, LastReport) {
    let (ask, asked) = oneshot::channel();
    let (written, done) = oneshot::channel();
    let report = LastReport {
        asked,
        done: written,
    };
    (LastWord { ask, done }, report)
}

impl Farewell {
    /// Looks once more at the kubelet's list, after all streams have ended, and has what stays
    /// reported. Call it while holding the role, whose holder alone reports.
    pub async fn say(self) {
        let mut phantom = false;
        // A kubelet that does not answer is not waited for.
        let left = tokio::time::timeout(LAST_LOOK, self.left_behind()).await;
        for (resource, devices) in left.unwrap_or_default() {
            tracing::warn!(resource, devices, "the kubelet lists what nobody serves");
            self.board.phantom(&resource, devices);
            phantom = true;
        }
        let LastWord { ask, done } = self.reporter;
        // Without access to an API server nobody is there to be asked.
        if phantom && ask.send(()).is_ok() {
            let _written_or_not = tokio::time::timeout(LAST_REPORT, done).await;
        }
    }

    /// The devices that the kubelet still lists when it has had the time to see our streams end.
    async fn left_behind(&self) -> Vec<(String, usize)> {
        let start = Instant::now();
        let mut readings = 0;
        loop {
            let Ok(listed) = self.pod_resources.listed().await else {
                return Vec::new();
            };
            let counts = self.resources.iter().map(|resource| {
                let devices = listed
                    .get(resource)
                    .map_or(0, std::collections::BTreeSet::len);
                (resource.clone(), devices)
            });
            let left: Vec<(String, usize)> = counts.filter(|(_, devices)| *devices > 0).collect();
            if left.is_empty() {
                return left;
            }
            if start.elapsed() >= self.drain.limit {
                return self.of_nobody(left).await;
            }
            readings += 1;
            sleep(self.drain.pace.wait(readings, 0.0)).await;
        }
    }

    /// Those that nobody serves.
    async fn of_nobody(&self, left: Vec<(String, usize)>) -> Vec<(String, usize)> {
        let mut of_nobody = Vec::new();
        for (resource, devices) in left {
            let lock = FileLock::is_held(&self.lock_dir, &lock_name(&resource));
            let prefix = socket_prefix(&resource);
            let somebody = lock.unwrap_or(true)
                || plugin_directory::somebody_may_serve(&self.plugin_dir, &prefix).await;
            if !somebody {
                of_nobody.push((resource, devices));
            }
        }
        of_nobody
    }
}
