//! What the kubelet says about devices at its pod-resources socket: which ones containers hold, and
//! which ones it has at all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use daemon::Stop;
use proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use proto::podresources::{AllocatableResourcesRequest, ContainerDevices, ListPodResourcesRequest};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::board::Board;
use crate::error_chain::chained;
use crate::random::jitter;
use crate::settings::{Drain, Timing};
use crate::tick;

/// The kubelet's own clients read messages of up to this size.
const MESSAGE_MAX: usize = 16 << 20;

/// So many failures in a row are told, once.
const WORTH_TELLING: u32 = 3;

/// Ids that containers hold, by resource. Nothing until it was read once.
pub type Held = Option<Arc<BTreeMap<String, BTreeSet<String>>>>;

/// Ids of the devices that the kubelet has and holds for healthy, by resource.
pub type Listed = Arc<BTreeMap<String, BTreeSet<String>>>;

/// Why the kubelet could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers at the socket.
    #[error("failed to connect to {socket:?}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        source: tonic::transport::Error,
    },
    /// The kubelet refused.
    #[error("failed to ask the kubelet for its devices")]
    Ask(#[source] Box<tonic::Status>),
    /// The kubelet took too long.
    #[error("the kubelet did not answer at {socket:?} within {limit:?}")]
    WaitForAnswer {
        /// The socket.
        socket: PathBuf,
        /// How long it was given.
        limit: Duration,
    },
}

/// The kubelet's pod-resources socket.
#[derive(Clone, Debug)]
pub struct PodResources {
    socket: PathBuf,
    limit: Duration,
    last: Arc<Mutex<Option<(Instant, Listed)>>>,
}

impl PodResources {
    /// The socket in a directory.
    pub fn new(directory: &Path, limit: Duration) -> Self {
        Self {
            socket: directory.join("kubelet.sock"),
            limit,
            last: Arc::default(),
        }
    }

    /// The ids that containers hold, by resource.
    ///
    /// # Errors
    /// When the kubelet does not answer or refuses.
    pub async fn held(&self) -> Result<BTreeMap<String, BTreeSet<String>>, AskError> {
        let ask = async {
            let mut client = self.connect().await?;
            let list = client
                .list(ListPodResourcesRequest {})
                .await
                .map_err(ask_error)?;
            let containers = list
                .into_inner()
                .pod_resources
                .into_iter()
                .flat_map(|p| p.containers);
            Ok(by_resource(
                containers.flat_map(|container| container.devices),
            ))
        };
        self.in_time(ask).await
    }

    /// The devices that the kubelet has and holds for healthy, by resource, as they were after the
    /// call began. Many who ask at the same time are answered by one reading.
    ///
    /// # Errors
    /// When the kubelet does not answer or refuses.
    pub async fn listed(&self) -> Result<Listed, AskError> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((began, listed)) = &*last
            && *began >= asked
        {
            return Ok(listed.clone());
        }
        let began = Instant::now();
        let listed = Arc::new(self.read_listed().await?);
        *last = Some((began, listed.clone()));
        Ok(listed)
    }

    async fn read_listed(&self) -> Result<BTreeMap<String, BTreeSet<String>>, AskError> {
        let ask = async {
            let mut client = self.connect().await?;
            let request = AllocatableResourcesRequest {};
            let list = client
                .get_allocatable_resources(request)
                .await
                .map_err(ask_error)?;
            Ok(by_resource(list.into_inner().devices.into_iter()))
        };
        self.in_time(ask).await
    }

    /// How many devices the kubelet has for a resource and holds for healthy.
    ///
    /// # Errors
    /// When the kubelet does not answer or refuses.
    pub async fn count(&self, resource: &str) -> Result<usize, AskError> {
        let listed = self.listed().await?;
        Ok(listed.get(resource).map_or(0, BTreeSet::len))
    }

    /// Waits until the kubelet has seen the end of a resource's streams, and lists nothing of it any
    /// more; tells how many devices it still lists when nobody can wait any longer.
    pub async fn drained(&self, resource: &str, drain: &Drain) -> usize {
        let start = Instant::now();
        let mut left = 0;
        let mut readings = 0;
        loop {
            let remaining = drain.limit.saturating_sub(start.elapsed());
            if remaining.is_zero() {
                return left;
            }
            match tokio::time::timeout(remaining, self.count(resource)).await {
                Ok(Ok(0)) => return 0,
                Ok(Ok(devices)) => left = devices,
                // What cannot be read is waited for like what is not gone, and no longer.
                Ok(Err(_)) | Err(_) => {}
            }
            readings += 1;
            tokio::time::sleep(drain.pace.wait(readings, 0.0).min(remaining)).await;
        }
    }

    /// A connection for one question: there is one every ten seconds, and none to keep alive over
    /// the kubelet's restarts.
    async fn connect(&self) -> Result<PodResourcesListerClient<Channel>, AskError> {
        let connected = unix_endpoint(&self.socket).connect().await;
        let channel = connected.map_err(|source| AskError::Connect {
            socket: self.socket.clone(),
            source,
        })?;
        Ok(PodResourcesListerClient::new(channel).max_decoding_message_size(MESSAGE_MAX))
    }

    async fn in_time<T>(
        &self,
        ask: impl Future<Output = Result<T, AskError>>,
    ) -> Result<T, AskError> {
        let (socket, limit) = (self.socket.clone(), self.limit);
        let too_late = |_| AskError::WaitForAnswer { socket, limit };
        tokio::time::timeout(limit, ask).await.map_err(too_late)?
    }
}

