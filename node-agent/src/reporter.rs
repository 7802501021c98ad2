//! Writes what was seen to the node's object. Whatever happens here, the kubelet is served.
//!
//! The object has one slot for the agent that serves and one for the agent that stands by. The holder
//! of the role lock writes the first, and empties the second while the object names nobody for it;
//! whoever waits or leaves writes nothing. Each write carries the version of the object that it was
//! made from, so that a late one of an agent whose role has ended is refused.

use std::sync::OnceLock;
use std::time::Duration;

use crds::conditions::merged;
use crds::names::{AGENT_ACTIVE_FIELD_MANAGER, AGENT_STANDBY_FIELD_MANAGER, GROUP, VERSION};
use crds::node::DevicePluginNodeStatus;
use daemon::{Logs, Stop};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Config};
use node_agent_core::conditions::conditions;
use node_agent_core::news::{active_news, standby_news};
use node_agent_core::preflight::standby_report;
use node_agent_core::report::{self, Identity};
use node_agent_core::role::Role;
use node_agent_core::seen::Seen;
use node_agent_core::writing::{Decision, Meter, News};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::error_chain::chained;
use crate::farewell::{LAST_REPORT, LastReport};
use crate::node_object::{self, Loose, ObjectSeen, Present, Told};
use crate::random::jitter;
use crate::settings::{ApiAccess, Timing};

/// How long a watch may be silent: the API server ends each within five minutes, and the client looks
/// again after that.
const SILENCE_MAX: Duration = Duration::from_secs(310);

/// What the reporter needs.
pub struct Reporter {
    /// How to reach the API server.
    pub access: ApiAccess,
    /// Name of the node's object.
    pub name: String,
    /// UID of the config that the object must belong to.
    pub config_uid: String,
    /// The object as far as it is known.
    pub object: watch::Sender<ObjectSeen>,
    /// Who reports.
    pub identity: Identity,
    /// What was seen.
    pub seen: watch::Receiver<Seen>,
    /// Asked for when the agent has stopped and something is left to tell.
    pub last: Option<LastReport>,
    /// The process's logs, whose level the object sets.
    pub logs: Option<Logs>,
    /// How patient it is.
    pub timing: Timing,
}

/// One slot of the status, as it should be.
#[derive(Debug)]
struct Slot {
    manager: &'static str,
    status: DevicePluginNodeStatus,
    news: News,
}

/// How a write ended.
enum Written {
    /// The object is like this now.
    Done(Box<Loose>),
    /// The object is not what it was thought to be: the watch will tell what it is.
    Outdated,
    /// The role ended meanwhile.
    Ended,
}

