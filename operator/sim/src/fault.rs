//! What goes wrong, and what people do.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crds::names::{node_object, node_revision_label, node_stage_label, revision_object};
use crds::{DevicePluginConfig, DevicePluginNode};
use operator_core::seen::{SeenConfigMap, SeenDaemonSet, SeenNode, SeenPod, SeenRevision};

use crate::api::{Watch, named};
use crate::event::{Event, OperatorEvent};
use crate::operator::FRESH;
use crate::random::{ms, secs};
use crate::story::tell;
use crate::world::World;

/// Which agent of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    /// The one that holds the role.
    Active,
    /// One that does not.
    Other,
}

/// A value that somebody writes into a node's label.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Value {
    /// None: it is removed.
    None,
    /// Something that is no revision.
    Garbage,
    /// The revision of an image.
    Tag(u32),
}

/// Something that happens to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// An agent's process is killed.
    KillAgent(String, Which),
    /// A kubelet is away for a time.
    RestartKubelet(String, Duration),
    /// A machine is down for a time and boots.
    Reboot(String, Duration),
    /// A machine does not reach the API server for a time.
    Disconnect(String, Duration),
    /// A node's object is deleted; after the time it is made again under its name.
    DeleteNode(String, Option<Duration>),
    /// It is made again.
    RecreateNode(String),
    /// A node is cordoned or not.
    Cordon(String, bool),
    /// The pods of agents on a node fail: they are evicted.
    Evict(String),
    /// The pods of agents on a node are deleted.
    DeletePods(String),
    /// The pods of agents on a node are deleted by force: their processes go on for a while.
    ForceDelete(String),
    /// A config gets another agent image.
    Edit(String, u32),
    /// A config's rollout is paused or not.
    Pause(String, bool),
    /// The label that says which revision is proven on a node is written by hand.
    Label(String, String, Value),
    /// The label that stages a revision on a node is written by hand.
    StageLabel(String, String, Value),
    /// The ledger is deleted.
    DeleteLedger,
    /// The ledger is overwritten.
    GarbageLedger,
    /// A node's object is deleted.
    DeleteNodeObject(String, String),
    /// The DaemonSet of an image is deleted.
    DeleteDaemonSet(String, u32),
    /// The ControllerRevision of an image is deleted.
    DeleteRevision(String, u32),
    /// The ConfigMap of an image is deleted.
    DeleteConfigMap(String, u32),
    /// The status of a config is wiped.
    WipeStatus(String),
    /// An operator dies and starts again after a time.
    CrashOperator(usize, Duration),
    /// An operator stands still for a time and does not know it.
    PauseOperator(usize, Duration),
    /// Another operator takes the lease, while the first one still believes that it leads.
    StealLease,
    /// A watch of an operator brings nothing for a time.
    Freeze(usize, Watch, Duration),
    /// The watches of a node's agents bring nothing for a time.
    FreezeAgents(String, Duration),
    /// So many of a hundred calls fail for a time.
    ApiErrors(u64, Duration),
    /// The API server is down for a time.
    ApiDown(Duration),
    /// The DaemonSet controller does nothing for a time.
    SlowDaemonSets(Duration),
    /// The wall clock jumps by so many seconds.
    ClockJump(i64),
    /// Containers on a node hold these devices.
    Allocate(String, String, u32),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Fault {
    /// The node that it is about.
    fn node(&self) -> Option<&str> {
        match self {
            Self::KillAgent(node, _)
            | Self::RestartKubelet(node, _)
            | Self::Reboot(node, _)
            | Self::Disconnect(node, _)
            | Self::DeleteNode(node, _)
            | Self::RecreateNode(node)
            | Self::Cordon(node, _)
            | Self::Evict(node)
            | Self::DeletePods(node)
            | Self::ForceDelete(node)
            | Self::Label(node, _, _)
            | Self::StageLabel(node, _, _)
            | Self::DeleteNodeObject(node, _)
            | Self::FreezeAgents(node, _)
            | Self::Allocate(node, _, _) => Some(node),
            Self::Edit(..)
            | Self::Pause(..)
            | Self::DeleteLedger
            | Self::GarbageLedger
            | Self::DeleteDaemonSet(..)
            | Self::DeleteRevision(..)
            | Self::DeleteConfigMap(..)
            | Self::WipeStatus(_)
            | Self::CrashOperator(..)
            | Self::PauseOperator(..)
            | Self::StealLease
            | Self::Freeze(..)
            | Self::ApiErrors(..)
            | Self::ApiDown(_)
            | Self::SlowDaemonSets(_)
            | Self::ClockJump(_) => None,
        }
    }

    /// Whether it is done through the API server.
    fn needs_api(&self) -> bool {
        match self {
            Self::DeleteNode(..)
            | Self::RecreateNode(_)
            | Self::Cordon(..)
            | Self::Evict(_)
            | Self::DeletePods(_)
            | Self::ForceDelete(_)
            | Self::Label(..)
            | Self::StageLabel(..)
            | Self::DeleteNodeObject(..)
            | Self::Edit(..)
            | Self::Pause(..)
            | Self::DeleteLedger
            | Self::GarbageLedger
            | Self::DeleteDaemonSet(..)
            | Self::DeleteRevision(..)
            | Self::DeleteConfigMap(..)
            | Self::WipeStatus(_)
            | Self::StealLease => true,
            Self::KillAgent(..)
            | Self::RestartKubelet(..)
            | Self::Reboot(..)
            | Self::Disconnect(..)
            | Self::FreezeAgents(..)
            | Self::Allocate(..)
            | Self::CrashOperator(..)
            | Self::PauseOperator(..)
            | Self::Freeze(..)
            | Self::ApiErrors(..)
            | Self::ApiDown(_)
            | Self::SlowDaemonSets(_)
            | Self::ClockJump(_) => false,
        }
    }

    /// How long it lasts by itself.
    fn lasts(&self) -> Duration {
        match self {
            Self::RestartKubelet(_, time)
            | Self::Reboot(_, time)
            | Self::Disconnect(_, time)
            | Self::CrashOperator(_, time)
            | Self::PauseOperator(_, time)
            | Self::Freeze(_, _, time)
            | Self::FreezeAgents(_, time)
            | Self::ApiErrors(_, time)
            | Self::ApiDown(time)
            | Self::SlowDaemonSets(time) => *time,
            Self::DeleteNode(_, time) => time.unwrap_or_default(),
            Self::KillAgent(..)
            | Self::RecreateNode(_)
            | Self::Cordon(..)
            | Self::Evict(_)
            | Self::DeletePods(_)
            | Self::ForceDelete(_)
            | Self::Edit(..)
            | Self::Pause(..)
            | Self::Label(..)
            | Self::StageLabel(..)
            | Self::DeleteLedger
            | Self::GarbageLedger
            | Self::DeleteNodeObject(..)
            | Self::DeleteDaemonSet(..)
            | Self::DeleteRevision(..)
            | Self::DeleteConfigMap(..)
            | Self::WipeStatus(_)
            | Self::StealLease
            | Self::ClockJump(_)
            | Self::Allocate(..) => Duration::ZERO,
        }
    }

    /// Whether it takes an agent, its pod or its node away, so that a revision may look bad although
    /// it is not.
    pub fn harms_agents(&self) -> bool {
        match self {
            Self::KillAgent(..)
            | Self::RestartKubelet(..)
            | Self::Reboot(..)
            | Self::Disconnect(..)
            | Self::DeleteNode(..)
            | Self::RecreateNode(_)
            | Self::Evict(_)
            | Self::DeletePods(_)
            | Self::ForceDelete(_)
            | Self::Label(..)
            | Self::StageLabel(..)
            | Self::DeleteNodeObject(..)
            | Self::DeleteDaemonSet(..)
            | Self::DeleteConfigMap(..)
            | Self::FreezeAgents(..)
            | Self::SlowDaemonSets(_) => true,
            Self::Cordon(..)
            | Self::Edit(..)
            | Self::Pause(..)
            | Self::DeleteLedger
            | Self::GarbageLedger
            | Self::DeleteRevision(..)
            | Self::WipeStatus(_)
            | Self::CrashOperator(..)
            | Self::PauseOperator(..)
            | Self::StealLease
            | Self::Freeze(..)
            | Self::ApiErrors(..)
            | Self::ApiDown(_)
            | Self::ClockJump(_)
            | Self::Allocate(..) => false,
        }
    }
}

