//! The fourth of the five calls: does what the plan says, as fast as is agreed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::{Duration, Instant};

use crds::names::OPERATOR_FIELD_MANAGER;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Resource;
use operator_core::action::{Action, Kind, Pace, Verb, Write};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bucket::Bucket;
use crate::caches::{
    Caches, keep_config, keep_config_map, keep_daemon_set, keep_node, keep_node_object, keep_pod,
    keep_pool, keep_revision,
};
use crate::client::{CallError, call};
use crate::metrics::Metrics;
use crate::store::{Store, Watched};

/// How long the writes of a config rest after one of them was refused; doubled each time up to the
/// second value. A quarter would hammer an API server that says no, four times as much would keep
/// users waiting after they mended what was wrong.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));

/// How long one pass writes to nodes: thousands of them wait for their turn, and statuses must not
/// wait for thousands. Half of it would plan twice as often while nodes are written, double would
/// be felt by somebody who watches a status.
const PASS_MAX: Duration = Duration::from_secs(1);

/// How often in a row a name may be taken before that is told as a failure: a cache that is a
/// moment behind meets it once or twice.
const TAKEN_MAX: u32 = 3;

/// How executing a plan went.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// Writes that changed something.
    pub written: usize,
    /// Those of them that are not paced: the next step of a config may follow at once.
    pub steps: usize,
    /// When to look again because something waits for its turn, or was refused.
    pub look_again: Option<Duration>,
}

impl Outcome {
    /// Nothing was done yet.
    pub fn later(wait: Duration) -> Self {
        Self {
            look_again: Some(wait),
            ..Self::default()
        }
    }
}

/// Executes plans.
pub struct Executor {
    client: Client,
    namespace: String,
    node_writes: Bucket,
    pins: Bucket,
    failures: BTreeMap<Gate, Failure>,
    /// Objects that stayed as they were although a patch asked for something else.
    unmoved: BTreeMap<Object, Unmoved>,
    taken: BTreeMap<Object, u32>,
}

type Object = (Kind, String);

/// What waits when a write was refused: everything of a config that follows the write, or only the
/// object of one node, because a node that cannot be written holds back no other.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Gate {
    config: String,
    object: Option<Object>,
}

impl Gate {
    fn of(action: &Action) -> Self {
        let object = match action.write.pace() {
            Pace::Free => None,
            Pace::Node | Pace::Pin => Some(object(&action.write)),
        };
        Self {
            config: action.config.clone(),
            object,
        }
    }
}

fn object(write: &Write) -> Object {
    (write.kind(), write.name().to_owned())
}

/// An object that the API server, or a webhook in it, keeps as it is.
#[derive(Clone, Debug)]
struct Unmoved {
    config: String,
    version: String,
}

#[derive(Clone, Debug)]
struct Failure {
    message: String,
    rest: Duration,
    until: Instant,
}

/// What became of one write.
enum Done {
    /// It is written.
    Written,
    /// The API server has accepted it and changed nothing.
    Unmoved,
    /// What it was decided on is no longer so: look again.
    Outdated,
    /// It was refused; why, in words.
    Refused(String),
}

impl Executor {
    /// An executor that has written nothing yet.
    pub fn new(client: Client, namespace: String, node_writes: u32, pins: u32) -> Self {
        let now = Instant::now();
        Self {
            client,
            namespace,
            node_writes: Bucket::new(node_writes, now),
            pins: Bucket::new(pins, now),
            failures: BTreeMap::new(),
            unmoved: BTreeMap::new(),
            taken: BTreeMap::new(),
        }
    }

    /// By config, what the API server refused.
    pub fn failures(&self) -> BTreeMap<String, String> {
        let mut told = BTreeMap::new();
        for (gate, failure) in &self.failures {
            // Those of whole configs come first.
            let of_config = told.entry(gate.config.clone());
            of_config.or_insert_with(|| failure.message.clone());
        }
        for ((kind, name), unmoved) in &self.unmoved {
            let of_config = told.entry(unmoved.config.clone());
            of_config.or_insert_with(|| {
                format!(
                    "{} {name:?} stays other than the operator writes it: an admission webhook or policy of the cluster changes it",
                    kind.as_str()
                )
            });
        }
        told
    }

