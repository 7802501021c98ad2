//! How agents register at their kubelet, and what becomes of their streams.

use std::time::Duration;

use crate::behaviour::Behaviour;
use crate::event::{AgentEvent, Event, HostId};
use crate::host::{Pid, StateFile};
use crate::random::{ms, secs};
use crate::story::tell;
use crate::world::World;

impl World {
    /// Registers a resource, if everything it waits for has come.
    pub(crate) fn agent_registers(&mut self, pid: Pid, name: &str, since: Duration) {
        let now = self.now;
        let role = self.agent_role(pid);
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        let Some(host) = self.hosts.get_mut(agent.host) else {
            return;
        };
        let Some(resource) = agent.resources.get_mut(name) else {
            return;
        };
        let may = role
            .is_some_and(|role| role.may_take() || (role.may_keep() && resource.registrations > 0));
        if !may || !resource.locked || resource.socket.is_some() || agent.ending || agent.closing {
            resource.pending = false;
            return;
        }
        let again = |wait| (wait, AgentEvent::Register(name.to_owned(), since));
        let Some(kubelet_since) = host.kubelet_since else {
            // Whoever waits for its socket is woken when it appears.
            resource.pending = false;
            return;
        };
        let listed = host.list(name);
        let file = host.files.get(&agent.config);
        let served_before = file.is_some_and(|file| {
            file.config_uid == agent.config_uid && file.resources.contains(name)
        });
        if !served_before {
            let empty = resource.empty_since.filter(|_| listed == 0);
            let young = now.saturating_sub(kubelet_since) < secs(15);
            let apart = if young { secs(15) } else { secs(1) };
            resource.empty_since = (listed == 0).then(|| empty.unwrap_or(now));
            if empty.is_none_or(|empty| now < empty + apart) {
                let (wait, event) = again(if listed == 0 { apart } else { secs(5) });
                return self.agent_after(wait, pid, event);
            }
        } else if resource.waited && listed != 0 && now < since + ms(500) {
            let (wait, event) = again(ms(10));
            return self.agent_after(wait, pid, event);
        }
        resource.pending = false;
        resource.waited = false;
        if agent.behaviour == Behaviour::NeverRegisters {
            return;
        }
        self.agent_registered(pid, name);
    }

    fn agent_registered(&mut self, pid: Pid, name: &str) {
        let socket = self.number();
        let (now, wall) = (self.now, self.wall());
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        let id = agent.host;
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let Some(resource) = agent.resources.get_mut(name) else {
            return;
        };
        resource.socket = Some(socket);
        resource.since = Some((now, wall));
        resource.registrations += 1;
        resource.kubelet = None;
        let mut file = match host.files.remove(&agent.config) {
            Some(file)
                if file.config_uid == agent.config_uid && file.revision == agent.revision =>
            {
                file
            }
            _ => StateFile {
                config_uid: agent.config_uid.clone(),
                revision: agent.revision.clone(),
                ..StateFile::default()
            },
        };
        file.resources.insert(name.to_owned());
        host.files.insert(agent.config.clone(), file);
        let list = match agent.behaviour {
            Behaviour::ListStaysEmpty => 0,
            behaviour => behaviour.devices(host.devices),
        };
        host.register(name, pid, socket, list);
        if self.story.kept {
            let (place, nick) = (host.name.clone(), agent.revision.clone());
            tell!(self, place, "agent {} registers {name}", self.nick(&nick));
        }
        for wait in [secs(1), secs(3), secs(10)] {
            self.agent_after(wait, pid, AgentEvent::Read(name.to_owned(), socket));
        }
        self.list_changed(id, name);
        self.check_registration(pid, name);
        self.agent_is_ready(pid);
        self.agent_reports(pid);
    }