impl World {
    /// A fault begins.
    pub fn fault(&mut self, fault: &Fault) {
        if self.api_is_down() && fault.needs_api() {
            // Whoever does it tries until it works.
            let wait = self.random.between(secs(1), secs(20));
            return self.after(wait, Event::Fault(fault.clone()));
        }
        let place = fault.node().unwrap_or("cluster").to_owned();
        tell!(self, place, "*** {fault}");
        self.laws.note_fault(
            fault,
            self.now,
            fault.lasts(),
            fault.node().and_then(|node| self.host_id(node)),
        );
        match fault {
            Fault::KillAgent(node, which) => self.kill_agent(node, *which),
            Fault::RestartKubelet(node, time) => self.restart_kubelet(node, *time),
            Fault::Reboot(node, time) => self.reboot(node, *time),
            Fault::Disconnect(node, time) => self.disconnect(node, *time),
            Fault::DeleteNode(node, again) => {
                let _ = self.api.remove::<SeenNode>(&named(node));
                self.collect_garbage_soon();
                if let Some(wait) = again {
                    self.after(*wait, Event::Fault(Fault::RecreateNode(node.clone())));
                }
            }
            Fault::RecreateNode(node) => {
                self.add_node(node);
                if let Some(id) = self.host_id(node) {
                    self.after(ms(500), Event::NodeStatus(id));
                    self.sync_host_soon(id);
                }
            }
            Fault::Cordon(node, on) => {
                self.api
                    .alter::<SeenNode>(node, |node| node.unschedulable = *on);
            }
            Fault::Evict(node) => self.pods_of(node, |world, pod| {
                world.api.alter::<SeenPod>(&pod.id.name, |pod| {
                    "Failed".clone_into(&mut pod.phase);
                    pod.ready = false;
                });
            }),
            Fault::DeletePods(node) => self.pods_of(node, |world, pod| world.delete_pod(&pod.id)),
            Fault::ForceDelete(node) => self.force_delete(node),
            Fault::Edit(config, tag) => self.set_image(config, *tag),
            Fault::Pause(config, on) => self.edit(config, |spec| {
                spec.rollout.get_or_insert_default().paused = Some(*on);
            }),
            Fault::Label(node, config, value) => {
                self.relabel(node, node_revision_label(config), *value);
            }
            Fault::StageLabel(node, config, value) => {
                self.relabel(node, node_stage_label(config), *value);
            }
            Fault::DeleteLedger => self.api.ledger = None,
            Fault::GarbageLedger => self.api.put_ledger("{garbage".to_owned()),
            Fault::DeleteNodeObject(node, config) => {
                let name = node_object(config, node);
                let _ = self.api.remove::<DevicePluginNode>(&named(&name));
            }
            Fault::DeleteDaemonSet(config, tag) => {
                for name in self.of_tag(config, *tag) {
                    let _ = self.api.remove::<SeenDaemonSet>(&named(&name));
                }
            }
            Fault::DeleteRevision(config, tag) => {
                for name in self.of_tag(config, *tag) {
                    let _ = self.api.remove::<SeenRevision>(&named(&name));
                }
            }
            Fault::DeleteConfigMap(config, tag) => {
                for name in self.of_tag(config, *tag) {
                    let _ = self.api.remove::<SeenConfigMap>(&named(&name));
                }
            }
            Fault::WipeStatus(config) => {
                self.api
                    .alter::<DevicePluginConfig>(config, |config| config.status = None);
            }
            Fault::CrashOperator(at, time) => self.crash_operator(*at, *time),
            Fault::PauseOperator(at, time) => self.pause_operator(*at, *time),
            Fault::StealLease => self.steal_lease(),
            Fault::Freeze(at, kind, time) => self.freeze(*at, *kind, *time),
            Fault::FreezeAgents(node, time) => {
                if let Some(id) = self.host_id(node) {
                    self.script
                        .frozen_agents
                        .push((id, self.now, self.now + *time));
                }
            }
            Fault::ApiErrors(percent, time) => {
                self.script
                    .api_errors
                    .push((self.now, self.now + *time, *percent));
            }
            Fault::ApiDown(time) => self.api_goes_down(*time),
            Fault::SlowDaemonSets(time) => {
                self.script.slow_daemon_sets = Some((self.now, self.now + *time));
            }
            Fault::ClockJump(seconds) => self.clock_skew += seconds,
            Fault::Allocate(node, resource, devices) => {
                let host = self.hosts.iter_mut().find(|host| host.name == *node);
                if let Some(host) = host {
                    let devices = devices & host.devices;
                    host.allocated.insert(resource.clone(), devices);
                }
            }
        }
    }