    /// Writes what the plan says: in order, as long as the agreed rates allow. A config whose
    /// objects cannot be made waits; a node that cannot be written holds back no other. Before
    /// each write it is asked whether this process may still act.
    pub async fn execute(
        &mut self,
        caches: &Caches,
        actions: &[Action],
        metrics: &Metrics,
        may_act: impl Fn() -> bool,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut held: BTreeSet<&str> = BTreeSet::new();
        let mut refused: BTreeSet<Gate> = BTreeSet::new();
        let concerned: BTreeSet<Gate> = actions.iter().map(Gate::of).collect();
        self.failures.retain(|gate, _| concerned.contains(gate));
        self.unmoved.retain(|unmoved, seen| {
            actions.iter().any(|action| {
                let on = action.write.assumed();
                object(&action.write) == *unmoved && on.is_some_and(|on| on.version == seen.version)
            })
        });
        let started = Instant::now();
        for action in actions {
            if !may_act() {
                outcome.look_again = sooner(outcome.look_again, LOOK_AGAIN);
                break;
            }
            let config = action.config.as_str();
            if action.write.pace() != Pace::Free && started.elapsed() > PASS_MAX {
                outcome.look_again = Some(Duration::ZERO);
                continue;
            }
            if held.contains(config) || self.unmoved.contains_key(&object(&action.write)) {
                continue;
            }
            if let Some(wait) = self.wait(action) {
                outcome.look_again = sooner(outcome.look_again, wait);
                if action.write.pace() == Pace::Free {
                    held.insert(config);
                }
                continue;
            }
            let done = self.write(caches, &action.write, metrics).await;
            if let (Done::Outdated | Done::Refused(_), Pace::Free) = (&done, action.write.pace()) {
                held.insert(config);
            }
            match done {
                Done::Written => {
                    outcome.written += 1;
                    outcome.steps += usize::from(action.write.pace() == Pace::Free);
                }
                Done::Unmoved => {
                    if let Some(on) = action.write.assumed() {
                        let unmoved = Unmoved {
                            config: action.config.clone(),
                            version: on.version.clone(),
                        };
                        self.unmoved.insert(object(&action.write), unmoved);
                    }
                    outcome.look_again = sooner(outcome.look_again, LOOK_AGAIN);
                }
                Done::Outdated => outcome.look_again = sooner(outcome.look_again, LOOK_AGAIN),
                Done::Refused(message) if refused.insert(Gate::of(action)) => {
                    let rest = self.refuse(Gate::of(action), message);
                    outcome.look_again = sooner(outcome.look_again, rest);
                }
                Done::Refused(_) => {}
            }
        }
        self.failures
            .retain(|gate, failure| refused.contains(gate) || failure.until > Instant::now());
        outcome
    }

    /// How long the write has to wait for its turn.
    fn wait(&mut self, action: &Action) -> Option<Duration> {
        let now = Instant::now();
        let failure = self.failures.get(&Gate::of(action));
        if let Some(failure) = failure.filter(|failure| failure.until > now) {
            return Some(failure.until - now);
        }
        match action.write.pace() {
            Pace::Free => None,
            Pace::Node => {
                let wait = self.node_writes.wait(now);
                if wait.is_none() {
                    self.node_writes.take();
                }
                wait
            }
            Pace::Pin => {
                let wait = self.pins.wait(now).max(self.node_writes.wait(now));
                if wait.is_none() {
                    self.pins.take();
                    self.node_writes.take();
                }
                wait
            }
        }
    }

    fn refuse(&mut self, gate: Gate, message: String) -> Duration {
        let (first, most) = REST;
        let before = self.failures.get(&gate).map(|failure| failure.rest);
        let rest = before.map_or(first, |rest| (rest * 2).min(most));
        tracing::warn!(config = gate.config, error = message, "a write was refused");
        let until = Instant::now() + rest;
        self.failures.insert(
            gate,
            Failure {
                message,
                rest,
                until,
            },
        );
        rest
    }

    async fn write(&mut self, caches: &Caches, write: &Write, metrics: &Metrics) -> Done {
        let client = || self.client.clone();
        let namespace = self.namespace.as_str();
        let answer = match write.kind() {
            Kind::Config => send(Api::all(client()), &caches.configs, keep_config, write).await,
            Kind::Pool => send(Api::all(client()), &caches.pools, keep_pool, write).await,
            Kind::NodeObject => {
                send(
                    Api::all(client()),
                    &caches.node_objects,
                    keep_node_object,
                    write,
                )
                .await
            }
            Kind::Node => send(Api::all(client()), &caches.nodes, keep_node, write).await,
            Kind::Revision => {
                let api = Api::namespaced(client(), namespace);
                send(api, &caches.revisions, keep_revision, write).await
            }
            Kind::ConfigMap => {
                let api = Api::namespaced(client(), namespace);
                send(api, &caches.config_maps, keep_config_map, write).await
            }
            Kind::DaemonSet => {
                let api = Api::namespaced(client(), namespace);
                send(api, &caches.daemon_sets, keep_daemon_set, write).await
            }
            Kind::Pod => {
                let api = Api::namespaced(client(), namespace);
                send(api, &caches.pods, keep_pod, write).await
            }
        };
        self.judge(write, answer, metrics)
    }