impl Reporter {
    /// Reports until a stop is asked for; then once more, if somebody asks for it.
    pub async fn keep(mut self, stop: Stop) {
        let last = self.last.take();
        let connected = OnceLock::new();
        let reporting = async {
            self.let_the_kubelet_be_first().await;
            let client = self.client().await;
            let api: Api<Loose> = Api::all_with(client, &node_object::resource());
            let api = connected.get_or_init(|| api);
            tokio::join!(
                self.watch(api.clone()),
                self.write(api.clone()),
                self.follow_log_level(self.object.subscribe()),
            );
        };
        tokio::select! {
            () = stop.requested() => {}
            () = reporting => {}
        }
        if let (Some(api), Some(last)) = (connected.into_inner(), last)
            && last.asked.await.is_ok()
        {
            match tokio::time::timeout(LAST_REPORT, self.write_last(&api)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let error = chained(error.as_ref());
                    tracing::warn!(object = self.name, error, "failed to write the last report");
                }
                Err(_) => tracing::warn!("the API server did not take the last report in time"),
            }
            drop(last.done);
        }
    }

    /// Writes what the agent leaves behind. Whoever asked for it still holds the role.
    async fn write_last(&self, api: &Api<Loose>) -> anyhow::Result<()> {
        let told = Told::List(api.get_opt(&self.name).await?);
        node_object::show(&self.object, told, &self.config_uid);
        let there = self.object.borrow().object.clone();
        if let Some(there) = there {
            let status = self.active(&self.seen.borrow(), &there);
            let slot = Slot {
                manager: AGENT_ACTIVE_FIELD_MANAGER,
                status,
                news: News::Urgent,
            };
            self.apply(api, &slot, &there).await?;
        }
        Ok(())
    }

    async fn let_the_kubelet_be_first(&self) {
        let mut seen = self.seen.clone();
        let registered = seen.wait_for(|seen| {
            let mut resources = seen.resources.values();
            resources.all(|resource| resource.standing.is_registered())
        });
        // Who stands by, or has no kubelet, reports as well.
        let _at_the_latest = tokio::time::timeout(self.timing.kubelet_first, registered).await;
    }

    async fn client(&self) -> Client {
        let mut failures = 0;
        loop {
            match connect(&self.access).await {
                Ok(client) => return client,
                Err(error) => {
                    failures += 1;
                    let error = chained(error.as_ref());
                    tracing::warn!(
                        error,
                        "no access to the API server: serving without reports"
                    );
                    sleep(self.timing.api_retry.wait(failures, jitter())).await;
                }
            }
        }
    }

    async fn watch(&self, api: Api<Loose>) {
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let limit = self.timing.api_call;
            let (name, uid) = (&self.name, &self.config_uid);
            let error = node_object::watch(api.clone(), name, uid, limit, &self.object).await;
            // A watch that lasted was no failure to begin with.
            failures = if started.elapsed() > self.timing.api_retry.limit {
                1
            } else {
                failures + 1
            };
            let error = chained(error.as_ref());
            tracing::warn!(object = name, error, "failed to watch the node's object");
            sleep(self.timing.api_retry.wait(failures, jitter())).await;
        }
    }

    async fn write(&self, api: Api<Loose>) {
        let (mut seen, mut object) = (self.seen.clone(), self.object.subscribe());
        let start = Instant::now();
        let mut meter = Meter::default();
        let mut last = None;
        let mut failures = 0;
        loop {
            let there = object.borrow_and_update().object.clone();
            let slot = {
                let seen = seen.borrow_and_update();
                // The operator makes the object; it may still be on its way.
                there
                    .as_ref()
                    .and_then(|there| self.slot(&seen, there, last.as_ref()))
            };
            let news = slot.as_ref().map_or(News::None, |slot| slot.news);
            let rates = &self.timing.reports;
            let wait = match (meter.decision(news, start.elapsed(), rates), slot, &there) {
                (Decision::Now, Some(slot), Some(there)) => {
                    match self.apply(&api, &slot, there).await {
                        Ok(Written::Done(written)) => {
                            failures = 0;
                            meter = meter.after_write(start.elapsed(), rates);
                            last = Some(slot.status);
                            let told = Told::Object(*written);
                            node_object::show(&self.object, told, &self.config_uid);
                            Some(Duration::ZERO)
                        }
                        Ok(Written::Ended) => Some(Duration::ZERO),
                        Ok(Written::Outdated) => {
                            self.look(&api).await;
                            Some(self.timing.api_retry.first)
                        }
                        Err(error) => {
                            failures += 1;
                            let error = chained(error.as_ref());
                            tracing::warn!(object = self.name, error, "failed to write the report");
                            // A watch that tells something proves that the API server is there.
                            tokio::select! {
                                () = sleep(self.timing.api_retry.wait(failures, jitter())) => {}
                                Ok(()) = object.changed() => object.mark_changed(),
                            }
                            Some(Duration::ZERO)
                        }
                    }
                }
                (Decision::In(wait), _, _) => Some(wait),
                (Decision::Nothing, _, _) | (Decision::Now, None, _) | (Decision::Now, _, None) => {
                    None
                }
            };
            let waited = async {
                match wait {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = waited => {}
                Ok(()) = seen.changed() => {}
                Ok(()) = object.changed() => {}
            }
        }
    }

    /// Reads the object that a write was refused for: its watch may be dead without knowing it.
    async fn look(&self, api: &Api<Loose>) {
        let found = tokio::time::timeout(self.timing.api_call, api.get_opt(&self.name)).await;
        match found {
            Ok(Ok(found)) => {
                node_object::show(&self.object, Told::List(found), &self.config_uid);
            }
            Ok(Err(error)) => {
                let error = chained(&error);
                tracing::debug!(error, "failed to read the node's object");
            }
            Err(_elapsed) => tracing::debug!("failed to read the node's object: no answer"),
        }
    }

    /// The slot that this agent has to write, if it has one and it is not there already.
    fn slot(
        &self,
        seen: &Seen,
        there: &Present,
        last: Option<&DevicePluginNodeStatus>,
    ) -> Option<Slot> {
        let (present, named) = (&there.status, &there.named);
        if !seen.part.holds {
            let is_standby = seen.part.role == Role::Standby
                && seen.part.shown
                && named.standby.as_ref() == Some(&self.identity.revision);
            let wanted = is_standby.then(|| standby_report(&self.identity, seen))??;
            let news = standby_news(present.standby.as_ref(), Some(&wanted));
            return Some(Slot {
                manager: AGENT_STANDBY_FIELD_MANAGER,
                status: DevicePluginNodeStatus {
                    standby: Some(wanted),
                    ..DevicePluginNodeStatus::default()
                },
                news,
            });
        }
        let status = self.active(seen, there);
        let is_judged = named.baseline.is_some();
        let news = active_news(present, &status, last, is_judged);
        // One write at a time: what is served comes first.
        if news != News::Urgent && named.standby.is_none() && present.standby.is_some() {
            return Some(Slot {
                manager: AGENT_STANDBY_FIELD_MANAGER,
                status: DevicePluginNodeStatus::default(),
                news: News::Urgent,
            });
        }
        Some(Slot {
            manager: AGENT_ACTIVE_FIELD_MANAGER,
            status,
            news,
        })
    }

    /// What is served, as it should be told. Conditions keep their time while their status stays.
    fn active(&self, seen: &Seen, there: &Present) -> DevicePluginNodeStatus {
        let desired = conditions(seen);
        let now = Time(Timestamp::now());
        DevicePluginNodeStatus {
            standby: None,
            active: Some(report::report(&self.identity, seen)),
            conditions: merged(&there.status.conditions, &desired, there.generation, &now),
        }
    }

    async fn apply(
        &self,
        api: &Api<Loose>,
        slot: &Slot,
        there: &Present,
    ) -> anyhow::Result<Written> {
        let patch = Patch::Apply(serde_json::json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "DevicePluginNode",
            "metadata": { "name": self.name, "resourceVersion": there.version },
            "status": slot.status,
        }));
        let parameters = PatchParams::apply(slot.manager).force();
        let patched = api.patch_status(&self.name, &parameters, &patch);
        let mut seen = self.seen.clone();
        let part = seen.borrow().part;
        let answer = tokio::select! {
            // The next holder waits for nobody's report.
            _ended = seen.wait_for(|seen| seen.part != part) => return Ok(Written::Ended),
            answer = tokio::time::timeout(self.timing.api_call, patched) => answer?,
        };
        match answer {
            Ok(written) => Ok(Written::Done(Box::new(written))),
            // A conflict, or an object that was deleted.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                Ok(Written::Outdated)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn follow_log_level(&self, mut present: watch::Receiver<ObjectSeen>) {
        let mut level = None;
        loop {
            let wanted = present
                .borrow_and_update()
                .object
                .as_ref()
                .map(|there| there.log_level);
            if let (Some(wanted), Some(logs)) = (wanted, &self.logs)
                && level != Some(wanted)
            {
                level = Some(wanted);
                match logs.set_level(wanted.as_str()) {
                    Ok(()) => tracing::debug!(level = wanted.as_str(), "log level set"),
                    Err(error) => {
                        let error = chained(&error);
                        tracing::warn!(error, "failed to set the log level");
                    }
                }
            }
            if present.changed().await.is_err() {
                return;
            }
        }
    }
}

async fn connect(access: &ApiAccess) -> anyhow::Result<Client> {
    let mut config = match access {
        ApiAccess::Infer => Config::infer().await?,
        ApiAccess::Given(config) => config.as_ref().clone(),
    };
    // The client would repeat a refused request for minutes without a word; we say what happens, and
    // try again with what is true then.
    config.default_retry = false;
    config.read_timeout = Some(SILENCE_MAX);
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}
