//! The operator's processes: observe, read the ledger, plan, audit, write. Every write takes its
//! time, so that others act between two of them, and a process can die before and after each.

mod caches;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crds::DevicePluginConfig;
use operator_core::action::{Action, ConfigStatus, Pace};
use operator_core::audit::audit;
use operator_core::ledger::{LedgerWrite, SeenLedger};
use operator_core::plan::{Plan, plan};
use operator_core::snapshot::Snapshot;

use crate::api::{Refusal, Watch};
use crate::bug::Bug;
use crate::event::{Event, OperatorEvent};
use crate::random::{ms, secs};
use crate::story::tell;
use crate::world::World;

pub use caches::Caches;
pub(crate) use caches::of_kind;

/// The longest time without a pass.
const REST_MAX: Duration = secs(60);
/// How long after an object turned out to have changed the next pass comes.
const LOOK_AGAIN: Duration = ms(500);
/// How old what a watch brings may be before the clocks of claims stop.
pub const FRESH: Duration = secs(15);

/// A write that is still to be done in a pass.
#[derive(Clone, Debug)]
pub enum Step {
    /// The ledger.
    Ledger(LedgerWrite),
    /// An action.
    Act(Box<Action>),
    /// The status of a config.
    Status(Box<ConfigStatus>),
}

/// When a process dies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CrashPoint {
    /// At its write of this number, counted over all processes, from 0.
    pub at: u64,
    /// Whether the write still takes effect.
    pub after: bool,
}

/// An operator's process, or the place where one is started again.
#[derive(Default)]
pub struct Operator {
    /// Whether it runs.
    pub alive: bool,
    /// Which start this is.
    pub life: u32,
    /// It does nothing until then, and does not know it.
    pub paused_until: Duration,
    /// The epoch that it leads in, if it believes that it leads.
    pub epoch: Option<u64>,
    /// What it knows.
    pub caches: Caches,
    /// Whether something is new since the last pass began.
    pub news: bool,
    /// The number of the pass that is to come.
    ticket: u64,
    /// When the last pass began.
    began: Duration,
    /// What the pass that is under way has seen.
    observed: Option<Box<Snapshot>>,
    /// What the pass that is under way still has to write.
    steps: VecDeque<Step>,
    /// Configs of which nothing more is written in this pass.
    held: BTreeSet<String>,
    /// Writes in this pass that changed something; those that are not paced.
    written: (usize, usize),
    /// When the plan wants another look.
    look_again: Option<Duration>,
    /// The version of the ledger that the clocks of claims count from, and since when.
    ledger: Option<(String, Duration)>,
    /// Whether it has written the ledger since its start.
    wrote_ledger: bool,
    /// By config, until when nothing of it is written after a refusal, and for how long that was.
    rests: BTreeMap<String, (Duration, Duration)>,
    /// By config, when the next status may be written.
    statuses: BTreeMap<String, Duration>,
    /// Times in which what it saw was old.
    pub blind: Vec<(Duration, Duration)>,
}

impl Operator {
    fn is_busy(&self) -> bool {
        self.observed.is_some() || !self.steps.is_empty()
    }

    /// How long it has seen the cluster between two times.
    fn seen_between(&self, from: Duration, until: Duration) -> Duration {
        let mut seen = until.saturating_sub(from);
        for (start, end) in &self.blind {
            let overlap = (*end).min(until).saturating_sub((*start).max(from));
            seen = seen.saturating_sub(overlap);
        }
        seen
    }
}

impl World {
    pub(crate) fn operator_after(&mut self, wait: Duration, at: usize, event: OperatorEvent) {
        if let Some(operator) = self.operators.get(at) {
            let life = operator.life;
            self.after(wait, Event::Operator(at, life, event));
        }
    }

    pub(crate) fn operator_event(&mut self, at: usize, life: u32, event: OperatorEvent) {
        let now = self.now;
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        if operator.life != life {
            return;
        }
        if operator.paused_until > now {
            let wait = operator.paused_until.saturating_sub(now);
            return self.operator_after(wait, at, event);
        }
        match event {
            OperatorEvent::Start => self.operator_starts(at),
            OperatorEvent::List(kind) => self.operator_lists(at, kind),
            OperatorEvent::Deliver(kind, upto) => self.operator_hears(at, kind, upto),
            OperatorEvent::Pass(ticket) => self.pass_begins(at, ticket),
            OperatorEvent::Plan => self.pass_plans(at),
            OperatorEvent::Step => self.pass_steps(at),
            OperatorEvent::CheckLease => self.check_lease(at),
        }
    }

