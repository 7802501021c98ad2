//! The kubelet's pod-resources socket.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::fake_kubelet::{FakeKubelet, Knowledge};
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
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What is answered, and how often it was asked.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Ids that containers hold, by resource.
    pub held: BTreeMap<String, Vec<String>>,
    /// What is listed as healthy ids of a resource in place of what the kubelet knows.
    pub allocatable: BTreeMap<String, Vec<String>>,
    /// Whether every request is over the limit.
    pub exhausted: bool,
    /// Requests for what is held.
    pub lists: usize,
    /// Requests for what the kubelet has.
    pub readings: usize,
}

/// The socket.
#[derive(Clone)]
pub struct FakePodResources {
    answers: Arc<watch::Sender<Answers>>,
    kubelet: watch::Receiver<Knowledge>,
}

impl FakePodResources {
    /// Serves in a directory as long as the test runs.
    pub fn start(directory: &Path, kubelet: &FakeKubelet) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let fake = Self {
            answers: Arc::new(watch::Sender::new(Answers::default())),
            kubelet: kubelet.subscribe(),
        };
        let listener = UnixListener::bind(directory.join("kubelet.sock")).unwrap();
        let service = PodResourcesListerServer::new(fake.clone());
        let incoming = UnixListenerStream::new(listener);
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming);
        tokio::spawn(async move { server.await.unwrap() });
        fake
    }

    /// Changes the answers.
    pub fn answer(&self, change: impl FnOnce(&mut Answers)) {
        self.answers.send_modify(change);
    }

    /// The answers now.
    pub fn now(&self) -> Answers {
        self.answers.borrow().clone()
    }

    /// Waits until something was asked.
    pub async fn until(&self, is: impl Fn(&Answers) -> bool) {
        let mut answers = self.answers.subscribe();
        let found = answers.wait_for(|answers| is(answers));
        tokio::time::timeout(crate::fake_kubelet::DEADLINE, found)
            .await
            .unwrap()
            .unwrap();
    }
}

fn devices(by_resource: &BTreeMap<String, Vec<String>>) -> Vec<ContainerDevices> {
    let entry = |resource: &String, id: &String| ContainerDevices {
        resource_name: resource.clone(),
        device_ids: vec![id.clone()],
        topology: None,
    };
    by_resource
        .iter()
        .flat_map(|(name, ids)| ids.iter().map(|id| entry(name, id)))
        .collect()
}

#[tonic::async_trait]
impl PodResourcesLister for FakePodResources {
    async fn list(
        &self,
        _request: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.answers.send_modify(|answers| answers.lists += 1);
        let answers = self.now();
        if answers.exhausted {
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        let container = ContainerResources {
            devices: devices(&answers.held),
            ..ContainerResources::default()
        };
        let pod = PodResources {
            containers: vec![container],
            ..PodResources::default()
        };
        Ok(Response::new(ListPodResourcesResponse {
            pod_resources: vec![pod],
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _request: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.answers.send_modify(|answers| answers.readings += 1);
        let mut allocatable = self.kubelet.borrow().allocatable();
        allocatable.extend(self.now().allocatable);
        let devices = devices(&allocatable);
        Ok(Response::new(AllocatableResourcesResponse {
            devices,
            ..Default::default()
        }))
    }

    async fn get(
        &self,
        _request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        Err(Status::not_found("no such pod"))
    }
}
