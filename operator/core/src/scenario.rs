//! A tiny cluster to plan on: it takes the planner's writes, plays the DaemonSet controller and
//! agents, and writes down what happened.

mod change;
mod deletion;
mod installation;
mod laws;
mod play;
mod pools;
mod rollout;
mod selection;
mod troubles;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::names::{FAILED_ANNOTATION, PROMOTED_ANNOTATION};
use crds::{DevicePluginConfig, DevicePluginNode, DevicePluginPool};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::action::{Kind, Write};
use crate::audit::audit;
use crate::ledger::SeenLedger;
use crate::plan::{Plan, plan};
use crate::rollout::settings;
use crate::seen::{Identity, SeenDaemonSet, SeenNode, SeenPod, SeenRevision};
use crate::settings::Settings;
use crate::snapshot::Snapshot;

/// A config with one resource on every Linux node.
pub const FUSE: &str = "
nodeSelector: {matchLabels: {kubernetes.io/os: linux}}
resources:
- name: example.com/fuse
  discovery: {paths: {globs: [/dev/fuse]}}
";

/// Most passes that any end needs: finalizer, revision, its objects, node objects, labels, and the
/// pass that finds nothing to do; the same again for what the agents then report.
const PASSES_MAX: usize = 40;

/// Longest change that is played, in seconds.
const ROLL_MAX: usize = 3_000;

/// A cluster.
pub struct World {
    pub seen: Snapshot,
    versions: u64,
    /// Nodes whose agents do nothing.
    pub silent: Vec<String>,
    /// Nodes that cannot pull the image of a revision.
    pub cannot_pull: Vec<(String, String)>,
    /// Revisions whose agents never register.
    pub deaf: Vec<String>,
    /// Revisions whose agents register, and the kubelet does not list what they send.
    pub unheard: Vec<String>,
    /// How many devices the agents of a revision find, where it is not one.
    pub healthy: BTreeMap<String, i32>,
}

impl World {
    pub fn new() -> Self {
        let settings = Settings {
            namespace: "device-plugin-system".to_owned(),
            agent_image: "registry.example.com/agent:1".to_owned(),
            agent_service_account: "device-plugin-agent".to_owned(),
            device_plugin_dir: "/var/lib/kubelet/device-plugins".to_owned(),
            kubelet_root_dir: "/var/lib/kubelet".to_owned(),
            node_status_period: std::time::Duration::from_secs(10),
        };
        let noon = "2026-11-21T12:00:00Z".parse().unwrap();
        Self {
            seen: Snapshot::empty(Arc::new(settings), noon),
            versions: 0,
            silent: Vec::new(),
            cannot_pull: Vec::new(),
            deaf: Vec::new(),
            unheard: Vec::new(),
            healthy: BTreeMap::new(),
        }
    }

    /// A cluster of Linux nodes with the config `fuse`, not yet planned on.
    pub fn with_fuse(nodes: &[&str]) -> Self {
        let mut world = Self::new();
        for node in nodes {
            world.add_node(node, &[("kubernetes.io/os", "linux")]);
        }
        world.add_config("fuse", FUSE);
        world
    }

    pub fn add_node(&mut self, name: &str, labels: &[(&str, &str)]) {
        let node = SeenNode {
            id: self.identity(name),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ready: true,
            ready_since: Some(self.seen.now),
            ..SeenNode::default()
        };
        self.seen.nodes.insert(name.to_owned(), Arc::new(node));
    }

    pub fn change_node(&mut self, name: &str, change: impl FnOnce(&mut SeenNode)) {
        let version = self.version();
        let node = Arc::make_mut(self.seen.nodes.get_mut(name).unwrap());
        change(node);
        node.id.version = version;
    }

    pub fn add_config(&mut self, name: &str, spec: &str) {
        let mut config = DevicePluginConfig::new(name, serde_yaml::from_str(spec).unwrap());
        config.metadata = self.metadata(name);
        self.seen.configs.insert(name.to_owned(), Arc::new(config));
    }

