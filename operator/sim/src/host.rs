//! One machine: its kubelet's device manager, the locks and files that agents share, and its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A process. No number is used twice.
pub type Pid = u64;

/// How a kubelet registers plugins (`kubelet-contract.md` 1.4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kubelet {
    /// 1.25 to 1.36: the end of any stream of a resource takes its devices away and disconnects
    /// whoever is registered for it by then; every message of every stream replaces the list.
    ByResource,
    /// 1.37: each socket is an endpoint of its own, and the newest one counts.
    BySocket,
}

/// A `ListAndWatch` stream.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The resource.
    pub resource: String,
    /// The agent's process.
    pub agent: Pid,
    /// The socket, a number that is never used twice.
    pub socket: u64,
    /// Whether the agent has ended it; the kubelet may not have noticed yet.
    pub ended: bool,
}

/// What an agent remembers on the host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StateFile {
    /// UID of the config.
    pub config_uid: String,
    /// The revision that served last.
    pub revision: String,
    /// The resources that it served.
    pub resources: BTreeSet<String>,
}

/// A pod as its kubelet runs it.
#[derive(Clone, Debug, Default)]
pub struct HostPod {
    /// Its name.
    pub name: String,
    /// Its config.
    pub config: String,
    /// Its revision.
    pub revision: String,
    /// Whether its environment says that it is active where nothing else is known.
    pub initially_active: bool,
    /// Its process, while it runs.
    pub process: Option<Pid>,
    /// How often its process was started again.
    pub restarts: i32,
    /// Failures in a row, which its kubelet waits longer and longer after.
    pub failures: u32,
    /// Whether it has ended for good.
    pub failed: bool,
    /// Whether it is being stopped.
    pub stopping: bool,
    /// Whether its agent says it is ready.
    pub ready: bool,
    /// Why it does not run: reason and whether that is a failure.
    pub trouble: Option<(&'static str, bool)>,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// The name of its node.
    pub name: String,
    /// Its kubelet.
    pub kubelet: Kubelet,
    /// Its devices, a bit each. Every resource has all of them.
    pub devices: u32,
    /// Devices that containers hold, by resource.
    pub allocated: BTreeMap<String, u32>,
    /// How often it has booted.
    pub boots: u32,
    /// Whether it runs.
    pub up: bool,
    /// Since when its kubelet runs.
    pub kubelet_since: Option<Duration>,
    /// Whether it reaches the API server.
    pub connected: bool,
    /// How often it has lost the API server.
    pub losses: u32,
    /// Streams that its kubelet reads.
    pub streams: Vec<Stream>,
    /// The socket that its kubelet holds for a resource.
    clients: BTreeMap<String, u64>,
    /// The kubelet's own lists of healthy devices.
    pub lists: BTreeMap<String, u32>,
    /// Who holds a config's role lock.
    pub role_locks: BTreeMap<String, Pid>,
    /// Since when a config's role lock is free.
    pub role_free_since: BTreeMap<String, Duration>,
    /// Who holds a resource's lock.
    pub resource_locks: BTreeMap<String, Pid>,
    /// State files by config.
    pub files: BTreeMap<String, StateFile>,
    /// Pods by UID.
    pub pods: BTreeMap<String, HostPod>,
    /// When in its period the kubelet writes the node's status.
    pub tick_offset: Duration,
    /// Whether a look at the API server's pods is under way.
    pub sync_is_due: bool,
    /// Whether a write of the node's status is under way.
    pub tick_is_due: bool,
}

impl Host {
    /// A machine that runs and has no pods.
    pub fn new(name: &str, kubelet: Kubelet, devices: u32, tick_offset: Duration) -> Self {
        Self {
            name: name.to_owned(),
            kubelet,
            devices,
            allocated: BTreeMap::new(),
            boots: 1,
            up: true,
            kubelet_since: Some(Duration::ZERO),
            connected: true,
            losses: 0,
            streams: Vec::new(),
            clients: BTreeMap::new(),
            lists: BTreeMap::new(),
            role_locks: BTreeMap::new(),
            role_free_since: BTreeMap::new(),
            resource_locks: BTreeMap::new(),
            files: BTreeMap::new(),
            pods: BTreeMap::new(),
            tick_offset,
            sync_is_due: false,
            tick_is_due: false,
        }
    }

    /// The kubelet's own list of a resource.
    pub fn list(&self, resource: &str) -> u32 {
        self.lists.get(resource).copied().unwrap_or_default()
    }

    /// Registers a plugin, which then sends its list.
    pub fn register(&mut self, resource: &str, agent: Pid, socket: u64, list: u32) {
        self.streams.push(Stream {
            resource: resource.to_owned(),
            agent,
            socket,
            ended: false,
        });
        self.clients.insert(resource.to_owned(), socket);
        self.lists.insert(resource.to_owned(), list);
    }

    /// The kubelet notices that a stream has ended. The streams that it ends because of that.
    pub fn notice_end(&mut self, resource: &str, socket: u64) -> Vec<Stream> {
        let before = self.streams.len();
        self.streams.retain(|stream| stream.socket != socket);
        if self.streams.len() == before {
            // It was a stream to an earlier kubelet.
            return Vec::new();
        }
        let client = self.clients.get(resource).copied();
        match self.kubelet {
            Kubelet::ByResource => {
                self.clients.remove(resource);
                self.lists.insert(resource.to_owned(), 0);
                let other = client.filter(|client| *client != socket);
                self.streams
                    .extract_if(.., |stream| Some(stream.socket) == other)
                    .collect()
            }
            Kubelet::BySocket => {
                if client == Some(socket) {
                    self.clients.remove(resource);
                    self.lists.insert(resource.to_owned(), 0);
                }
                Vec::new()
            }
        }
    }

    /// The kubelet ends. All streams end with it.
    pub fn stop_kubelet(&mut self) -> Vec<Stream> {
        self.kubelet_since = None;
        self.clients.clear();
        for list in self.lists.values_mut() {
            *list = 0;
        }
        std::mem::take(&mut self.streams)
    }

    /// Frees whatever a process holds.
    pub fn unlock(&mut self, agent: Pid, now: Duration) {
        self.resource_locks.retain(|_, holder| *holder != agent);
        let freed = self.role_locks.extract_if(.., |_, holder| *holder == agent);
        for (config, _) in freed {
            self.role_free_since.insert(config, now);
        }
    }

    /// Streams of a resource that nobody has ended.
    pub fn live<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a Stream> {
        let streams = self.streams.iter();
        streams.filter(move |stream| stream.resource == resource && !stream.ended)
    }
}
