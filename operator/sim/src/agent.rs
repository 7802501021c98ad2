//! The agents: processes that decide their role as real ones do, share locks and a state file on
//! their host, register at its kubelet, and report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::DevicePluginNode;
use crds::names::node_object;
use k8s_openapi::jiff::Timestamp;
use node_agent_core::role::{Evidence, InitialRole, Named, ObjectView, Role, role};
use node_agent_core::role::{FALL_BACK_AFTER, TAKE_OVER_AFTER};

use crate::behaviour::Behaviour;
use crate::bug::Bug;
use crate::event::{AgentEvent, Event, HostId};
use crate::host::{Pid, StateFile};
use crate::random::{ms, secs};
use crate::story::tell;
use crate::world::World;

/// What an agent knows of its node's object.
#[derive(Clone, Debug, Default)]
pub enum View {
    /// Nothing yet.
    #[default]
    Unknown,
    /// There is none.
    Absent,
    /// This version of it.
    Present(Arc<DevicePluginNode>),
}

impl View {
    /// The object.
    pub fn object(&self) -> Option<&DevicePluginNode> {
        match self {
            Self::Unknown | Self::Absent => None,
            Self::Present(object) => Some(object),
        }
    }
}

/// One resource of an agent.
#[derive(Clone, Debug, Default)]
pub struct Registration {
    /// Whether it holds the lock.
    pub locked: bool,
    /// Whether it had to wait for the lock.
    pub waited: bool,
    /// Whether a registration is under way.
    pub pending: bool,
    /// Its socket, while its server runs.
    pub socket: Option<u64>,
    /// Since when the kubelet reads its list.
    pub since: Option<(Duration, Timestamp)>,
    /// How often it has registered.
    pub registrations: u32,
    /// When it last registered because the kubelet's list differed, and how often in a row.
    pub healed: u32,
    /// The kubelet's list: devices, whether they match, since when, and whether it was read late
    /// enough after the stream opened.
    pub kubelet: Option<(u32, bool, Timestamp, bool)>,
    /// Whether a reading of the kubelet's list is under way.
    pub reading: bool,
    /// When the kubelet's list was found without devices, before the first registration here.
    pub empty_since: Option<Duration>,
}

/// A process of an agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// UID of its pod.
    pub pod: String,
    /// Its machine.
    pub host: HostId,
    /// Its config.
    pub config: String,
    /// UID of its config.
    pub config_uid: String,
    /// Its revision.
    pub revision: String,
    /// What it is where nothing else is known.
    pub initial: InitialRole,
    /// How it behaves.
    pub behaviour: Behaviour,
    /// When it started.
    pub started: Duration,
    /// What it knows of its node's object.
    pub view: View,
    /// The version of what it knows.
    pub view_version: u64,
    /// What the state file said when it started.
    pub remembered: Option<StateFile>,
    /// Whether it holds the role lock.
    pub holds_role: bool,
    /// What the object named when it took the role over as the proven standby.
    pub took_over: Option<(String, Option<String>)>,
    /// Since when no process of the named revisions is on this host.
    pub named_gone_since: Option<Duration>,
    /// Its resources.
    pub resources: BTreeMap<String, Registration>,
    /// Whether its preflight is done.
    pub preflight_done: bool,
    /// Whether it is ending.
    pub ending: bool,
    /// Whether it is closing its servers and will free its locks then.
    pub closing: bool,
    /// Whether a write of its status is under way.
    pub writing: bool,
    /// When it wrote last.
    pub written: Duration,
    /// Its role when it last looked.
    pub role: Option<Role>,
}

