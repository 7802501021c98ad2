//! One device under care, and how many things are done at once.

use std::time::Duration;

use crate::health::Judgement;
use crate::holding::Reading;
use crate::hooks::Trials;
use crate::pace::Pace;
use crate::work::Work;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Running {
    pub(super) asked: usize,
    pub(super) hooks: usize,
    pub(super) probes: usize,
    pub(super) doubtful: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Device {
    pub(super) present: bool,
    pub(super) in_use: Option<bool>,
    /// When it was last seen in use.
    pub(super) used_at: Option<Duration>,
    pub(super) noted: bool,
    /// When Allocate gave it to a container, until it is free again.
    pub(super) given_at: Option<Duration>,
    /// The reading that showed it free, and all later ones have.
    pub(super) free_since: Option<u64>,
    pub(super) judgement: Judgement,
    pub(super) queued: bool,
    /// The kubelet waits for its reset.
    pub(super) asked: bool,
    /// It has asked since the device was given to a container.
    pub(super) was_asked: bool,
    pub(super) running: Option<Run>,
    pub(super) init: Trials,
    pub(super) reset: Trials,
    pub(super) release: Trials,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Run {
    pub(super) work: Work,
    pub(super) asked: bool,
    pub(super) doubtful: bool,
}

impl Running {
    pub(super) fn begin(&mut self, run: Run) {
        for count in self.of(run) {
            *count += 1;
        }
    }

    pub(super) fn end(&mut self, run: Run) {
        for count in self.of(run) {
            *count = count.saturating_sub(1);
        }
    }

    fn of(&mut self, run: Run) -> Vec<&mut usize> {
        match (run.work, run.asked) {
            (Work::Probe, _) if run.doubtful => vec![&mut self.probes, &mut self.doubtful],
            (Work::Probe, _) => vec![&mut self.probes],
            (_, true) => vec![&mut self.asked],
            (_, false) => vec![&mut self.hooks],
        }
    }
}

impl Device {
    pub(super) fn read(&mut self, id: &str, reading: Reading<'_>) {
        self.in_use = if reading.given.contains(id) {
            Some(true)
        } else {
            reading.held.map(|held| held.contains(id))
        };
        // It never tells of containers that run before the pod's others: only its notes have these.
        if reading.held.is_some_and(|held| held.contains(id)) {
            self.used_at = Some(reading.now);
        }
        // This very kubelet has told of it since it started: it knows its pods.
        let is_told = |opened| self.used_at.is_some_and(|at| at > opened);
        self.noted = reading.noted.contains(id) && !reading.opened.is_some_and(is_told);
        self.free_since = match self.in_use {
            Some(false) => Some(self.free_since.unwrap_or(reading.number)),
            Some(true) | None => None,
        };
    }

    /// Whether anything of it still matters. A hook that makes its device vanish and come back must
    /// not be run again and again without a pause.
    pub(super) fn is_kept(&self, now: Duration, pace: Pace) -> bool {
        let trials = [&self.init, &self.reset, &self.release];
        let is_busy = self.present || self.running.is_some() || self.asked;
        is_busy || trials.iter().any(|one| one.is_remembered(now, pace))
    }

    /// Whether two readings in a row have shown it free. One may be that of a kubelet which has just
    /// started.
    pub(super) fn is_surely_free(&self, reading: u64) -> bool {
        !self.noted && self.free_since.is_some_and(|since| since < reading)
    }
}
