//! What the kubelet calls: the device plugin protocol for one resource.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crds::container::ContainerAccess;
use crds::resource::PreferredAllocation;
use futures::Stream;
use node_agent_core::allocation::{self, Answer};
use node_agent_core::discovery::{Kind, Target, forbidden};
use node_agent_core::inventory::Inventory;
use node_agent_core::preferred::{self, preferred};
use proto::v1beta1::device_plugin_server::DevicePlugin;
use proto::v1beta1::{
    AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse, Device,
    DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, Mount, NumaNode,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, TopologyInfo,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::cdi::CdiFile;
use crate::claims::OwnClaims;
use crate::comparer::{Sent, SentLists};
use crate::error_chain::chained;
use crate::given::Given;
use crate::host_dev::HostDev;
use crate::metrics::{AllocationResult, Metrics};
use crate::resets::Resets;

/// What answers for one resource, whatever server it is reached at.
#[derive(Clone)]
pub struct Answers {
    /// Name of the resource.
    pub resource: String,
    /// What a container gets.
    pub access: ContainerAccess,
    /// Which devices it should get, where the kubelet is to ask.
    pub preference: Option<PreferredAllocation>,
    /// Where the container runtime is told of its devices, if it is.
    pub cdi: Option<Arc<CdiFile>>,
    /// The devices.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// The host's `/dev`.
    pub host_dev: HostDev,
    /// Told when the inventory turned out to be wrong.
    pub look_again: Arc<Notify>,
    /// What other resources give out.
    pub claims: OwnClaims,
    /// Told after devices were given to a container.
    pub allocated: Arc<Notify>,
    /// Which devices these were.
    pub given: Given,
    /// Resets devices before a container starts, where the config wants that.
    pub resets: Option<Resets>,
    /// What the kubelet was sent.
    pub sent: Arc<watch::Sender<SentLists>>,
    /// Where calls are counted.
    pub metrics: Metrics,
    /// Shortest time between two messages of a stream.
    pub between_messages: Duration,
}

/// A stream of one server opened or ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StreamEvent {
    /// Which server.
    pub server: u64,
    /// Whether it opened.
    pub opened: bool,
}