impl World {
    /// Makes an agent's process.
    pub(crate) fn start_agent(
        &mut self,
        host: HostId,
        uid: &str,
        config_uid: String,
        of: Vec<String>,
    ) {
        let pid = self.number();
        let Some(machine) = self.hosts.get_mut(host) else {
            return;
        };
        let Some(pod) = machine.pods.get_mut(uid) else {
            return;
        };
        pod.process = Some(pid);
        pod.trouble = None;
        let tag = self
            .script
            .tags
            .get(&pod.revision)
            .copied()
            .unwrap_or_default();
        let behaviour = self.script.behaviour(&machine.name, tag);
        let remembered = machine.files.get(&pod.config);
        let agent = Agent {
            pod: uid.to_owned(),
            host,
            config: pod.config.clone(),
            revision: pod.revision.clone(),
            initial: match pod.initially_active {
                true => InitialRole::Active,
                false => InitialRole::Standby,
            },
            behaviour,
            started: self.now,
            view: View::Unknown,
            view_version: 0,
            remembered: remembered
                .filter(|file| file.config_uid == config_uid)
                .cloned(),
            config_uid,
            holds_role: false,
            took_over: None,
            named_gone_since: None,
            resources: of
                .into_iter()
                .map(|name| (name, Registration::default()))
                .collect(),
            preflight_done: false,
            ending: false,
            closing: false,
            writing: false,
            written: Duration::ZERO,
            role: None,
        };
        let place = machine.name.clone();
        tell!(self, place, "agent {} starts", self.nick(&agent.revision));
        self.agents.insert(pid, agent);
        if let Behaviour::CrashAfter(time) = behaviour {
            self.agent_after(time, pid, AgentEvent::Crash("crashes"));
        }
        let wait = self.random.between(ms(100), ms(800));
        self.agent_after(wait, pid, AgentEvent::Preflight);
        let wait = self.random.between(ms(5), ms(200));
        self.agent_after(wait, pid, AgentEvent::List);
        self.wake_agents(host);
    }

    pub(crate) fn agent_after(&mut self, wait: Duration, pid: Pid, event: AgentEvent) {
        self.after(wait, Event::Agent(pid, event));
    }

    /// Has every agent of a machine look again: somebody came, went, or freed a lock. Locks are
    /// polled.
    pub(crate) fn wake_agents(&mut self, host: HostId) {
        let pids: Vec<_> = self
            .agents
            .iter()
            .filter(|(_, agent)| agent.host == host)
            .map(|(pid, _)| *pid)
            .collect();
        for pid in pids {
            let wait = self.random.between(ms(1), ms(50));
            self.agent_after(wait, pid, AgentEvent::Look);
        }
    }

    pub(crate) fn agent_event(&mut self, pid: Pid, event: AgentEvent) {
        if !self.agents.contains_key(&pid) {
            return;
        }
        match event {
            AgentEvent::Look => self.agent_looks(pid),
            AgentEvent::Preflight => {
                if let Some(agent) = self.agents.get_mut(&pid) {
                    agent.preflight_done = true;
                }
                self.agent_looks(pid);
            }
            AgentEvent::List => self.agent_lists(pid),
            AgentEvent::Sees(version, object) => self.agent_sees(pid, version, object),
            AgentEvent::Register(resource, since) => self.agent_registers(pid, &resource, since),
            AgentEvent::Unlock => self.agent_unlocks(pid),
            AgentEvent::Read(resource, socket) => self.agent_reads(pid, &resource, socket),
            AgentEvent::Crash(why) => self.agent_dies(pid, why),
            AgentEvent::WriteAgain => {
                if let Some(agent) = self.agents.get_mut(&pid) {
                    agent.writing = false;
                }
                self.agent_reports(pid);
            }
        }
    }

    /// The quorum read of its object, at the start and whenever its watch is made anew.
    fn agent_lists(&mut self, pid: Pid) {
        let Some(agent) = self.agents.get(&pid) else {
            return;
        };
        let connected = self
            .hosts
            .get(agent.host)
            .is_some_and(|host| host.connected);
        if !connected || self.api_is_down() {
            let wait = self.random.between(ms(500), secs(3));
            return self.agent_after(wait, pid, AgentEvent::List);
        }
        let node = self.hosts.get(agent.host).map(|host| host.name.clone());
        let name = node_object(&agent.config, &node.unwrap_or_default());
        let object = self.api.node_objects.get(&name).cloned();
        let version = self.api.version();
        self.agent_sees(pid, version, object);
    }

    fn agent_sees(&mut self, pid: Pid, version: u64, object: Option<Arc<DevicePluginNode>>) {
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        let connected = self
            .hosts
            .get(agent.host)
            .is_some_and(|host| host.connected);
        if !connected || version <= agent.view_version {
            return;
        }
        agent.view_version = version;
        agent.view = match object {
            Some(object) => View::Present(object),
            None => View::Absent,
        };
        if let Some((active, standby)) = &agent.took_over {
            let spec = agent.view.object().map(|object| &object.spec);
            if spec.is_none_or(|spec| spec.active != *active || spec.standby != *standby) {
                agent.took_over = None;
            }
        }
        self.agent_looks(pid);
    }

