//! What is done to the devices of one resource: which of them is probed, initialised, reset or
//! released next, and which may not be given to a container because of it.
//!
//! One thing at a time is done to a device, and none but the reset that the kubelet asks for while a
//! container may hold it. Hooks are run by the agent that serves; one that stands by only probes.

mod device;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::discovery::Discovered;
use crate::health::{Ended, Judgement};
use crate::holding::Reading;
use crate::hooks::{Record, Trials};
use crate::work::{Rules, Work};

use self::device::{Device, Run, Running};

/// Resets that the kubelet waits for, at once. A container with more devices than this is prepared
/// in turns, all within the kubelet's 30 s. With the other hooks they fill the runner's places: who
/// waits there loses time, and who waits here does not.
const ASKED_AT_ONCE: usize = 12;

/// Other hooks at once. One would let a hook that hangs hold back every device behind it; many would
/// load a node at its start.
const HOOKS_AT_ONCE: usize = 4;

/// Why a device may not be given to a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Objection {
    /// In words.
    pub reason: String,
    /// Whether it waits only for what the agent that serves will do: who stands by counts it.
    pub awaits: bool,
}

/// What the agent is for the hooks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    /// It has not served yet, and does not know what was done to which device.
    Waiting,
    /// It serves.
    Acting,
    /// It served: what it knew stays, so that its last list does not change under its successor.
    Left,
}

/// The devices of one resource, and what is done to them.
#[derive(Clone, Debug)]
pub struct Care {
    rules: Rules,
    part: Part,
    serves: bool,
    record: Record,
    record_changed: bool,
    reading: u64,
    devices: BTreeMap<String, Device>,
    /// Devices that a hook is to be run for, now or later.
    wishing: BTreeSet<String>,
    /// Devices that are to be probed, those that passed last time, and the others.
    sound: VecDeque<String>,
    doubtful: VecDeque<String>,
    running: Running,
}

