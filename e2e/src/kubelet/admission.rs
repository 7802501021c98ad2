//! How a played kubelet gives devices to containers: enough of the real one's path to be held
//! against it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use proto::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, PreStartContainerRequest, PreferredAllocationRequest,
};
use tonic::Status;

use super::device_manager::{Answer, Ask, Counts, DeviceManager, RunOptions};
use super::dial::Client;
use super::fake::FakeKubelet;
use super::locked;

/// How long `PreStartContainer` may take.
const PRE_START: Duration = Duration::from_secs(30);

/// What containers hold, by pod and container.
pub(super) type Pods = BTreeMap<(String, String), Vec<Holding>>;

/// What one container holds of one resource.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    resource: String,
    ids: BTreeSet<String>,
    response: ContainerAllocateResponse,
}

/// Holds what no container got: a plugin answered, but for no container. It is free again with the
/// next pod that ends.
const NOBODY: &str = "";

/// How the kubelet's library tells an error of a plugin.
fn told(status: &Status) -> String {
    format!(
        "rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    )
}

impl FakeKubelet {
    fn free(&self, resource: &str) -> BTreeSet<String> {
        let mut free = self.look(|known| {
            let known = known.resources.get(resource);
            known.map(|known| known.healthy.clone()).unwrap_or_default()
        });
        let state = locked(&self.shared.state);
        let held = state.pods.values().flatten();
        for holding in held.filter(|holding| holding.resource == resource) {
            free.retain(|id| !holding.ids.contains(id));
        }
        free
    }

    /// Asks the plugin which of the free devices it would give; what it says wrongly is made good.
    async fn chosen(&self, ask: &Ask, free: &BTreeSet<String>) -> Answer<BTreeSet<String>> {
        let resource = &ask.resource;
        let options = self.look(|known| known.resources.get(resource).map(|known| known.options));
        let mut chosen = BTreeSet::new();
        let wants = options.is_some_and(|options| options.get_preferred_allocation_available);
        if wants {
            let request = PreferredAllocationRequest {
                container_requests: vec![ContainerPreferredAllocationRequest {
                    available_device_i_ds: free.iter().cloned().collect(),
                    must_include_device_i_ds: Vec::new(),
                    allocation_size: i32::try_from(ask.count).unwrap_or(i32::MAX),
                }],
            };
            let mut plugin = self.connected(resource).await?;
            let answered = plugin.get_preferred_allocation(request).await;
            let answered = answered.map_err(|status| {
                format!(
                    "device plugin GetPreferredAllocation rpc failed with err: {}",
                    told(&status)
                )
            })?;
            let first = answered.into_inner().container_responses.into_iter().next();
            let preferred = first.map(|one| one.device_i_ds).unwrap_or_default();
            chosen.extend(preferred.into_iter().filter(|id| free.contains(id)));
        }
        for id in free {
            if chosen.len() >= ask.count {
                break;
            }
            chosen.insert(id.clone());
        }
        Ok(chosen.into_iter().take(ask.count).collect())
    }

    /// The plugin that serves a resource, if it is there.
    async fn connected(&self, resource: &str) -> Answer<Client> {
        if self.look(|known| known.endpoint(resource).is_none()) {
            return Err(format!("endpoint of {resource} has been stopped"));
        }
        self.plugin(resource).await.map_err(|e| format!("{e:#}"))
    }

    async fn allocated(&self, ask: &Ask) -> Answer<Holding> {
        let resource = &ask.resource;
        let is_served = self.look(|known| {
            let known = known.resources.get(resource);
            known.is_some_and(|known| !known.healthy.is_empty())
        });
        if !is_served {
            return Err(format!(
                "no healthy devices present; cannot allocate unhealthy devices {resource}"
            ));
        }
        let free = self.free(resource);
        if free.len() < ask.count {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {}, \
                 Available: {}",
                ask.count,
                free.len()
            ));
        }
        let ids = self.chosen(ask, &free).await?;
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                devices_ids: ids.iter().cloned().collect(),
            }],
        };
        let mut plugin = self.connected(resource).await?;
        let answered = plugin.allocate(request).await;
        let answered = answered.map_err(|status| {
            // What nobody holds is found out then.
            self.release(NOBODY);
            told(&status)
        })?;
        let first = answered.into_inner().container_responses.into_iter().next();
        let is_answered = first.is_some();
        let holding = Holding {
            resource: resource.clone(),
            ids,
            response: first.unwrap_or_default(),
        };
        if is_answered {
            return Ok(holding);
        }
        self.keep(NOBODY, NOBODY, holding);
        Err("no containers return in allocation response".to_owned())
    }

    fn keep(&self, pod: &str, container: &str, holding: Holding) {
        let key = (pod.to_owned(), container.to_owned());
        let mut state = locked(&self.shared.state);
        state.pods.entry(key).or_default().push(holding);
    }

    fn release(&self, pod: &str) {
        let mut state = locked(&self.shared.state);
        state.pods.retain(|(of, _), _| of != pod);
    }

    async fn prepared(&self, holding: &Holding) -> Answer<()> {
        let resource = &holding.resource;
        let options = self.look(|known| known.resources.get(resource).map(|known| known.options));
        if !options.is_some_and(|options| options.pre_start_required) {
            return Ok(());
        }
        let mut plugin = self.connected(resource).await?;
        let request = PreStartContainerRequest {
            devices_ids: holding.ids.iter().cloned().collect(),
        };
        let answered = tokio::time::timeout(PRE_START, plugin.pre_start_container(request)).await;
        let answered = answered
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")));
        answered.map(drop).map_err(|status| {
            format!(
                "device plugin PreStartContainer rpc failed with err: {}",
                told(&status)
            )
        })
    }
}

