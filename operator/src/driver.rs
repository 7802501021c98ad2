//! The loop: observe, plan, audit, execute, publish.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use daemon::{Readiness, Stop};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use operator_core::audit::audit;
use operator_core::plan::{Plan, plan};
use operator_core::settings::Settings;
use operator_core::snapshot::Snapshot;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::caches::{Caches, Complete};
use crate::execute::{Executor, Outcome, sooner};
use crate::flags::RunFlags;
use crate::lease::decision::Timing;
use crate::lease::{Elector, Leader, Leadership};
use crate::ledger::{self, Ledgers, Recorded};
use crate::metrics::{Metrics, Step};
use crate::observe::observe;
use crate::publish::Publisher;

/// The shortest time between two passes that nothing but news calls for. The first news after a
/// rest is looked at once; half as long would plan over thousands of nodes ten times a second
/// while a rollout runs, double would be felt by somebody who watches.
const SPACING: Duration = Duration::from_millis(200);

/// The longest time without a pass. Nothing depends on it: news and deadlines call for passes.
const REST_MAX: Duration = Duration::from_secs(60);

/// How often incomplete caches are looked at; they also tell when that changes.
const INCOMPLETE: Duration = Duration::from_secs(1);

/// When to look again after the ledger could not be read, or is a later leader's.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long the ledger may be unreadable before that is told as not being ready. An API server that
/// restarts takes a few seconds; double would be felt by somebody who waits for a rollout.
const UNREADABLE_MAX: Duration = Duration::from_secs(15);

/// What decides: the core's plan, except where a test needs a certain one.
pub type Planner = Arc<dyn Fn(&Snapshot) -> Plan + Send + Sync>;

/// The loop and what it needs.
struct Driver {
    plan: Planner,
    caches: Caches,
    wake: Arc<Notify>,
    settings: Arc<Settings>,
    leadership: Leadership,
    ledgers: Ledgers,
    executor: Executor,
    publisher: Publisher,
    metrics: Metrics,
    readiness: Readiness,
    /// Since when the ledger could not be read, and why.
    unreadable: Option<(Instant, String)>,
    /// What was said last about incomplete caches.
    complaint: Option<String>,
}

