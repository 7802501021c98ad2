//! Which operator acts: the one that holds the Lease. The others watch, so that they know
//! everything when their turn comes, and do nothing.

pub mod decision;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use crds::names::{LEASE, OPERATOR_FIELD_MANAGER};
use daemon::Stop;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::core::Status;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::client::CallError;
use crate::lease::decision::{Candidate, Decision, Held, Observed, Record, Timing, decide, epoch};
use crate::ledger;

/// How long a process that stops tries to release the Lease. Longer would keep a pod from ending,
/// a quarter of it would leave its successor waiting for the whole lease.
const RELEASE_MAX: Duration = Duration::from_secs(3);

/// This process leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Leader {
    /// Its number.
    pub epoch: u64,
    /// Until when it may act without a further renewal.
    until: Instant,
}

impl Leader {
    /// Whether it may still act.
    pub fn may_act(&self, now: Instant) -> bool {
        now < self.until
    }
}

/// What everybody but the elector may know and ask.
#[derive(Clone, Debug)]
pub struct Leadership {
    leader: watch::Receiver<Option<Leader>>,
    floor: watch::Sender<u64>,
}

impl Leadership {
    /// Whether this process leads now.
    pub fn leader(&self) -> Option<Leader> {
        let leader = *self.leader.borrow();
        leader.filter(|leader| leader.may_act(Instant::now()))
    }

    /// Whether the leader of this epoch still leads.
    pub fn is_still(&self, epoch: u64) -> bool {
        self.leader().is_some_and(|leader| leader.epoch == epoch)
    }

    /// Returns when this process leads otherwise than it did: not at every renewal.
    pub async fn changed(&mut self, before: Option<Leader>) {
        let epoch = |leader: Option<Leader>| leader.map(|leader| leader.epoch);
        let is_other = |leader: &Option<Leader>| epoch(*leader) != epoch(before);
        if self.leader.wait_for(is_other).await.is_err() {
            // The elector has ended, and with it the process ends.
            std::future::pending::<()>().await;
        }
    }

    /// The ledger has a later epoch than this leader: the elector looks at the Lease again. Either
    /// it is lost, or the ledger is nobody's, and this leader's epoch becomes a later one.
    pub fn contest(&self, epoch: u64) {
        self.floor.send_modify(|floor| *floor = epoch.max(*floor));
    }
}

/// Why an elector ended.
#[derive(Debug, thiserror::Error)]
#[error("the Lease {LEASE:?} is lost: {0}")]
pub struct Lost(String);

/// Takes part in the election.
pub struct Elector {
    leases: Api<Lease>,
    ledgers: Api<ConfigMap>,
    namespace: String,
    me: Candidate,
    timing: Timing,
    observed: Option<Observed>,
    /// The Lease as it was read or written last; for its resource version.
    lease: Option<Lease>,
    held: Option<Held>,
    leader: watch::Sender<Option<Leader>>,
    floor: watch::Receiver<u64>,
    /// What was said last about failures.
    complaint: Option<String>,
}

impl Elector {
    /// A candidate of this pod in the election of a namespace.
    pub fn new(client: Client, namespace: &str, pod: &str, timing: Timing) -> (Self, Leadership) {
        let (leader, seen_leader) = watch::channel(None);
        let (floor, seen_floor) = watch::channel(0);
        // Keyed by the system's random numbers, anew in each process.
        let process = RandomState::new().build_hasher().finish();
        let elector = Self {
            leases: Api::namespaced(client.clone(), namespace),
            ledgers: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            me: Candidate {
                pod: pod.to_owned(),
                process: format!("{process:016x}"),
            },
            timing,
            observed: None,
            lease: None,
            held: None,
            leader,
            floor: seen_floor,
            complaint: None,
        };
        let leadership = Leadership {
            leader: seen_leader,
            floor,
        };
        (elector, leadership)
    }

    /// Holds the Lease or waits for it, until a stop is asked for.
    ///
    /// # Errors
    /// When the Lease was held and is lost.
    pub async fn run(mut self, stop: Stop) -> Result<Self, Lost> {
        while !stop.is_requested() {
            let started = tokio::time::Instant::now();
            // Never broken off: the release would not know which version it follows.
            self.round().await?;
            tokio::select! {
                () = tokio::time::sleep_until(started + self.timing.retry) => {}
                // What is known of the Lease is not enough: whoever wrote the ledger may hold it.
                () = contested(&mut self.floor) => self.lease = None,
                () = stop.requested() => {}
            }
        }
        Ok(self)
    }

