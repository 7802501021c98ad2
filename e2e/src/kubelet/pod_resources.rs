//! The pod-resources socket of a played kubelet.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use proto::podresources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use proto::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices,
    ContainerResources, GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest,
    ListPodResourcesResponse, PodResources,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::fake::FakeKubelet;
use super::knowledge::Knowledge;
use super::locked;

/// A device that a container holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Held {
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// The resource.
    pub resource: String,
    /// The device.
    pub id: String,
}

/// The socket; it is gone when this is dropped.
pub struct PodResourcesServer {
    held: Arc<Mutex<Vec<Held>>>,
    socket: PathBuf,
    task: JoinHandle<()>,
}

impl PodResourcesServer {
    /// Serves in a directory what a kubelet knows.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(directory: &Path, kubelet: &FakeKubelet) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("failed to make {directory:?}"))?;
        let socket = directory.join("kubelet.sock");
        let _absent = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("failed to listen at {socket:?}"))?;
        let held = Arc::new(Mutex::new(Vec::new()));
        let lister = Lister {
            held: held.clone(),
            knowledge: kubelet.subscribe(),
        };
        let served = Server::builder()
            .add_service(PodResourcesListerServer::new(lister))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let task = tokio::spawn(async move { drop(served.await) });
        Ok(Self { held, socket, task })
    }

    /// What containers hold from now on.
    pub fn hold(&self, held: Vec<Held>) {
        *locked(&self.held) = held;
    }
}

impl Drop for PodResourcesServer {
    fn drop(&mut self) {
        self.task.abort();
        let _gone = fs::remove_file(&self.socket);
    }
}

struct Lister {
    held: Arc<Mutex<Vec<Held>>>,
    knowledge: watch::Receiver<Knowledge>,
}

fn entry(resource: &str, id: &str) -> ContainerDevices {
    ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: vec![id.to_owned()],
        topology: None,
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _request: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let mut pods: Vec<PodResources> = Vec::new();
        for one in locked(&self.held).iter() {
            let device = entry(&one.resource, &one.id);
            let is_same = |pod: &&mut PodResources| {
                let container = pod.containers.first();
                pod.name == one.pod && container.is_some_and(|c| c.name == one.container)
            };
            if let Some(pod) = pods.iter_mut().find(is_same) {
                let container = pod.containers.first_mut();
                container
                    .into_iter()
                    .for_each(|c| c.devices.push(device.clone()));
                continue;
            }
            let container = ContainerResources {
                name: one.container.clone(),
                devices: vec![device],
                ..ContainerResources::default()
            };
            pods.push(PodResources {
                name: one.pod.clone(),
                namespace: "conformance".to_owned(),
                containers: vec![container],
                ..PodResources::default()
            });
        }
        Ok(Response::new(ListPodResourcesResponse {
            pod_resources: pods,
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _request: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let known = self.knowledge.borrow();
        let resources = known.resources.iter();
        let devices = resources.flat_map(|(resource, known)| {
            let healthy = known.healthy.iter();
            healthy.map(|id| entry(resource, id))
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
        Err(Status::not_found("no such pod"))
    }
}
