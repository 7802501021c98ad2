//! The simulated cluster and its clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::DevicePluginConfig;
use crds::names::node_object;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use operator_core::seen::{Identity, SeenNode};
use operator_core::settings::Settings;

use crate::agent::Agent;
use crate::api::{Api, Watch};
use crate::bug::Bug;
use crate::event::{AgentEvent, Event, HostId, OperatorEvent, Queue};
use crate::fault::Fault;
use crate::host::{Host, Pid};
use crate::laws::{Broken, Laws};
use crate::operator::Operator;
use crate::operator::of_kind;
use crate::random::{Random, ms, secs};
use crate::script::Script;
use crate::story::{Story, tell};

/// Every simulation begins at this time.
const NOON: i64 = 1_795_262_400;

/// Who leads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    /// The process: its place and its start.
    pub holder: Option<(usize, u32)>,
    /// How often the holder has changed.
    pub transitions: u64,
    /// When the holder stopped renewing it.
    pub left: Option<Duration>,
    /// Whether somebody is about to look at it.
    is_due: bool,
}

/// A lease that is not renewed for this time is free.
const LEASE_DURATION: Duration = secs(15);

/// The simulated cluster.
pub struct World {
    /// The time since the beginning.
    pub now: Duration,
    queue: Queue,
    /// Chance.
    pub random: Random,
    /// The API server.
    pub api: Api,
    /// Machines.
    pub hosts: Vec<Host>,
    /// Agents' processes.
    pub agents: BTreeMap<Pid, Agent>,
    /// Operators' processes.
    pub operators: Vec<Operator>,
    /// Who leads.
    pub lease: Lease,
    /// What operators are started with.
    pub settings: Arc<Settings>,
    /// The circumstances.
    pub script: Script,
    /// What must hold, and what is remembered to judge it.
    pub laws: Laws,
    /// What happened.
    pub story: Story,
    /// The law that was broken first.
    pub broken: Option<Broken>,
    /// The fault that was put in on purpose.
    pub bug: Option<Bug>,
    /// How far the wall clock is off, in seconds.
    pub clock_skew: i64,
    /// How many writes operators have tried.
    pub writes: u64,
    /// How many plans were made.
    pub plans: u64,
    /// How many events happened.
    pub events: u64,
    /// Whether the DaemonSet controller is about to look.
    pub daemon_sets_are_due: bool,
    /// By pod, what its environment says about its role.
    pub initially_active: BTreeMap<String, bool>,
    numbers: u64,
    spread: BTreeMap<Watch, usize>,
}

impl World {
    /// An empty cluster.
    pub fn new(random: Random, settings: Settings, script: Script) -> Self {
        Self {
            now: Duration::ZERO,
            queue: Queue::default(),
            random,
            api: Api::default(),
            hosts: Vec::new(),
            agents: BTreeMap::new(),
            operators: Vec::new(),
            lease: Lease::default(),
            settings: Arc::new(settings),
            script,
            laws: Laws::default(),
            story: Story::default(),
            broken: None,
            bug: None,
            clock_skew: 0,
            writes: 0,
            plans: 0,
            events: 0,
            daemon_sets_are_due: false,
            initially_active: BTreeMap::new(),
            numbers: 0,
            spread: BTreeMap::new(),
        }
    }

    /// Settings as the chart's.
    pub fn settings(node_status_period: Duration) -> Settings {
        Settings {
            namespace: "device-plugin-system".to_owned(),
            agent_image: "registry.example.com/agent:0".to_owned(),
            agent_service_account: "device-plugin-agent".to_owned(),
            device_plugin_dir: "/var/lib/kubelet/device-plugins".to_owned(),
            kubelet_root_dir: "/var/lib/kubelet".to_owned(),
            node_status_period,
        }
    }

    /// Adds a machine and its node.
    pub fn add_host(&mut self, host: Host) {
        let name = host.name.clone();
        self.hosts.push(host);
        self.add_node(&name);
        let id = self.hosts.len() - 1;
        self.after(Duration::ZERO, Event::NodeStatus(id));
    }

    /// Makes a machine's node.
    pub(crate) fn add_node(&mut self, name: &str) {
        let node = SeenNode {
            id: Identity {
                name: name.to_owned(),
                ..Identity::default()
            },
            labels: [("kubernetes.io/os".to_owned(), "linux".to_owned())].into(),
            ready: true,
            ready_since: Some(self.wall()),
            ..SeenNode::default()
        };
        let _ = self.api.create(node);
    }

    /// Adds a config. Its agent image has this number.
    pub fn add_config(&mut self, name: &str, spec: serde_json::Value, tag: u32) {
        let Ok(spec) = serde_json::from_value(spec) else {
            return;
        };
        let mut config = DevicePluginConfig::new(name, spec);
        config.metadata.generation = Some(1);
        let _ = self.api.create(config);
        self.set_image(name, tag);
    }

    /// Gives a config another agent image.
    pub fn set_image(&mut self, name: &str, tag: u32) {
        let image = format!("registry.example.com/agent:{tag}");
        self.edit(name, |spec| {
            spec.agent.get_or_insert_default().image = Some(image.clone());
        });
        if let Some(config) = self.api.configs.get(name) {
            let revision = operator_core::revision::revision(&config.spec, &image);
            self.script.tags.insert(revision, tag);
        }
    }