    fn pods_of(&mut self, node: &str, act: impl Fn(&mut Self, &SeenPod)) {
        let pods: Vec<_> = self.api.pods.objects.values().cloned().collect();
        for pod in pods.iter().filter(|pod| pod.node == node) {
            act(self, pod);
        }
    }

    fn kill_agent(&mut self, node: &str, which: Which) {
        let id = self.host_id(node);
        let mut agents = self
            .agents
            .iter()
            .filter(|(_, agent)| Some(agent.host) == id);
        let agent = agents.find(|(_, agent)| agent.holds_role == (which == Which::Active));
        if let Some(pid) = agent.map(|(pid, _)| *pid) {
            self.agent_dies(pid, "is killed");
        }
    }

    fn restart_kubelet(&mut self, node: &str, time: Duration) {
        let Some(id) = self.host_id(node) else {
            return;
        };
        self.after(time, Event::KubeletUp(id));
        self.kubelet_ends(id);
    }

    /// A kubelet ends: its streams end, and nobody hears of the node.
    fn kubelet_ends(&mut self, id: usize) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.losses += 1;
        let losses = host.losses;
        let streams = host.stop_kubelet();
        for stream in streams {
            self.list_changed(id, &stream.resource);
            self.agent_loses(stream.agent, &stream.resource, stream.socket);
        }
        self.after(secs(40), Event::NodeLost(id, losses));
    }

    fn reboot(&mut self, node: &str, time: Duration) {
        let Some(id) = self.host_id(node) else {
            return;
        };
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        if !host.up {
            return;
        }
        host.up = false;
        let pids: Vec<_> = self
            .agents
            .iter()
            .filter(|(_, one)| one.host == id)
            .map(|(pid, _)| *pid)
            .collect();
        for pid in pids {
            self.agent_dies(pid, "goes down with its machine");
        }
        self.kubelet_ends(id);
        self.after(time, Event::HostUp(id));
    }

    fn disconnect(&mut self, node: &str, time: Duration) {
        let Some(id) = self.host_id(node) else {
            return;
        };
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.connected = false;
        host.losses += 1;
        let losses = host.losses;
        self.after(time, Event::HostConnected(id));
        self.after(secs(40), Event::NodeLost(id, losses));
    }

    fn force_delete(&mut self, node: &str) {
        self.pods_of(node, |world, pod| {
            let _ = world.api.remove::<SeenPod>(&pod.id);
        });
    }

    fn relabel(&mut self, node: &str, key: String, value: Value) {
        let value = match value {
            Value::None => None,
            Value::Garbage => Some("garbage".to_owned()),
            Value::Tag(tag) => {
                let mut tags = self.script.tags.iter();
                tags.find(|(_, one)| **one == tag)
                    .map(|(revision, _)| revision.clone())
            }
        };
        self.api.alter::<SeenNode>(node, |node| {
            match value {
                Some(value) => drop(node.labels.insert(key, value)),
                None => drop(node.labels.remove(&key)),
            };
        });
    }

    /// The name of the objects that were made for an image of a config.
    fn of_tag(&self, config: &str, tag: u32) -> Vec<String> {
        let tags: BTreeMap<_, _> = self.script.tags.clone();
        let of_tag = tags.into_iter().filter(|(_, one)| *one == tag);
        of_tag
            .map(|(revision, _)| revision_object(config, &revision))
            .collect()
    }

    /// A process stands still and does not know it.
    pub(crate) fn pause_operator(&mut self, at: usize, time: Duration) {
        let until = self.now + time;
        if let Some(operator) = self.operators.get_mut(at) {
            operator.paused_until = until;
            // What it sees when it goes on is as old as its pause is long.
            operator.blind.push((self.now, until));
            // It notices that its lease has ended some time after it goes on.
            let notices = time + self.random.between(Duration::ZERO, secs(5));
            self.operator_after(notices, at, OperatorEvent::CheckLease);
        }
        self.elect_soon();
    }

    fn steal_lease(&mut self) {
        let holder = self.lease.holder.map(|(at, _)| at);
        let others = self.operators.iter().enumerate();
        let mut others = others.filter(|(at, one)| {
            one.alive && one.epoch.is_none() && Some(*at) != holder && one.paused_until <= self.now
        });
        let Some(at) = others.next().map(|(at, _)| at) else {
            return;
        };
        if let Some(holder) = holder {
            let notices = self.random.between(ms(100), secs(10));
            self.operator_after(notices, holder, OperatorEvent::CheckLease);
        }
        self.lead(at);
    }

    fn freeze(&mut self, at: usize, kind: Watch, time: Duration) {
        let until = self.now + time;
        self.script.frozen.push((at, kind, self.now, until));
        if let Some(operator) = self.operators.get_mut(at)
            && matches!(kind, Watch::Nodes | Watch::Pods | Watch::NodeObjects)
            && time > FRESH
        {
            operator.blind.push((self.now + FRESH, until));
        }
    }

    fn api_goes_down(&mut self, time: Duration) {
        let until = self.now + time;
        self.script.api_down.push((self.now, until));
        for at in 0..self.operators.len() {
            if let Some(operator) = self.operators.get_mut(at) {
                operator.blind.push((self.now, until));
            }
            // Who cannot renew its lease gives up.
            self.operator_after(secs(10), at, OperatorEvent::CheckLease);
        }
        self.elect_soon();
    }
}
