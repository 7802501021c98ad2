//! The kubelet's own device manager, in a process without a kubelet around it: the oracle that the
//! played kubelet is held against.
//!
//! It knows how to ask that process. It deliberately does not know what should be true of it: that
//! is what the oracle checks say.

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::process::Process;
use crate::kubelet::{Answer, Ask, Counts, DeviceManager, RunOptions};

/// When a container runs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub enum Kind {
    /// Beside the other containers.
    #[default]
    #[serde(rename = "")]
    App,
    /// To its end, before the others.
    #[serde(rename = "init")]
    Init,
    /// Before the others and beside them.
    #[serde(rename = "sidecar")]
    Sidecar,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// When it runs.
    pub kind: Kind,
    /// How many devices it asks for, by resource.
    pub resources: BTreeMap<String, usize>,
}

impl Container {
    /// One that asks for devices of one resource.
    pub fn new(name: &str, kind: Kind, resource: &str, count: usize) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            resources: [(resource.to_owned(), count)].into(),
        }
    }
}

/// Devices of a machine's NUMA nodes, and what the topology manager makes of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Topology {
    /// How many NUMA nodes the machine has.
    pub nodes: usize,
    /// The topology manager's policy; empty for `none`.
    pub policy: &'static str,
}

/// A real device manager.
pub struct RealDeviceManager {
    program: PathBuf,
    version: String,
    directory: PathBuf,
    process: Option<Process>,
    /// Admitted pods, as the API server would know them.
    pods: BTreeMap<String, Vec<Container>>,
    /// Containers that the runtime runs.
    running: BTreeSet<(String, String)>,
    /// What the last start said to the pods that were there before.
    readmitted: BTreeMap<String, Answer<()>>,
    /// Taken by the next start.
    pub topology: Topology,
}

/// The numbers for the node's status.
#[derive(Debug, Deserialize)]
struct Status {
    capacity: BTreeMap<String, usize>,
    allocatable: BTreeMap<String, usize>,
}

/// Ids by resource.
type Ids = BTreeMap<String, BTreeSet<String>>;

#[derive(Deserialize)]
struct Settings {
    envs: BTreeMap<String, String>,
    mounts: BTreeMap<String, String>,
    devices: BTreeMap<String, String>,
}

impl RealDeviceManager {
    /// One that does not run yet. `version` is that of `program`, as in `v1.36.3`.
    pub fn stopped(program: &Path, version: &str, directory: &Path) -> Self {
        Self {
            program: program.to_owned(),
            version: version.trim_start_matches('v').to_owned(),
            directory: directory.to_owned(),
            process: None,
            pods: BTreeMap::new(),
            running: BTreeSet::new(),
            readmitted: BTreeMap::new(),
            topology: Topology::default(),
        }
    }

    async fn ask(&self, what: &str, with: Value) -> Result<Answer<Value>> {
        let process = self.process.as_ref();
        let process = process.context("the device manager does not run")?;
        process.ask(what, with).await
    }

    async fn demand<T: serde::de::DeserializeOwned>(&self, what: &str, with: Value) -> Result<T> {
        let said = self.ask(what, with).await?;
        let said = said.map_err(|told| anyhow!("{what:?} was refused: {told}"))?;
        serde_json::from_value(said).with_context(|| format!("{what:?} had another answer"))
    }

    async fn admitted(&self, pod: &str, containers: &[Container]) -> Result<Answer<()>> {
        let pod = json!({"pod": {"name": pod, "containers": containers}});
        Ok(self.ask("admit", pod).await?.map(drop))
    }

    /// Admits a pod, and keeps it if it is taken.
    ///
    /// # Errors
    /// When the process ended.
    pub async fn admit_pod(&mut self, pod: &str, containers: Vec<Container>) -> Result<Answer<()>> {
        let answer = self.admitted(pod, &containers).await?;
        if answer.is_ok() {
            self.pods.insert(pod.to_owned(), containers);
        }
        Ok(answer)
    }

    /// What a container holds, by resource.
    ///
    /// # Errors
    /// When the process ended.
    pub async fn held(&self, pod: &str, container: &str) -> Result<Ids> {
        let of = json!({"pod": {"name": pod}, "container": container});
        self.demand("devices", of).await
    }