    /// Edits the spec of a config as a user does.
    pub fn edit(&mut self, name: &str, edit: impl FnOnce(&mut crds::DevicePluginConfigSpec)) {
        self.api.alter::<DevicePluginConfig>(name, |config| {
            let before = config.spec.clone();
            edit(&mut config.spec);
            if config.spec != before {
                config.metadata.generation = config.metadata.generation.map(|one| one + 1);
            }
        });
        self.laws
            .note_config(self.api.configs.get(name).map(|one| &**one));
    }

    /// Adds an operator's process.
    pub fn add_operator(&mut self) {
        self.operators.push(Operator::default());
        self.operator_after(
            Duration::ZERO,
            self.operators.len() - 1,
            OperatorEvent::Start,
        );
    }

    /// The wall clock, in whole seconds as the API keeps them.
    pub fn wall(&self) -> Timestamp {
        let seconds = i64::try_from(self.now.as_secs()).unwrap_or_default();
        let noon = Timestamp::from_second(NOON).unwrap_or_default();
        noon + SignedDuration::from_secs(seconds + self.clock_skew)
    }

    /// A short name for a revision: the number of its image.
    pub fn nick(&self, revision: &str) -> String {
        match self.script.tags.get(revision) {
            Some(tag) => format!("r{tag}"),
            None => revision.to_owned(),
        }
    }

    /// A number that was never given before.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// The machine of a node.
    pub fn host_id(&self, node: &str) -> Option<HostId> {
        self.hosts.iter().position(|host| host.name == node)
    }

    /// Has something happen after a time.
    pub(crate) fn after(&mut self, wait: Duration, event: Event) {
        self.queue.push(self.now + wait, event);
    }

    /// Has a fault begin at a time.
    pub fn plan_fault(&mut self, at: Duration, fault: Fault) {
        self.queue.push(at, Event::Fault(fault));
    }

    /// Whether the API server is down.
    pub(crate) fn api_is_down(&self) -> bool {
        let mut down = self.script.api_down.iter();
        down.any(|(from, until)| *from <= self.now && self.now < *until)
    }

    /// Whether a call fails.
    pub(crate) fn api_fails(&mut self) -> bool {
        let errors = self.script.api_errors_now(self.now);
        self.api_is_down() || self.random.percent(errors)
    }

    pub(crate) fn is_frozen(&self, at: usize, kind: Watch) -> bool {
        let mut frozen = self.script.frozen.iter();
        frozen.any(|(operator, watch, from, until)| {
            *operator == at && *watch == kind && *from <= self.now && self.now < *until
        })
    }

    /// Lets time pass until then, or until a law is broken.
    pub fn run(&mut self, until: Duration) {
        self.spread();
        while self.broken.is_none() {
            let Some((at, event)) = self.queue.pop(until) else {
                break;
            };
            self.now = self.now.max(at);
            self.events += 1;
            self.happen(event);
            self.spread();
        }
        if self.broken.is_none() {
            self.now = self.now.max(until);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::DaemonSets => self.sync_daemon_sets(),
            Event::HostSync(host) => self.sync_host(host),
            Event::PodStart(host, uid) => self.start_pod(host, &uid),
            Event::PodKill(_, _, pid) => self.kill_pod(pid),
            Event::PodStatus(host, uid) => self.write_pod_status(host, &uid),
            Event::NodeStatus(host) => self.write_node_status(host),
            Event::NodeLost(host, losses) => self.lose_node(host, losses),
            Event::KubeletUp(host) => self.kubelet_starts(host),
            Event::HostUp(host) => self.host_starts(host),
            Event::HostConnected(host) => self.host_connects(host),
            Event::StreamEnd(host, resource, socket) => self.stream_ends(host, &resource, socket),
            Event::Agent(pid, event) => self.agent_event(pid, event),
            Event::AgentWrite(pid, host, on, slot) => {
                self.agent_write_arrives(pid, host, &on, *slot);
            }
            Event::Operator(at, life, event) => self.operator_event(at, life, event),
            Event::Election => self.elect(),
            Event::Fault(fault) => self.fault(&fault),
            Event::Outage(host, resource, since) => self.outage_lasts(host, &resource, since),
        }
    }

    /// Tells whoever watches of what has changed.
    fn spread(&mut self) {
        if self.api.changed.is_empty() {
            return;
        }
        for kind in std::mem::take(&mut self.api.changed) {
            let length = self.log_length(kind);
            let from = self.spread.insert(kind, length).unwrap_or_default();
            if from == length {
                continue;
            }
            for at in 0..self.operators.len() {
                self.spread_to(at, kind, length);
            }
            match kind {
                Watch::NodeObjects => self.spread_to_agents(from),
                Watch::Pods => {
                    self.wake_daemon_sets();
                    self.spread_to_hosts(from);
                }
                Watch::Nodes | Watch::DaemonSets => self.wake_daemon_sets(),
                Watch::Configs | Watch::Revisions | Watch::ConfigMaps => {}
            }
        }
    }

