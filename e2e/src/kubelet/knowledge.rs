//! What a kubelet that is played here knows, and remembers for whoever judges a plugin by it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proto::v1beta1::{Device, DevicePluginOptions, RegisterRequest};

use super::device_manager::Counts;

/// How long a kubelet keeps the capacity of a plugin that is gone.
const GRACE: Duration = Duration::from_secs(300);

/// One `Register` call.
#[derive(Clone, Debug)]
pub struct Call {
    /// What was sent.
    pub request: RegisterRequest,
    /// When it came.
    pub at: Instant,
    /// What the plugin answered to every `GetDevicePluginOptions` within the call, in order.
    pub options: Vec<Result<DevicePluginOptions, String>>,
    /// What was answered, and when; nothing while it is not.
    pub answer: Option<(Instant, Result<(), String>)>,
}

impl Call {
    /// Whether it was answered with success.
    pub fn accepted(&self) -> bool {
        matches!(self.answer, Some((_, Ok(()))))
    }
}

/// One message of a `ListAndWatch` stream.
#[derive(Clone, Debug)]
pub struct Message {
    /// The resource.
    pub resource: String,
    /// Which stream, by its place in [`Knowledge::streams`].
    pub stream: usize,
    /// When it came.
    pub at: Instant,
    /// The complete list.
    pub devices: Vec<Device>,
}

/// One `ListAndWatch` stream.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The resource.
    pub resource: String,
    /// The plugin's socket.
    pub endpoint: String,
    /// When it was asked for.
    pub opened: Instant,
    /// When it ended and why; nothing while it is open.
    pub ended: Option<(Instant, String)>,
}

/// What is known of one resource.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The socket of the plugin that serves it; empty when disconnected.
    pub endpoint: String,
    /// Devices and what was said last of their health. Of a plugin that is gone, all are Unhealthy.
    pub devices: BTreeMap<String, String>,
    /// Ids that were said to be healthy.
    pub healthy: BTreeSet<String>,
    /// Ids that were said not to be; one list may say both.
    pub unhealthy: BTreeSet<String>,
    /// Whether a list has come: what has none is in no status.
    pub is_listed: bool,
    /// What the plugin said when it registered.
    pub options: DevicePluginOptions,
    /// How many messages the plugin that serves it has sent.
    pub messages: usize,
    /// Since when it is disconnected.
    pub stopped: Option<Instant>,
}

impl Known {
    /// A list replaces the one before.
    pub(super) fn take_in(&mut self, devices: &[Device]) {
        self.is_listed = true;
        self.messages += 1;
        let all = devices.iter();
        self.devices = all.map(|d| (d.id.clone(), d.health.clone())).collect();
        let ids = |is_healthy: bool| {
            let those = devices
                .iter()
                .filter(move |device| (device.health == "Healthy") == is_healthy);
            those.map(|device| device.id.clone()).collect()
        };
        self.healthy = ids(true);
        self.unhealthy = ids(false);
    }

    /// What the node's status says; nothing if it does not name the resource.
    pub fn counts(&self) -> Option<Counts> {
        if !self.is_listed {
            return None;
        }
        if self.stopped.is_some_and(|at| at.elapsed() > GRACE) {
            return Some(Counts::default());
        }
        Some(Counts {
            capacity: self.healthy.len() + self.unhealthy.len(),
            allocatable: self.healthy.len(),
        })
    }

    /// The plugin is gone.
    pub fn disconnect(&mut self) {
        self.endpoint.clear();
        self.messages = 0;
        self.stopped = Some(Instant::now());
        self.unhealthy.append(&mut self.healthy);
        for health in self.devices.values_mut() {
            "Unhealthy".clone_into(health);
        }
    }
}

/// What a kubelet knows.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// Every `Register` call.
    pub calls: Vec<Call>,
    /// Every stream.
    pub streams: Vec<Stream>,
    /// Every message, unless it was told to forget them.
    pub messages: Vec<Message>,
    /// Resources that are served, or were.
    pub resources: BTreeMap<String, Known>,
}

impl Knowledge {
    /// Whether a plugin is connected and has sent a list.
    pub fn is_served(&self, resource: &str) -> bool {
        let known = self.resources.get(resource);
        known.is_some_and(|known| !known.endpoint.is_empty() && known.messages > 0)
    }

    /// The same by whoever called last: what an earlier instance left is over.
    pub fn is_served_by_newest(&self, resource: &str) -> bool {
        let calls = self.calls_of(resource);
        let newest = calls.last().filter(|call| call.accepted());
        let newest = newest.map(|call| call.request.endpoint.as_str());
        self.is_served(resource) && newest == self.endpoint(resource)
    }

    /// The plugin's socket of a resource that is served.
    pub fn endpoint(&self, resource: &str) -> Option<&str> {
        let known = self.resources.get(resource)?;
        Some(known.endpoint.as_str()).filter(|endpoint| !endpoint.is_empty())
    }

    /// Devices and health of a resource while it is served.
    pub fn devices(&self, resource: &str) -> BTreeMap<String, String> {
        let known = self
            .resources
            .get(resource)
            .filter(|_| self.is_served(resource));
        known.map(|known| known.devices.clone()).unwrap_or_default()
    }

    /// Calls for a resource.
    pub fn calls_of(&self, resource: &str) -> Vec<&Call> {
        let calls = self.calls.iter();
        calls
            .filter(|call| call.request.resource_name == resource)
            .collect()
    }

    /// Streams of a resource that are open.
    pub fn open_streams(&self, resource: &str) -> usize {
        let streams = self.streams.iter();
        streams
            .filter(|stream| stream.resource == resource && stream.ended.is_none())
            .count()
    }

    /// Messages of a resource.
    pub fn messages_of(&self, resource: &str) -> Vec<&Message> {
        let messages = self.messages.iter();
        messages
            .filter(|message| message.resource == resource)
            .collect()
    }
}
