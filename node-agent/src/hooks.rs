//! Looks after the devices of one resource: probes them, and runs hooks when they are due. What is
//! due is decided by `care` of the core.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crds::node::{HookResult, LastHook};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use node_agent_core::advertised::Sharing;
use node_agent_core::care::Care;
use node_agent_core::discovery::Discovered;
use node_agent_core::health::Ended;
use node_agent_core::holding::Reading;
use node_agent_core::inventory::{Device, Inventory};
use node_agent_core::work::Work;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::actions::Actions;
use crate::board::Board;
use crate::checkpoint;
use crate::comparer::SentLists;
use crate::given::Given;
use crate::hook_record::HookRecord;
use crate::metrics::Metrics;
use crate::roles::{Duty, Holding, Roles};

/// How long the answer to the kubelet waits for the disk to remember a reset. Without it a restart
/// may report a container that was prepared; a disk that hangs must not keep containers from starting.
const REMEMBER_MAX: Duration = Duration::from_secs(1);

/// One device that the kubelet wants reset, and who waits for it.
pub struct ResetRequest {
    /// The device.
    pub device: String,
    /// Told how it ended.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// What it takes to look after devices.
pub struct Means {
    /// Which of them are probed, and what else is done, and when.
    pub care: Care,
    /// Whether any hook is configured.
    pub has_hooks: bool,
    /// Whether devices are probed. Without that and hooks nothing is kept of thousands of devices.
    pub has_probes: bool,
    /// How often each device is advertised.
    pub sharing: Sharing,
    /// How it is done.
    pub actions: Actions,
    /// What was given to containers a moment ago.
    pub given: Given,
    /// What the host remembers.
    pub record: HookRecord,
    /// Whether this agent serves.
    pub roles: Roles,
    /// Resets that the kubelet wants.
    pub requests: mpsc::Receiver<ResetRequest>,
    /// How often it was read who holds what.
    pub readings: watch::Receiver<u64>,
    /// Told when it should be read again soon.
    pub read_soon: Arc<Notify>,
    /// What the kubelet was sent, and since when it reads.
    pub sent: watch::Receiver<SentLists>,
    /// Where the kubelet notes who holds what.
    pub plugin_dir: PathBuf,
    /// Where it is told what hooks did.
    pub board: Board,
    /// Where hooks and probes are counted.
    pub metrics: Metrics,
}

/// What looks after the devices of one resource.
pub struct Tending {
    means: Means,
    start: Instant,
    duty: watch::Receiver<Duty>,
    /// While this agent serves.
    holding: Option<Arc<Holding>>,
    probes: FuturesUnordered<BoxFuture<'static, Done>>,
    hooks: FuturesUnordered<BoxFuture<'static, Done>>,
    waiting: BTreeMap<String, Vec<oneshot::Sender<Result<(), String>>>>,
    records: u64,
    /// The last record could not be written.
    is_unwritten: Arc<AtomicBool>,
    noted: BTreeSet<String>,
    noted_at: Option<u64>,
    /// Why probes cannot be run; told once.
    not_run: Option<String>,
}

/// Something that was done.
pub struct Done {
    id: String,
    work: Work,
    ended: Ended,
    took: Duration,
}

/// What happened.
pub enum Happened {
    /// Something that was done to a device has ended.
    Ended(Done),
    /// The kubelet wants a device reset.
    Asked(ResetRequest),
    /// The role may have changed.
    Duty,
    /// It was read once more who holds what.
    Read,
    /// Something may be tried again.
    Time,
}

impl Tending {
    /// Nothing is known of any device yet.
    pub fn new(means: Means) -> Self {
        let duty = means.roles.duty();
        let mut tending = Self {
            means,
            start: Instant::now(),
            duty,
            holding: None,
            probes: FuturesUnordered::new(),
            hooks: FuturesUnordered::new(),
            waiting: BTreeMap::new(),
            records: 0,
            is_unwritten: Arc::default(),
            noted: BTreeSet::new(),
            noted_at: None,
            not_run: None,
        };
        tending.follow_role();
        tending
    }

