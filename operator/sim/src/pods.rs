//! Kubelets: they start and stop the pods of their node, and tell the API server about them.

use crds::agent_config::AgentConfig;
use crds::names::revision_object;
use operator_core::seen::{SeenNode, SeenPod, Trouble};

use crate::api::named;
use crate::behaviour::Behaviour;
use crate::event::{AgentEvent, Event, HostId};
use crate::host::{HostPod, Pid};
use crate::random::{ms, secs};
use crate::story::tell;
use crate::world::World;

/// A pod that is asked to end is killed after this time: its `terminationGracePeriodSeconds`.
const GRACE: u64 = 10;

impl World {
    /// Has a kubelet look at the API server's pods soon.
    pub(crate) fn sync_host_soon(&mut self, id: HostId) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        if !std::mem::replace(&mut host.sync_is_due, true) {
            let wait = self.random.between(ms(10), ms(300));
            self.after(wait, Event::HostSync(id));
        }
    }

    /// A kubelet starts what is new and stops what is gone.
    pub(crate) fn sync_host(&mut self, id: HostId) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.sync_is_due = false;
        let name = host.name.clone();
        if !host.up || host.kubelet_since.is_none() || !host.connected {
            return;
        }
        if self.api_is_down() {
            return self.after(secs(2), Event::HostSync(id));
        }
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let pods = self.api.pods.objects.values();
        let here: Vec<_> = pods.filter(|pod| pod.node == name).cloned().collect();
        let gone: Vec<_> = host
            .pods
            .iter()
            .filter(|(uid, _)| here.iter().all(|pod| pod.id.uid != **uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.stop_pod(id, &uid);
        }
        for pod in &here {
            let known = self
                .hosts
                .get(id)
                .and_then(|host| host.pods.get(&pod.id.uid));
            match (known, pod.deleting) {
                (Some(_), true) => self.stop_pod(id, &pod.id.uid),
                (Some(_), false) => self.keep_pod(id, pod),
                (None, true) => {
                    let _ = self.api.remove::<SeenPod>(&pod.id);
                }
                (None, false) if pod.phase != "Failed" => self.admit_pod(id, pod),
                (None, false) => {}
            }
        }
    }

    fn admit_pod(&mut self, id: HostId, pod: &SeenPod) {
        let active = self.initially_active.get(&pod.id.name).copied();
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let of_host = HostPod {
            name: pod.id.name.clone(),
            config: pod.config.clone(),
            revision: pod.revision.clone(),
            initially_active: active.unwrap_or(true),
            ..HostPod::default()
        };
        host.pods.insert(pod.id.uid.clone(), of_host);
        let wait = self.random.between(ms(300), self.script.pod_start_lag);
        self.after(wait, Event::PodStart(id, pod.id.uid.clone()));
    }

    /// A pod that the API server says has failed (it was evicted) does not run.
    fn keep_pod(&mut self, id: HostId, pod: &SeenPod) {
        if pod.phase != "Failed" {
            return;
        }
        let host = self.hosts.get_mut(id);
        let Some(of_host) = host.and_then(|host| host.pods.get_mut(&pod.id.uid)) else {
            return;
        };
        of_host.failed = true;
        if let Some(pid) = of_host.process {
            self.agent_dies(pid, "is evicted");
        }
    }

    fn stop_pod(&mut self, id: HostId, uid: &str) {
        let host = self.hosts.get_mut(id);
        let Some(pod) = host.and_then(|host| host.pods.get_mut(uid)) else {
            return;
        };
        if std::mem::replace(&mut pod.stopping, true) {
            return;
        }
        match pod.process {
            Some(pid) => {
                self.stop_agent(pid);
                self.after(secs(GRACE), Event::PodKill(id, uid.to_owned(), pid));
            }
            None => self.pod_is_gone(id, uid),
        }
    }

    /// The grace of a pod is over.
    pub(crate) fn kill_pod(&mut self, pid: Pid) {
        if self.agents.contains_key(&pid) {
            self.agent_dies(pid, "is killed after its grace");
        }
    }

    fn pod_is_gone(&mut self, id: HostId, uid: &str) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let Some(pod) = host.pods.remove(uid) else {
            return;
        };
        if host.connected && !self.api_is_down() {
            let present = self.api.pods.get(&pod.name).filter(|one| one.id.uid == uid);
            if let Some(present) = present.cloned() {
                let _ = self.api.remove::<SeenPod>(&present.id);
            }
        } else {
            self.sync_host_soon(id);
        }
    }

    /// Starts the process of a pod, if its image and its configuration are there.
    pub(crate) fn start_pod(&mut self, id: HostId, uid: &str) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let (up, name) = (host.up && host.kubelet_since.is_some(), host.name.clone());
        let Some(pod) = host.pods.get_mut(uid) else {
            return;
        };
        if pod.process.is_some() || pod.stopping || pod.failed || !up {
            return;
        }
        let tag = self
            .script
            .tags
            .get(&pod.revision)
            .copied()
            .unwrap_or_default();
        let map = self
            .api
            .config_maps
            .get(&revision_object(&pod.config, &pod.revision));
        let text = map.and_then(|map| map.agent_config.as_deref());
        let config = text.and_then(|text| serde_json::from_str::<AgentConfig>(text).ok());
        let trouble = match &config {
            _ if self.script.behaviour(&name, tag) == Behaviour::NoImage => {
                Some(("ImagePullBackOff", true))
            }
            None => Some(("ContainerCreating", false)),
            Some(_) => None,
        };
        if let Some(trouble) = trouble {
            if pod.trouble != Some(trouble) {
                pod.trouble = Some(trouble);
                let place = name;
                let nick = pod.revision.clone();
                tell!(
                    self,
                    place,
                    "agent {} cannot start: {}",
                    self.nick(&nick),
                    trouble.0
                );
                self.pod_status_soon(id, uid.to_owned());
            }
            let wait = self.random.between(secs(5), secs(15));
            return self.after(wait, Event::PodStart(id, uid.to_owned()));
        }
        let Some(config) = config else {
            return;
        };
        let resources = config.resources.into_iter().map(|one| one.name).collect();
        self.start_agent(id, uid, config.config_uid, resources);
        self.pod_status_soon(id, uid.to_owned());
    }

    /// A process has ended. Its kubelet starts it again, later each time.
    pub(crate) fn process_ended(&mut self, id: HostId, uid: &str, lived: std::time::Duration) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let up = host.up;
        let Some(pod) = host.pods.get_mut(uid) else {
            return;
        };
        pod.process = None;
        pod.ready = false;
        if pod.stopping {
            return self.pod_is_gone(id, uid);
        }
        if pod.failed || !up {
            return;
        }
        pod.failures = if lived > secs(600) {
            0
        } else {
            pod.failures + 1
        };
        pod.restarts += 1;
        let wait = match pod.failures {
            0 | 1 => secs(1),
            failures => secs(10)
                .saturating_mul(1 << (failures - 2).min(5))
                .min(secs(300)),
        };
        pod.trouble = Some(("CrashLoopBackOff", true));
        self.pod_status_soon(id, uid.to_owned());
        self.after(wait, Event::PodStart(id, uid.to_owned()));
    }

    pub(crate) fn pod_status_soon(&mut self, id: HostId, uid: String) {
        let wait = self.random.between(ms(20), ms(800));
        self.after(wait, Event::PodStatus(id, uid));
    }

    /// A kubelet writes what has become of a pod.
    pub(crate) fn write_pod_status(&mut self, id: HostId, uid: &str) {
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        let Some(pod) = host.pods.get(uid) else {
            return;
        };
        if !host.connected || host.kubelet_since.is_none() || self.api_is_down() {
            let wait = self.random.between(secs(1), secs(3));
            return self.after(wait, Event::PodStatus(id, uid.to_owned()));
        }
        let trouble = pod.trouble.filter(|_| pod.process.is_none());
        let (runs, ready, restarts) = (pod.process.is_some(), pod.ready, pod.restarts);
        let name = pod.name.clone();
        self.api.alter::<SeenPod>(&name, |seen| {
            if seen.id.uid != uid || seen.phase == "Failed" {
                return;
            }
            let phase = if runs || restarts > 0 {
                "Running"
            } else {
                "Pending"
            };
            phase.clone_into(&mut seen.phase);
            seen.ready = ready && runs;
            seen.restarts = restarts;
            seen.trouble = trouble.map(|(reason, fatal)| Trouble {
                reason: reason.to_owned(),
                message: String::new(),
                fatal,
            });
        });
    }

    /// The kubelet's list of a resource is another one.
    pub(crate) fn list_changed(&mut self, id: HostId, resource: &str) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let listed = host.list(resource);
        if !std::mem::replace(&mut host.tick_is_due, true) {
            let period = self.settings.node_status_period;
            let offset = host.tick_offset;
            let millis = |time: std::time::Duration| time.as_millis();
            let into = (millis(self.now) + millis(period) - millis(offset)) % millis(period).max(1);
            let wait = millis(period).saturating_sub(into);
            let wait = ms(u64::try_from(wait).unwrap_or_default());
            self.after(wait, Event::NodeStatus(id));
        }
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        let devices = host.devices;
        let lives: Vec<_> = host
            .live(resource)
            .map(|one| (one.agent, one.socket))
            .collect();
        for (pid, socket) in lives {
            let Some(agent) = self.agents.get_mut(&pid) else {
                continue;
            };
            let differs = listed != agent.behaviour.devices(devices);
            let of_agent = agent.resources.get_mut(resource);
            let Some(of_agent) = of_agent.filter(|one| differs && !one.reading) else {
                continue;
            };
            of_agent.reading = true;
            let wait = self.random.between(secs(1), secs(10));
            self.agent_after(wait, pid, AgentEvent::Read(resource.to_owned(), socket));
        }
        self.check_outage(id, resource);
    }

    /// A kubelet writes its node's status.
    pub(crate) fn write_node_status(&mut self, id: HostId) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        if !host.connected || host.kubelet_since.is_none() {
            host.tick_is_due = false;
            return;
        }
        if self.api_is_down() {
            return self.after(self.settings.node_status_period, Event::NodeStatus(id));
        }
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.tick_is_due = false;
        let lists: Vec<_> = host
            .lists
            .iter()
            .map(|(name, list)| (name.clone(), i64::from(list.count_ones())))
            .collect();
        let name = host.name.clone();
        let wall = self.wall();
        self.api.alter::<SeenNode>(&name, |node| {
            node.allocatable.extend(lists);
            if !node.ready {
                node.ready = true;
                node.ready_since = Some(wall);
            }
        });
    }

    /// The node controller gives up on a node that it has not heard of.
    pub(crate) fn lose_node(&mut self, id: HostId, losses: u32) {
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        let is_away = !host.connected || !host.up || host.kubelet_since.is_none();
        if !is_away || host.losses != losses {
            return;
        }
        let name = host.name.clone();
        let wall = self.wall();
        tell!(self, name, "is not Ready");
        self.api.alter::<SeenNode>(&name, |node| {
            node.ready = false;
            node.ready_since = Some(wall);
        });
        // Not Ready nodes' pods are not Ready.
        let pods: Vec<_> = self.api.pods.objects.values().cloned().collect();
        for pod in pods.iter().filter(|pod| pod.node == name && pod.ready) {
            let _ = self
                .api
                .change::<SeenPod>(&named(&pod.id.name), |pod| pod.ready = false);
        }
    }

    /// A kubelet is there (again): it knows no plugin, and has a new socket.
    pub(crate) fn kubelet_starts(&mut self, id: HostId) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        if !host.up || host.kubelet_since.is_some() {
            return;
        }
        host.kubelet_since = Some(now);
        host.losses += 1;
        host.tick_is_due = true;
        let place = host.name.clone();
        let uids: Vec<_> = host.pods.keys().cloned().collect();
        tell!(self, place, "the kubelet is there");
        self.after(ms(200), Event::NodeStatus(id));
        self.sync_host_soon(id);
        for uid in uids {
            let wait = self.random.between(ms(100), secs(3));
            self.after(wait, Event::PodStart(id, uid.clone()));
            self.pod_status_soon(id, uid);
        }
        self.wake_agents(id);
    }

    /// A machine has booted: its files are there, its locks are not.
    pub(crate) fn host_starts(&mut self, id: HostId) {
        let wait = self.random.between(secs(1), secs(5));
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.up = true;
        host.boots += 1;
        host.role_free_since.clear();
        for pod in host.pods.values_mut() {
            pod.restarts += 1;
            pod.failures = 0;
        }
        self.after(wait, Event::KubeletUp(id));
    }

    /// A machine reaches the API server again.
    pub(crate) fn host_connects(&mut self, id: HostId) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.connected = true;
        host.losses += 1;
        host.tick_is_due = true;
        let place = host.name.clone();
        let uids: Vec<_> = host.pods.keys().cloned().collect();
        let pids = self.agents.iter().filter(|(_, one)| one.host == id);
        let pids: Vec<_> = pids.map(|(pid, _)| *pid).collect();
        tell!(self, place, "reaches the API server");
        self.after(ms(200), Event::NodeStatus(id));
        self.sync_host_soon(id);
        for uid in uids {
            self.pod_status_soon(id, uid);
        }
        for pid in pids {
            let wait = self.random.between(ms(50), secs(2));
            self.agent_after(wait, pid, AgentEvent::List);
        }
    }
}
