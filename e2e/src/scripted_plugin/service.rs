//! What the plugin answers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::v1beta1::device_plugin_server::DevicePlugin;
use proto::v1beta1::{
    AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse, Device,
    DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status};

use super::Settings;
use super::fault::Fault;
use super::list::{List, listed};
use super::preparation::Preparations;
use super::{cdi, preparation};

/// Between two messages of a stream: each costs the kubelet a write to its disk.
const GAP: Duration = Duration::from_millis(500);

/// One resource.
pub struct Resource {
    pub settings: Arc<Settings>,
    pub name: String,
    /// What of its name goes into ids and names of sockets.
    pub hash: String,
    pub directory: PathBuf,
    pub preparations: Preparations,
    pub allocated: Mutex<BTreeSet<String>>,
    list: watch::Sender<List>,
    broken: watch::Sender<Option<String>>,
    busy: AtomicUsize,
    calls: AtomicUsize,
}

impl Resource {
    pub fn new(settings: Arc<Settings>, name: &str, directory: PathBuf) -> Arc<Self> {
        let digest = Sha256::digest(name.as_bytes());
        let hash = digest.iter().take(4).map(|byte| format!("{byte:02x}"));
        Arc::new(Self {
            settings,
            name: name.to_owned(),
            hash: hash.collect(),
            directory,
            preparations: Preparations::default(),
            allocated: Mutex::default(),
            list: watch::Sender::new(List::default()),
            broken: watch::Sender::new(None),
            busy: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
        })
    }

    pub fn has(&self, fault: Fault) -> bool {
        self.settings.has(fault)
    }

    pub fn list(&self) -> List {
        self.list.borrow().clone()
    }

    pub fn publish(&self, now: List) {
        self.list.send_if_modified(|list| {
            let changed = *list != now;
            if changed {
                *list = now;
                cdi::write(self, list);
            }
            changed
        });
    }

    pub fn break_streams(&self, why: &str) {
        self.broken.send_replace(Some(why.to_owned()));
    }

    /// The id of a device: its own, whatever else there is.
    pub fn id(&self, name: &str, index: usize) -> String {
        match self.settings.fault {
            Some(Fault::NumberedIds) => format!("{}-{index}", self.hash),
            Some(Fault::SharedIds) => name.to_owned(),
            Some(Fault::LongIds) => format!("{}-{name}-{}", self.hash, "x".repeat(64)),
            _ => format!("{}-{name}", self.hash),
        }
    }

    pub fn options(&self) -> DevicePluginOptions {
        DevicePluginOptions {
            pre_start_required: self.settings.hook.is_some(),
            get_preferred_allocation_available: self.settings.prefer,
        }
    }

    fn message(&self, list: &List, before: Option<&List>) -> ListAndWatchResponse {
        let mut devices: Vec<Device> = Vec::new();
        for (id, known) in list.iter() {
            let is_same = before.and_then(|before| before.get(id)) == Some(known);
            if !(self.has(Fault::PartialList) && is_same) {
                devices.push(listed(self, id, known));
            }
        }
        if self.has(Fault::DuplicateIds) {
            devices.extend(devices.first().cloned());
        }
        ListAndWatchResponse { devices }
    }

