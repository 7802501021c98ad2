//! What others do in the cluster: the DaemonSet controller, the kubelet and the agents.

use std::collections::BTreeMap;
use std::sync::Arc;

use crds::names::{CONFIG_LABEL, REVISION_LABEL, node_object};
use crds::node::{
    AgentReport, KubeletList, Preflight, ResourceReport, StandbyReport, StandbyResource,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use super::{World, at};
use crate::seen::{SeenNode, SeenPod, Trouble};

impl World {
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