    /// Compares the kubelet's own list with the one it sent, and registers again where they differ.
    pub(crate) fn agent_reads(&mut self, pid: Pid, name: &str, socket: u64) {
        let (now, wall) = (self.now, self.wall());
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        let Some(host) = self.hosts.get(agent.host) else {
            return;
        };
        let Some(resource) = agent.resources.get_mut(name) else {
            return;
        };
        let (Some((since, _)), true) = (resource.since, resource.socket == Some(socket)) else {
            return;
        };
        resource.reading = false;
        let listed = host.list(name);
        let matches = listed == agent.behaviour.devices(host.devices);
        let before = resource
            .kubelet
            .filter(|(_, before, _, _)| *before == matches);
        let changed = before.map_or(wall, |(_, _, since, _)| since);
        let late = now >= since + secs(2);
        resource.kubelet = Some((listed.count_ones(), matches, changed, late));
        let age = now.saturating_sub(since);
        if !matches && late && age >= heal_after(resource.healed) {
            resource.healed += 1;
            let place = host.name.clone();
            tell!(
                self,
                place,
                "{name} is not in the kubelet's list: registers again"
            );
            return self.agent_registers_again(pid, name);
        }
        if matches && age >= secs(10) {
            resource.healed = 0;
        }
        if !matches {
            self.agent_after(secs(10), pid, AgentEvent::Read(name.to_owned(), socket));
        }
        self.agent_reports(pid);
    }

    fn agent_registers_again(&mut self, pid: Pid, name: &str) {
        self.agent_closes(pid, name);
        let now = self.now;
        let resource = self
            .agents
            .get_mut(&pid)
            .and_then(|agent| agent.resources.get_mut(name));
        if let Some(resource) = resource {
            resource.pending = true;
            resource.waited = true;
            self.agent_after(ms(10), pid, AgentEvent::Register(name.to_owned(), now));
        }
        self.agent_reports(pid);
    }

    /// Ends its server of a resource and with it the stream.
    pub(crate) fn agent_closes(&mut self, pid: Pid, name: &str) {
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        let id = agent.host;
        let Some(resource) = agent.resources.get_mut(name) else {
            return;
        };
        resource.since = None;
        resource.kubelet = None;
        if let Some(socket) = resource.socket.take() {
            self.end_stream(id, name, socket);
        }
    }

    pub(crate) fn end_stream(&mut self, id: HostId, name: &str, socket: u64) {
        if let Some(host) = self.hosts.get_mut(id) {
            for stream in host.streams.iter_mut().filter(|one| one.socket == socket) {
                stream.ended = true;
            }
        }
        let wait = self.random.between(ms(1), self.script.stream_end_lag);
        self.after(wait, Event::StreamEnd(id, name.to_owned(), socket));
    }

    /// The kubelet notices the end of a stream, and may end others because of it.
    pub(crate) fn stream_ends(&mut self, id: HostId, name: &str, socket: u64) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let ended = host.notice_end(name, socket);
        for stream in ended {
            self.agent_loses(stream.agent, &stream.resource, stream.socket);
        }
        self.list_changed(id, name);
    }

    /// The kubelet has ended a stream of an agent.
    pub(crate) fn agent_loses(&mut self, pid: Pid, name: &str, socket: u64) {
        let now = self.now;
        let agent = self.agents.get_mut(&pid);
        let Some(resource) = agent.and_then(|agent| agent.resources.get_mut(name)) else {
            return;
        };
        if resource.socket != Some(socket) {
            return;
        }
        resource.socket = None;
        resource.since = None;
        resource.kubelet = None;
        if resource.locked {
            resource.pending = true;
            let wait = self.random.between(ms(1), ms(20));
            self.agent_after(wait, pid, AgentEvent::Register(name.to_owned(), now));
        }
        self.agent_is_ready(pid);
        self.agent_reports(pid);
    }
}

/// How long a difference may last before the agent registers again, longer each time.
fn heal_after(healed: u32) -> Duration {
    secs(2).saturating_mul(1 << healed.min(4))
}