    fn allocated(
        &self,
        ids: &[String],
        number: usize,
    ) -> Result<ContainerAllocateResponse, Status> {
        let list = self.list();
        let mut response = ContainerAllocateResponse::default();
        let mut variable = format!("SCRIPTED_{}_IDS", self.hash.to_uppercase());
        if self.has(Fault::SameVariable) {
            "SCRIPTED_IDS".clone_into(&mut variable);
        }
        let mut sorted: Vec<&String> = ids.iter().collect();
        sorted.sort();
        for id in sorted {
            let first = list.keys().next();
            let id = first.filter(|_| self.has(Fault::WrongDevice)).unwrap_or(id);
            let Some(known) = list.get(id) else {
                if self.has(Fault::GivesUnknown) {
                    continue;
                }
                return Err(Status::not_found(format!("no device {id:?}")));
            };
            if !known.healthy && !self.has(Fault::GivesUnhealthy) {
                return Err(Status::failed_precondition(format!("{id:?} is Unhealthy")));
            }
            let is_new = preparation::locked(&self.allocated).insert(id.clone());
            if !is_new && self.has(Fault::GivesOnce) {
                return Err(Status::already_exists(format!("{id:?} is in use")));
            }
            self.add(&mut response, id, &known.path, &variable);
        }
        if ids.is_empty() && self.has(Fault::EmptyIsError) {
            return Err(Status::invalid_argument("no ids"));
        }
        if self.has(Fault::RandomAnswer) {
            let number = number.to_string();
            response.envs.insert("SCRIPTED_NUMBER".to_owned(), number);
        }
        Ok(response)
    }

    fn add(
        &self,
        response: &mut ContainerAllocateResponse,
        id: &str,
        path: &std::path::Path,
        variable: &str,
    ) {
        let value = response.envs.entry(variable.to_owned()).or_default();
        let comma = if value.is_empty() { "" } else { "," };
        *value = format!("{value}{comma}{id}");
        let host_path = match self.settings.fault {
            Some(Fault::MissingPath) => format!("/nonexistent/{id}"),
            _ => path.to_string_lossy().into_owned(),
        };
        let odd = self.has(Fault::OddPermissions);
        response.devices.push(DeviceSpec {
            container_path: format!("{}dev/{id}", if odd { "" } else { "/" }),
            host_path,
            permissions: if odd { "rwx" } else { "rw" }.to_owned(),
        });
        if self.settings.cdi_dir.is_some() {
            response.cdi_devices.push(CdiDevice {
                name: cdi::name(self, id),
            });
        }
    }

    fn preferred(
        &self,
        request: &ContainerPreferredAllocationRequest,
    ) -> ContainerPreferredAllocationResponse {
        let size = usize::try_from(request.allocation_size).unwrap_or(0);
        let size = size.saturating_sub(usize::from(self.has(Fault::PrefersFewer)));
        let must: BTreeSet<&String> = request.must_include_device_i_ds.iter().collect();
        let available: BTreeSet<&String> = request.available_device_i_ds.iter().collect();
        let wanted = must.iter().filter(|id| available.contains(*id));
        let others = available.iter().filter(|id| !must.contains(*id));
        let chosen = wanted.chain(others).take(size);
        ContainerPreferredAllocationResponse {
            device_i_ds: chosen.map(|id| (*id).clone()).collect(),
        }
    }
}

/// The service at one socket.
pub struct Service {
    pub resource: Arc<Resource>,
    /// How many streams were opened, and how many are open.
    pub streams: watch::Sender<(usize, usize)>,
    /// Closed when the server is.
    pub closing: watch::Receiver<()>,
}