    /// The health of a container's devices in the pod's status.
    ///
    /// # Errors
    /// When the process ended or the pod is not admitted.
    pub async fn health(&self, pod: &str, container: &str) -> Result<BTreeMap<String, String>> {
        let of = json!({"pod": {"name": pod}, "container": container});
        self.demand("health", of).await
    }

    /// Lets so many seconds pass since the plugin of a resource was lost.
    ///
    /// # Errors
    /// When the process ended, or the resource is not known.
    pub async fn age(&self, resource: &str, seconds: u64) -> Result<()> {
        let of = json!({"resource": resource, "seconds": seconds});
        self.demand("age", of).await
    }

    /// Containers end with the machine: the runtime runs none of them when it is started again.
    pub fn reboot(&mut self) {
        self.running.clear();
    }

    /// What the last start said to the pods that were admitted before it.
    pub fn readmitted(&self) -> &BTreeMap<String, Answer<()>> {
        &self.readmitted
    }

    /// The end of the process's log.
    pub fn last_words(&self) -> String {
        let process = self.process.as_ref();
        process.map(Process::last_words).unwrap_or_default()
    }
}

#[tonic::async_trait]
impl DeviceManager for RealDeviceManager {
    fn version(&self) -> String {
        self.version.clone()
    }

    fn plugin_dir(&self) -> &Path {
        &self.directory
    }

    /// Admits the pods that were there before in the kubelet's order: while it does not know yet
    /// whether the API server has told it all.
    async fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the device manager runs already");
        }
        self.process = Some(Process::start(&self.program)?);
        let running: Vec<Value> = self
            .running
            .iter()
            .map(|(pod, container)| json!({"name": pod, "containers": [{"name": container}]}))
            .collect();
        let start = json!({"start": {
            "directory": self.directory,
            "numaNodes": self.topology.nodes,
            "policy": self.topology.policy,
            "running": running,
        }});
        self.demand::<()>("start", start).await?;
        self.readmitted.clear();
        for (pod, containers) in &self.pods {
            let answer = self.admitted(pod, containers).await?;
            self.readmitted.insert(pod.clone(), answer);
        }
        self.pods
            .retain(|pod, _| self.readmitted.get(pod).is_some_and(Answer::is_ok));
        self.demand("ready", json!({})).await
    }

    async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.end().await,
            None => Ok(()),
        }
    }

    async fn counts(&mut self, resource: &str) -> Result<Option<Counts>> {
        let status: Status = self.demand("capacity", json!({})).await?;
        Ok(status.capacity.get(resource).map(|capacity| Counts {
            capacity: *capacity,
            allocatable: status.allocatable.get(resource).copied().unwrap_or(0),
        }))
    }

    async fn healthy(&mut self, resource: &str) -> Result<BTreeSet<String>> {
        let mut ids: Ids = self.demand("allocatable", json!({})).await?;
        Ok(ids.remove(resource).unwrap_or_default())
    }

    async fn admit(&mut self, ask: &Ask) -> Result<Answer<BTreeSet<String>>> {
        let mut containers = self.pods.get(&ask.pod).cloned().unwrap_or_default();
        containers.push(Container::new(
            &ask.container,
            Kind::App,
            &ask.resource,
            ask.count,
        ));
        if let Err(told) = self.admit_pod(&ask.pod, containers).await? {
            return Ok(Err(told));
        }
        let mut held = self.held(&ask.pod, &ask.container).await?;
        Ok(Ok(held.remove(&ask.resource).unwrap_or_default()))
    }

    async fn start_container(&mut self, pod: &str, container: &str) -> Result<Answer<RunOptions>> {
        let of = json!({"pod": {"name": pod}, "container": container});
        let said = match self.ask("run", of).await? {
            Ok(said) => said,
            Err(told) => return Ok(Err(told)),
        };
        let said: Settings = serde_json::from_value(said).context("\"run\" had another answer")?;
        self.running.insert((pod.to_owned(), container.to_owned()));
        Ok(Ok(RunOptions {
            envs: said.envs,
            devices: said.devices,
            mounts: said.mounts,
        }))
    }

    async fn remove_pod(&mut self, pod: &str) -> Result<()> {
        self.pods.remove(pod);
        self.running.retain(|(of, _)| of != pod);
        self.demand("end", json!({"pod": {"name": pod}})).await
    }
}
