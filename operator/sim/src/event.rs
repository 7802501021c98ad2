//! What is going to happen.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use crds::DevicePluginNode;
use crds::node::{AgentReport, StandbyReport};
use operator_core::seen::Identity;

use crate::api::Watch;
use crate::fault::Fault;
use crate::host::Pid;

/// Which machine, by its place in the world's list.
pub type HostId = usize;

/// Something that happens at its time.
#[derive(Clone, Debug)]
pub enum Event {
    /// The DaemonSet controller looks at everything.
    DaemonSets,
    /// A kubelet looks at the pods that it is to run.
    HostSync(HostId),
    /// A pod's process starts.
    PodStart(HostId, String),
    /// A pod's process has had the time it gets to end.
    PodKill(HostId, String, Pid),
    /// A kubelet tells what has become of a pod.
    PodStatus(HostId, String),
    /// A kubelet writes its node's status.
    NodeStatus(HostId),
    /// The node controller has not heard of a node for too long.
    NodeLost(HostId, u32),
    /// A kubelet is there again.
    KubeletUp(HostId),
    /// A machine has booted.
    HostUp(HostId),
    /// A machine reaches the API server again.
    HostConnected(HostId),
    /// A kubelet notices the end of a stream.
    StreamEnd(HostId, String, u64),
    /// Something of an agent.
    Agent(Pid, AgentEvent),
    /// The status that an agent has sent arrives at the API server.
    AgentWrite(Pid, HostId, Identity, Box<Slot>),
    /// Something of an operator's process, which is another one after its next start.
    Operator(usize, u32, OperatorEvent),
    /// Whoever may lead looks whether it can.
    Election,
    /// A fault begins.
    Fault(Fault),
    /// Devices of a resource have been away for long on a machine.
    Outage(HostId, String, Duration),
}

/// Something of an agent.
#[derive(Clone, Debug)]
pub enum AgentEvent {
    /// It looks at everything again.
    Look,
    /// Its preflight is done.
    Preflight,
    /// The first list of its object answers.
    List,
    /// The watch brings its object.
    Sees(u64, Option<Arc<DevicePluginNode>>),
    /// It registers a resource, unless the kubelet still lists the old devices.
    Register(String, Duration),
    /// It frees its locks after its servers have closed.
    Unlock,
    /// It reads the kubelet's own list of a resource, which it registered with this socket.
    Read(String, u64),
    /// It dies.
    Crash(&'static str),
    /// A write of its status was refused or lost.
    WriteAgain,
}

/// A part of a node object's status.
#[derive(Clone, Debug)]
pub enum Slot {
    /// The report of the agent that serves.
    Active(AgentReport),
    /// The report of the agent that stands by.
    Standby(StandbyReport),
    /// The report of the agent that stood by is removed.
    NoStandby,
}

/// Something of an operator's process.
#[derive(Clone, Debug)]
pub enum OperatorEvent {
    /// It is running.
    Start,
    /// A list of a kind answers.
    List(Watch),
    /// A watch brings changes up to a place in the log.
    Deliver(Watch, usize),
    /// A pass begins.
    Pass(u64),
    /// The ledger is read and the plan made.
    Plan,
    /// The next write of the plan reaches the API server.
    Step,
    /// It asks whether it still leads.
    CheckLease,
}

struct Entry {
    at: Duration,
    order: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Events in the order of their times.
#[derive(Default)]
pub struct Queue {
    entries: BinaryHeap<Entry>,
    order: u64,
}

impl Queue {
    /// Adds an event. Those of one time happen in the order in which they were added.
    pub fn push(&mut self, at: Duration, event: Event) {
        self.order += 1;
        let order = self.order;
        self.entries.push(Entry { at, order, event });
    }

    /// The next event that happens until then.
    pub fn pop(&mut self, until: Duration) -> Option<(Duration, Event)> {
        if self.entries.peek()?.at > until {
            return None;
        }
        self.entries.pop().map(|entry| (entry.at, entry.event))
    }
}