    /// Whether a process of a revision is on a host.
    fn is_present(&self, host: HostId, config: &str, revision: &str) -> bool {
        self.agents
            .values()
            .any(|agent| agent.host == host && agent.config == config && agent.revision == revision)
    }

    pub(crate) fn agent_role(&mut self, pid: Pid) -> Option<Role> {
        let agent = self.agents.get(&pid)?;
        let host = self.hosts.get(agent.host)?;
        let spec = agent.view.object().map(|object| &object.spec);
        let object = match (&agent.view, spec) {
            (View::Unknown, _) => ObjectView::Unknown,
            (View::Absent, _) | (_, None) => ObjectView::Absent,
            (View::Present(_), Some(spec)) => ObjectView::Present(Named {
                active: &spec.active,
                standby: spec.standby.as_deref(),
                baseline: spec.baseline.as_ref().map(|one| one.revision.as_str()),
            }),
        };
        let remembered = agent.remembered.as_ref().map(|file| file.revision.as_str());
        let named: Vec<&str> = match object {
            ObjectView::Present(named) => {
                std::iter::once(named.active).chain(named.standby).collect()
            }
            ObjectView::Unknown | ObjectView::Absent => remembered.into_iter().collect(),
        };
        let is_named_here = named
            .iter()
            .any(|revision| self.is_present(agent.host, &agent.config, revision));
        let gone = (!is_named_here).then(|| agent.named_gone_since.unwrap_or(self.now));
        let successor_waits = match object {
            ObjectView::Present(named) => self.is_present(agent.host, &agent.config, named.active),
            ObjectView::Unknown | ObjectView::Absent => false,
        };
        let free_since = match host.role_locks.contains_key(&agent.config) {
            true => self.now,
            false => {
                let since = host.role_free_since.get(&agent.config).copied();
                since.unwrap_or_default().max(agent.started)
            }
        };
        let evidence = Evidence {
            own: &agent.revision,
            initial: agent.initial,
            object,
            remembered,
            holds_role: agent.holds_role,
            took_over: agent.took_over.is_some(),
            role_free_for: self.now.saturating_sub(free_since),
            named_gone_for: gone.map_or(Duration::ZERO, |since| self.now.saturating_sub(since)),
            successor_waits,
        };
        let answer = match self.bug {
            // It registers as soon as nobody else does.
            Some(Bug::RoleByLock) => {
                match agent.holds_role || !host.role_locks.contains_key(&agent.config) {
                    true => Role::Active,
                    false => role(&evidence),
                }
            }
            _ => role(&evidence),
        };
        let wait = gone.map(|since| (since + FALL_BACK_AFTER).saturating_sub(self.now));
        let take = (free_since + TAKE_OVER_AFTER).saturating_sub(self.now);
        let waits = [wait, (free_since != self.now).then_some(take)];
        let news = agent.role != Some(answer) || agent.named_gone_since != gone;
        for wait in waits.into_iter().flatten().filter(|wait| !wait.is_zero()) {
            // Every look would add another one.
            if news || wait > secs(170) {
                self.agent_after(wait + ms(1), pid, AgentEvent::Look);
            }
        }
        let agent = self.agents.get_mut(&pid)?;
        agent.named_gone_since = gone;
        agent.role = Some(answer);
        Some(answer)
    }

    /// Decides its role again and acts on it.
    pub(crate) fn agent_looks(&mut self, pid: Pid) {
        let Some(agent) = self.agents.get(&pid) else {
            return;
        };
        if agent.ending {
            return;
        }
        let before = agent.role;
        let Some(role) = self.agent_role(pid) else {
            return;
        };
        if before != Some(role) && self.story.kept {
            self.tell_role(pid, role);
        }
        if role.may_take() {
            self.agent_takes(pid);
        } else if !role.may_keep() {
            self.agent_lets_go(pid);
        }
        self.agent_is_ready(pid);
        self.agent_reports(pid);
    }

    fn tell_role(&mut self, pid: Pid, role: Role) {
        if let Some(agent) = self.agents.get(&pid) {
            let place = self.hosts.get(agent.host).map(|host| host.name.clone());
            let nick = self.nick(&agent.revision);
            tell!(self, place.unwrap_or_default(), "agent {nick} is {role:?}");
        }
    }