    fn operator_starts(&mut self, at: usize) {
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        operator.alive = true;
        tell!(self, format!("op{at}"), "starts");
        for kind in Watch::ALL {
            let wait = self.random.between(ms(10), ms(500));
            self.operator_after(wait, at, OperatorEvent::List(kind));
        }
        self.elect_soon();
    }

    /// The process ends and is another one after its next start.
    pub(crate) fn crash_operator(&mut self, at: usize, restart: Duration) {
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        tell!(self, format!("op{at}"), "dies");
        *operator = Operator {
            life: operator.life + 1,
            ..Operator::default()
        };
        self.operator_after(restart, at, OperatorEvent::Start);
    }

    fn operator_lists(&mut self, at: usize, kind: Watch) {
        if self.api_fails() || self.is_frozen(at, kind) {
            let wait = self.random.between(ms(500), secs(2));
            return self.operator_after(wait, at, OperatorEvent::List(kind));
        }
        let version = self.api.version();
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        let news = of_kind!(kind, operator.caches, self.api, |cache, shelf| cache
            .list(shelf, version));
        if news {
            self.operator_has_news(at);
        }
    }

    fn operator_hears(&mut self, at: usize, kind: Watch, upto: usize) {
        if self.is_frozen(at, kind) || self.api_is_down() {
            let wait = self.random.between(ms(200), secs(1));
            return self.operator_after(wait, at, OperatorEvent::Deliver(kind, upto));
        }
        let lost = self.random.percent(self.script.lost_events);
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        let news = of_kind!(kind, operator.caches, self.api, |cache, shelf| {
            cache.listed && cache.deliver(&shelf.log, upto, lost)
        });
        if lost {
            let wait = self.random.between(secs(1), secs(10));
            self.operator_after(wait, at, OperatorEvent::List(kind));
        }
        if news {
            self.operator_has_news(at);
        }
    }

    pub(crate) fn operator_has_news(&mut self, at: usize) {
        let now = self.now;
        let spacing = self.script.pass_spacing;
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        if std::mem::replace(&mut operator.news, true) || operator.is_busy() {
            return;
        }
        let wait = (operator.began + spacing).saturating_sub(now);
        self.next_pass(at, wait);
    }

    /// Has the next pass begin after a time, unless one is under way then.
    pub(crate) fn next_pass(&mut self, at: usize, wait: Duration) {
        if let Some(operator) = self.operators.get_mut(at) {
            operator.ticket += 1;
            let ticket = operator.ticket;
            self.operator_after(wait, at, OperatorEvent::Pass(ticket));
        }
    }

    fn pass_begins(&mut self, at: usize, ticket: u64) {
        let now = self.now;
        let settings = self.settings.clone();
        let wall = self.wall();
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        let Some(epoch) = operator.epoch else {
            return;
        };
        if operator.ticket != ticket || operator.is_busy() {
            return;
        }
        let caches = &operator.caches;
        let is_complete = caches.configs.listed
            && caches.node_objects.listed
            && caches.nodes.listed
            && caches.daemon_sets.listed
            && caches.revisions.listed
            && caches.config_maps.listed
            && caches.pods.listed;
        if !is_complete {
            return self.next_pass(at, secs(1));
        }
        operator.news = false;
        operator.began = now;
        operator.observed = Some(Box::new(Snapshot {
            configs: caches.configs.objects(),
            node_objects: caches.node_objects.objects(),
            nodes: caches.nodes.objects(),
            daemon_sets: caches.daemon_sets.objects(),
            revisions: caches.revisions.objects(),
            config_maps: caches.config_maps.objects(),
            pods: caches.pods.objects(),
            epoch,
            ..Snapshot::empty(settings, wall)
        }));
        let wait = self.random.between(ms(1), self.script.call_lag);
        self.operator_after(wait, at, OperatorEvent::Plan);
    }