#[tonic::async_trait]
impl DeviceManager for FakeKubelet {
    fn version(&self) -> String {
        format!("fake {}", self.model())
    }

    fn plugin_dir(&self) -> &Path {
        self.directory()
    }

    async fn start(&mut self) -> Result<()> {
        self.run()
    }

    async fn stop(&mut self) -> Result<()> {
        self.halt();
        Ok(())
    }

    async fn counts(&mut self, resource: &str) -> Result<Option<Counts>> {
        Ok(self.look(|known| known.resources.get(resource).and_then(super::Known::counts)))
    }

    async fn healthy(&mut self, resource: &str) -> Result<BTreeSet<String>> {
        let healthy = self.look(|known| {
            let known = known.resources.get(resource);
            known.map(|known| known.healthy.clone())
        });
        Ok(healthy.unwrap_or_default())
    }

    async fn admit(&mut self, ask: &Ask) -> Result<Answer<BTreeSet<String>>> {
        let allocated = self.allocated(ask).await.map_err(|why| {
            format!("UnexpectedAdmissionError: Allocate failed due to {why}, which is unexpected")
        });
        Ok(allocated.map(|holding| {
            let ids = holding.ids.clone();
            self.keep(&ask.pod, &ask.container, holding);
            ids
        }))
    }

    async fn start_container(&mut self, pod: &str, container: &str) -> Result<Answer<RunOptions>> {
        let key = (pod.to_owned(), container.to_owned());
        let holdings = locked(&self.shared.state).pods.get(&key).cloned();
        let mut options = RunOptions::default();
        for holding in holdings.unwrap_or_default() {
            if let Err(told) = self.prepared(&holding).await {
                return Ok(Err(told));
            }
            // The first value wins.
            let response = holding.response;
            for (name, value) in response.envs {
                options.envs.entry(name).or_insert(value);
            }
            for device in response.devices {
                let devices = options.devices.entry(device.container_path);
                devices.or_insert(device.host_path);
            }
            for mount in response.mounts {
                let mounts = options.mounts.entry(mount.container_path);
                mounts.or_insert(mount.host_path);
            }
        }
        Ok(Ok(options))
    }

    async fn remove_pod(&mut self, pod: &str) -> Result<()> {
        self.release(pod);
        self.release(NOBODY);
        Ok(())
    }
}