/// The service behind one socket.
pub struct PluginService {
    /// What answers.
    pub answers: Answers,
    /// Which server it is.
    pub server: u64,
    /// Where streams are told of.
    pub streams: mpsc::UnboundedSender<StreamEvent>,
    /// True when the server ends.
    pub closing: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl DevicePlugin for PluginService {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(self.answers.options()))
    }

    async fn list_and_watch(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let list = List {
            inventory: self.answers.inventory.clone(),
            cdi: self.answers.cdi.clone(),
            closing: self.closing.clone(),
            sent: None,
            gap: self.answers.between_messages,
            open: OpenStream::new(self),
        };
        let messages = futures::stream::unfold(list, |mut list| async move {
            let message = list.next_message().await?;
            Some((Ok(message), list))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let requests = request.into_inner().container_requests;
        let answers: Result<Vec<_>, String> = requests
            .iter()
            .map(|one| self.answers.allocate(&one.devices_ids))
            .collect();
        let resource = &self.answers.resource;
        match answers {
            Ok(container_responses) => {
                let sharing = self.answers.inventory.borrow().sharing;
                let ids = requests.iter().flat_map(|one| &one.devices_ids);
                self.answers
                    .given
                    .allocated(ids.map(|id| sharing.device(id)));
                self.answers.allocated.notify_one();
                self.answers
                    .metrics
                    .allocation(resource, AllocationResult::Given);
                Ok(Response::new(AllocateResponse {
                    container_responses,
                }))
            }
            Err(told) => {
                // The kubelet's list or ours is out of date: what is true now goes out as a message.
                self.answers.look_again.notify_one();
                self.answers
                    .metrics
                    .allocation(resource, AllocationResult::Refused);
                tracing::warn!(resource, told, "refused to give out devices");
                Err(Status::failed_precondition(told))
            }
        }
    }

    /// Never an error: it would cost the pod. Kubelets that ask what is not offered choose by
    /// themselves.
    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let requests = request.into_inner().container_requests;
        let answers = requests.iter().map(|one| self.answers.prefer(one));
        Ok(Response::new(PreferredAllocationResponse {
            container_responses: answers.collect(),
        }))
    }

    /// Where nothing is to be done before a container starts, it is not required.
    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        if let Some(resets) = &self.answers.resets {
            let ids = request.into_inner().devices_ids;
            let sharing = self.answers.inventory.borrow().sharing;
            let devices = ids.iter().map(|id| sharing.device(id)).collect();
            let reset = resets.reset(&self.answers.resource, devices).await;
            reset.map_err(Status::failed_precondition)?;
        }
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

impl Answers {
    /// What the kubelet is told in `Register` and whenever it asks.
    pub fn options(&self) -> DevicePluginOptions {
        DevicePluginOptions {
            pre_start_required: self.resets.is_some(),
            get_preferred_allocation_available: self.preference.is_some(),
        }
    }

    fn prefer(
        &self,
        request: &ContainerPreferredAllocationRequest,
    ) -> ContainerPreferredAllocationResponse {
        let Some(policy) = self.preference else {
            return ContainerPreferredAllocationResponse::default();
        };
        let inventory = self.inventory.borrow().clone();
        let request = preferred::Request {
            available: &request.available_device_i_ds,
            must_include: &request.must_include_device_i_ds,
            size: request.allocation_size,
        };
        ContainerPreferredAllocationResponse {
            device_i_ds: preferred(policy, &inventory, request),
        }
    }

    fn allocate(&self, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
        let inventory = self.inventory.borrow().clone();
        let answer = allocation::answer(&self.resource, &self.access, &inventory, ids)
            .map_err(|refused| refused.to_string())?;
        // The inventory may be older than an unplugged device by one look.
        for device in &answer.devices {
            if !self.is_device(&device.host_path) {
                return Err(format!(
                    "device node {:?} of resource {:?} is gone",
                    device.host_path, self.resource
                ));
            }
        }
        let device = |id: &String| inventory.sharing.device(id).to_owned();
        let devices: Vec<String> = ids.iter().map(device).collect();
        self.claims.give(&devices)?;
        if let Some(cdi) = &self.cdi {
            cdi.keep(&inventory).map_err(|error| chained(&error))?;
        }
        Ok(response(answer))
    }

    fn is_device(&self, path: &str) -> bool {
        let target = self.host_dev.target(path);
        matches!(
            target,
            Some(Target::Device {
                kind: Kind::Character,
                major,
                minor,
                ..
            }) if forbidden(major, minor).is_none()
        )
    }
}

fn response(answer: Answer) -> ContainerAllocateResponse {
    let nodes = answer.devices.into_iter().map(|device| DeviceSpec {
        container_path: device.container_path,
        host_path: device.host_path,
        permissions: device.permissions,
    });
    let names = answer.cdi_names.into_iter().map(|name| CdiDevice { name });
    let cdi_devices: Vec<CdiDevice> = names.collect();
    let mounts = answer.mounts.into_iter().map(|mount| Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        read_only: mount.read_only,
    });
    ContainerAllocateResponse {
        // The specification has the same nodes.
        devices: nodes.filter(|_| cdi_devices.is_empty()).collect(),
        cdi_devices,
        envs: answer.envs.into_iter().collect(),
        mounts: mounts.collect(),
        annotations: answer.annotations.into_iter().collect(),
    }
}

/// Tells that a stream opened, and that it ended however that came about.
struct OpenStream {
    server: u64,
    streams: mpsc::UnboundedSender<StreamEvent>,
    resource: String,
    opened: Instant,
    lists: Arc<watch::Sender<SentLists>>,
}

impl OpenStream {
    fn new(service: &PluginService) -> Self {
        let open = Self {
            server: service.server,
            streams: service.streams.clone(),
            resource: service.answers.resource.clone(),
            opened: Instant::now(),
            lists: service.answers.sent.clone(),
        };
        open.tell(true);
        open
    }