/// Runs the operator until a stop is asked for.
///
/// # Errors
/// When the settings are wrong, its address cannot be listened on, the lease is lost, or a task
/// ends by itself.
pub async fn run(client: Client, flags: RunFlags, stop: Stop) -> anyhow::Result<()> {
    let settings = flags.settings()?;
    let mut registry = Registry::default();
    let metrics = Metrics::registered(&mut registry);
    let readiness = Readiness::new("waits for the first lists");
    let address = flags.http_address;
    let mut server = tokio::spawn(daemon::serve(
        address,
        registry,
        readiness.clone(),
        stop.clone(),
    ));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespace = settings.namespace,
        agent_image = settings.agent_image,
        %address,
        "started"
    );
    let operator = Operator {
        client,
        flags,
        timing: Timing::default(),
        plan: Arc::new(plan),
        metrics,
        readiness,
    };
    let mut work = std::pin::pin!(operator.run(&stop));
    tokio::select! {
        worked = &mut work => worked?,
        served = &mut server => {
            served
                .context("failed to serve")?
                .with_context(|| format!("failed to listen on {address}"))?;
            anyhow::ensure!(stop.is_requested(), "the endpoint on {address} ended");
            // The endpoint stops at once, the election only when the lease is released.
            work.await?;
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Everything but the endpoint.
pub struct Operator {
    /// The API server.
    pub client: Client,
    /// Settings.
    pub flags: RunFlags,
    /// How fast leaders follow one another.
    pub timing: Timing,
    /// What decides.
    pub plan: Planner,
    /// What is counted.
    pub metrics: Metrics,
    /// Who is told whether everything is known.
    pub readiness: Readiness,
}

impl Operator {
    /// Watches, takes part in the election, and acts while it leads, until a stop is asked for.
    ///
    /// # Errors
    /// When the settings are wrong, the lease is lost, or a task ends by itself.
    pub async fn run(self, stop: &Stop) -> anyhow::Result<()> {
        let settings = self.flags.settings()?;
        let (client, namespace) = (self.client.clone(), settings.namespace.clone());
        let pod = &self.flags.pod_name;
        let (elector, leadership) = Elector::new(client.clone(), &namespace, pod, self.timing);
        let mut driver = Driver::new(self, settings, leadership);
        let mut watches = driver.caches.watch(&client, &namespace, stop);
        let mut election = JoinSet::new();
        election.spawn(elector.run(stop.clone()));
        let elected = tokio::select! {
            () = driver.forever() => None,
            () = stop.requested() => None,
            ended = watches.join_next() => {
                anyhow::ensure!(stop.is_requested(), "a watch ended: {ended:?}");
                None
            }
            elected = election.join_next() => elected,
        };
        // From here on nothing acts: a successor may.
        drop(driver);
        let elected = match elected {
            Some(elected) => Some(elected),
            None => election.join_next().await,
        };
        let elector = elected.context("there is no election")?;
        elector.context("the election failed")??.release().await;
        Ok(())
    }
}

impl Driver {
    /// A loop that has seen nothing yet.
    fn new(operator: Operator, settings: Settings, leadership: Leadership) -> Self {
        let Operator {
            client,
            flags,
            timing: _,
            plan,
            metrics,
            readiness,
        } = operator;
        let wake = Arc::new(Notify::new());
        Self {
            plan,
            caches: Caches::new(&wake),
            wake,
            ledgers: Ledgers::new(client.clone(), &settings.namespace),
            executor: Executor::new(
                client.clone(),
                settings.namespace.clone(),
                flags.node_writes_per_second,
                flags.pins_per_second,
            ),
            publisher: Publisher::new(client),
            settings: Arc::new(settings),
            leadership,
            metrics,
            readiness,
            unreadable: None,
            complaint: None,
        }
    }

    /// Passes for ever, while this process leads.
    async fn forever(&mut self) {
        loop {
            let started = Instant::now();
            let complete = self.caches.state();
            let leader = self.leadership.leader();
            self.metrics.leads(leader.is_some());
            let rest = match (&complete, leader) {
                (Complete::Yes, Some(leader)) => self.pass(false, leader).await,
                (Complete::DeletionsOnly(_), Some(leader)) => self.pass(true, leader).await,
                (Complete::No(_), _) => {
                    self.metrics.failed(Step::Observe);
                    INCOMPLETE
                }
                // Its watches go on, so that it knows everything when its turn comes.
                (Complete::Yes | Complete::DeletionsOnly(_), None) => REST_MAX,
            };
            self.tell(&complete);
            // News that came during the pass is remembered by the wake-up call.
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = self.wake.notified() => {}
                () = self.leadership.changed(leader) => {}
            }
            let since = started.elapsed();
            if !rest.is_zero() && since < SPACING {
                tokio::time::sleep(SPACING - since).await;
            }
        }
    }

    /// One pass; how long the next may wait if nothing happens.
    async fn pass(&mut self, kinds_missing: bool, leader: Leader) -> Duration {
        let started = Instant::now();
        let mut failures = self.executor.failures();
        failures.extend(self.ledgers.failures());
        let seen = observe(
            &self.caches,
            &self.settings,
            kinds_missing,
            leader.epoch,
            failures,
            &mut self.ledgers,
        );
        let seen = match seen.await {
            Ok(seen) => seen,
            Err(error) => return self.unreadable(error.chain()),
        };
        self.unreadable = None;
        if self.ledgers.is_lost(&seen.ledger, leader.epoch) {
            tracing::warn!(
                epoch = leader.epoch,
                "the ledger is lost: looks at the lease again"
            );
            self.leadership.contest(leader.epoch.saturating_add(1));
            return LOOK_AGAIN;
        }
        let mut plan = (self.plan)(&seen);
        let violations = audit(&seen, &plan);
        if !violations.is_empty() {
            self.metrics.failed(Step::Audit);
            for violation in &violations {
                tracing::error!(violation = %violation, "a plan is not executed");
            }
            plan.refuse(&seen, &violations);
        }
        if plan.deposed {
            let later = ledger::epoch(&seen.ledger);
            tracing::error!(
                later,
                epoch = leader.epoch,
                "the ledger is a later leader's: looks at the lease again"
            );
            self.leadership.contest(later);
            return LOOK_AGAIN;
        }
        self.metrics.claim(seen.ledger.ledger());
        let outcome = match self.record(&plan, leader).await {
            Recorded::Written => self.execute(&plan, leader).await,
            Recorded::Outdated(wait) => return wait,
            // Nothing is done, and statuses say why.
            Recorded::NotNow(wait) => Outcome::later(wait),
        };
        if !self.leadership.is_still(leader.epoch) {
            // Whoever leads now tells how things stand.
            return LOOK_AGAIN;
        }
        let waits = self
            .publisher
            .publish(&self.caches, &plan, &self.metrics)
            .await;
        self.metrics.show(&plan);
        self.metrics.passed(started.elapsed());
        // What was written is known already, and may call for the next step. Writes to nodes take
        // turns: there is nothing to hurry for.
        let mut rest = match (outcome.steps, outcome.written) {
            (0, 0) => REST_MAX,
            (0, _) => SPACING,
            _ => return Duration::ZERO,
        };
        for wait in [outcome.look_again, waits, until(plan.look_again)] {
            rest = wait.map_or(rest, |wait| rest.min(wait));
        }
        rest
    }

    /// Writes the ledger, where the plan does: before anything that it stands for.
    async fn record(&mut self, plan: &Plan, leader: Leader) -> Recorded {
        let Some(write) = &plan.ledger else {
            self.ledgers.rest();
            return Recorded::Written;
        };
        if !self.leadership.is_still(leader.epoch) {
            return Recorded::Outdated(LOOK_AGAIN);
        }
        let recorded = self.ledgers.write(write, &self.metrics).await;
        if recorded == Recorded::Written {
            self.metrics.claim(Some(&write.ledger));
        }
        recorded
    }

    async fn execute(&mut self, plan: &Plan, leader: Leader) -> Outcome {
        let leadership = &self.leadership;
        let may_act = || leadership.is_still(leader.epoch);
        self.executor
            .execute(&self.caches, &plan.actions, &self.metrics, may_act)
            .await
    }

    /// The ledger cannot be read: nothing is done, since nobody knows what is under way.
    fn unreadable(&mut self, why: String) -> Duration {
        self.metrics.failed(Step::Observe);
        let why = format!("failed to read the ledger: {why}");
        let since = match self.unreadable.take() {
            Some((since, _)) => since,
            None => {
                tracing::warn!("{why}");
                Instant::now()
            }
        };
        self.unreadable = Some((since, why));
        LOOK_AGAIN
    }

    /// Says whether everything is known, and why if not: in the log once, and as readiness.
    fn tell(&mut self, complete: &Complete) {
        let unreadable = self.unreadable.as_ref();
        let unreadable = unreadable.filter(|(since, _)| since.elapsed() > UNREADABLE_MAX);
        let complaint = match complete {
            Complete::Yes => unreadable.map(|(_, why)| why.clone()),
            Complete::DeletionsOnly(why) => Some((*why).to_owned()),
            Complete::No(why) => Some(why.clone()),
        };
        if complaint != self.complaint {
            match &complaint {
                Some(complaint) => tracing::warn!("{complaint}"),
                None => tracing::info!("sees everything it needs"),
            }
            self.complaint.clone_from(&complaint);
        }
        self.readiness.set(complaint.map_or(Ok(()), Err));
    }
}

/// How long until then, and a moment more, so that it has passed when the next pass looks.
fn until(at: Option<Timestamp>) -> Option<Duration> {
    let left = at?.duration_since(Timestamp::now());
    let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
    sooner(None, left + Duration::from_millis(50))
}
