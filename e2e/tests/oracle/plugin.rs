//! A device plugin that does what a check tells it to, and remembers what it was asked.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use proto::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use proto::v1beta1::registration_client::RegistrationClient;
use proto::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse,
    ContainerPreferredAllocationResponse, Device, DevicePluginOptions, DeviceSpec, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status};

use crate::wait::{LIMIT, until};

/// What a plugin was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Options,
    ListAndWatch,
    Preferred(PreferredAllocationRequest),
    Allocate(AllocateRequest),
    PreStart(PreStartContainerRequest),
}

/// Answers of a plugin.
pub struct Script {
    pub options: Result<DevicePluginOptions, Status>,
    /// What a stream begins with.
    pub devices: Vec<Device>,
    /// A stream begins with nothing.
    pub is_silent: bool,
    pub allocate: Act<AllocateRequest, AllocateResponse>,
    /// Which ids it prefers.
    pub prefer: Act<PreferredAllocationRequest, Vec<String>>,
    pub pre_start: Act<PreStartContainerRequest, ()>,
    /// How long it takes before a container starts.
    pub pre_start_takes: Duration,
}

/// How a plugin comes to an answer.
pub type Act<I, O> = Box<dyn Fn(&Handle, I) -> Result<O, Status> + Send + Sync>;

impl Default for Script {
    fn default() -> Self {
        Self {
            options: Ok(DevicePluginOptions::default()),
            devices: healthy(&["a", "b"]),
            is_silent: false,
            allocate: Box::new(|_, request| Ok(given(&request))),
            prefer: Box::new(|_, _| Ok(Vec::new())),
            pre_start: Box::new(|_, _| Ok(())),
            pre_start_takes: Duration::ZERO,
        }
    }
}

/// Devices that are well.
pub fn healthy(ids: &[&str]) -> Vec<Device> {
    ids.iter().map(|id| device(id, "Healthy")).collect()
}

/// A device.
pub fn device(id: &str, health: &str) -> Device {
    Device {
        id: id.to_owned(),
        health: health.to_owned(),
        topology: None,
    }
}

/// What a plugin gives for ids.
pub fn given(request: &AllocateRequest) -> AllocateResponse {
    let containers = request.container_requests.iter().map(|container| {
        let devices = container.devices_ids.iter().map(|id| DeviceSpec {
            container_path: format!("/dev/{id}"),
            host_path: "/dev/null".to_owned(),
            permissions: "rw".to_owned(),
        });
        ContainerAllocateResponse {
            envs: [("GIVEN".to_owned(), container.devices_ids.join(","))].into(),
            devices: devices.collect(),
            ..ContainerAllocateResponse::default()
        }
    });
    AllocateResponse {
        container_responses: containers.collect(),
    }
}

/// What one stream sends next; the end of it is the end of the channel.
type Sender = mpsc::Sender<Result<ListAndWatchResponse, Status>>;

/// What a plugin's service and the check share.
#[derive(Clone)]
pub struct Handle {
    calls: Arc<watch::Sender<Vec<Call>>>,
    streams: Arc<watch::Sender<Vec<Sender>>>,
    /// Started calls that have not ended.
    busy: Arc<watch::Sender<usize>>,
}

impl Handle {
    /// Sends a list to all streams that are open.
    pub fn send(&self, devices: &[Device]) {
        let list = ListAndWatchResponse {
            devices: devices.to_vec(),
        };
        for stream in self.streams.borrow().iter() {
            // A kubelet that has gone reads nothing.
            let _gone = stream.try_send(Ok(list.clone()));
        }
    }
}

/// A plugin that serves at a socket of its own. It is gone at once when dropped, as a killed process.
pub struct Plugin {
    directory: PathBuf,
    endpoint: String,
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Plugin {
    /// Serves at a socket below `directory`, without a word to the kubelet.
    pub fn serve(directory: &Path, endpoint: &str, script: Script) -> Result<Self> {
        let socket = directory.join(endpoint);
        let _absent = std::fs::remove_file(&socket);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let handle = Handle {
            calls: Arc::default(),
            streams: Arc::default(),
            busy: Arc::default(),
        };
        let service = Service {
            script,
            handle: handle.clone(),
        };
        let entered = runtime.enter();
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("failed to listen at {socket:?}"))?;
        drop(entered);
        let served = Server::builder()
            .add_service(DevicePluginServer::new(service).max_decoding_message_size(64 << 20))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(async move { drop(served.await) });
        Ok(Self {
            directory: directory.to_owned(),
            endpoint: endpoint.to_owned(),
            handle,
            runtime: Some(runtime),
        })
    }

    /// Registers for a resource, as plugins do.
    pub async fn register(&self, resource: &str) -> Result<Result<(), String>> {
        register(&self.directory, "v1beta1", resource, &self.endpoint).await
    }

