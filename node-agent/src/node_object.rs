//! The node's object as the API server has it.

use std::pin::pin;
use std::time::Duration;

use crds::node::{DevicePluginNode, DevicePluginNodeStatus};
use crds::placement::LogLevel;
use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::watch;

/// What is known of the object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectSeen {
    /// The object, if it exists.
    pub object: Option<Present>,
}

/// An object that exists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Present {
    /// Its status.
    pub status: DevicePluginNodeStatus,
    /// The generation of its spec.
    pub generation: Option<i64>,
    /// How much the agent shall log.
    pub log_level: LogLevel,
}

impl From<DevicePluginNode> for Present {
    fn from(object: DevicePluginNode) -> Self {
        Self {
            status: object.status.unwrap_or_default(),
            generation: object.metadata.generation,
            log_level: object.spec.log_level.unwrap_or_default(),
        }
    }
}

/// Watches the object until something fails. A watch that failed is never used again: it has been seen
/// to hang for ever.
///
/// # Errors
/// Always, sooner or later.
pub async fn watch(
    api: Api<DevicePluginNode>,
    name: &str,
    first_answer: Duration,
    seen: &watch::Sender<ObjectSeen>,
) -> anyhow::Error {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(api, config));
    let mut listed = None;
    let mut answered = false;
    loop {
        let next = if answered {
            events.next().await
        } else {
            match tokio::time::timeout(first_answer, events.next()).await {
                Ok(next) => next,
                Err(_) => return anyhow::anyhow!("no answer within {first_answer:?}"),
            }
        };
        match next {
            Some(Ok(Event::Init)) => listed = None,
            Some(Ok(Event::InitApply(object))) => listed = Some(Present::from(object)),
            Some(Ok(Event::InitDone)) => {
                answered = true;
                show(seen, listed.take());
            }
            Some(Ok(Event::Apply(object))) => show(seen, Some(object.into())),
            Some(Ok(Event::Delete(_))) => show(seen, None),
            Some(Err(error)) => return error.into(),
            None => return anyhow::anyhow!("the watch ended"),
        }
    }
}

/// Shows the object as it is now.
pub fn show(seen: &watch::Sender<ObjectSeen>, object: Option<Present>) {
    seen.send_if_modified(|seen| {
        let changed = seen.object != object;
        seen.object = object;
        changed
    });
}
