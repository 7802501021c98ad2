//! Keeps the inventory of one resource up to date.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crds::Resource;
use daemon::Stop;
use jiff::Timestamp;
use node_agent_core::advertised::Sharing;
use node_agent_core::discovery::{Discovered, discovered};
use node_agent_core::inventory::Inventory;
use node_agent_core::rule::Rule;
use node_agent_core::uevent::Uevent;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::allocations::Held;
use crate::board::Board;
use crate::claims::OwnClaims;
use crate::error_chain::chained;
use crate::file_events::Subscription;
use crate::host_dev::HostDev;
use crate::host_devices::{Behind, HostDevices};
use crate::sysfs::Sysfs;
use crate::uevents::Uevents;

/// What looks for the devices of one resource.
pub struct Devices {
    resource: String,
    /// Nothing where the discovery cannot be read: there are no devices then.
    rule: Option<Arc<Rule>>,
    period: Duration,
    between_looks: Duration,
    host: HostDevices,
    events: Subscription,
    plugged: Arc<Notify>,
    held: watch::Receiver<Held>,
    look_again: Arc<Notify>,
    claims: OwnClaims,
    inventory: watch::Sender<Arc<Inventory>>,
    board: Board,
}

/// What other tasks share with those who look for devices.
pub struct Shared {
    /// The host's `/dev`.
    pub host_dev: HostDev,
    /// The host's sysfs.
    pub sysfs: Sysfs,
    /// Tells of changes in directories.
    pub events: Subscription,
    /// Tells of changes of devices.
    pub uevents: Uevents,
    /// Who holds what.
    pub held: watch::Receiver<Held>,
    /// Told by those who saw that the inventory is wrong.
    pub look_again: Arc<Notify>,
    /// What other resources and configs give out.
    pub claims: OwnClaims,
    /// Where everything is posted.
    pub board: Board,
    /// Shortest time between two looks.
    pub between_looks: Duration,
}

impl Devices {
    /// Takes the first look.
    pub fn new(resource: &Resource, shared: Shared) -> Self {
        let Shared {
            host_dev,
            sysfs,
            events,
            uevents,
            held,
            look_again,
            claims,
            board,
            between_looks,
        } = shared;
        let (rule, error) = match Rule::new(resource) {
            Ok(rule) => (Some(Arc::new(rule)), String::new()),
            Err(error) => (None, chained(&error)),
        };
        if !error.is_empty() {
            tracing::error!(resource = resource.name, error, "no device can be found");
        }
        board.post(&resource.name, |seen| {
            let changed = seen.discovery_error != error;
            seen.discovery_error = error;
            changed
        });
        let behind = Arc::new(Behind::new(uevents.tells()));
        let plugged = uevents.subscribe(interest(rule.clone(), behind.clone()));
        let period = u64::try_from(resource.health_check().period_seconds)
            .unwrap_or(1)
            .max(1);
        let devices = Self {
            resource: resource.name.clone(),
            rule,
            period: Duration::from_secs(period),
            between_looks,
            host: HostDevices::new(host_dev, sysfs, behind),
            events,
            plugged,
            held,
            look_again,
            claims,
            inventory: watch::Sender::new(Arc::new(Inventory::of(Sharing::new(resource)))),
            board,
        };
        devices.look();
        devices
    }

    /// The inventory, now and later.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Inventory>> {
        self.inventory.subscribe()
    }

    /// Looks again whenever something changed, and from time to time.
    pub async fn keep(mut self, stop: Stop) {
        loop {
            let looked = Instant::now();
            tokio::select! {
                () = stop.requested() => return,
                () = self.events.changed() => {}
                () = self.plugged.notified() => {}
                () = self.look_again.notified() => {}
                Ok(()) = self.held.changed() => {}
                () = tokio::time::sleep(self.period) => {}
            }
            tokio::time::sleep_until(looked + self.between_looks).await;
            self.held.mark_unchanged();
            self.look();
        }
    }

    fn look(&self) {
        let seen = self.rule.as_ref().map_or_else(Discovered::default, |rule| {
            let entering = |directory: &Path| self.events.watch(directory);
            let (look, directories) = self.host.look(rule, entering);
            self.events.keep_only(&directories);
            discovered(rule, &look)
        });
        let none = BTreeSet::new();
        let held = self.held.borrow().clone();
        let held = held
            .as_ref()
            .map(|held| held.get(&self.resource).unwrap_or(&none));
        let now = Timestamp::now();
        let seen = self.claims.settled(seen, held, now);
        let next = self.inventory.borrow().next(seen, held, now);
        if **self.inventory.borrow() == next {
            return;
        }
        self.tell(&next);
        let next = Arc::new(next);
        self.board.post(&self.resource, |seen| {
            seen.inventory = next.clone();
            true
        });
        self.inventory.send_replace(next);
    }

    fn tell(&self, next: &Inventory) {
        let resource = &self.resource;
        let before = self.inventory.borrow();
        for refusal in next
            .refusals
            .iter()
            .filter(|one| !before.refusals.contains(one))
        {
            tracing::warn!(
                resource,
                path = refusal.path,
                "refused: it {}",
                refusal.reason
            );
        }
        for remark in next
            .remarks
            .iter()
            .filter(|one| !before.remarks.contains(one))
        {
            tracing::info!(resource, path = remark.path, "it {}", remark.reason);
        }
        for (path, error) in next.unknown.directories.iter().chain(&next.unknown.paths) {
            tracing::debug!(resource, path, error, "failed to look");
        }
        let (devices, healthy) = (next.total(), next.healthy());
        let allocated = next.allocated();
        tracing::info!(resource, devices, healthy, allocated, "devices changed");
    }
}

/// Whether a change of a device can change what a rule finds, or what is known of its devices.
fn interest(rule: Option<Arc<Rule>>, behind: Arc<Behind>) -> impl Fn(Option<&Uevent>) -> bool {
    move |event| {
        let forgot = behind.forget(event);
        let touched = |rule: &Arc<Rule>| event.is_some_and(|event| rule.is_touched_by(event));
        forgot || rule.as_ref().is_some_and(touched)
    }
}
