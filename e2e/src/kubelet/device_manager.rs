//! What a kubelet's device manager does for plugins and pods, whoever plays it: ours in this
//! process, or the real one in a process of its own. The oracle checks are written against this
//! alone, so that both are held to the same truth.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

/// What a device manager writes into the node's status for one resource.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Healthy and unhealthy devices.
    pub capacity: usize,
    /// Healthy devices, those in use included.
    pub allocatable: usize,
}

/// What one container asks for: so many devices of one resource.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ask {
    /// UID of the pod, which is its name too.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// The resource.
    pub resource: String,
    /// How many.
    pub count: usize,
}

/// What a container runs with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RunOptions {
    /// Environment variables.
    pub envs: BTreeMap<String, String>,
    /// Path in the container, and on the host, of each device node.
    pub devices: BTreeMap<String, String>,
    /// Path in the container, and on the host, of each mount.
    pub mounts: BTreeMap<String, String>,
}

/// A refusal is an answer: what the pod's status would say.
pub type Answer<T> = Result<T, String>;

/// A device manager of one node.
#[tonic::async_trait]
pub trait DeviceManager: Send {
    /// Which version it is, for messages: `fake 1.36`, `1.36.3`.
    fn version(&self) -> String;

    /// Where plugins register, at `kubelet.sock`, and have their sockets.
    fn plugin_dir(&self) -> &Path;

    /// Starts as a kubelet does: sockets in the plugin directory go, what containers hold comes back
    /// from the checkpoint. Returns once `kubelet.sock` answers.
    ///
    /// # Errors
    /// When it cannot be started.
    async fn start(&mut self) -> Result<()>;

    /// Ends as a kubelet that is stopped: streams end, its socket stays behind and refuses.
    ///
    /// # Errors
    /// When it cannot be stopped.
    async fn stop(&mut self) -> Result<()>;

    /// What the node's status says of a resource; nothing if it does not name it.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn counts(&mut self, resource: &str) -> Result<Option<Counts>>;

    /// Ids of a resource's healthy devices, those in use included: what pod-resources lists as
    /// allocatable.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn healthy(&mut self, resource: &str) -> Result<BTreeSet<String>>;

    /// Admits a container: chooses devices and calls `Allocate`. Returns the ids.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn admit(&mut self, ask: &Ask) -> Result<Answer<BTreeSet<String>>>;

    /// Starts an admitted container, or starts it again: calls `PreStartContainer` where the plugin
    /// wants that, and returns what the container runs with.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn start_container(&mut self, pod: &str, container: &str) -> Result<Answer<RunOptions>>;

    /// Forgets a pod that has ended: its devices are free.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn remove_pod(&mut self, pod: &str) -> Result<()>;
}