    pub fn change_config(&mut self, name: &str, change: impl FnOnce(&mut DevicePluginConfig)) {
        let version = self.version();
        let config = Arc::make_mut(self.seen.configs.get_mut(name).unwrap());
        let before = config.spec.clone();
        change(config);
        config.metadata.resource_version = Some(version);
        if config.spec != before {
            config.metadata.generation = config.metadata.generation.map(|one| one + 1);
        }
    }

    pub fn add_pool(&mut self, name: &str, labels: &[(&str, &str)], spec: &str) {
        let mut pool = DevicePluginPool::new(name, serde_yaml::from_str(spec).unwrap());
        pool.metadata = self.metadata(name);
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        pool.metadata.labels = Some(labels.collect());
        self.seen.pools.insert(name.to_owned(), Arc::new(pool));
    }

    pub fn delete_config(&mut self, name: &str) {
        let now = Time(self.seen.now);
        self.change_config(name, |config| {
            config.metadata.deletion_timestamp = Some(now);
        });
        let mut finalizers = self.config(name).metadata.finalizers.iter().flatten();
        if finalizers.next().is_none() {
            self.seen.configs.remove(name);
        }
    }

    pub fn change_object(&mut self, name: &str, change: impl FnOnce(&mut DevicePluginNode)) {
        let version = self.version();
        let object = Arc::make_mut(self.seen.node_objects.get_mut(name).unwrap());
        change(object);
        object.metadata.resource_version = Some(version);
    }

    pub fn change_pod_on(&mut self, node: &str, change: impl FnOnce(&mut SeenPod)) {
        let version = self.version();
        let mut pods = self.seen.pods.values_mut();
        let pod = Arc::make_mut(pods.find(|pod| pod.node == node && !pod.deleting).unwrap());
        change(pod);
        pod.id.version = version;
    }

    pub fn wait(&mut self, seconds: i64) {
        self.seen.now += SignedDuration::from_secs(seconds);
        self.seen.watched += Duration::from_secs(seconds.unsigned_abs());
    }

    /// The claims, `node Phase` each.
    pub fn claims(&self) -> Vec<String> {
        let claims = self
            .seen
            .ledger
            .ledger()
            .map(|ledger| ledger.claims.clone());
        let claims = claims.unwrap_or_default().into_iter();
        claims
            .map(|claim| format!("{} {}", claim.node, claim.phase.as_str()))
            .collect()
    }

    /// Plays until nothing happens and no clock of a claim runs, second by second; what was written.
    pub fn roll(&mut self) -> Vec<String> {
        self.roll_until(|world| {
            let mut configs = world.seen.configs.values();
            let is_paused = configs.any(|config| settings::is_paused(config));
            let is_waiting = |claim: &String| {
                claim.ends_with(" Quarantined") || is_paused && claim.ends_with(" Staged")
            };
            world.claims().iter().all(is_waiting)
        })
    }

    /// Plays second by second until then.
    pub fn roll_until(&mut self, is_there: impl Fn(&Self) -> bool) -> Vec<String> {
        let mut story = self.settle();
        for _ in 0..ROLL_MAX {
            if is_there(self) {
                return story;
            }
            self.wait(1);
            story.extend(self.settle());
        }
        panic!("it never comes: {story:#?}, {:?}", self.claims());
    }

    pub fn config(&self, name: &str) -> &DevicePluginConfig {
        &self.seen.configs[name]
    }

    pub fn revision(&self, config: &str) -> String {
        let mut own = self
            .seen
            .revisions
            .values()
            .filter(|one| one.config == config);
        own.next().unwrap().revision.clone()
    }

    pub fn summary(&self, config: &str) -> String {
        self.config(config).status.clone().unwrap().summary
    }

    pub fn condition(&self, config: &str, type_: &str) -> Condition {
        let status = self.config(config).status.clone().unwrap();
        status
            .conditions
            .into_iter()
            .find(|one| one.type_ == type_)
            .unwrap()
    }

    /// `Accepted=True/Accepted Ready=False/… …`.
    pub fn conditions(&self, config: &str) -> String {
        let status = self.config(config).status.clone().unwrap();
        let words = status.conditions.iter();
        let words: Vec<_> = words
            .map(|one| format!("{}={}/{}", one.type_, one.status, one.reason))
            .collect();
        words.join(" ")
    }

