//! The ledger at the API server: read live in every pass, and written before anything is done that
//! it stands for. What it says is `operator_core`'s affair.

mod clock;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crds::names::{LEDGER, OPERATOR_FIELD_MANAGER};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::core::{Resource, Status};
use operator_core::ledger::{LedgerWrite, SeenLedger};
use operator_core::seen::Identity;

use crate::bucket::Bucket;
use crate::client::{CallError, call};
use crate::metrics::{Metrics, Recording, Step};

pub use clock::Clock;

/// Most writes of the ledger per second. Every claim of every config goes through it: one would be
/// felt as a pause in each phase of a rollout, four would be half of what etcd spends on a small
/// cluster, for 60 kB each.
const WRITES_PER_SECOND: u32 = 2;

/// How long a write rests after it was refused; doubled each time up to the second value.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));

/// When to look again after somebody else has written the ledger: at once, but not in a tight loop.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The highest epoch: one more than `leaseTransitions` can be. An epoch that no leader can
/// have is garbage: nobody could ever have a higher one.
pub const EPOCH_MAX: u64 = i32::MAX as u64 + 1;

/// How writing the ledger went.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Recorded {
    /// It says what the plan says: its acts may follow.
    Written,
    /// Somebody else has written it since it was read: the pass ends, look again after this time.
    Outdated(Duration),
    /// It was refused, or waits for its turn: nothing may be done, look again after this time.
    NotNow(Duration),
}

/// The ledger's object.
pub struct Ledgers {
    api: Api<ConfigMap>,
    namespace: String,
    clock: Clock,
    writes: Bucket,
    failure: Option<Failure>,
    /// The epoch that this process has written last.
    wrote: Option<u64>,
}

struct Failure {
    /// Configs with claims in what was to be written.
    configs: BTreeSet<String>,
    message: String,
    rest: Duration,
    until: Instant,
}

impl Ledgers {
    /// The ledger of a namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            clock: Clock::default(),
            writes: Bucket::new(WRITES_PER_SECOND, Instant::now()),
            failure: None,
            wrote: None,
        }
    }

    /// Whether a ledger that this process has written in an epoch is gone or cannot be read: whoever
    /// did that may lead by now, and what the caches say is older than that.
    pub fn is_lost(&self, seen: &SeenLedger, epoch: u64) -> bool {
        seen.ledger().is_none() && self.wrote == Some(epoch)
    }

    /// What the ledger says, and for how long the cluster has been watched since this process
    /// wrote or first read it; `blind` is for how long it has not been, in all.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn read(
        &mut self,
        now: Instant,
        blind: Duration,
    ) -> Result<(SeenLedger, Duration), CallError> {
        let seen = read(&self.api).await?;
        let version = match &seen {
            SeenLedger::Absent => None,
            SeenLedger::Present { on, .. } => Some(on),
        };
        let watched = self.clock.read(version, now, blind);
        Ok((seen, watched))
    }

    /// By config, why its claims could not be written.
    pub fn failures(&self) -> BTreeMap<String, String> {
        let failures = self.failure.iter().flat_map(|failure| {
            let configs = failure.configs.iter();
            configs.map(|config| (config.clone(), failure.message.clone()))
        });
        failures.collect()
    }

    /// Forgets a refusal: the present plan has nothing to write.
    pub fn rest(&mut self) {
        self.failure = None;
    }

    /// Writes the ledger, if it is still the one that the plan was made on.
    pub async fn write(&mut self, write: &LedgerWrite, metrics: &Metrics) -> Recorded {
        let now = Instant::now();
        if let Some(failure) = self.failure.as_ref().filter(|failure| failure.until > now) {
            return Recorded::NotNow(failure.until - now);
        }
        if let Some(wait) = self.writes.wait(now) {
            return Recorded::NotNow(wait);
        }
        self.writes.take();
        match self.send(write).await {
            Ok(written) => {
                self.failure = None;
                self.wrote = Some(write.ledger.epoch);
                self.clock.wrote(Identity::of(written.meta()));
                metrics.recorded(Recording::Written);
                Recorded::Written
            }
            Err(error) if error.status().is_some_and(is_outdated) => {
                tracing::info!("the ledger has been written by somebody else meanwhile");
                metrics.recorded(Recording::Outdated);
                Recorded::Outdated(LOOK_AGAIN)
            }
            Err(error) => {
                metrics.recorded(Recording::Refused);
                metrics.failed(Step::Record);
                Recorded::NotNow(self.refuse(write, &error))
            }
        }
    }

    async fn send(&self, write: &LedgerWrite) -> Result<ConfigMap, CallError> {
        let object = write.object(&self.namespace);
        let object: ConfigMap = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        let params = PostParams {
            field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match write.on {
            None => call(self.api.create(&params, &object)).await,
            Some(_) => call(self.api.replace(LEDGER, &params, &object)).await,
        }
    }

    fn refuse(&mut self, write: &LedgerWrite, error: &CallError) -> Duration {
        let (first, most) = REST;
        let before = self.failure.as_ref().map(|failure| failure.rest);
        let rest = before.map_or(first, |rest| (rest * 2).min(most));
        let verb = if write.on.is_some() {
            "update"
        } else {
            "create"
        };
        let message = format!(
            "failed to {verb} ConfigMap {LEDGER:?}, without which no node is changed: {}",
            error.chain()
        );
        tracing::warn!(error = message, "the ledger was not written");
        let claims = write.ledger.claims.iter();
        self.failure = Some(Failure {
            configs: claims.map(|claim| claim.config.clone()).collect(),
            message,
            rest,
            until: Instant::now() + rest,
        });
        rest
    }
}

/// Whether the object is another one than the plan was made on: changed, made or gone meanwhile.
fn is_outdated(status: &Status) -> bool {
    status.is_conflict() || status.is_already_exists() || status.is_not_found()
}

/// Reads the ledger from the source, not from a cache of the API server.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn read(api: &Api<ConfigMap>) -> Result<SeenLedger, CallError> {
    let Some(object) = call(api.get_opt(LEDGER)).await? else {
        return Ok(SeenLedger::Absent);
    };
    let on = Identity::of(object.meta());
    Ok(match SeenLedger::read(on, object.data.as_ref()) {
        SeenLedger::Present {
            on,
            content: Ok(ledger),
        } if ledger.epoch > EPOCH_MAX => {
            let content = Err(format!("no leader can have epoch {}", ledger.epoch));
            SeenLedger::Present { on, content }
        }
        seen => seen,
    })
}

/// The epoch in the ledger, if there is one: no later leader may have a lower one.
pub fn epoch(seen: &SeenLedger) -> u64 {
    seen.ledger().map_or(0, |ledger| ledger.epoch)
}