    /// Waits for something that changes what is to be done.
    pub async fn happened(&mut self) -> Happened {
        let now = self.start.elapsed();
        let wake_at = self.means.care.wake_at(now).map(|at| self.start + at);
        let time = async {
            match wake_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let has_hooks = self.means.has_hooks;
        tokio::select! {
            Some(done) = self.hooks.next() => Happened::Ended(done),
            Some(done) = self.probes.next() => Happened::Ended(done),
            Some(request) = self.means.requests.recv() => Happened::Asked(request),
            Ok(()) = self.duty.changed(), if has_hooks => Happened::Duty,
            Ok(()) = self.means.readings.changed(), if has_hooks => Happened::Read,
            () = time => Happened::Time,
        }
    }

    /// Takes note of it; tells whether the list of devices may be another now.
    pub fn note(&mut self, happened: Happened) -> bool {
        match happened {
            Happened::Ended(done) => self.ended(done),
            Happened::Asked(request) => self.asked(request),
            Happened::Duty => self.follow_role(),
            Happened::Read => true,
            Happened::Time => false,
        }
    }

    /// What a look found, those that may not be given out marked. `held` are the devices that
    /// containers hold, `known` those of the look before: what could not be looked at is still there.
    pub fn judged(
        &mut self,
        seen: Discovered,
        held: Option<&BTreeSet<String>>,
        known: &Inventory,
    ) -> Discovered {
        self.take_in_what_was_given();
        let Means {
            care,
            has_hooks,
            has_probes,
            sharing,
            actions,
            given,
            readings,
            read_soon,
            sent,
            plugin_dir,
            board,
            ..
        } = &mut self.means;
        let given_now = given.recent();
        if !*has_hooks && !*has_probes {
            return seen;
        }
        let number = *readings.borrow_and_update();
        if *has_hooks && self.noted_at != Some(number) {
            let ids = checkpoint::noted(plugin_dir, &actions.resource);
            self.noted = sharing.by_device(&ids).into_keys().collect();
            self.noted_at = Some(number);
        }
        let lists = sent.borrow();
        let opened = lists.get(&actions.resource).map(|sent| sent.opened);
        let opened = opened.map(|at| at.saturating_duration_since(self.start));
        drop(lists);
        let now = self.start.elapsed();
        let reading = Reading {
            held,
            given: &given_now,
            noted: &self.noted,
            opened,
            now,
            number,
        };
        let usable = seen
            .devices
            .iter()
            .filter(|(_, found)| found.unhealthy.is_none());
        let hidden = known
            .devices
            .iter()
            .filter(|(_, device)| seen.unknown.hides(device));
        let present = usable.map(|(id, _)| id).chain(hidden.map(|(id, _)| id));
        care.saw(present, reading);
        if care.wants_reading() {
            read_soon.notify_one();
        }
        let never_reset = care.never_reset(opened, now);
        board.post(&actions.resource, |seen| {
            let changed = seen.never_reset != never_reset;
            seen.never_reset = never_reset;
            changed
        });
        care.judged(seen)
    }

    /// All devices are to be probed.
    pub fn probe_all(&mut self) {
        self.means.care.probe_all();
    }

    /// Starts what is due, with what is known of the devices.
    pub fn start_due(&mut self, inventory: &Inventory) {
        self.take_in_what_was_given();
        let serves = self.duty.borrow().may_take;
        self.means.care.set_serves(serves);
        for (id, work) in self.means.care.next(self.start.elapsed()) {
            let device = inventory.devices.get(&id).cloned();
            let doing = self.doing(id, work, device);
            match work {
                Work::Probe => self.probes.push(doing),
                Work::Init | Work::Reset | Work::Release => self.hooks.push(doing),
            }
        }
        if let Some(remembering) = self.remember() {
            tokio::spawn(remembering);
        }
    }

    /// Allocate answers beside us: what it gave must be known before anything is done to a device.
    fn take_in_what_was_given(&mut self) {
        for (id, at) in self.means.given.newly_allocated() {
            let at = at.saturating_duration_since(self.start);
            self.means.care.gave(&id, at);
        }
    }

    fn doing(&self, id: String, work: Work, device: Option<Device>) -> BoxFuture<'static, Done> {
        let actions = self.means.actions.clone();
        if work != Work::Probe {
            let resource = &actions.resource;
            tracing::info!(
                resource,
                device = id,
                hook = work.as_str(),
                "running a hook"
            );
        }
        async move {
            let begun = Instant::now();
            let ended = match device {
                Some(device) => actions.run(work, id.clone(), device).await,
                None => Ended::Failed("it is not listed any more".to_owned()),
            };
            Done {
                id,
                work,
                ended,
                took: begun.elapsed(),
            }
        }
        .boxed()
    }