    /// `desired updated pending ready failed skipped unreachable`.
    pub fn counts(&self, config: &str) -> [i32; 7] {
        let nodes = self.config(config).status.clone().unwrap().nodes;
        let parts = nodes.updated
            + nodes.pending
            + nodes.in_flight
            + nodes.failed
            + nodes.rolled_back
            + nodes.skipped
            + nodes.unreachable;
        assert_eq!(nodes.desired, parts, "counts are a partition: {nodes:?}");
        [
            nodes.desired,
            nodes.updated,
            nodes.pending,
            nodes.ready,
            nodes.failed,
            nodes.skipped,
            nodes.unreachable,
        ]
    }

    /// One plan, audited, and everything it writes; what was written, a line for each.
    pub fn pass(&mut self) -> Vec<String> {
        let plan = plan(&self.seen);
        assert_eq!(
            plan,
            crate::plan::plan(&self.seen),
            "equal snapshots give equal plans"
        );
        let violations = audit(&self.seen, &plan);
        assert!(violations.is_empty(), "{violations:?}");
        self.apply(&plan)
    }

    /// Plans and plays until nothing happens any more; what was written.
    pub fn settle(&mut self) -> Vec<String> {
        let mut story = Vec::new();
        for _ in 0..PASSES_MAX {
            let written = self.pass();
            let played = self.play();
            if written.is_empty() && !played {
                return story;
            }
            story.extend(written);
        }
        panic!("the plan does not converge: {story:#?}");
    }

    fn apply(&mut self, plan: &Plan) -> Vec<String> {
        let mut story = Vec::new();
        assert!(!plan.deposed, "there is one leader");
        if let Some(write) = &plan.ledger {
            let version = self.version();
            let on = match &self.seen.ledger {
                SeenLedger::Present { on, .. } => on.clone(),
                SeenLedger::Absent => self.identity(crds::names::LEDGER),
            };
            self.seen.ledger = SeenLedger::Present {
                on: Identity { version, ..on },
                content: Ok(write.ledger.clone()),
            };
            self.seen.watched = Duration::ZERO;
            let claims = self.claims();
            story.push(
                format!("ledger: {}", claims.join(", "))
                    .trim_end()
                    .to_owned(),
            );
        }
        for action in &plan.actions {
            self.write(&action.write);
            let (verb, kind) = (action.write.verb().as_str(), action.write.kind().as_str());
            let detail = match &action.write {
                Write::LabelNode { labels, .. } => labels
                    .values()
                    .map(|value| format!(" {}", value.as_deref().unwrap_or("-")))
                    .collect(),
                Write::PatchNodeObject { spec, .. } => match &spec.unmatched_since {
                    Some(since) => format!(" unmatched since {}", crate::messages::time(since.0)),
                    None => match &spec.standby {
                        Some(standby) => format!(" {} beside {standby}", spec.active),
                        None => " matched".to_owned(),
                    },
                },
                _ => String::new(),
            };
            story.push(format!("{verb} {kind} {}{detail}", action.write.name()));
        }
        for status in plan.configs.iter().filter(|status| status.changed) {
            let version = self.version();
            let Some(config) = self.seen.configs.get_mut(&status.on.name) else {
                continue;
            };
            let config = Arc::make_mut(config);
            config.status = Some(status.status.clone());
            config.metadata.resource_version = Some(version);
            story.push(format!("status {}", status.on.name));
        }
        for status in &plan.pools {
            let version = self.version();
            let pool = Arc::make_mut(self.seen.pools.get_mut(&status.on.name).unwrap());
            pool.status = Some(status.status.clone());
            pool.metadata.resource_version = Some(version);
            story.push(format!("status of pool {}", status.on.name));
        }
        story
    }

