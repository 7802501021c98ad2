//! What a run is made of: how agents behave, how long everything takes, and when the API server
//! and the watches fail.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::Watch;
use crate::behaviour::Behaviour;
use crate::operator::CrashPoint;
use crate::random::{ms, secs};

/// A run's circumstances. What ends by itself has a time until which it lasts.
#[derive(Clone, Debug)]
pub struct Script {
    /// The number of the agent image of each revision.
    pub tags: BTreeMap<String, u32>,
    /// Behaviours by node and image; those of no node count everywhere.
    pub behaviours: BTreeMap<(String, u32), Behaviour>,
    /// When the DaemonSet controller does nothing.
    pub slow_daemon_sets: Option<(Duration, Duration)>,
    /// The longest time that the DaemonSet controller takes.
    pub daemon_set_lag: Duration,
    /// The longest time that a pod takes to start.
    pub pod_start_lag: Duration,
    /// The longest time that a kubelet takes to notice the end of a stream.
    pub stream_end_lag: Duration,
    /// The longest time that an agent's write takes.
    pub agent_write_lag: Duration,
    /// The longest time that an agent's watch takes.
    pub agent_watch_lag: Duration,
    /// The longest time that an operator's watch takes.
    pub watch_lag: Duration,
    /// The longest time that an operator's call takes.
    pub call_lag: Duration,
    /// The shortest time between two passes that nothing but news calls for.
    pub pass_spacing: Duration,
    /// How many of a hundred deliveries of a watch are lost until the next list.
    pub lost_events: u64,
    /// When so many of a hundred calls fail.
    pub api_errors: Vec<(Duration, Duration, u64)>,
    /// When the API server is down.
    pub api_down: Vec<(Duration, Duration)>,
    /// When a watch of an operator brings nothing.
    pub frozen: Vec<(usize, Watch, Duration, Duration)>,
    /// When the watches of a node's agents bring nothing.
    pub frozen_agents: Vec<(usize, Duration, Duration)>,
    /// When an operator dies.
    pub crash: Option<CrashPoint>,
    /// At which write an operator stands still, and for how long.
    pub stall: Option<(u64, Duration)>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tags: BTreeMap::new(),
            behaviours: BTreeMap::new(),
            slow_daemon_sets: None,
            daemon_set_lag: ms(300),
            pod_start_lag: secs(3),
            stream_end_lag: ms(20),
            agent_write_lag: ms(50),
            agent_watch_lag: ms(100),
            watch_lag: ms(100),
            call_lag: ms(20),
            pass_spacing: ms(200),
            lost_events: 0,
            api_errors: Vec::new(),
            api_down: Vec::new(),
            frozen: Vec::new(),
            frozen_agents: Vec::new(),
            crash: None,
            stall: None,
        }
    }
}

impl Script {
    /// How agents of an image behave on a node.
    pub fn behaviour(&self, node: &str, tag: u32) -> Behaviour {
        let of_node = self.behaviours.get(&(node.to_owned(), tag));
        let anywhere = self.behaviours.get(&(String::new(), tag));
        of_node.or(anywhere).copied().unwrap_or_default()
    }

    /// How many of a hundred calls fail.
    pub fn api_errors_now(&self, now: Duration) -> u64 {
        let errors = self.api_errors.iter();
        let mut errors = errors.filter(|(from, until, _)| *from <= now && now < *until);
        errors
            .next()
            .map(|(_, _, percent)| *percent)
            .unwrap_or_default()
    }
}