    fn ended(&mut self, done: Done) -> bool {
        let Done {
            id,
            work,
            ended,
            took,
        } = done;
        let before = self.means.care.objection(&id);
        let now = self.start.elapsed();
        self.means.care.done(&id, work, &ended, now);
        let changed = before != self.means.care.objection(&id);
        let resource = &self.means.actions.resource;
        self.means.metrics.work(resource, work, &ended);
        if work == Work::Probe {
            self.tell_probe(&ended);
        } else {
            self.tell_hook(&id, work, &ended, took);
        }
        if work == Work::Reset {
            self.answer(&id, &ended);
        }
        changed
    }

    fn tell_probe(&mut self, ended: &Ended) {
        let not_run = match ended {
            Ended::NotRun(error) => Some(error.clone()),
            Ended::Passed | Ended::Failed(_) => None,
        };
        if self.not_run.is_none() && not_run.is_some() {
            let resource = &self.means.actions.resource;
            tracing::warn!(
                resource,
                error = not_run,
                "failed to run a probe: health stays"
            );
        }
        self.not_run = not_run;
    }

    fn tell_hook(&self, id: &str, work: Work, ended: &Ended, took: Duration) {
        let resource = &self.means.actions.resource;
        let (result, message) = match ended {
            Ended::Passed => (HookResult::Succeeded, String::new()),
            Ended::Failed(error) | Ended::NotRun(error) => (HookResult::Failed, error.clone()),
        };
        let hook = work.as_str();
        match result {
            HookResult::Succeeded => tracing::info!(resource, device = id, hook, ?took, "done"),
            HookResult::Failed => {
                tracing::warn!(
                    resource,
                    device = id,
                    hook,
                    ?took,
                    error = message,
                    "a hook failed"
                );
            }
        }
        self.means.board.last_hook(LastHook {
            name: hook.to_owned(),
            resource: resource.clone(),
            device: id.to_owned(),
            result,
            duration_millis: i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
            message,
        });
    }

    fn asked(&mut self, request: ResetRequest) -> bool {
        let ResetRequest { device, answer } = request;
        self.take_in_what_was_given();
        match self.means.care.ask(&device) {
            Ok(()) => self.waiting.entry(device).or_default().push(answer),
            // Whoever does not wait any more needs no answer.
            Err(error) => drop(answer.send(Err(error))),
        }
        false
    }

    /// Answers who waits for a reset, once the host remembers it.
    fn answer(&mut self, id: &str, ended: &Ended) {
        let Some(waiting) = self.waiting.remove(id) else {
            return;
        };
        let result = match ended {
            Ended::Passed => Ok(()),
            Ended::Failed(error) | Ended::NotRun(error) => Err(error.clone()),
        };
        let remembering = self.remember();
        tokio::spawn(async move {
            if let Some(remembering) = remembering
                && tokio::time::timeout(REMEMBER_MAX, remembering)
                    .await
                    .is_err()
            {
                tracing::warn!("the disk did not answer in time: a reset may be forgotten");
            }
            for one in waiting {
                let _gone = one.send(result.clone());
            }
        });
    }

    /// Begins and ends with the role.
    fn follow_role(&mut self) -> bool {
        let duty = self.duty.borrow_and_update().clone();
        if !self.means.has_hooks {
            return false;
        }
        if self.holding.is_none() && duty.may_take {
            self.holding = self.means.roles.hold().map(Arc::new);
            if self.holding.is_some() {
                self.means.care.begin(self.means.record.read());
                return true;
            }
        } else if self.holding.is_some() && !duty.may_keep {
            // Whoever drops an action stops it.
            self.hooks.clear();
            self.waiting.clear();
            self.means.care.leave();
            self.holding = None;
        }
        false
    }

    /// Writes what the host is to remember, if that has changed. The role is kept until it is written:
    /// the next holder's record must come after it.
    fn remember(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let holding = self.holding.clone()?;
        let changed = self.means.care.changed_record();
        let is_unwritten = self.is_unwritten.swap(false, Ordering::Relaxed);
        let again = || is_unwritten.then(|| self.means.care.record().clone());
        let record = changed.or_else(again)?;
        let unwritten = self.is_unwritten.clone();
        self.records += 1;
        let number = self.records;
        let file = self.means.record.clone();
        let resource = self.means.actions.resource.clone();
        let writing = tokio::task::spawn_blocking(move || {
            if let Err(error) = file.write(number, &resource, record) {
                tracing::warn!(resource, %error, "failed to remember what hooks did");
                unwritten.store(true, Ordering::Relaxed);
            }
            drop(holding);
        });
        Some(writing.map(|_written| ()))
    }
}