    fn pass_plans(&mut self, at: usize) {
        let now = self.now;
        let fails = self.api_fails();
        let read = self.api.read_ledger();
        let bug = self.bug;
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        let Some(mut seen) = operator.observed.take() else {
            return;
        };
        if fails {
            return self.next_pass(at, secs(1));
        }
        let is_lost = operator.wrote_ledger && read.ledger().is_none();
        if is_lost && self.lease.holder != Some((at, operator.life)) {
            // Nothing in it could say that another one leads by now.
            return self.check_lease(at);
        }
        let version = match &read {
            SeenLedger::Absent => String::new(),
            SeenLedger::Present { on, .. } => on.version.clone(),
        };
        let since = match &operator.ledger {
            Some((known, since)) if *known == version => *since,
            _ => {
                operator.ledger = Some((version, now));
                now
            }
        };
        seen.watched = operator.seen_between(since, now);
        seen.ledger = read;
        let mut plan = plan(&seen);
        self.plans += 1;
        let violations = audit(&seen, &plan);
        if let Some(violation) = violations.first() {
            if let Some(write) = plan.ledger.as_ref().filter(|_| self.story.kept) {
                let before = seen.ledger.ledger().cloned().unwrap_or_default();
                let write = write.ledger.clone();
                self.tell_claims(&format!("op{at}"), &before, &write);
            }
            let text = format!("the audit refuses a plan: {violation}");
            self.break_law(&format!("op{at}"), &text);
            plan.refuse(&seen, &violations);
        }
        if bug == Some(Bug::LabelFirst) {
            crate::bug::move_labels_first(&seen, &mut plan);
        }
        self.check_plan(at, &seen, &plan);
        if plan.deposed {
            tell!(self, format!("op{at}"), "finds a later leader's ledger");
            return self.check_lease(at);
        }
        self.take_plan(at, plan);
    }

    fn take_plan(&mut self, at: usize, plan: Plan) {
        let (now, wall) = (self.now, self.wall());
        let acts_first = self.bug == Some(Bug::ClaimAfterAct);
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        let ledger = plan.ledger.map(Step::Ledger);
        let actions = plan
            .actions
            .into_iter()
            .map(|action| Step::Act(Box::new(action)));
        let mut steps: VecDeque<_> = actions.collect();
        match (ledger, acts_first) {
            (Some(ledger), true) => steps.push_back(ledger),
            (Some(ledger), false) => steps.push_front(ledger),
            (None, _) => {}
        }
        let statuses = plan.configs.into_iter().filter(|status| status.changed);
        steps.extend(statuses.map(|status| Step::Status(Box::new(status))));
        operator.steps = steps;
        operator.held.clear();
        operator.written = (0, 0);
        operator.look_again = plan.look_again.map(|at| {
            let left = at.duration_since(wall);
            now + Duration::try_from(left).unwrap_or_default() + ms(50)
        });
        self.next_step(at);
    }

    /// Goes on with the pass, or ends it.
    fn next_step(&mut self, at: usize) {
        let now = self.now;
        let spacing = self.script.pass_spacing;
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        if !operator.steps.is_empty() {
            let wait = self.random.between(ms(1), self.script.call_lag);
            return self.operator_after(wait, at, OperatorEvent::Step);
        }
        let wait = match operator.written {
            (0, 0) => REST_MAX,
            (_, 0) => spacing,
            _ => Duration::ZERO,
        };
        let look = operator.look_again.map(|look| look.saturating_sub(now));
        let mut wait = look.map_or(wait, |look| wait.min(look));
        if operator.news {
            wait = wait.min((operator.began + spacing).saturating_sub(now));
        }
        self.next_pass(at, wait);
    }

    fn look_again(&mut self, at: usize, wait: Duration) {
        let then = self.now + wait;
        if let Some(operator) = self.operators.get_mut(at) {
            operator.look_again = Some(operator.look_again.map_or(then, |look| look.min(then)));
        }
    }

