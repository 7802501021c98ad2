//! Writes what was seen to the node's object. Whatever happens here, the kubelet is served.

use std::time::Duration;

use crds::conditions;
use crds::names::{AGENT_ACTIVE_FIELD_MANAGER, GROUP, VERSION};
use crds::node::{DevicePluginNode, DevicePluginNodeStatus};
use daemon::{Logs, Stop};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Config};
use node_agent_core::report::{self, Identity};
use node_agent_core::seen::Seen;
use node_agent_core::writing::{Decision, Meter, decision};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::error_chain::chained;
use crate::node_object::{self, ObjectSeen, Present};
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
    pub object: String,
    /// Who reports.
    pub identity: Identity,
    /// What was seen.
    pub seen: watch::Receiver<Seen>,
    /// The process's logs, whose level the object sets.
    pub logs: Option<Logs>,
    /// How patient it is.
    pub timing: Timing,
}

impl Reporter {
    /// Reports until a stop is asked for.
    pub async fn keep(self, stop: Stop) {
        let reporting = async {
            let client = self.client().await;
            let api: Api<DevicePluginNode> = Api::all(client);
            let (object, seen) = watch::channel(ObjectSeen::default());
            tokio::join!(
                self.watch(api.clone(), &object),
                self.write(api, &object, seen.clone()),
                self.follow_log_level(seen),
            );
        };
        tokio::select! {
            () = stop.requested() => {}
            () = reporting => {}
        }
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

    async fn watch(&self, api: Api<DevicePluginNode>, object: &watch::Sender<ObjectSeen>) {
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let limit = self.timing.api_call;
            let error = node_object::watch(api.clone(), &self.object, limit, object).await;
            // A watch that lasted was no failure to begin with.
            failures = if started.elapsed() > self.timing.api_retry.limit {
                1
            } else {
                failures + 1
            };
            let error = chained(error.as_ref());
            tracing::warn!(
                object = self.object,
                error,
                "failed to watch the node's object"
            );
            sleep(self.timing.api_retry.wait(failures, jitter())).await;
        }
    }

    async fn write(
        &self,
        api: Api<DevicePluginNode>,
        object: &watch::Sender<ObjectSeen>,
        mut present: watch::Receiver<ObjectSeen>,
    ) {
        let mut seen = self.seen.clone();
        let start = Instant::now();
        let mut meter = Meter::default();
        let mut failures = 0;
        loop {
            let there = present.borrow_and_update().object.clone();
            let wanted = there
                .as_ref()
                .map(|there| self.status(&seen.borrow_and_update(), there));
            let decided = match (&there, &wanted) {
                (Some(there), Some(wanted)) => {
                    let (now, gap) = (start.elapsed(), self.timing.between_reports);
                    decision(Some(&there.status), wanted, meter, now, gap)
                }
                // The operator makes the object; it may still be on its way.
                (None, _) | (_, None) => Decision::Nothing,
            };
            match (decided, wanted) {
                (Decision::Now, Some(wanted)) => match self.apply(&api, &wanted).await {
                    Ok(written) => {
                        failures = 0;
                        meter = meter.after_write(start.elapsed(), self.timing.between_reports);
                        node_object::show(object, Some(written));
                    }
                    Err(error) => {
                        failures += 1;
                        let error = chained(error.as_ref());
                        tracing::warn!(object = self.object, error, "failed to write the report");
                        sleep(self.timing.api_retry.wait(failures, jitter())).await;
                    }
                },
                (Decision::In(wait), _) => sleep(wait).await,
                (Decision::Nothing, _) | (Decision::Now, None) => {
                    tokio::select! {
                        Ok(()) = seen.changed() => {}
                        Ok(()) = present.changed() => {}
                    }
                }
            }
        }
    }

    /// The status as it should be. Conditions keep their time while their status stays.
    fn status(&self, seen: &Seen, there: &Present) -> DevicePluginNodeStatus {
        let desired = report::conditions(seen);
        let now = Time(Timestamp::now());
        DevicePluginNodeStatus {
            standby: None,
            active: Some(report::report(&self.identity, seen)),
            conditions: conditions::merged(
                &there.status.conditions,
                &desired,
                there.generation,
                &now,
            ),
        }
    }

    async fn apply(
        &self,
        api: &Api<DevicePluginNode>,
        status: &DevicePluginNodeStatus,
    ) -> anyhow::Result<Present> {
        let patch = Patch::Apply(serde_json::json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "DevicePluginNode",
            "metadata": { "name": self.object },
            "status": status,
        }));
        let parameters = PatchParams::apply(AGENT_ACTIVE_FIELD_MANAGER).force();
        let patched = api.patch_status(&self.object, &parameters, &patch);
        Ok(tokio::time::timeout(self.timing.api_call, patched)
            .await??
            .into())
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
