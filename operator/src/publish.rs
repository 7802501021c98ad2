//! The last of the five calls: statuses that changed, and events about them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crds::names::{GROUP, OPERATOR_FIELD_MANAGER, VERSION};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use operator_core::action::{ConfigStatus, PoolStatus};
use operator_core::messages::cut;
use operator_core::plan::Plan;
use operator_core::seen::Identity;
use serde_json::{Value, json};

use crate::caches::{Caches, keep_config, keep_pool};
use crate::client::{CallError, call};
use crate::execute::sooner;
use crate::metrics::{Metrics, Step};

/// The shortest time between two statuses of one object: during a rollout every node moves it, and
/// each write reaches every watcher. The first change after a rest goes out at once.
const SPACING: Duration = Duration::from_secs(1);

/// How long a status that was refused rests.
const RETRY: Duration = Duration::from_secs(2);

/// Longest note of an event: the API takes 1 kB, and characters may have several bytes.
const NOTE_MAX: usize = 300;

/// How long an event may take: nothing waits for it but the next pass.
const EVENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes what plans say of configs and pools.
pub struct Publisher {
    client: Client,
    recorder: Recorder,
    /// By UID, when the next status may be written.
    next: BTreeMap<String, Instant>,
}

impl Publisher {
    /// A publisher that has told nothing yet.
    pub fn new(client: Client) -> Self {
        let reporter = Reporter {
            controller: OPERATOR_FIELD_MANAGER.to_owned(),
            instance: None,
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            next: BTreeMap::new(),
        }
    }

    /// Writes every status that changed and whose time has come; how long the others wait.
    pub async fn publish(
        &mut self,
        caches: &Caches,
        plan: &Plan,
        metrics: &Metrics,
    ) -> Option<Duration> {
        let start = Instant::now();
        self.next.retain(|_, next| *next > start);
        let mut look_again = None;
        for status in plan.configs.iter().filter(|status| status.changed) {
            if let Some(wait) = self.wait(&status.on) {
                look_again = sooner(look_again, wait);
                continue;
            }
            let answer = self.write_config(caches, status).await;
            if self.note("DevicePluginConfig", &status.on, answer, metrics) {
                self.tell(status).await;
            } else {
                look_again = sooner(look_again, RETRY);
            }
        }
        for status in &plan.pools {
            if let Some(wait) = self.wait(&status.on) {
                look_again = sooner(look_again, wait);
                continue;
            }
            let answer = self.write_pool(caches, status).await;
            if !self.note("DevicePluginPool", &status.on, answer, metrics) {
                look_again = sooner(look_again, RETRY);
            }
        }
        look_again
    }

    fn wait(&self, on: &Identity) -> Option<Duration> {
        let next = self.next.get(&on.uid)?;
        let wait = next.saturating_duration_since(Instant::now());
        (!wait.is_zero()).then_some(wait)
    }

    /// Whether the status is written. An object that is gone, or another one by now, is no error.
    fn note(
        &mut self,
        kind: &'static str,
        on: &Identity,
        answer: Result<(), CallError>,
        metrics: &Metrics,
    ) -> bool {
        let (rest, written) = match answer {
            Ok(()) => {
                metrics.wrote(kind, "patch_status");
                (SPACING, true)
            }
            Err(error) => {
                let is_gone =
                    |status: &kube::core::Status| status.is_not_found() || status.is_conflict();
                if !error.status().is_some_and(is_gone) {
                    metrics.failed(Step::Publish);
                    let name = &on.name;
                    tracing::warn!(
                        kind,
                        name,
                        error = error.chain(),
                        "failed to write a status"
                    );
                }
                (RETRY, false)
            }
        };
        self.next.insert(on.uid.clone(), Instant::now() + rest);
        written
    }

    async fn write_config(&self, caches: &Caches, status: &ConfigStatus) -> Result<(), CallError> {
        let api: Api<DeserializeGuard<crds::DevicePluginConfig>> = Api::all(self.client.clone());
        let body = applied("DevicePluginConfig", &status.on, json!(status.status));
        let answer =
            call(api.patch_status(&status.on.name, &forced(), &Patch::Apply(body))).await?;
        if let Some(kept) = keep_config(answer) {
            caches.configs.answer(kept);
        }
        Ok(())
    }

    async fn write_pool(&self, caches: &Caches, status: &PoolStatus) -> Result<(), CallError> {
        let api: Api<DeserializeGuard<crds::DevicePluginPool>> = Api::all(self.client.clone());
        let body = applied("DevicePluginPool", &status.on, json!(status.status));
        let answer =
            call(api.patch_status(&status.on.name, &forced(), &Patch::Apply(body))).await?;
        if let Some(kept) = keep_pool(answer) {
            caches.pools.answer(kept);
        }
        Ok(())
    }

    /// Tells what changed as events. One that is lost is no harm: conditions say the same.
    async fn tell(&self, status: &ConfigStatus) {
        let config = reference(
            "DevicePluginConfig",
            &format!("{GROUP}/{VERSION}"),
            &status.on,
        );
        for event in &status.events {
            let event = Event {
                type_: if event.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: event.reason.to_owned(),
                note: Some(cut(&event.note, NOTE_MAX)),
                action: event.condition.to_owned(),
                secondary: event
                    .node
                    .as_ref()
                    .map(|node| reference("Node", "v1", node)),
            };
            let published = self.recorder.publish(&event, &config);
            match tokio::time::timeout(EVENT_TIMEOUT, published).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = %error, "failed to publish an event"),
                Err(_elapsed) => tracing::warn!("failed to publish an event: no answer"),
            }
        }
    }
}

fn forced() -> PatchParams {
    PatchParams::apply(OPERATOR_FIELD_MANAGER).force()
}

fn applied(kind: &str, on: &Identity, status: Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": kind,
        "metadata": { "name": on.name, "uid": on.uid },
        "status": status,
    })
}

fn reference(kind: &str, api_version: &str, on: &Identity) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(on.name.clone()),
        uid: Some(on.uid.clone()),
        ..ObjectReference::default()
    }
}
