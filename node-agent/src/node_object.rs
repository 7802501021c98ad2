//! The node's object as the API server has it.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crds::node::{DevicePluginNode, DevicePluginNodeSpec, DevicePluginNodeStatus};
use crds::placement::LogLevel;
use futures::StreamExt;
use kube::Api;
use kube::api::{ApiResource, Object};
use kube::runtime::watcher::{self, Event, watcher};
use node_agent_core::role::{Named, ObjectView};
use serde_json::Value;
use tokio::sync::watch;

use crate::error_chain::chained;

/// The object, of which nothing is taken for granted: a status that somebody filled with garbage must
/// not keep the agent from seeing its spec.
pub type Loose = Object<Value, Value>;

/// The kind of the object.
pub fn resource() -> ApiResource {
    ApiResource::erase::<DevicePluginNode>(&())
}

/// What is known of the object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectSeen {
    /// Whether a list has answered since the start. The list is a quorum read: what it says was true
    /// after the start.
    pub answered: bool,
    /// The object, if it exists and belongs to this agent's config.
    pub object: Option<Arc<Present>>,
}

impl ObjectSeen {
    /// What roles follow from.
    pub fn view(&self) -> ObjectView<'_> {
        match &self.object {
            Some(present) => ObjectView::Present(present.named.view()),
            None if self.answered => ObjectView::Absent,
            None => ObjectView::Unknown,
        }
    }
}

/// An object that exists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Present {
    /// Which object it is, over all that had its name.
    pub uid: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its status; empty where it cannot be understood.
    pub status: DevicePluginNodeStatus,
    /// The generation of its spec.
    pub generation: Option<i64>,
    /// The revisions it names.
    pub named: Revisions,
    /// The resources that the node served before its change began.
    pub baseline_resources: BTreeSet<String>,
    /// How much the agent shall log.
    pub log_level: LogLevel,
}

/// The revisions that an object names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Revisions {
    /// The one that may serve.
    pub active: String,
    /// The one that stands by.
    pub standby: Option<String>,
    /// The proven one, while the node is being changed.
    pub baseline: Option<String>,
}

impl Present {
    /// Whether another reading of the same object is older than this one. What a write answered may
    /// overtake what the watch tells, and an older spec must not come back.
    fn is_newer_than(&self, other: &Self) -> bool {
        let number = |present: &Self| present.version.as_ref().and_then(|v| v.parse::<u64>().ok());
        self.uid == other.uid && number(self).zip(number(other)).is_some_and(|(a, b)| a > b)
    }
}

impl Revisions {
    /// Those whose agents belong on the node.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        [self.active.as_str()]
            .into_iter()
            .chain(self.standby.as_deref())
    }

    /// The same, for the core.
    pub fn view(&self) -> Named<'_> {
        Named {
            active: &self.active,
            standby: self.standby.as_deref(),
            baseline: self.baseline.as_deref(),
        }
    }
}

/// What became of an object that was read.
enum Read {
    /// It is this.
    Present(Box<Present>),
    /// It belongs to another config of the same name, which is being cleaned up.
    Foreign,
    /// Its spec cannot be understood: what was known before is the best there is.
    Garbled(serde_json::Error),
}

fn understood(object: Loose, config_uid: &str) -> Read {
    let metadata = object.metadata;
    let owners = metadata.owner_references.unwrap_or_default();
    let is_ours = |owner: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
        owner.controller == Some(true) && owner.uid == config_uid
    };
    if !owners.iter().any(|owner| is_ours(&owner)) {
        return Read::Foreign;
    }
    let spec: DevicePluginNodeSpec = match serde_json::from_value(object.spec) {
        Ok(spec) => spec,
        Err(error) => return Read::Garbled(error),
    };
    let status = object.status.unwrap_or_default();
    let baseline = spec.baseline;
    let resources = baseline.iter().flat_map(|baseline| &baseline.resources);
    Read::Present(Box::new(Present {
        uid: metadata.uid,
        version: metadata.resource_version,
        status: serde_json::from_value(status).unwrap_or_default(),
        generation: metadata.generation,
        baseline_resources: resources.map(|resource| resource.name.clone()).collect(),
        named: Revisions {
            active: spec.active,
            standby: spec.standby,
            baseline: baseline.map(|baseline| baseline.revision),
        },
        log_level: spec.log_level.unwrap_or_default(),
    }))
}

/// Watches the object until something fails. A watch that failed is never used again: it has been seen
/// to hang for ever.
///
/// # Errors
/// Always, sooner or later.
pub async fn watch(
    api: Api<Loose>,
    name: &str,
    config_uid: &str,
    first_answer: Duration,
    seen: &watch::Sender<ObjectSeen>,
) -> anyhow::Error {
    // Its list leaves out resourceVersion: a quorum read.
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
            Some(Ok(Event::InitApply(object))) => listed = Some(object),
            Some(Ok(Event::InitDone)) => {
                answered = true;
                show(seen, Told::List(listed.take()), config_uid);
            }
            Some(Ok(Event::Apply(object))) => show(seen, Told::Object(object), config_uid),
            Some(Ok(Event::Delete(_))) => show(seen, Told::List(None), config_uid),
            Some(Err(error)) => return error.into(),
            None => return anyhow::anyhow!("the watch ended"),
        }
    }
}