    /// Tells its kubelet whether it is ready.
    pub(crate) fn agent_is_ready(&mut self, pid: Pid) {
        let Some(agent) = self.agents.get(&pid) else {
            return;
        };
        let serves = agent.resources.values().all(|one| one.since.is_some());
        let ready = agent.preflight_done && (serves || agent.role != Some(Role::Active));
        let (host, uid) = (agent.host, agent.pod.clone());
        let pod = self
            .hosts
            .get_mut(host)
            .and_then(|host| host.pods.get_mut(&uid));
        if let Some(pod) = pod.filter(|pod| pod.ready != ready) {
            pod.ready = ready;
            self.pod_status_soon(host, uid);
        }
    }

    /// Takes the locks that are free, and registers.
    fn agent_takes(&mut self, pid: Pid) {
        let now = self.now;
        let ignores_locks = self.bug == Some(Bug::NoLock);
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        let Some(host) = self.hosts.get_mut(agent.host) else {
            return;
        };
        if agent.closing {
            return;
        }
        if !agent.holds_role {
            let is_free = !host.role_locks.contains_key(&agent.config);
            if !is_free && !ignores_locks {
                for resource in agent.resources.values_mut() {
                    resource.waited = true;
                }
                return;
            }
            host.role_locks.insert(agent.config.clone(), pid);
            agent.holds_role = true;
            let spec = agent.view.object().map(|object| &object.spec);
            let spec = spec.filter(|spec| spec.standby.as_ref() == Some(&agent.revision));
            agent.took_over = spec.map(|spec| (spec.active.clone(), spec.standby.clone()));
        }
        let mut registers = Vec::new();
        for (name, resource) in &mut agent.resources {
            let holder = host.resource_locks.get(name).copied();
            if !resource.locked && holder.is_some() && !ignores_locks {
                resource.waited = true;
                continue;
            }
            resource.locked = true;
            host.resource_locks.insert(name.clone(), pid);
            if resource.socket.is_none() && !resource.pending {
                resource.pending = true;
                registers.push(name.clone());
            }
        }
        for name in registers {
            self.agent_after(ms(1), pid, AgentEvent::Register(name, now));
        }
    }

    /// Ends its streams, then frees its locks.
    fn agent_lets_go(&mut self, pid: Pid) {
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        let holds = agent.holds_role || agent.resources.values().any(|one| one.locked);
        if !holds || agent.closing || agent.behaviour == Behaviour::Hangs {
            return;
        }
        agent.closing = true;
        let names: Vec<_> = agent.resources.keys().cloned().collect();
        for name in names {
            self.agent_closes(pid, &name);
        }
        let wait = self.random.between(ms(1), ms(10));
        self.agent_after(wait, pid, AgentEvent::Unlock);
    }

    fn agent_unlocks(&mut self, pid: Pid) {
        let now = self.now;
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        let id = agent.host;
        agent.closing = false;
        agent.holds_role = false;
        agent.took_over = None;
        for resource in agent.resources.values_mut() {
            resource.locked = false;
        }
        if let Some(host) = self.hosts.get_mut(id) {
            host.unlock(pid, now);
        }
        self.wake_agents(id);
    }

    /// A pod's process is asked to end.
    pub(crate) fn stop_agent(&mut self, pid: Pid) {
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        if agent.behaviour == Behaviour::Hangs {
            return;
        }
        self.agent_lets_go(pid);
        if let Some(agent) = self.agents.get_mut(&pid) {
            agent.ending = true;
        }
        let wait = self.random.between(ms(15), ms(200));
        self.agent_after(wait, pid, AgentEvent::Crash(""));
    }

    /// A process ends, orderly or not. Its streams end with it, and its locks are free.
    pub(crate) fn agent_dies(&mut self, pid: Pid, why: &'static str) {
        let Some(agent) = self.agents.remove(&pid) else {
            return;
        };
        let now = self.now;
        let id = agent.host;
        if self.story.kept {
            let place = self
                .hosts
                .get(id)
                .map(|host| host.name.clone())
                .unwrap_or_default();
            let nick = self.nick(&agent.revision);
            let why = if why.is_empty() { "ends" } else { why };
            tell!(self, place, "agent {nick} {why}");
        }
        for (name, resource) in &agent.resources {
            if let Some(socket) = resource.socket {
                self.end_stream(id, name, socket);
            }
        }
        if let Some(host) = self.hosts.get_mut(id) {
            host.unlock(pid, now);
        }
        self.wake_agents(id);
        self.process_ended(id, &agent.pod, now.saturating_sub(agent.started));
    }
}