    fn judge(&mut self, write: &Write, answer: Result<Sent, CallError>, metrics: &Metrics) -> Done {
        let key = object(write);
        let (verb, kind, name) = (write.verb().as_str(), write.kind().as_str(), write.name());
        let error = match answer {
            Ok(Sent::Unmoved) => {
                tracing::warn!(verb, kind, name, "the write changed nothing");
                return Done::Unmoved;
            }
            Ok(Sent::Changed) => {
                self.taken.remove(&key);
                metrics.wrote(write.kind().as_str(), verb);
                match write.pace() {
                    Pace::Free => tracing::info!(verb, kind, name, "wrote"),
                    Pace::Node | Pace::Pin => tracing::debug!(verb, kind, name, "wrote"),
                }
                return Done::Written;
            }
            Err(error) => error,
        };
        if let Some(status) = error.status() {
            let is_create = write.verb() == Verb::Create;
            if status.is_already_exists() {
                let times = self.taken.entry(key).or_default();
                *times += 1;
                if *times <= TAKEN_MAX {
                    return Done::Outdated;
                }
                return Done::Refused(format!(
                    "failed to create {kind} {name:?}: one of that name exists and is not this config's; delete it"
                ));
            }
            if status.is_conflict() || (status.is_not_found() && !is_create) {
                tracing::debug!(verb, kind, name, "the object has changed meanwhile");
                return Done::Outdated;
            }
        }
        metrics.failed(crate::metrics::Step::Execute);
        Done::Refused(format!(
            "failed to {verb} {kind} {name:?}: {}",
            error.chain()
        ))
    }
}

/// When to look again after an object turned out to have changed: the watch usually tells sooner.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The shorter of a wait and one that may be absent.
pub fn sooner(one: Option<Duration>, other: Duration) -> Option<Duration> {
    Some(one.map_or(other, |one| one.min(other)))
}

/// What a write came to.
enum Sent {
    /// There is a new version of the object, or its end.
    Changed,
    /// The version is what it was: the patch asked for what the API server does not keep.
    Unmoved,
}

/// Sends one write, and keeps what the API server answers, so that the next look sees it even if
/// the watch has not brought it yet.
async fn send<K, T>(
    api: Api<K>,
    store: &Store<T>,
    keep: fn(K) -> Option<T>,
    write: &Write,
) -> Result<Sent, CallError>
where
    K: Clone + Debug + DeserializeOwned + Resource,
    T: Watched,
{
    let name = write.name();
    let manager = Some(OPERATOR_FIELD_MANAGER.to_owned());
    let answer = match (write.verb(), write.body()) {
        (Verb::Create, body) => {
            let params = PostParams {
                field_manager: manager,
                ..PostParams::default()
            };
            call(create(&api, &params, &body.unwrap_or_default())).await?
        }
        (Verb::Patch, body) => {
            let params = PatchParams {
                field_manager: manager,
                ..PatchParams::default()
            };
            let patch = Patch::Merge(body.unwrap_or_default());
            call(api.patch(name, &params, &patch)).await?
        }
        (Verb::Delete, _) => return delete(&api, store, keep, write).await,
    };
    let version = answer.meta().resource_version.clone();
    let assumed = write.assumed().map(|on| on.version.clone());
    if let Some(kept) = keep(answer) {
        store.answer(kept);
    }
    match version.is_some() && version == assumed {
        true => Ok(Sent::Unmoved),
        false => Ok(Sent::Changed),
    }
}

/// Sends the object as it was rendered: through a type of an older API it would lose fields.
async fn create<K: Clone + Debug + DeserializeOwned + Resource>(
    api: &Api<K>,
    params: &PostParams,
    body: &impl Serialize,
) -> kube::Result<K> {
    let bytes = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
    let request = kube::core::Request::new(api.resource_url())
        .create(params, bytes)
        .map_err(kube::Error::BuildRequest)?;
    api.clone().into_client().request(request).await
}

async fn delete<K, T>(
    api: &Api<K>,
    store: &Store<T>,
    keep: fn(K) -> Option<T>,
    write: &Write,
) -> Result<Sent, CallError>
where
    K: Clone + Debug + DeserializeOwned + Resource,
    T: Watched,
{
    let Some(on) = write.assumed() else {
        return Ok(Sent::Changed);
    };
    let params = DeleteParams::background().preconditions(Preconditions {
        uid: Some(on.uid.clone()),
        resource_version: None,
    });
    match call(api.delete(&on.name, &params)).await {
        Ok(answer) => {
            let ending = answer
                .left()
                .filter(|one| one.meta().deletion_timestamp.is_some());
            match ending.and_then(keep) {
                Some(kept) => store.answer(kept),
                None => store.bury(on),
            }
            Ok(Sent::Changed)
        }
        // Somebody else was faster.
        Err(error) if error.status().is_some_and(kube::core::Status::is_not_found) => {
            store.bury(on);
            Ok(Sent::Changed)
        }
        Err(error) => Err(error),
    }
}