/// Where to reach a unix socket. The authority is what the kubelet itself sends: some servers refuse
/// a path there.
pub fn unix_endpoint(socket: &Path) -> Endpoint {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()));
    endpoint
        .unwrap_or_else(|_| Endpoint::from_static("unix:/"))
        .origin(Uri::from_static("http://localhost"))
}

fn ask_error(status: tonic::Status) -> AskError {
    AskError::Ask(Box::new(status))
}

fn by_resource(
    devices: impl Iterator<Item = ContainerDevices>,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut by_resource: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in devices {
        by_resource
            .entry(entry.resource_name)
            .or_default()
            .extend(entry.device_ids);
    }
    by_resource
}

/// What it takes to read who holds what.
pub struct Polling {
    /// Who is asked.
    pub pod_resources: PodResources,
    /// For which resources.
    pub resources: BTreeSet<String>,
    /// Where the answer is published.
    pub held: watch::Sender<Held>,
    /// How often there was an answer. Two in a row may be the same.
    pub readings: watch::Sender<u64>,
    /// Told after every Allocate.
    pub allocated: Arc<Notify>,
    /// Where it is posted whether there are answers.
    pub board: Board,
    /// How patient it is.
    pub timing: Timing,
}

/// Reads who holds what, from time to time and soon after every Allocate, and publishes it. What was
/// read stays true until something newer is read: a kubelet that is away gives no devices to anybody.
pub async fn poll(polling: Polling, stop: Stop) {
    tokio::select! {
        () = stop.requested() => {}
        () = polling.keep() => {}
    }
}

impl Polling {
    async fn keep(self) {
        let timing = &self.timing;
        let mut failures: u32 = 0;
        let mut answered = false;
        loop {
            let wait = match self.pod_resources.held().await {
                Ok(mut all) => {
                    failures = 0;
                    answered = true;
                    all.retain(|resource, _| self.resources.contains(resource));
                    publish(&self.held, all);
                    self.readings.send_modify(|count| *count += 1);
                    self.board.pod_resources(Ok(()));
                    timing.allocations_poll
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    // The kubelet is away for a moment at each of its restarts.
                    if failures == WORTH_TELLING {
                        let error = chained(&error);
                        tracing::warn!(error, "failed to read who holds devices: trying again");
                    }
                    if failures >= WORTH_TELLING || !answered {
                        self.board.pod_resources(Err(chained(&error)));
                    }
                    // One step slower, so that other clients get their turn.
                    let slower = u32::from(is_exhausted(&error));
                    timing
                        .allocations_retry
                        .wait(failures.saturating_add(slower), jitter())
                }
            };
            let soon = async {
                self.allocated.notified().await;
                tokio::time::sleep(timing.after_allocate).await;
            };
            let next = async {
                match failures {
                    0 => tick::round(wait).await,
                    _ => tokio::time::sleep(wait).await,
                }
            };
            tokio::select! {
                () = next => {}
                () = soon, if failures == 0 => {}
            }
        }
    }
}

/// The kubelet answers no more than so many requests a second, to all clients together.
fn is_exhausted(error: &AskError) -> bool {
    matches!(error, AskError::Ask(status) if status.code() == Code::ResourceExhausted)
}

fn publish(held: &watch::Sender<Held>, all: BTreeMap<String, BTreeSet<String>>) {
    held.send_if_modified(|held| {
        let changed = held.as_deref() != Some(&all);
        if changed {
            *held = Some(Arc::new(all));
        }
        changed
    });
}