    fn sends(&self, at: Instant, inventory: &Arc<Inventory>) {
        let sent = Sent {
            opened: self.opened,
            at,
            inventory: inventory.clone(),
        };
        self.lists
            .send_modify(|lists| _ = lists.insert(self.resource.clone(), sent));
    }

    fn tell(&self, opened: bool) {
        // Nobody listens any more while the process ends.
        let _nobody = self.streams.send(StreamEvent {
            server: self.server,
            opened,
        });
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.lists.send_if_modified(|lists| {
            let is_own = lists
                .get(&self.resource)
                .is_some_and(|sent| sent.opened == self.opened);
            is_own && lists.remove(&self.resource).is_some()
        });
        self.tell(false);
    }
}

/// The messages of one stream: the complete list at once, and again when it changed. Only what is true
/// when a message goes out is kept: a reader that is slow gets the latest list.
struct List {
    inventory: watch::Receiver<Arc<Inventory>>,
    cdi: Option<Arc<CdiFile>>,
    closing: watch::Receiver<bool>,
    sent: Option<(Instant, Arc<Inventory>)>,
    gap: Duration,
    open: OpenStream,
}

impl List {
    async fn next_message(&mut self) -> Option<ListAndWatchResponse> {
        loop {
            if *self.closing.borrow() {
                return None;
            }
            let now = self.inventory.borrow_and_update().clone();
            if let Some(cdi) = &self.cdi {
                // Where it fails, that is posted, and no device is given out.
                let _posted = cdi.keep(&now);
            }
            let ready_at = match &self.sent {
                None => None,
                Some((_, before)) if before.is_same_list(&now) => {
                    tokio::select! {
                        closed = self.closing.changed() => closed.ok()?,
                        changed = self.inventory.changed() => changed.ok()?,
                    }
                    continue;
                }
                Some((at, _)) => Some(*at + self.gap).filter(|ready| *ready > Instant::now()),
            };
            let Some(ready_at) = ready_at else {
                let at = Instant::now();
                self.open.sends(at, &now);
                self.sent = Some((at, now.clone()));
                return Some(message(&now));
            };
            tokio::select! {
                closed = self.closing.changed() => closed.ok()?,
                () = tokio::time::sleep_until(ready_at) => {}
            }
        }
    }
}

fn message(inventory: &Inventory) -> ListAndWatchResponse {
    let devices = inventory.advertised().map(|one| Device {
        id: one.id.into_owned(),
        health: one.health.as_str().to_owned(),
        topology: topology(one.numa_nodes),
    });
    ListAndWatchResponse {
        devices: devices.collect(),
    }
}

/// Nothing where no node is known: an empty one would make the kubelet believe that there is one.
fn topology(numa_nodes: &[u32]) -> Option<TopologyInfo> {
    let nodes = numa_nodes.iter().map(|node| NumaNode {
        id: i64::from(*node),
    });
    (!numa_nodes.is_empty()).then(|| TopologyInfo {
        nodes: nodes.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_agent_core::discovery::{Discovered, Found};

    /// 40.
    #[test]
    fn numa_nodes_are_told_as_they_are() {
        let check = |numa_nodes: &[u32], expected: Option<&[i64]>| {
            let mut found = Found::default();
            found.hardware.numa_nodes = numa_nodes.to_vec();
            let discovered = Discovered {
                devices: [("a".to_owned(), found)].into(),
                ..Discovered::default()
            };
            let now = jiff::Timestamp::UNIX_EPOCH;
            let inventory = Inventory::default().next(discovered, None, now);
            let devices = message(&inventory).devices;
            let told = devices[0].topology.as_ref();
            let told = told.map(|told| told.nodes.iter().map(|node| node.id).collect::<Vec<_>>());
            assert_eq!(told.as_deref(), expected);
        };
        check(&[], None);
        check(&[0], Some(&[0]));
        check(&[0, 1], Some(&[0, 1]));
        check(&[u32::MAX], Some(&[4_294_967_295]));
        let many: Vec<u32> = (0..99).collect();
        let told: Vec<i64> = (0..16).collect();
        check(&many, Some(&told));
    }
}
