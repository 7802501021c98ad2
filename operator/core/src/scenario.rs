//! A tiny cluster to plan on: it takes the planner's writes, plays the DaemonSet controller and
//! agents, and writes down what happened.

mod change;
mod deletion;
mod installation;
mod laws;
mod pools;
mod rollout;
mod selection;
mod troubles;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::names::{
    CONFIG_LABEL, FAILED_ANNOTATION, PROMOTED_ANNOTATION, REVISION_LABEL, node_object,
};
use crds::node::{
    AgentReport, KubeletList, Preflight, ResourceReport, StandbyReport, StandbyResource,
};
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
use crate::seen::{Identity, SeenDaemonSet, SeenNode, SeenPod, SeenRevision, Trouble};
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

    /// The DaemonSet controller and the agents; whether they did anything.
    pub fn play(&mut self) -> bool {
        let made = self.play_daemon_sets();
        self.play_agents() || made
    }

    fn play_daemon_sets(&mut self) -> bool {
        let sets: Vec<_> = self.seen.daemon_sets.values().cloned().collect();
        let wanted = |pod: &SeenPod, nodes: &BTreeMap<String, Arc<SeenNode>>| {
            let set = sets
                .iter()
                .find(|set| set.config == pod.config && set.revision == pod.revision);
            set.zip(nodes.get(&pod.node))
                .is_some_and(|(set, node)| admits(&set.template, node))
        };
        let before = self.seen.pods.len();
        let nodes = self.seen.nodes.clone();
        self.seen.pods.retain(|_, pod| wanted(pod, &nodes));
        let mut changed = self.seen.pods.len() != before;
        for set in &sets {
            for node in nodes.values().filter(|node| admits(&set.template, node)) {
                let name = format!("{}-{}", set.id.name, node.id.name);
                if self.seen.pods.contains_key(&name) {
                    continue;
                }
                let labels = &set.template["metadata"]["labels"];
                let cannot = |(on, revision): &(String, String)| {
                    *on == node.id.name && *revision == set.revision
                };
                let trouble = self.cannot_pull.iter().any(cannot).then(|| Trouble {
                    reason: "ImagePullBackOff".to_owned(),
                    message: "not found".to_owned(),
                    fatal: true,
                });
                let pod = SeenPod {
                    id: self.identity(&name),
                    config: labels[CONFIG_LABEL].as_str().unwrap().to_owned(),
                    revision: labels[REVISION_LABEL].as_str().unwrap().to_owned(),
                    of_daemon_set: true,
                    node: node.id.name.clone(),
                    phase: "Pending".to_owned(),
                    created: Some(self.seen.now),
                    trouble,
                    ..SeenPod::default()
                };
                self.seen.pods.insert(name, Arc::new(pod));
                changed = true;
            }
        }
        changed
    }

    /// Every agent that does not fail becomes Ready and reports one healthy device per resource, in
    /// the role that its node's object gives it.
    fn play_agents(&mut self) -> bool {
        let pods = self.seen.pods.values().filter(|pod| pod.trouble.is_none());
        let pods = pods.filter(|pod| !self.silent.contains(&pod.node));
        let pods: Vec<_> = pods.cloned().collect();
        let mut changed = false;
        for pod in &pods {
            let object = node_object(&pod.config, &pod.node);
            let name = format!("{}-{}", pod.config, pod.revision);
            let Some(revision) = self.seen.revisions.get(&name).cloned() else {
                continue;
            };
            let Some(present) = self.seen.node_objects.get(&object) else {
                continue;
            };
            let spec = present.spec.clone();
            let mut status = present.status.clone().unwrap_or_default();
            let healthy = self.healthy.get(&pod.revision).copied().unwrap_or(1);
            let is_deaf = self.deaf.contains(&pod.revision);
            let is_told = status.active.as_ref().is_some_and(|active| {
                let is_as_before = !self.healthy.contains_key(&pod.revision)
                    || active.resources.iter().all(|one| one.healthy == healthy);
                active.pod_uid == pod.id.uid && is_as_before
            });
            if spec.active == pod.revision && !is_deaf && !is_told {
                status.active = Some(self.active_report(pod, &revision.resources, healthy));
                self.offer(&pod.node, &revision.resources, healthy);
            }
            if spec.standby.as_ref() == Some(&pod.revision) {
                status.standby = Some(standby_report(pod, &revision.resources, healthy));
            }
            if spec.standby.is_none() {
                status.standby = None;
            }
            if !pod.ready {
                let seen = Arc::make_mut(self.seen.pods.get_mut(&pod.id.name).unwrap());
                seen.ready = true;
                seen.phase = "Running".to_owned();
                changed = true;
            }
            if self.seen.node_objects[&object].status.as_ref() != Some(&status) {
                self.change_object(&object, |object| object.status = Some(status));
                changed = true;
            }
        }
        changed
    }

    /// The kubelet tells the API server at once.
    fn offer(&mut self, node: &str, resources: &[String], healthy: i32) {
        let offered: BTreeMap<_, _> = resources
            .iter()
            .map(|name| (name.clone(), i64::from(healthy)))
            .collect();
        let present = &self.seen.nodes[node].allocatable;
        if offered
            .iter()
            .any(|(name, count)| present.get(name) != Some(count))
        {
            self.change_node(node, |node| node.allocatable.extend(offered));
        }
    }

    fn active_report(&self, pod: &SeenPod, resources: &[String], healthy: i32) -> AgentReport {
        let matches = !self.unheard.contains(&pod.revision);
        let resources: Vec<_> = resources
            .iter()
            .map(|name| ResourceReport {
                name: name.clone(),
                registered: true,
                registrations: 1,
                total: healthy,
                healthy,
                kubelet: Some(KubeletList {
                    devices: if matches { healthy } else { 0 },
                    matches,
                    since: Time(at("12:00:00")),
                    read_after_stream: true,
                }),
                ..ResourceReport::default()
            })
            .collect();
        AgentReport {
            revision: pod.revision.clone(),
            pod_uid: pod.id.uid.clone(),
            resources,
            ..AgentReport::default()
        }
    }
}