    fn log_length(&self, kind: Watch) -> usize {
        match kind {
            Watch::Configs => self.api.configs.log.len(),
            Watch::NodeObjects => self.api.node_objects.log.len(),
            Watch::Nodes => self.api.nodes.log.len(),
            Watch::DaemonSets => self.api.daemon_sets.log.len(),
            Watch::Revisions => self.api.revisions.log.len(),
            Watch::ConfigMaps => self.api.config_maps.log.len(),
            Watch::Pods => self.api.pods.log.len(),
        }
    }

    fn spread_to(&mut self, at: usize, kind: Watch, length: usize) {
        let lag = self.random.between(ms(1), self.script.watch_lag);
        let now = self.now;
        let Some(operator) = self.operators.get_mut(at).filter(|one| one.alive) else {
            return;
        };
        let wait = of_kind!(kind, operator.caches, self.api, |cache, _shelf| {
            cache.due = cache.due.max(now + lag);
            cache.due.saturating_sub(now)
        });
        self.operator_after(wait, at, OperatorEvent::Deliver(kind, length));
    }

    fn spread_to_agents(&mut self, from: usize) {
        let changes = self.api.node_objects.log.get(from..).unwrap_or_default();
        let changes: Vec<_> = changes.to_vec();
        for change in changes {
            let hosts = &self.hosts;
            let agents = self.agents.iter();
            let watchers: Vec<_> = agents
                .filter(|(_, agent)| {
                    let host = hosts.get(agent.host);
                    host.is_some_and(|host| node_object(&agent.config, &host.name) == change.name)
                })
                .map(|(pid, agent)| (*pid, agent.host))
                .collect();
            for (pid, host) in watchers {
                let frozen = self.script.frozen_agents.iter();
                let mut frozen = frozen.filter(|(at, from, until)| {
                    *at == host && *from <= self.now && self.now < *until
                });
                let thaw = frozen
                    .next()
                    .map(|(_, _, until)| until.saturating_sub(self.now));
                let wait = thaw.unwrap_or_default()
                    + self.random.between(ms(1), self.script.agent_watch_lag);
                let sees = AgentEvent::Sees(change.version, change.object.clone());
                self.agent_after(wait, pid, sees);
            }
        }
    }

    fn spread_to_hosts(&mut self, from: usize) {
        let changes = self.api.pods.log.get(from..).unwrap_or_default();
        let mut hosts: Vec<_> = changes
            .iter()
            .filter_map(|change| match &change.object {
                Some(pod) => self.host_id(&pod.node),
                None => self
                    .hosts
                    .iter()
                    .position(|host| host.pods.contains_key(&change.uid)),
            })
            .collect();
        hosts.dedup();
        for host in hosts {
            self.sync_host_soon(host);
        }
    }

    pub(crate) fn elect_soon(&mut self) {
        if !std::mem::replace(&mut self.lease.is_due, true) {
            let wait = self.random.between(ms(100), secs(2));
            self.after(wait, Event::Election);
        }
    }

    /// Whoever runs takes a lease that is not renewed.
    fn elect(&mut self) {
        self.lease.is_due = false;
        let now = self.now;
        let holds = self.lease.holder.is_some_and(|(at, life)| {
            let operator = self.operators.get(at);
            operator.is_some_and(|one| one.alive && one.life == life && one.paused_until <= now)
        });
        if holds && !self.api_is_down() {
            self.lease.left = None;
            return;
        }
        let left = *self.lease.left.get_or_insert(now);
        let is_free = self.lease.holder.is_none() || left + LEASE_DURATION <= now;
        let candidates = self.operators.iter();
        let mut candidates = candidates
            .enumerate()
            .filter(|(_, one)| one.alive && one.epoch.is_none() && one.paused_until <= now);
        let candidate = candidates.next().map(|(at, _)| at);
        match candidate {
            Some(at) if is_free && !self.api_is_down() => self.lead(at),
            Some(_) | None => self.elect_soon(),
        }
    }

    /// A process takes the lease.
    pub(crate) fn lead(&mut self, at: usize) {
        let before = self.lease.holder;
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        self.lease.transitions += u64::from(before.is_some());
        self.lease.holder = Some((at, operator.life));
        self.lease.left = None;
        operator.epoch = Some(self.lease.transitions + 1);
        tell!(
            self,
            format!("op{at}"),
            "leads as epoch {}",
            self.lease.transitions + 1
        );
        self.next_pass(at, Duration::ZERO);
        self.elect_soon();
    }

    /// A process asks whether it still leads, and exits if not.
    pub(crate) fn check_lease(&mut self, at: usize) {
        let Some(operator) = self.operators.get(at) else {
            return;
        };
        if !operator.alive || operator.epoch.is_none() {
            return;
        }
        let leads = self.lease.holder == Some((at, operator.life)) && !self.api_is_down();
        if leads {
            return self.next_pass(at, ms(500));
        }
        tell!(self, format!("op{at}"), "does not lead any more and exits");
        let restart = self.random.between(secs(1), secs(5));
        self.crash_operator(at, restart);
        self.elect_soon();
    }
}
