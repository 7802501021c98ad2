//! Takes the right to register a resource on this node: does what `first_time` of the core says.

use std::path::Path;
use std::time::{Duration, SystemTime};

use node_agent_core::first_time::{Answer, Evidence, Patience, Reading, answer};
use node_agent_core::identity::{lock_name, socket_prefix};
use node_agent_core::seen::Standing;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::allocations::PodResources;
use crate::board::Board;
use crate::error_chain::chained;
use crate::lock::FileLock;
use crate::plugin_directory::{self, FileIdentity, KUBELET_SOCKET, View};
use crate::settings::Drain;

/// Who wants to register what.
pub struct Claim<'a> {
    /// The resource.
    pub resource: &'a str,
    /// Whether this config has served it on this node.
    pub served_before: bool,
    /// Whether another process served it until now, whose end the kubelet may not have seen yet.
    pub after_another: bool,
    /// The directory of the locks.
    pub lock_dir: &'a Path,
    /// The kubelet's plugin directory.
    pub plugin_dir: &'a Path,
    /// The looks at it.
    pub view: watch::Receiver<View>,
    /// The kubelet's own list.
    pub pod_resources: &'a PodResources,
    /// Where it is posted what is waited for.
    pub board: &'a Board,
    /// How patient it is.
    pub patience: Patience,
    /// How the end of the other process's streams is waited for.
    pub drain: Drain,
}

/// The right to register a resource.
pub struct Claimed {
    /// It ends with this lock.
    pub lock: FileLock,
    /// Devices that the kubelet has although nobody serves them any more.
    pub phantom: usize,
}

/// Readings of one kubelet's list.
#[derive(Default)]
struct Readings {
    list: Vec<Reading>,
    kubelet: Option<FileIdentity>,
    socket_age: Duration,
}

impl Claim<'_> {
    /// Returns when the resource may be registered: for as long as the lock lives.
    pub async fn granted(mut self) -> Claimed {
        let start = Instant::now();
        let mut lock = None;
        let mut readings = Readings::default();
        loop {
            if lock.is_none() {
                lock = self.try_lock().await;
            }
            let evidence = Evidence {
                resource: self.resource,
                served_before: self.served_before,
                lock_is_ours: lock.is_some(),
                socket_age: readings.socket_age,
                readings: &readings.list,
                now: start.elapsed(),
            };
            match answer(&evidence, &self.patience) {
                Answer::Register => match lock.take() {
                    Some(lock) => {
                        let phantom = self.phantom(&readings).await;
                        return Claimed { lock, phantom };
                    }
                    // Cannot be: whoever may register has the lock.
                    None => sleep(self.patience.lock_poll).await,
                },
                Answer::TryLock(wait) => {
                    self.after_another = true;
                    self.waits(Standing::AwaitingLock);
                    sleep(wait).await;
                }
                Answer::Read(wait) => {
                    sleep(wait).await;
                    self.read(&mut readings, start).await;
                }
                Answer::Foreign(told, wait) => {
                    // Whoever serves the resource may be about to take the lock.
                    drop(lock.take());
                    readings = Readings::default();
                    self.waits(Standing::Foreign(told));
                    sleep(wait).await;
                }
                Answer::Unreadable(told, wait) => {
                    readings = Readings::default();
                    self.waits(Standing::Unreadable(told));
                    sleep(wait).await;
                }
            }
        }
    }

    /// Tries until it is known whether the lock is free.
    async fn try_lock(&self) -> Option<FileLock> {
        loop {
            match FileLock::try_take(self.lock_dir, &lock_name(self.resource)) {
                Ok(lock) => return lock,
                Err(error) => {
                    let told = format!(
                        "failed to lock the resource in {:?}: {error}",
                        self.lock_dir
                    );
                    self.waits(Standing::Refused(told));
                    sleep(self.patience.look_again).await;
                }
            }
        }
    }

    /// How many devices are listed that nobody serves, as far as that was looked at.
    async fn phantom(&self, readings: &Readings) -> usize {
        if !self.served_before {
            let last = readings.list.last();
            return last.map_or(0, |reading| reading.devices.clone().unwrap_or(0));
        }
        if !self.after_another {
            return 0;
        }
        match self.pod_resources.drained(self.resource, &self.drain).await {
            0 => 0,
            _ if self.somebody_may_serve().await => 0,
            devices => devices,
        }
    }

    async fn somebody_may_serve(&self) -> bool {
        let prefix = socket_prefix(self.resource);
        plugin_directory::somebody_may_serve(self.plugin_dir, &prefix).await
    }

    async fn read(&mut self, readings: &mut Readings, start: Instant) {
        let kubelet = self.present_kubelet().await;
        if readings.kubelet != Some(kubelet) {
            let socket_age = self.socket_age();
            *readings = Readings {
                list: Vec::new(),
                kubelet: Some(kubelet),
                socket_age,
            };
        }
        let devices = self.pod_resources.count(self.resource).await;
        let devices = devices.map_err(|error| chained(&error));
        let somebody_is_there = self.somebody_may_serve().await;
        readings.list.push(Reading {
            at: start.elapsed(),
            devices,
            somebody_is_there,
        });
    }

    /// The kubelet's socket, waited for.
    async fn present_kubelet(&mut self) -> FileIdentity {
        loop {
            if let Some(kubelet) = self.view.borrow_and_update().kubelet {
                return kubelet;
            }
            self.waits(Standing::AwaitingKubelet);
            if self.view.changed().await.is_err() {
                // The process is ending.
                std::future::pending::<()>().await;
            }
        }
    }

    /// How long ago the kubelet made its socket. A clock that was set back makes it young.
    fn socket_age(&self) -> Duration {
        let metadata = std::fs::symlink_metadata(self.plugin_dir.join(KUBELET_SOCKET));
        let made = metadata.and_then(|metadata| metadata.modified());
        let age = made
            .ok()
            .and_then(|made| SystemTime::now().duration_since(made).ok());
        age.unwrap_or_default()
    }

    /// Posts what is waited for, and says so once.
    fn waits(&self, standing: Standing) {
        let told = standing.message();
        if self.board.standing(self.resource, standing) {
            tracing::warn!(resource = self.resource, told, "not registering yet");
        }
    }
}