fn standby_report(pod: &SeenPod, resources: &[String], healthy: i32) -> StandbyReport {
    let resources = resources.iter().map(|name| StandbyResource {
        name: name.clone(),
        total: healthy,
        healthy,
        missing_allocated: 0,
    });
    StandbyReport {
        revision: pod.revision.clone(),
        pod_uid: pod.id.uid.clone(),
        preflight: Preflight {
            ok: true,
            reasons: Vec::new(),
        },
        resources: resources.collect(),
        ..StandbyReport::default()
    }
}

/// Node affinity and taints as the DaemonSet controller reads them.
fn admits(template: &Value, node: &SeenNode) -> bool {
    let terms = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = template.pointer(terms).and_then(Value::as_array).unwrap();
    let holds = |expression: &Value| {
        let value = node.labels.get(expression["key"].as_str().unwrap());
        let values: Vec<_> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        let among = value.is_some_and(|value| values.iter().any(|one| *one == value));
        match expression["operator"].as_str().unwrap() {
            "In" => among,
            "NotIn" => !among,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => panic!("{other:?}"),
        }
    };
    let has_term = |term: &Value| {
        term["matchExpressions"]
            .as_array()
            .unwrap()
            .iter()
            .all(holds)
    };
    let hard = node
        .taints
        .iter()
        .filter(|taint| taint.effect != "PreferNoSchedule");
    let tolerations = template["spec"]["tolerations"].as_array().unwrap();
    let is_tolerated = |taint: &crate::seen::Taint| {
        tolerations.iter().any(|one| {
            (one["key"].is_null() || one["key"] == *taint.key)
                && (one["effect"].is_null() || one["effect"] == *taint.effect)
                && (one["operator"] == "Exists"
                    || one["value"].as_str().unwrap_or_default() == taint.value)
        })
    };
    terms.iter().any(has_term) && hard.into_iter().all(is_tolerated)
}

/// The time of a wall clock on the scenario's day.
pub fn at(clock: &str) -> Timestamp {
    format!("2026-11-21T{clock}Z").parse().unwrap()
}
