//! Where the agent's tasks post what they saw, for those who report it.

use std::sync::Arc;

use crds::node::LastHook;
use node_agent_core::seen::{Part, ResourceSeen, Seen, Standing};
use tokio::sync::watch;

/// Shared by all tasks.
#[derive(Clone, Debug)]
pub struct Board {
    seen: Arc<watch::Sender<Seen>>,
}

impl Board {
    /// A board with these resources on it, of which nothing is known.
    pub fn new(resources: impl Iterator<Item = String>) -> Self {
        let resources = resources
            .map(|name| (name, ResourceSeen::default()))
            .collect();
        let seen = Seen {
            resources,
            ..Seen::default()
        };
        Self {
            seen: Arc::new(watch::Sender::new(seen)),
        }
    }

    /// Everything posted, now and later.
    pub fn subscribe(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Posts whether the kubelet's socket is there.
    pub fn kubelet_socket(&self, there: bool) {
        self.seen.send_if_modified(|seen| {
            let changed = seen.kubelet_socket != there;
            seen.kubelet_socket = there;
            changed
        });
    }

    /// Posts what the agent is on its node.
    pub fn part(&self, part: Part) {
        self.seen.send_if_modified(|seen| {
            let changed = seen.part != part;
            if seen.part.role != part.role {
                tracing::info!(role = ?part.role, "the role changed");
            }
            seen.part = part;
            changed
        });
    }

    /// Posts why locks cannot be taken, or nothing; tells whether that is news.
    pub fn lock_error(&self, error: &str) -> bool {
        self.seen.send_if_modified(|seen| {
            let changed = seen.lock_error != error;
            if changed {
                seen.lock_error = error.to_owned();
            }
            changed
        })
    }

    /// Posts whether the kubelet tells who holds devices.
    pub fn pod_resources(&self, answered: Result<(), String>) {
        self.seen.send_if_modified(|seen| {
            let answered = Some(answered);
            let changed = seen.pod_resources != answered;
            seen.pod_resources = answered;
            changed
        });
    }

    /// Posts how a hook ended.
    pub fn last_hook(&self, hook: LastHook) {
        self.seen.send_modify(|seen| seen.last_hook = Some(hook));
    }

    /// Posts where a registration stands; tells whether that is news.
    pub fn standing(&self, resource: &str, standing: Standing) -> bool {
        self.post(resource, |seen| {
            let changed = seen.standing != standing;
            seen.standing = standing;
            changed
        })
    }

    /// Posts how many devices of a resource the kubelet lists that nobody serves.
    pub fn phantom(&self, resource: &str, devices: usize) {
        self.post(resource, |seen| {
            let changed = seen.phantom != devices;
            seen.phantom = devices;
            changed
        });
    }

    /// Posts something of a resource; `change` tells whether it changed anything,
    /// and so is told here.
    pub fn post(&self, resource: &str, change: impl FnOnce(&mut ResourceSeen) -> bool) -> bool {
        self.seen
            .send_if_modified(|seen| seen.resources.get_mut(resource).is_some_and(change))
    }
}
