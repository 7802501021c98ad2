//! The loop: observe, plan, audit, execute, publish.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use daemon::{Readiness, Stop};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use operator_core::audit::audit;
use operator_core::plan::plan;
use operator_core::settings::Settings;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use crate::caches::{Caches, Complete};
use crate::execute::{Executor, sooner};
use crate::flags::RunFlags;
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

/// The loop and what it needs.
pub struct Driver {
    caches: Caches,
    wake: Arc<Notify>,
    settings: Arc<Settings>,
    executor: Executor,
    publisher: Publisher,
    metrics: Metrics,
    readiness: Readiness,
    /// What was said last about incomplete caches.
    complaint: Option<String>,
}

/// Runs the operator until a stop is asked for.
///
/// # Errors
/// When the settings are wrong, its address cannot be listened on, or a task ends by itself.
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
    let mut driver = Driver::new(client.clone(), &flags, settings, metrics, readiness);
    let namespace = driver.settings.namespace.clone();
    let mut watches = driver.caches.watch(&client, &namespace, &stop);
    let served = tokio::select! {
        () = driver.forever() => Ok(Ok(())),
        () = stop.requested() => Ok(Ok(())),
        ended = watches.join_next() => {
            anyhow::ensure!(stop.is_requested(), "a watch ended: {ended:?}");
            Ok(Ok(()))
        }
        served = &mut server => served,
    };
    served
        .context("failed to serve")?
        .with_context(|| format!("failed to listen on {address}"))?;
    anyhow::ensure!(stop.is_requested(), "the endpoint on {address} ended");
    tracing::info!("stopped");
    Ok(())
}

impl Driver {
    /// A loop that has seen nothing yet.
    pub fn new(
        client: Client,
        flags: &RunFlags,
        settings: Settings,
        metrics: Metrics,
        readiness: Readiness,
    ) -> Self {
        let wake = Arc::new(Notify::new());
        Self {
            caches: Caches::new(&wake),
            wake,
            executor: Executor::new(
                client.clone(),
                settings.namespace.clone(),
                flags.node_writes_per_second,
                flags.pins_per_second,
            ),
            publisher: Publisher::new(client),
            settings: Arc::new(settings),
            metrics,
            readiness,
            complaint: None,
        }
    }

    /// What is watched.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// Passes for ever.
    pub async fn forever(&mut self) {
        loop {
            let started = Instant::now();
            let complete = self.caches.state();
            self.tell(&complete);
            let rest = match complete {
                Complete::Yes => self.pass(false).await,
                Complete::DeletionsOnly(_) => self.pass(true).await,
                Complete::No(_) => {
                    self.metrics.failed(Step::Observe);
                    INCOMPLETE
                }
            };
            // News that came during the pass is remembered by the wake-up call.
            let _woken = tokio::time::timeout(rest, self.wake.notified()).await;
            let since = started.elapsed();
            if !rest.is_zero() && since < SPACING {
                tokio::time::sleep(SPACING - since).await;
            }
        }
    }

    /// One pass; how long the next may wait if nothing happens.
    async fn pass(&mut self, kinds_missing: bool) -> Duration {
        let started = Instant::now();
        let failures = self.executor.failures();
        let seen = observe(&self.caches, &self.settings, kinds_missing, failures);
        let mut plan = plan(&seen);
        let violations = audit(&seen, &plan);
        if !violations.is_empty() {
            self.metrics.failed(Step::Audit);
            for violation in &violations {
                tracing::error!(violation = %violation, "a plan is not executed");
            }
            plan.refuse(&seen, &violations);
        }
        let outcome = self
            .executor
            .execute(&self.caches, &plan.actions, &self.metrics)
            .await;
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

    /// Says whether the caches are complete, and why if not: in the log once, and as readiness.
    fn tell(&mut self, complete: &Complete) {
        let complaint = match complete {
            Complete::Yes => None,
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
