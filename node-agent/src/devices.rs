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
use crate::hooks::Tending;
use crate::host_dev::HostDev;
use crate::host_devices::{Behind, HostDevices};
use crate::sysfs::Sysfs;
use crate::tick;
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
    tending: Tending,
    sharing: Sharing,
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
    /// Probes devices, and runs hooks.
    pub tending: Tending,
    /// Where everything is posted.
    pub board: Board,
    /// Shortest time between two looks.
    pub between_looks: Duration,
    /// How long a second of the config is.
    pub second: Duration,
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
            tending,
            board,
            between_looks,
            second,
        } = shared;
        let (rule, error) = match Rule::new(resource) {
            Ok(rule) => (Some(Arc::new(rule)), String::new()),
            Err(error) => (None, chained(&error)),
        };
        if !error.is_empty() {
            tracing::error!(resource = resource.name, error, "no device can be found");
        }
        board.post(&resource.name, |seen| {
            let min_devices = usize::try_from(resource.min_devices).unwrap_or_default();
            let changed = seen.discovery_error != error || seen.min_devices != min_devices;
            seen.discovery_error = error;
            seen.min_devices = min_devices;
            changed
        });
        let behind = Arc::new(Behind::new(uevents.tells()));
        let plugged = uevents.subscribe(interest(rule.clone(), behind.clone()));
        let period = u32::try_from(resource.health_check().period_seconds)
            .unwrap_or(1)
            .max(1);
        let sharing = Sharing::new(resource);
        let mut devices = Self {
            resource: resource.name.clone(),
            rule,
            period: second * period,
            between_looks,
            host: HostDevices::new(host_dev, sysfs, behind),
            events,
            plugged,
            held,
            look_again,
            claims,
            tending,
            sharing,
            inventory: watch::Sender::new(Arc::new(Inventory::of(sharing))),
            board,
        };
        devices.look();
        devices
    }

    /// The inventory, now and later.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Inventory>> {
        self.inventory.subscribe()
    }

    /// Looks again whenever something changed, and from time to time. Whatever changes the list does
    /// so by a look: however often devices and probes change their mind, there is one in a while.
    pub async fn keep(mut self, stop: Stop) {
        let mut looked = Instant::now();
        let mut next_round = tick::next(self.period);
        let mut wanted = false;
        loop {
            self.tending.start_due(&self.inventory.borrow().clone());
            tokio::select! {
                () = stop.requested() => return,
                happened = self.tending.happened() => wanted |= self.tending.note(happened),
                () = self.events.changed(), if !wanted => wanted = true,
                () = self.plugged.notified(), if !wanted => wanted = true,
                () = self.look_again.notified(), if !wanted => wanted = true,
                Ok(()) = self.held.changed(), if !wanted => wanted = true,
                () = tokio::time::sleep_until(next_round) => {
                    self.tending.probe_all();
                    next_round = tick::next(self.period);
                    wanted = true;
                }
                () = tokio::time::sleep_until(looked + self.between_looks), if wanted => {
                    looked = Instant::now();
                    wanted = false;
                    self.look();
                }
            }
        }
    }

    fn look(&mut self) {
        let seen = self.rule.as_ref().map_or_else(Discovered::default, |rule| {
            let entering = |directory: &Path| self.events.watch(directory);
            let (look, directories) = self.host.look(rule, entering);
            self.events.keep_only(&directories);
            discovered(rule, &look)
        });
        let none = BTreeSet::new();
        let held = self.held.borrow_and_update().clone();
        let held = held
            .as_ref()
            .map(|held| held.get(&self.resource).unwrap_or(&none));
        let now = Timestamp::now();
        let in_use: Option<BTreeSet<String>> =
            held.map(|ids| self.sharing.by_device(ids).into_keys().collect());
        let seen = self.claims.settled(seen, in_use.as_ref(), now);
        let seen = self
            .tending
            .judged(seen, in_use.as_ref(), &self.inventory.borrow());
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
