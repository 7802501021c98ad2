//! What agents report.

use std::time::Duration;

use crds::DevicePluginNode;
use crds::node::{
    AgentReport, KubeletList, Preflight, ReportSummary, ResourceReport, StandbyReport,
    StandbyResource,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use node_agent_core::role::Role;
use operator_core::seen::Identity;

use crate::agent::{Agent, View};
use crate::behaviour::Behaviour;
use crate::event::{AgentEvent, Event, HostId, Slot};
use crate::host::{Host, Pid};
use crate::random::{ms, secs};
use crate::world::World;

/// Time between two writes of what only people look at. What is decided by is written at once.
const ORDINARY_GAP: Duration = secs(5);

fn count(mask: u32) -> i32 {
    i32::try_from(mask.count_ones()).unwrap_or_default()
}

fn active_report(agent: &Agent, host: &Host) -> AgentReport {
    let mut report = AgentReport {
        revision: agent.revision.clone(),
        pod_uid: agent.pod.clone(),
        agent_version: "0".to_owned(),
        boot_id: format!("boot-{}", host.boots),
        ..AgentReport::default()
    };
    let devices = agent.behaviour.devices(host.devices);
    for (name, resource) in &agent.resources {
        let allocated = host.allocated.get(name).copied().unwrap_or_default();
        report.resources.push(ResourceReport {
            name: name.clone(),
            registered: resource.since.is_some(),
            stream_since: resource.since.map(|(_, wall)| Time(wall)),
            registrations: i32::try_from(resource.registrations).unwrap_or(i32::MAX),
            total: count(devices),
            healthy: count(devices),
            allocated: count(allocated),
            missing_allocated: count(allocated & !devices),
            kubelet: resource
                .kubelet
                .map(|(devices, matches, since, late)| KubeletList {
                    devices: i32::try_from(devices).unwrap_or(i32::MAX),
                    matches,
                    since: Time(since),
                    read_after_stream: late,
                }),
            message: String::new(),
        });
    }
    let of = report.resources.len();
    let registered = report.resources.iter().filter(|one| one.registered).count();
    report.summary = ReportSummary {
        registered: format!("{registered}/{of}"),
        ..ReportSummary::default()
    };
    report
}

fn standby_report(agent: &Agent, host: &Host) -> StandbyReport {
    let devices = agent.behaviour.devices(host.devices);
    let ok = agent.behaviour != Behaviour::PreflightFails;
    let resources = agent.resources.keys().map(|name| {
        let allocated = host.allocated.get(name).copied().unwrap_or_default();
        StandbyResource {
            name: name.clone(),
            total: count(devices),
            healthy: count(devices),
            missing_allocated: count(allocated & !devices),
        }
    });
    StandbyReport {
        revision: agent.revision.clone(),
        pod_uid: agent.pod.clone(),
        agent_version: "0".to_owned(),
        preflight: Preflight {
            ok,
            reasons: (!ok)
                .then(|| "it cannot work here".to_owned())
                .into_iter()
                .collect(),
        },
        resources: resources.collect(),
    }
}

/// What the agent has to write, and how long that has to wait.
fn due(
    agent: &Agent,
    host: &Host,
    object: &DevicePluginNode,
    now: Duration,
) -> Option<(Slot, Duration)> {
    let status = object.status.clone().unwrap_or_default();
    if agent.holds_role {
        let wanted = active_report(agent, host);
        let present = status.active.as_ref();
        let is_other = present.is_none_or(|present| present.pod_uid != wanted.pod_uid);
        let decided_by = |report: &AgentReport| -> Vec<_> {
            let of_kubelet = |one: &ResourceReport| {
                let list = one.kubelet.as_ref();
                (
                    one.registered,
                    list.map(|list| (list.matches, list.read_after_stream)),
                )
            };
            report.resources.iter().map(of_kubelet).collect()
        };
        let is_urgent = is_other || present.map(decided_by) != Some(decided_by(&wanted));
        if present != Some(&wanted) {
            let wait = match is_urgent {
                true => Duration::ZERO,
                false => (agent.written + ORDINARY_GAP).saturating_sub(now),
            };
            return Some((Slot::Active(wanted), wait));
        }
        let is_left = object.spec.standby.is_none() && status.standby.is_some();
        return is_left.then_some((Slot::NoStandby, Duration::ZERO));
    }
    let stands_by = object.spec.standby.as_ref() == Some(&agent.revision);
    if agent.role != Some(Role::Standby) || !stands_by || !agent.preflight_done {
        return None;
    }
    let wanted = standby_report(agent, host);
    (status.standby.as_ref() != Some(&wanted)).then_some((Slot::Standby(wanted), Duration::ZERO))
}

impl World {
    /// Sends what has changed, unless a write is under way.
    pub(crate) fn agent_reports(&mut self, pid: Pid) {
        let now = self.now;
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        let Some(host) = self.hosts.get(agent.host) else {
            return;
        };
        let View::Present(object) = &agent.view else {
            return;
        };
        if agent.writing || agent.ending || !host.connected {
            return;
        }
        let Some((slot, wait)) = due(agent, host, object, now) else {
            return;
        };
        agent.writing = true;
        if !wait.is_zero() {
            return self.agent_after(wait, pid, AgentEvent::WriteAgain);
        }
        agent.written = now;
        let on = Identity::of(&object.metadata);
        let host = agent.host;
        let wait = self.random.between(ms(3), self.script.agent_write_lag);
        self.after(wait, Event::AgentWrite(pid, host, on, Box::new(slot)));
    }

    /// A status arrives, whether its agent still lives or not.
    pub(crate) fn agent_write_arrives(
        &mut self,
        pid: Pid,
        host: HostId,
        on: &Identity,
        slot: Slot,
    ) {
        let connected = self.hosts.get(host).is_some_and(|host| host.connected);
        if !connected || self.api_fails() {
            let wait = self.random.between(ms(500), secs(2));
            return self.agent_after(wait, pid, AgentEvent::WriteAgain);
        }
        let written = self.api.change::<DevicePluginNode>(on, |object| {
            let status = object.status.get_or_insert_default();
            match slot {
                Slot::Active(report) => status.active = Some(report),
                Slot::Standby(report) => status.standby = Some(report),
                Slot::NoStandby => status.standby = None,
            }
        });
        let Some(agent) = self.agents.get_mut(&pid) else {
            return;
        };
        match written {
            Ok(object) => {
                agent.writing = false;
                let version = Identity::of(&object.metadata).version.parse();
                let version = version.unwrap_or_default();
                if version > agent.view_version {
                    agent.view_version = version;
                    agent.view = View::Present(object);
                }
                self.agent_reports(pid);
            }
            Err(_) => {
                // The watch brings the version that it has to be written on.
                let wait = self.random.between(ms(100), ms(500));
                self.agent_after(wait, pid, AgentEvent::WriteAgain);
            }
        }
    }
}