    fn write(&mut self, write: &Write) {
        match write {
            Write::SetFinalizers { on, finalizers } => {
                let finalizers = finalizers.clone();
                self.change_config(&on.name, |config| {
                    config.metadata.finalizers = Some(finalizers);
                });
                let metadata = &self.config(&on.name).metadata;
                if metadata.deletion_timestamp.is_some() && metadata.finalizers == Some(Vec::new())
                {
                    self.seen.configs.remove(&on.name);
                }
            }
            Write::CreateRevision { name, object } => {
                let object: ControllerRevision = self.made(object);
                self.seen
                    .revisions
                    .insert(name.clone(), Arc::new(SeenRevision::from(object)));
            }
            Write::CreateConfigMap { name, object } => {
                let object: ConfigMap = self.made(object);
                self.seen
                    .config_maps
                    .insert(name.clone(), Arc::new(object.into()));
            }
            Write::CreateDaemonSet { name, object } => {
                let object: DaemonSet = self.made(object);
                let mut set = SeenDaemonSet::from(object);
                set.is_observed = true;
                self.seen.daemon_sets.insert(name.clone(), Arc::new(set));
            }
            Write::PatchDaemonSet { on, template } => {
                let version = self.version();
                let set = Arc::make_mut(self.seen.daemon_sets.get_mut(&on.name).unwrap());
                set.template = template.clone();
                set.on_delete = true;
                set.id.version = version;
            }
            Write::CreateNodeObject { object } => {
                let object: DevicePluginNode = self.made(&serde_json::to_value(object).unwrap());
                let name = object.metadata.name.clone().unwrap();
                self.seen.node_objects.insert(name, Arc::new(object));
            }
            Write::PatchNodeObject { on, spec } => {
                let spec = (**spec).clone();
                self.change_object(&on.name, |object| object.spec = spec);
            }
            Write::LabelNode { on, labels } => {
                let labels = labels.clone();
                self.change_node(&on.name, |node| {
                    for (key, value) in labels {
                        match value {
                            Some(value) => drop(node.labels.insert(key, value)),
                            None => drop(node.labels.remove(&key)),
                        }
                    }
                });
            }
            Write::AnnotateRevision { on, annotations } => {
                let version = self.version();
                let revision = Arc::make_mut(self.seen.revisions.get_mut(&on.name).unwrap());
                revision.failed = annotations.get(FAILED_ANNOTATION).cloned();
                let promoted = annotations.get(PROMOTED_ANNOTATION);
                revision.promoted = promoted.map(|n| n.parse().unwrap()).or(revision.promoted);
                revision.id.version = version;
            }
            Write::LabelPool { on, key } => {
                let pool = Arc::make_mut(self.seen.pools.get_mut(&on.name).unwrap());
                let labels = pool.metadata.labels.get_or_insert_default();
                labels.insert(key.clone(), String::new());
            }
            Write::Delete { kind, on } => self.delete(*kind, on),
        }
    }

    fn delete(&mut self, kind: Kind, on: &Identity) {
        let name = &on.name;
        let found = match kind {
            Kind::NodeObject => self.seen.node_objects.remove(name).is_some(),
            Kind::Revision => self.seen.revisions.remove(name).is_some(),
            Kind::ConfigMap => self.seen.config_maps.remove(name).is_some(),
            Kind::DaemonSet => self.seen.daemon_sets.remove(name).is_some(),
            Kind::Pod => self.seen.pods.remove(name).is_some(),
            Kind::Config | Kind::Pool | Kind::Node => panic!("{kind:?} is never deleted"),
        };
        assert!(found, "{kind:?} {name:?} is deleted although it is gone");
    }

    /// The object as the API server would keep it.
    fn made<K: DeserializeOwned>(&mut self, object: &Value) -> K {
        let mut object = object.clone();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let id = self.identity(&name);
        object["metadata"]["uid"] = id.uid.into();
        object["metadata"]["resourceVersion"] = id.version.into();
        serde_json::from_value(object).unwrap()
    }

    fn identity(&mut self, name: &str) -> Identity {
        let version = self.version();
        Identity {
            name: name.to_owned(),
            uid: format!("uid-{name}-{version}"),
            version,
        }
    }

    fn version(&mut self) -> String {
        self.versions += 1;
        self.versions.to_string()
    }

    fn metadata(&mut self, name: &str) -> ObjectMeta {
        let id = self.identity(name);
        ObjectMeta {
            name: Some(id.name),
            uid: Some(id.uid),
            resource_version: Some(id.version),
            generation: Some(1),
            ..ObjectMeta::default()
        }
    }
}

/// The time of a wall clock on the scenario's day.
pub fn at(clock: &str) -> Timestamp {
    format!("2026-11-21T{clock}Z").parse().unwrap()
}