    /// What it was asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.handle.calls.borrow().clone()
    }

    /// How often it was asked for its list.
    pub fn watches(&self) -> usize {
        let calls = self.handle.calls.borrow();
        calls
            .iter()
            .filter(|call| **call == Call::ListAndWatch)
            .count()
    }

    /// The calls to allocate so far, as lists of ids.
    pub fn allocations(&self) -> Vec<Vec<Vec<String>>> {
        let calls = self.handle.calls.borrow();
        let allocations = calls.iter().filter_map(|call| match call {
            Call::Allocate(request) => Some(request),
            _ => None,
        });
        allocations
            .map(|request| {
                let containers = request.container_requests.iter();
                containers.map(|one| one.devices_ids.clone()).collect()
            })
            .collect()
    }

    /// The calls before containers start so far.
    pub fn pre_starts(&self) -> Vec<Vec<String>> {
        let calls = self.handle.calls.borrow();
        let starts = calls.iter().filter_map(|call| match call {
            Call::PreStart(request) => Some(request.devices_ids.clone()),
            _ => None,
        });
        starts.collect()
    }

    /// The preferred allocations it was asked for so far.
    pub fn preferences(&self) -> Vec<PreferredAllocationRequest> {
        let calls = self.handle.calls.borrow();
        let preferences = calls.iter().filter_map(|call| match call {
            Call::Preferred(request) => Some(request.clone()),
            _ => None,
        });
        preferences.collect()
    }

    /// Sends a list to all streams that are open.
    pub fn send(&self, devices: &[Device]) {
        self.handle.send(devices);
    }

    /// Ends its streams: orderly, or with an error.
    pub fn end_streams(&self, error: Option<Status>) {
        self.handle.streams.send_modify(|streams| {
            for stream in streams.drain(..) {
                if let Some(error) = &error {
                    let _gone = stream.try_send(Err(error.clone()));
                }
            }
        });
    }

    /// Whether the kubelet has ended all streams.
    pub fn is_alone(&self) -> bool {
        let streams = self.handle.streams.borrow();
        streams.iter().all(mpsc::Sender::is_closed)
    }

    /// Waits until the kubelet has ended all streams.
    pub async fn streams_ended(&self) -> Result<()> {
        until("the kubelet ends the streams", async || Ok(self.is_alone())).await
    }

    /// Waits until no call is under way: those that the kubelet gave up were dropped.
    pub async fn idle(&self) -> Result<()> {
        until("calls end", async || Ok(*self.handle.busy.borrow() == 0)).await
    }

    /// Is killed.
    pub fn kill(self) {}
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One `Register` call.
pub async fn register(
    directory: &Path,
    version: &str,
    resource: &str,
    endpoint: &str,
) -> Result<Result<(), String>> {
    let mut client = RegistrationClient::new(connect(&directory.join("kubelet.sock")).await?);
    let request = RegisterRequest {
        version: version.to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: resource.to_owned(),
        // Kubelets ask for them; what is said here is said wrongly, to see that.
        options: Some(DevicePluginOptions {
            pre_start_required: true,
            get_preferred_allocation_available: true,
        }),
    };
    let answer = tokio::time::timeout(LIMIT, client.register(request)).await;
    let answer = answer.context("the kubelet did not answer the registration")?;
    Ok(answer
        .map(drop)
        .map_err(|status| status.message().to_owned()))
}

async fn connect(socket: &Path) -> Result<Channel> {
    Endpoint::from_shared(format!("unix:{}", socket.display()))?
        .origin(Uri::from_static("http://localhost"))
        .connect()
        .await
        .with_context(|| format!("failed to connect to {socket:?}"))
}

struct Service {
    script: Script,
    handle: Handle,
}

impl Service {
    fn note(&self, call: Call) {
        self.handle.calls.send_modify(|calls| calls.push(call));
    }
}

/// Counts a call for as long as it is under way.
struct Busy(Arc<watch::Sender<usize>>);

impl Busy {
    fn new(busy: &Arc<watch::Sender<usize>>) -> Self {
        busy.send_modify(|busy| *busy += 1);
        Self(busy.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|busy| *busy -= 1);
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        self.note(Call::Options);
        self.script.options.clone().map(Response::new)
    }

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(1024);
        let list = ListAndWatchResponse {
            devices: self.script.devices.clone(),
        };
        if !self.script.is_silent {
            // It is empty, and so takes this.
            let _taken = sender.try_send(Ok(list));
        }
        self.handle
            .streams
            .send_modify(|streams| streams.push(sender));
        self.note(Call::ListAndWatch);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let request = request.into_inner();
        self.note(Call::Preferred(request.clone()));
        let preferred = (self.script.prefer)(&self.handle, request)?;
        Ok(Response::new(PreferredAllocationResponse {
            container_responses: vec![ContainerPreferredAllocationResponse {
                device_i_ds: preferred,
            }],
        }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let request = request.into_inner();
        self.note(Call::Allocate(request.clone()));
        // It may wait for the kubelet.
        let act = || (self.script.allocate)(&self.handle, request);
        tokio::task::block_in_place(act).map(Response::new)
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let _busy = Busy::new(&self.handle.busy);
        let request = request.into_inner();
        self.note(Call::PreStart(request.clone()));
        tokio::time::sleep(self.script.pre_start_takes).await;
        (self.script.pre_start)(&self.handle, request)?;
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