impl Care {
    /// Nothing is known of any device yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            part: Part::Waiting,
            serves: false,
            record: Record::default(),
            record_changed: false,
            reading: 0,
            devices: BTreeMap::new(),
            wishing: BTreeSet::new(),
            sound: VecDeque::new(),
            doubtful: VecDeque::new(),
            running: Running::default(),
        }
    }

    /// Whether the kubelet asks this agent for devices: else another one gives them out, and they may
    /// be in use at any moment.
    pub fn set_serves(&mut self, serves: bool) {
        self.serves = serves;
    }

    /// What the host is to remember.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The agent serves from now on; what the host remembers.
    pub fn begin(&mut self, record: Record) {
        self.part = Part::Acting;
        self.record = record;
        self.record_changed = false;
        self.settle_all();
    }

    /// The agent no longer serves. Hooks that run are given up by whoever runs them.
    pub fn leave(&mut self) {
        if self.part != Part::Acting {
            return;
        }
        self.part = Part::Left;
        for device in self.devices.values_mut() {
            device.asked = false;
            if device.running.is_some_and(|run| run.work != Work::Probe) {
                device.running = None;
            }
        }
        self.running.asked = 0;
        self.running.hooks = 0;
        self.settle_all();
    }

    /// Another look at the devices and at who holds them.
    pub fn saw<'a>(&mut self, present: impl Iterator<Item = &'a String>, reading: Reading<'_>) {
        self.reading = reading.number;
        let present: BTreeSet<&String> = present.collect();
        for id in &present {
            if !self.devices.contains_key(*id) {
                self.devices.insert((*id).clone(), Device::default());
            }
        }
        let Self {
            devices,
            record,
            record_changed,
            rules,
            part,
            ..
        } = self;
        let remembers = *part == Part::Acting && rules.has_hooks();
        let mut new = Vec::new();
        for (id, device) in devices.iter_mut() {
            let is_present = present.contains(id);
            if is_present && !device.present {
                // A device that comes back is judged anew.
                device.judgement = Judgement::default();
                new.push(id.clone());
            }
            device.present = is_present;
            device.read(id, reading);
            if !remembers {
                continue;
            }
            match device.in_use {
                Some(true) => *record_changed |= record.used.insert(id.clone()),
                Some(false) if device.is_surely_free(reading.number) => {
                    device.was_asked = false;
                    device.given_at = None;
                    *record_changed |= record.reset.remove(id);
                    if !rules.release {
                        *record_changed |= record.used.remove(id);
                    }
                }
                Some(false) | None => {}
            }
        }
        devices.retain(|_, device| device.is_kept(reading.now, rules.pace));
        for id in new {
            self.queue(&id);
        }
        self.settle_all();
    }

    /// Allocate gave a device to a container: whatever was done for an earlier one is over.
    pub fn gave(&mut self, id: &str, now: Duration) {
        if let Some(device) = self.devices.get_mut(id) {
            device.given_at = Some(now);
            device.was_asked = false;
            device.in_use = Some(true);
            device.free_since = None;
        }
        self.record_changed |= self.record.reset.remove(id);
    }

    /// Every device is to be probed, if it was not since the last time.
    pub fn probe_all(&mut self) {
        let ids: Vec<String> = self.devices.keys().cloned().collect();
        for id in ids {
            self.queue(&id);
        }
    }

    /// The kubelet wants a device reset. While it is being reset already, that is what it gets.
    ///
    /// # Errors
    /// When this agent does not serve, or there is no such device.
    pub fn ask(&mut self, id: &str) -> Result<(), String> {
        if self.part != Part::Acting {
            return Err("this agent does not serve".to_owned());
        }
        match self.devices.get_mut(id).filter(|device| device.present) {
            Some(device) => {
                device.was_asked = true;
                match &mut device.running {
                    // What is under way began before its container: it will do.
                    Some(run) if run.work == Work::Reset => {}
                    _ => device.asked = true,
                }
            }
            None => return Err("it is gone, or was never there".to_owned()),
        }
        self.settle(id);
        Ok(())
    }

    /// Starts what may be started now: at most so many things at once, each device one.
    pub fn next(&mut self, now: Duration) -> Vec<(String, Work)> {
        let mut started = Vec::new();
        let wishing: Vec<String> = self.wishing.iter().cloned().collect();
        for id in wishing {
            let Some((work, not_before)) = self.wish(&id) else {
                continue;
            };
            let asked = self.devices.get(&id).is_some_and(|device| device.asked);
            let has_room = if asked {
                self.running.asked < ASKED_AT_ONCE
            } else {
                self.running.hooks < HOOKS_AT_ONCE
            };
            if has_room && not_before <= now {
                self.start(&id, work, asked, false);
                started.push((id, work));
            }
        }
        let at_once = self.rules.probes.map_or(0, |probes| probes.at_once);
        while self.running.probes < at_once {
            // Those that failed are slow, mostly: they never take more than half of the places.
            let is_doubtful = self.running.doubtful < at_once / 2 && !self.doubtful.is_empty();
            let queue = if is_doubtful {
                &mut self.doubtful
            } else {
                &mut self.sound
            };
            let Some(id) = queue.pop_front() else {
                break;
            };
            if let Some(device) = self.devices.get_mut(&id) {
                device.queued = false;
            }
            if self.may_probe(&id) {
                self.start(&id, Work::Probe, false, is_doubtful);
                started.push((id, Work::Probe));
            }
        }
        started
    }

    /// When to call `next` again, if nothing else happens before.
    pub fn wake_at(&self, now: Duration) -> Option<Duration> {
        if self.running.hooks >= HOOKS_AT_ONCE {
            return None;
        }
        let wishes = self.wishing.iter().filter_map(|id| self.wish(id));
        wishes.map(|(_, at)| at).filter(|at| *at > now).min()
    }

    /// Something that was started has ended.
    pub fn done(&mut self, id: &str, work: Work, ended: &Ended, now: Duration) {
        let Self {
            devices,
            record,
            rules,
            running,
            ..
        } = self;
        let Some(device) = devices.get_mut(id) else {
            return;
        };
        let Some(run) = device.running.take_if(|run| run.work == work) else {
            return;
        };
        running.end(run);
        let trial = |trials: &mut Trials| match ended {
            Ended::Passed => {
                trials.succeeded();
                true
            }
            Ended::Failed(error) | Ended::NotRun(error) => {
                trials.failed(error, now, rules.pace);
                false
            }
        };
        match work {
            Work::Probe => {
                if let Some(probes) = rules.probes {
                    device.judgement = device.judgement.after(ended, probes.thresholds);
                }
            }
            Work::Init => {
                if trial(&mut device.init)
                    && let Some(hash) = &rules.init
                {
                    record.initialised(id, &rules.boot_id, hash);
                    self.record_changed = true;
                }
            }
            Work::Reset => {
                if trial(&mut device.reset) && device.was_asked {
                    self.record_changed |= record.reset.insert(id.to_owned());
                }
            }
            Work::Release => {
                // A container that got it meanwhile uses it again.
                if trial(&mut device.release) && device.in_use != Some(true) {
                    self.record_changed |= record.used.remove(id);
                }
            }
        }
        if !device.is_kept(now, rules.pace) {
            devices.remove(id);
        }
        self.settle(id);
    }

    /// Why a device may not be given to a container.
    pub fn objection(&self, id: &str) -> Option<Objection> {
        let device = self.devices.get(id)?;
        let object = |reason: String| Objection {
            reason,
            awaits: false,
        };
        if self.rules.has_gate() && self.part == Part::Waiting {
            return Some(Objection {
                reason: "the agent that knows whether it is ready does not serve yet".to_owned(),
                awaits: true,
            });
        }
        if self.rules.release && self.record.used.contains(id) && device.in_use != Some(true) {
            let reason = match device.release.error() {
                Some(error) => format!("release failed: {error}"),
                None if device.in_use.is_none() => {
                    "it is not known whether a container still holds it".to_owned()
                }
                None => "it is being released".to_owned(),
            };
            return Some(object(reason));
        }
        if let Some(error) = device.reset.error() {
            return Some(object(format!("reset failed: {error}")));
        }
        if device.in_use != Some(true) && self.awaits_init(id) {
            return Some(match device.init.error() {
                Some(error) => object(format!("init failed: {error}")),
                None => Objection {
                    reason: "it is being initialised".to_owned(),
                    awaits: true,
                },
            });
        }
        let unhealthy = device.judgement.unhealthy();
        unhealthy.map(|reason| object(reason.to_owned()))
    }

    /// What a look found, those that may not be given to a container marked as Unhealthy.
    pub fn judged(&self, mut seen: Discovered) -> Discovered {
        for (id, found) in &mut seen.devices {
            if found.unhealthy.is_none()
                && let Some(objection) = self.objection(id)
            {
                if objection.awaits {
                    seen.awaiting.insert(id.clone());
                }
                found.unhealthy = Some(objection.reason);
            }
        }
        seen
    }

    /// Whether the kubelet must be asked once more before something can be done.
    pub fn wants_reading(&self) -> bool {
        let is_unsure = |(id, device): (&String, &Device)| {
            device.present
                && device.in_use == Some(false)
                && !device.is_surely_free(self.reading)
                && (device.reset.error().is_some()
                    || self.record.used.contains(id)
                        && (self.rules.release || self.awaits_init(id)))
        };
        self.part == Part::Acting && self.rules.has_hooks() && self.devices.iter().any(is_unsure)
    }

    /// Devices that were held before the kubelet last registered this resource, at `opened`, and whose
    /// container has not asked for its reset within the grace: a kubelet that restarts does not ask
    /// before the resource is registered again.
    pub fn never_reset(&self, opened: Option<Duration>, now: Duration) -> BTreeSet<String> {
        let Some(opened) = opened.filter(|opened| now >= *opened + self.rules.reset_grace) else {
            return BTreeSet::new();
        };
        if !self.rules.reset || self.part != Part::Acting {
            return BTreeSet::new();
        }
        let is_suspect = |(id, device): &(&String, &Device)| {
            device.in_use == Some(true)
                && !device.was_asked
                && device.given_at.is_none_or(|at| at < opened)
                && !self.record.reset.contains(*id)
        };
        let suspects = self.devices.iter().filter(is_suspect);
        suspects.map(|(id, _)| id.clone()).collect()
    }

    /// What the host is to remember, if that has changed since the last call.
    pub fn changed_record(&mut self) -> Option<Record> {
        std::mem::take(&mut self.record_changed).then(|| self.record.clone())
    }

    fn awaits_init(&self, id: &str) -> bool {
        let hash = self.rules.init.as_ref();
        hash.is_some_and(|hash| !self.record.is_initialised(id, &self.rules.boot_id, hash))
    }

    /// The hook that a device needs next, and when.
    fn wish(&self, id: &str) -> Option<(Work, Duration)> {
        let device = self.devices.get(id)?;
        if self.part != Part::Acting || device.running.is_some() {
            return None;
        }
        if device.asked {
            return Some((Work::Reset, Duration::ZERO));
        }
        if !device.present || device.in_use != Some(false) {
            return None;
        }
        let was_used = self.record.used.contains(id);
        if (was_used || device.reset.error().is_some()) && !device.is_surely_free(self.reading) {
            return None;
        }
        if self.rules.release && was_used {
            return Some((Work::Release, device.release.not_before()));
        }
        if device.reset.error().is_some() {
            return Some((Work::Reset, device.reset.not_before()));
        }
        let init = || (Work::Init, device.init.not_before());
        self.awaits_init(id).then(init)
    }

    fn may_probe(&self, id: &str) -> bool {
        let Some(device) = self.devices.get(id).filter(|device| device.present) else {
            return false;
        };
        let is_idle = device.running.is_none() && !device.asked && self.wish(id).is_none();
        let is_raw = self.part == Part::Acting && device.in_use.is_none() && self.awaits_init(id);
        let disturbs = self.rules.probes.is_none_or(|probes| probes.only_free);
        is_idle && !is_raw && (!disturbs || self.serves && device.in_use == Some(false))
    }

    fn queue(&mut self, id: &str) {
        if !self.may_probe(id) {
            return;
        }
        let Some(device) = self.devices.get_mut(id).filter(|device| !device.queued) else {
            return;
        };
        device.queued = true;
        let queue = if device.judgement.is_doubtful() {
            &mut self.doubtful
        } else {
            &mut self.sound
        };
        queue.push_back(id.to_owned());
    }

    fn start(&mut self, id: &str, work: Work, asked: bool, doubtful: bool) {
        let run = Run {
            work,
            asked,
            doubtful,
        };
        self.running.begin(run);
        if let Some(device) = self.devices.get_mut(id) {
            device.running = Some(run);
            device.asked &= work != Work::Reset;
        }
        self.settle(id);
    }

    fn settle(&mut self, id: &str) {
        if self.wish(id).is_some() {
            self.wishing.insert(id.to_owned());
        } else {
            self.wishing.remove(id);
        }
    }

    fn settle_all(&mut self) {
        let wishing = self.devices.keys().filter(|id| self.wish(id).is_some());
        self.wishing = wishing.cloned().collect();
    }
}