type Messages = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Messages;

    async fn get_device_plugin_options(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(self.resource.options()))
    }

    async fn list_and_watch(&self, _request: Request<Empty>) -> Result<Response<Messages>, Status> {
        let resource = self.resource.clone();
        self.streams.send_modify(|(opened, open)| {
            *opened += 1;
            *open += 1;
        });
        let number = self.streams.borrow().0;
        if resource.has(Fault::UnboundedQueue) {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(flood(resource, sender));
            let messages = UnboundedReceiverStream::new(receiver);
            return Ok(Response::new(Box::pin(messages)));
        }
        let (sender, receiver) = mpsc::channel(1);
        let (streams, mut closing) = (self.streams.clone(), self.closing.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = send(&resource, &sender, streams.subscribe(), number) => {}
                // Nothing is ever sent: it is closed.
                _closed = closing.changed() => {}
            }
            streams.send_modify(|(_, open)| *open -= 1);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let resource = &self.resource;
        let requests = request.into_inner().container_requests;
        if !resource.settings.prefer {
            if resource.has(Fault::NoPreferenceError) {
                return Err(Status::internal("nobody should ask"));
            }
            return Ok(Response::new(PreferredAllocationResponse::default()));
        }
        let too_many = |one: &ContainerPreferredAllocationRequest| {
            let size = usize::try_from(one.allocation_size).unwrap_or(0);
            size > one.available_device_i_ds.len()
        };
        if resource.has(Fault::PreferenceError) && requests.iter().any(too_many) {
            return Err(Status::invalid_argument("more than there are"));
        }
        let responses = requests.iter().map(|one| resource.preferred(one));
        Ok(Response::new(PreferredAllocationResponse {
            container_responses: responses.collect(),
        }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let resource = &self.resource;
        let number = resource.calls.fetch_add(1, Ordering::Relaxed);
        if resource.has(Fault::SlowAllocate) {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        if resource.has(Fault::Deadlocks) {
            let busy = resource.busy.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            if busy >= 8 {
                std::future::pending::<()>().await;
            }
            resource.busy.fetch_sub(1, Ordering::Relaxed);
        }
        let mut requests = request.into_inner().container_requests;
        if resource.has(Fault::OneResponse) {
            requests.truncate(1);
        }
        let responses = requests
            .iter()
            .map(|one| resource.allocated(&one.devices_ids, number));
        Ok(Response::new(AllocateResponse {
            container_responses: responses.collect::<Result<_, _>>()?,
        }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let ids = request.into_inner().devices_ids;
        preparation::prepare(&self.resource, &ids).await?;
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// Sends the list at once, and again when it changed, not too often; only what is true when it is
/// sent.
async fn send(
    resource: &Resource,
    sender: &mpsc::Sender<Result<ListAndWatchResponse, Status>>,
    mut streams: watch::Receiver<(usize, usize)>,
    number: usize,
) {
    let mut list = resource.list.subscribe();
    let mut broken = resource.broken.subscribe();
    let mut before: Option<List> = None;
    let gap = if resource.has(Fault::Undamped) {
        Duration::ZERO
    } else {
        GAP
    };
    loop {
        let now = list.borrow_and_update().clone();
        let is_silent = resource.has(Fault::SilentWhenEmpty) && now.is_empty();
        if !is_silent && (before.as_ref() != Some(&now) || resource.has(Fault::Chatty)) {
            let Ok(place) = sender.reserve().await else {
                return;
            };
            // It may have waited for a reader who is slow.
            let now = list.borrow_and_update().clone();
            place.send(Ok(resource.message(&now, before.as_ref())));
            before = Some(now);
        }
        tokio::time::sleep(gap).await;
        let chatter = async {
            match resource.has(Fault::Chatty) {
                true => tokio::time::sleep(Duration::from_secs(5)).await,
                false => std::future::pending().await,
            }
        };
        let another = async {
            match resource.has(Fault::OneStream) {
                true => drop(streams.wait_for(|(opened, _)| *opened > number).await),
                false => std::future::pending().await,
            }
        };
        let failure = async {
            let why = broken.wait_for(Option::is_some).await.ok();
            why.and_then(|why| why.clone()).unwrap_or_default()
        };
        tokio::select! {
            () = sender.closed() => return,
            _ = list.changed() => {}
            () = chatter => {}
            () = another => return,
            why = failure => {
                let _closed = sender.send(Err(Status::internal(why))).await;
                return;
            }
        }
    }
}

/// Puts a message for each change where it waits for the reader, whoever that is.
async fn flood(
    resource: Arc<Resource>,
    sender: mpsc::UnboundedSender<Result<ListAndWatchResponse, Status>>,
) {
    let mut list = resource.list.subscribe();
    loop {
        let now = list.borrow_and_update().clone();
        if sender.send(Ok(resource.message(&now, None))).is_err() {
            return;
        }
        if list.changed().await.is_err() {
            return;
        }
    }
}
