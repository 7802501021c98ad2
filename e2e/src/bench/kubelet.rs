//! The kubelet's side of a measurement: it registers whoever comes, keeps one stream for each
//! registration, and notes when what arrived. It does nothing else, so that what is measured is the
//! plugin.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proto::podresources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use proto::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest,
    ListPodResourcesResponse,
};
use proto::v1beta1::device_plugin_client::DevicePluginClient;
use proto::v1beta1::registration_server::{Registration, RegistrationServer};
use proto::v1beta1::{Empty, RegisterRequest};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// What a plugin did.
#[derive(Clone, Debug)]
pub enum Event {
    /// It asked to be registered.
    Register,
    /// It sent a list.
    List {
        /// Healthy devices in it.
        healthy: usize,
    },
    /// Its stream ended.
    End,
}

/// A kubelet for one plugin at a time.
pub struct Kubelet {
    plugin_dir: PathBuf,
    shared: Arc<Shared>,
    events: mpsc::UnboundedReceiver<(Instant, Event)>,
    registry: Option<JoinHandle<()>>,
    pod_resources: JoinHandle<()>,
}

struct Shared {
    plugin_dir: PathBuf,
    /// The socket that registered last.
    endpoint: Mutex<Option<String>>,
    /// The resource, and the ids that were healthy in the last list.
    listed: Mutex<(String, BTreeSet<String>)>,
    events: mpsc::UnboundedSender<(Instant, Event)>,
}

impl Kubelet {
    /// A kubelet that runs.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn start(plugin_dir: &Path, pod_resources_dir: &Path) -> Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            plugin_dir: plugin_dir.to_owned(),
            endpoint: Mutex::default(),
            listed: Mutex::default(),
            events: sender,
        });
        let listener = bind(&pod_resources_dir.join("kubelet.sock"))?;
        let service = PodResourcesListerServer::new(PodResources(shared.clone()));
        let pod_resources = tokio::spawn(async move {
            let server = Server::builder().add_service(service);
            // Ends with the task only.
            let _never = server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await;
        });
        let mut kubelet = Self {
            plugin_dir: plugin_dir.to_owned(),
            shared,
            events,
            registry: None,
            pod_resources,
        };
        kubelet.restart()?;
        Ok(kubelet)
    }

    /// Begins anew as a kubelet does: the sockets in the plugin directory go, its own is made again.
    /// Returns the moment from which a plugin could register.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn restart(&mut self) -> Result<Instant> {
        if let Some(registry) = self.registry.take() {
            registry.abort();
        }
        let directory = &self.plugin_dir;
        let entries = std::fs::read_dir(directory)
            .with_context(|| format!("failed to list {directory:?}"))?;
        for entry in entries {
            let path = entry?.path();
            std::fs::remove_file(&path).with_context(|| format!("failed to remove {path:?}"))?;
        }
        let listener = bind(&directory.join("kubelet.sock"))?;
        let bound = Instant::now();
        let service = RegistrationServer::new(Registry(self.shared.clone()));
        self.registry = Some(tokio::spawn(async move {
            let server = Server::builder().add_service(service);
            // Ends with the task only.
            let _never = server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await;
        }));
        Ok(bound)
    }

    /// Waits for an event, and tells when it was.
    ///
    /// # Errors
    /// When it does not come in time.
    pub async fn until(
        &mut self,
        what: &str,
        deadline: Duration,
        is: impl Fn(&Event) -> bool,
    ) -> Result<Instant> {
        let wait = async {
            while let Some((at, event)) = self.events.recv().await {
                if is(&event) {
                    return Ok(at);
                }
            }
            bail!("the kubelet ended")
        };
        match tokio::time::timeout(deadline, wait).await {
            Ok(seen) => seen,
            Err(_) => bail!("{what} did not happen within {deadline:?}"),
        }
    }

    /// Forgets what happened so far; returns how often the plugin asked to be registered.
    pub fn forget(&mut self) -> usize {
        let mut registrations = 0;
        while let Ok((_, event)) = self.events.try_recv() {
            registrations += usize::from(matches!(event, Event::Register));
        }
        registrations
    }

    /// A client of the plugin that registered last.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub async fn client(&self) -> Result<DevicePluginClient<Channel>> {
        let endpoint = lock(&self.shared.endpoint).clone();
        let endpoint = endpoint.context("nobody has registered")?;
        let channel = connect(&self.plugin_dir.join(endpoint)).await?;
        Ok(DevicePluginClient::new(channel))
    }

    /// Healthy ids of the last list, in their order.
    pub fn ids(&self) -> Vec<String> {
        lock(&self.shared.listed).1.iter().cloned().collect()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.pod_resources.abort();
        if let Some(registry) = &self.registry {
            registry.abort();
        }
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).with_context(|| format!("failed to listen at {path:?}"))
}

async fn connect(path: &Path) -> Result<Channel> {
    let channel = Endpoint::try_from(format!("unix:{}", path.display()))?
        .connect()
        .await;
    channel.with_context(|| format!("failed to connect to {path:?}"))
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn tell(&self, at: Instant, event: Event) {
        // Nobody listens any more while the measurement ends.
        let _nobody = self.events.send((at, event));
    }

    /// Asks for the plugin's options as kubelets do, and then for its lists.
    async fn serve(self: Arc<Self>, request: RegisterRequest) -> Result<()> {
        let channel = connect(&self.plugin_dir.join(&request.endpoint)).await?;
        let mut client = DevicePluginClient::new(channel).max_decoding_message_size(4 << 20);
        client.get_device_plugin_options(Empty {}).await?;
        *lock(&self.endpoint) = Some(request.endpoint);
        tokio::spawn(async move {
            let mut lists = client.list_and_watch(Empty {}).await?.into_inner();
            while let Ok(Some(list)) = lists.message().await {
                let at = Instant::now();
                let healthy = list.devices.into_iter().filter(|d| d.health == "Healthy");
                let ids: BTreeSet<String> = healthy.map(|device| device.id).collect();
                let healthy = ids.len();
                *lock(&self.listed) = (request.resource_name.clone(), ids);
                self.tell(at, Event::List { healthy });
            }
            self.tell(Instant::now(), Event::End);
            anyhow::Ok(())
        });
        Ok(())
    }
}

struct Registry(Arc<Shared>);

#[tonic::async_trait]
impl Registration for Registry {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.0.tell(Instant::now(), Event::Register);
        let served = self.0.clone().serve(request.into_inner()).await;
        served.map_err(|error| Status::unknown(format!("{error:#}")))?;
        Ok(Response::new(Empty {}))
    }
}

struct PodResources(Arc<Shared>);

#[tonic::async_trait]
impl PodResourcesLister for PodResources {
    async fn list(
        &self,
        _request: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        Ok(Response::new(ListPodResourcesResponse::default()))
    }

    async fn get_allocatable_resources(
        &self,
        _request: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let (resource_name, ids) = lock(&self.0.listed).clone();
        let devices = ids.into_iter().map(|id| ContainerDevices {
            resource_name: resource_name.clone(),
            device_ids: vec![id],
            ..ContainerDevices::default()
        });
        Ok(Response::new(AllocatableResourcesResponse {
            devices: devices.collect(),
            ..AllocatableResourcesResponse::default()
        }))
    }

    async fn get(
        &self,
        _request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented("no pod is measured"))
    }
}