/// What the API server told.
pub enum Told {
    /// Everything there is: it counts also where versions began anew.
    List(Option<Loose>),
    /// One version of the object.
    Object(Loose),
}

/// Shows the object as it is now.
pub fn show(seen: &watch::Sender<ObjectSeen>, told: Told, config_uid: &str) {
    let (object, may_be_late) = match told {
        Told::List(object) => (object, false),
        Told::Object(object) => (Some(object), true),
    };
    let object = match object.map(|object| understood(object, config_uid)) {
        None => None,
        Some(Read::Present(present)) => Some(Arc::new(*present)),
        Some(Read::Foreign) => {
            tracing::warn!("the node's object belongs to another config of this name: ignoring it");
            None
        }
        Some(Read::Garbled(error)) => {
            let error = chained(&error);
            tracing::warn!(error, "the node's object cannot be understood: ignoring it");
            return;
        }
    };
    seen.send_if_modified(|seen| {
        let known = seen.object.as_ref();
        if let (Some(known), Some(object)) = (known, &object)
            && may_be_late
            && known.is_newer_than(object)
        {
            return false;
        }
        let now = ObjectSeen {
            answered: true,
            object,
        };
        let changed = *seen != now;
        *seen = now;
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(spec: &Value, status: &Value) -> Loose {
        serde_json::from_value(json!({
            "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginNode",
            "metadata": { "name": "fuse.n1", "resourceVersion": "7", "ownerReferences": [
                { "apiVersion": "v1", "kind": "Other", "name": "x", "uid": "u2" },
                { "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
                  "name": "fuse", "uid": "u1", "controller": true } ] },
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn spec() -> Value {
        json!({ "configName": "fuse", "nodeName": "n1", "nodeUID": "n", "active": "new",
            "standby": "old", "baseline": { "takenAt": "2026-01-01T00:00:00Z", "revision": "old",
                "resources": [{ "name": "a.com/x", "healthy": 3 }] } })
    }

    #[test]
    fn an_object_names_revisions() {
        let (seen, _) = watch::channel(ObjectSeen::default());
        assert_eq!(seen.borrow().view(), ObjectView::Unknown);
        show(&seen, Told::Object(object(&spec(), &json!({}))), "u1");
        let named = Named {
            active: "new",
            standby: Some("old"),
            baseline: Some("old"),
        };
        assert_eq!(seen.borrow().view(), ObjectView::Present(named));
        let present = seen.borrow().object.clone().unwrap();
        assert_eq!(present.version.as_deref(), Some("7"));
        assert!(present.baseline_resources.contains("a.com/x"));
        show(&seen, Told::List(None), "u1");
        assert_eq!(seen.borrow().view(), ObjectView::Absent);
    }

    /// A config that was deleted and made again under its name: its objects are still being removed.
    #[test]
    fn an_object_of_another_config_is_none() {
        let (seen, _) = watch::channel(ObjectSeen::default());
        for uid in ["u2", "u3"] {
            show(&seen, Told::Object(object(&spec(), &json!({}))), uid);
            assert_eq!(seen.borrow().view(), ObjectView::Absent, "{uid}");
        }
    }

    /// The answer to a write overtakes the watch.
    #[test]
    fn an_older_version_does_not_come_back() {
        let (seen, _) = watch::channel(ObjectSeen::default());
        let version = |number: &str, active: &str| {
            let mut spec = spec();
            spec["active"] = json!(active);
            let mut object = object(&spec, &json!({}));
            object.metadata.resource_version = Some(number.to_owned());
            object
        };
        let active = || seen.borrow().object.as_ref().unwrap().named.active.clone();
        for (number, sent, expected) in [("9", "a", "a"), ("10", "b", "b"), ("9", "a", "b")] {
            show(&seen, Told::Object(version(number, sent)), "u1");
            assert_eq!(active(), expected);
        }
        show(&seen, Told::List(Some(version("3", "c"))), "u1");
        assert_eq!(active(), "c", "a list is the truth");
    }

    #[test]
    fn garbage_in_status_is_an_empty_one_and_in_spec_changes_nothing() {
        let (seen, _) = watch::channel(ObjectSeen::default());
        let garbage = json!({ "active": 7, "conditions": "none" });
        show(&seen, Told::Object(object(&spec(), &garbage)), "u1");
        let before = seen.borrow().clone();
        let status = before.object.as_ref().map(|object| object.status.clone());
        assert_eq!(status, Some(DevicePluginNodeStatus::default()));
        show(
            &seen,
            Told::Object(object(&json!({ "active": 1 }), &json!({}))),
            "u1",
        );
        assert_eq!(*seen.borrow(), before);
        let (fresh, _) = watch::channel(ObjectSeen::default());
        show(&fresh, Told::Object(object(&json!([]), &json!({}))), "u1");
        assert_eq!(fresh.borrow().view(), ObjectView::Unknown);
    }
}