    fn pass_steps(&mut self, at: usize) {
        let now = self.now;
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        let Some(step) = operator.steps.pop_front() else {
            return;
        };
        let config = match &step {
            Step::Ledger(_) => "",
            Step::Act(action) => &action.config,
            Step::Status(status) => &status.on.name,
        };
        let rests = operator
            .rests
            .get(config)
            .filter(|(until, _)| *until > now)
            .copied();
        if let (Some((until, _)), Step::Act(_)) = (rests, &step) {
            operator.held.insert(config.to_owned());
            self.look_again(at, until.saturating_sub(now));
            return self.next_step(at);
        }
        if operator.held.contains(config) && matches!(step, Step::Act(_)) {
            return self.next_step(at);
        }
        if let Step::Status(status) = &step {
            let next = operator
                .statuses
                .get(&status.on.name)
                .copied()
                .unwrap_or_default();
            if next > now {
                self.look_again(at, next.saturating_sub(now));
                return self.next_step(at);
            }
        }
        let number = self.writes;
        if let Some((_, time)) = self.script.stall.take_if(|(at, _)| *at == number) {
            operator.steps.push_front(step);
            self.pause_operator(at, time);
            return self.operator_after(time, at, OperatorEvent::Step);
        }
        self.writes += 1;
        let crash = self.script.crash.filter(|crash| crash.at == number);
        if crash.is_some_and(|crash| !crash.after) {
            self.script.crash = None;
            let restart = self.random.between(secs(1), secs(20));
            return self.crash_operator(at, restart);
        }
        let fate = self.fate();
        let outcome = match fate {
            Fate::Refused => Err(Refusal::Failed),
            Fate::Done | Fate::Unanswered => self.operator_writes(at, &step),
        };
        if crash.is_some() {
            self.script.crash = None;
            let restart = self.random.between(secs(1), secs(20));
            return self.crash_operator(at, restart);
        }
        let outcome = if fate == Fate::Unanswered {
            Err(Refusal::Failed)
        } else {
            outcome
        };
        self.step_done(at, &step, outcome);
    }

    fn step_done(&mut self, at: usize, step: &Step, outcome: Result<(), Refusal>) {
        let now = self.now;
        let Some(operator) = self.operators.get_mut(at) else {
            return;
        };
        match (step, outcome) {
            (Step::Ledger(_), Ok(())) => operator.written.0 += 1,
            (Step::Ledger(_), Err(_)) => {
                // Nothing is acted on.
                operator.steps.clear();
                operator.ledger = None;
                self.look_again(at, LOOK_AGAIN);
            }
            (Step::Act(action), Ok(())) => {
                operator.written.0 += 1;
                operator.written.1 += usize::from(action.write.pace() == Pace::Free);
                operator.rests.remove(&action.config);
            }
            (Step::Act(action), Err(refusal)) => {
                if action.write.pace() == Pace::Free {
                    operator.held.insert(action.config.clone());
                }
                if refusal == Refusal::Failed {
                    let before = operator
                        .rests
                        .get(&action.config)
                        .map(|(_, rest)| *rest * 2);
                    let rest = before.unwrap_or(secs(1)).min(secs(4));
                    operator
                        .rests
                        .insert(action.config.clone(), (now + rest, rest));
                }
                self.look_again(at, LOOK_AGAIN);
            }
            (Step::Status(status), Ok(())) => {
                operator
                    .statuses
                    .insert(status.on.name.clone(), now + secs(1));
            }
            (Step::Status(_), Err(_)) => self.look_again(at, secs(2)),
        }
        self.next_step(at);
    }

    fn operator_writes(&mut self, at: usize, step: &Step) -> Result<(), Refusal> {
        match step {
            Step::Ledger(write) => {
                self.check_ledger(at, write);
                let version = self.api.write_ledger(write.on.as_ref(), &write.ledger)?;
                self.ledger_written(at, write);
                let now = self.now;
                if let Some(operator) = self.operators.get_mut(at) {
                    operator.ledger = Some((version, now));
                    operator.wrote_ledger = true;
                }
                Ok(())
            }
            Step::Act(action) => self.act(at, &action.write),
            Step::Status(status) => {
                let object = self
                    .api
                    .change::<DevicePluginConfig>(&status.on, |config| {
                        config.status = Some(status.status.clone());
                    })?;
                self.status_written(at, &object);
                if let Some(operator) = self.operators.get_mut(at) {
                    operator.caches.configs.answer(object);
                }
                Ok(())
            }
        }
    }

    /// Keeps the answer to a write.
    pub(crate) fn answered(&mut self, at: usize, keep: impl FnOnce(&mut Caches)) {
        if let Some(operator) = self.operators.get_mut(at) {
            keep(&mut operator.caches);
            operator.news = true;
        }
    }

    /// What becomes of a write on its way.
    fn fate(&mut self) -> Fate {
        if self.api_is_down() {
            return Fate::Refused;
        }
        let errors = self.script.api_errors_now(self.now);
        match self.random.below(100) {
            roll if roll < errors / 2 => Fate::Refused,
            roll if roll < errors => Fate::Unanswered,
            _ => Fate::Done,
        }
    }
}

/// What becomes of a write on its way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    /// It arrives, and its answer as well.
    Done,
    /// It does not arrive.
    Refused,
    /// It arrives, and its answer is lost.
    Unanswered,
}

/// An object that was made or changed.
pub type Answer<T> = Result<Arc<T>, Refusal>;