    /// Gives the Lease up, so that a successor need not wait for its end. To be called when nothing
    /// of this process acts any more.
    pub async fn release(mut self) {
        let Some(held) = self.held.take() else {
            return;
        };
        self.leader.send_replace(None);
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            ..self.spec(held.transitions)
        };
        match timeout(RELEASE_MAX, self.write(spec)).await {
            Ok(Ok(_)) => tracing::info!("released the lease"),
            Ok(Err(error)) => {
                tracing::warn!(error = error.chain(), "failed to release the lease");
            }
            Err(_elapsed) => tracing::warn!("failed to release the lease: no answer"),
        }
    }

    /// One look at the Lease, and what follows. A leader writes upon what it knows of the Lease,
    /// and reads it only when that is refused.
    async fn round(&mut self) -> Result<(), Lost> {
        if self.held.is_some() && self.lease.is_some() && self.hold().await? {
            return Ok(());
        }
        match self.limited(self.leases.get_opt(LEASE)).await {
            Ok(lease) => {
                self.observe(lease);
                self.hold().await.map(|_| ())
            }
            Err(error) => {
                self.complain("failed to read the lease", &error);
                self.decide(0).map(|_| ())
            }
        }
    }

    /// Writes the Lease if that is this process's to do. False: it has changed meanwhile.
    async fn hold(&mut self) -> Result<bool, Lost> {
        let mut floor = *self.floor.borrow_and_update();
        if self.decide(floor)?.is_some() && self.held.is_none() {
            match ledger::read(&self.ledgers).await {
                Ok(seen) => floor = floor.max(ledger::epoch(&seen)),
                Err(error) => {
                    self.complain("failed to read the ledger", &error);
                    return Ok(true);
                }
            }
        }
        let Some(transitions) = self.decide(floor)? else {
            return Ok(true);
        };
        let sent = Instant::now();
        match self.limited_write(self.spec(transitions)).await {
            Ok(lease) => self.held(transitions, sent, lease),
            Err(error) if error.status().is_some_and(is_outdated) => {
                self.lease = None;
                return Ok(false);
            }
            Err(error) => {
                self.complain("failed to write the lease", &error);
                self.decide(floor)?;
            }
        }
        Ok(true)
    }

    /// The transitions to write, if any.
    fn decide(&mut self, floor: u64) -> Result<Option<i32>, Lost> {
        let Some(observed) = &self.observed else {
            return Ok(None);
        };
        match decide(
            &self.me,
            self.held,
            observed,
            floor,
            self.timing,
            Instant::now(),
        ) {
            Decision::Hold { transitions } => Ok(Some(transitions)),
            Decision::Wait => Ok(None),
            Decision::Lost(why) => {
                self.held = None;
                self.leader.send_replace(None);
                Err(Lost(why))
            }
        }
    }

    fn observe(&mut self, lease: Option<Lease>) {
        let record = lease.as_ref().map(record);
        let before = self.observed.take();
        self.observed = Some(Observed::next(before, record, Instant::now()));
        self.lease = lease;
    }

    fn held(&mut self, transitions: i32, sent: Instant, lease: Lease) {
        self.observe(Some(lease));
        self.complaint = None;
        let epoch = epoch(transitions);
        if self.held.is_none_or(|held| held.transitions != transitions) {
            tracing::info!(epoch, identity = self.me.identity(), "leads");
        }
        self.held = Some(Held {
            transitions,
            renewed: sent,
        });
        let until = sent + self.timing.deadline;
        self.leader.send_replace(Some(Leader { epoch, until }));
    }

    /// Says once what keeps failing.
    fn complain(&mut self, what: &str, error: &CallError) {
        let complaint = format!("{what}: {}", error.chain());
        if self.complaint.as_ref() != Some(&complaint) {
            tracing::warn!("{complaint}");
            self.complaint = Some(complaint);
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let acquired = self.lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let acquired = acquired.and_then(|spec| spec.acquire_time.clone());
        LeaseSpec {
            holder_identity: Some(self.me.identity()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs().max(1)).ok(),
            acquire_time: match self.held {
                Some(held) if held.transitions == transitions => acquired.or(Some(now.clone())),
                _ => Some(now.clone()),
            },
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    async fn limited_write(&self, spec: LeaseSpec) -> Result<Lease, CallError> {
        match timeout(self.timing.deadline / 2, self.write(spec)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(CallError::NoAnswer),
        }
    }

    /// Writes the Lease upon the version that is known.
    async fn write(&self, spec: LeaseSpec) -> Result<Lease, CallError> {
        let params = PostParams {
            field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let metadata = match &self.lease {
            Some(lease) => ObjectMeta {
                managed_fields: None,
                ..lease.metadata.clone()
            },
            None => ObjectMeta {
                name: Some(LEASE.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
        };
        let lease = Lease {
            metadata,
            spec: Some(spec),
        };
        Ok(match &self.lease {
            Some(_) => self.leases.replace(LEASE, &params, &lease).await?,
            None => self.leases.create(&params, &lease).await?,
        })
    }

    /// A call that leaves time for another before the deadline.
    async fn limited<T>(
        &self,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        match timeout(self.timing.deadline / 2, call).await {
            Ok(answer) => Ok(answer?),
            Err(_elapsed) => Err(CallError::NoAnswer),
        }
    }
}

/// Returns when somebody contests the Lease.
async fn contested(floor: &mut watch::Receiver<u64>) {
    if floor.changed().await.is_err() {
        // Nobody is left who could.
        std::future::pending::<()>().await;
    }
}

/// Whether the Lease is another one than was written upon: changed, made or gone meanwhile.
fn is_outdated(status: &Status) -> bool {
    status.is_conflict() || status.is_already_exists() || status.is_not_found()
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
    Record {
        holder: spec
            .and_then(|spec| spec.holder_identity.clone())
            .unwrap_or_default(),
        transitions: spec
            .and_then(|spec| spec.lease_transitions)
            .unwrap_or_default(),
        duration: Duration::from_secs(seconds.unwrap_or_default().try_into().unwrap_or_default()),
        renewed: format!(
            "{:?} {:?}",
            spec.and_then(|spec| spec.acquire_time.as_ref()),
            spec.and_then(|spec| spec.renew_time.as_ref())
        ),
    }
}
