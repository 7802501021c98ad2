//! The DaemonSet controller: node affinity and taints, a pod per node, no order between DaemonSets.

use std::collections::BTreeSet;

use crds::names::agent_env::INITIAL_ROLE;
use crds::names::{CONFIG_LABEL, REVISION_LABEL};
use operator_core::seen::{Identity, SeenDaemonSet, SeenNode, SeenPod, Taint};
use serde_json::Value;

use crate::event::Event;
use crate::random::{ms, secs};
use crate::story::tell;
use crate::world::World;

const TERMS: &str =
    "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";

impl World {
    /// Has every DaemonSet looked at soon.
    pub(crate) fn wake_daemon_sets(&mut self) {
        if self.daemon_sets_are_due {
            return;
        }
        self.daemon_sets_are_due = true;
        let wait = match self.script.slow_daemon_sets {
            Some((from, until)) if from <= self.now && self.now < until => {
                until.saturating_sub(self.now)
            }
            _ => self.random.between(ms(20), self.script.daemon_set_lag),
        };
        self.after(wait, Event::DaemonSets);
    }

    fn wake_daemon_sets_after(&mut self, wait: std::time::Duration) {
        self.daemon_sets_are_due = true;
        self.after(wait, Event::DaemonSets);
    }

    /// The controller looks at everything.
    pub(crate) fn sync_daemon_sets(&mut self) {
        self.daemon_sets_are_due = false;
        if self.api_is_down() {
            return self.wake_daemon_sets_after(secs(2));
        }
        let sets: Vec<_> = self.api.daemon_sets.objects.values().cloned().collect();
        let uids: BTreeSet<_> = sets.iter().map(|set| set.id.uid.clone()).collect();
        let pods: Vec<_> = self.api.pods.objects.values().cloned().collect();
        for pod in &pods {
            let owner = self.api.owners.get(&pod.id.uid);
            let is_orphan = owner.is_none_or(|owner| !uids.contains(owner));
            if !self.api.nodes.objects.contains_key(&pod.node) {
                // The pod garbage collector deletes pods of nodes that are gone.
                let _ = self.api.remove::<SeenPod>(&pod.id);
            } else if is_orphan {
                self.delete_pod(&pod.id);
            }
        }
        for set in sets.iter().filter(|set| !set.deleting) {
            self.sync_daemon_set(set, &pods);
        }
    }

    fn sync_daemon_set(&mut self, set: &SeenDaemonSet, pods: &[std::sync::Arc<SeenPod>]) {
        if !set.is_observed {
            self.api
                .alter::<SeenDaemonSet>(&set.id.name, |set| set.is_observed = true);
        }
        let own: Vec<_> = pods
            .iter()
            .filter(|pod| self.api.owners.get(&pod.id.uid) == Some(&set.id.uid))
            .collect();
        let nodes: Vec<_> = self.api.nodes.objects.values().cloned().collect();
        for node in nodes {
            let mut here = own.iter().filter(|pod| pod.node == node.id.name).peekable();
            if !admits(&set.template, &node) {
                for pod in here.filter(|pod| !pod.deleting) {
                    tell!(self, node.id.name, "{} no longer belongs here", pod.id.name);
                    self.delete_pod(&pod.id);
                }
            } else if here.peek().is_none() {
                self.create_pod(set, &node);
            }
        }
    }

    fn create_pod(&mut self, set: &SeenDaemonSet, node: &SeenNode) {
        let label = |key: &str| {
            let labels = set.template.pointer("/metadata/labels");
            let value = labels.and_then(|labels| labels.get(key));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let number = self.api.version();
        let pod = SeenPod {
            id: Identity {
                name: format!("{}-{}-{number}", set.id.name, node.id.name),
                ..Identity::default()
            },
            config: label(CONFIG_LABEL),
            revision: label(REVISION_LABEL),
            of_daemon_set: true,
            node: node.id.name.clone(),
            phase: "Pending".to_owned(),
            created: Some(self.wall()),
            ..SeenPod::default()
        };
        tell!(
            self,
            node.id.name,
            "a pod of {} is made",
            self.nick(&pod.revision)
        );
        let name = pod.id.name.clone();
        if let Ok(pod) = self.api.create(pod) {
            let active = is_initially_active(&set.template);
            self.initially_active.insert(name, active);
            self.api
                .owners
                .insert(pod.id.uid.clone(), set.id.uid.clone());
        }
    }

    /// Deletes a pod as the API server does: its kubelet stops it first.
    pub(crate) fn delete_pod(&mut self, on: &Identity) {
        self.api.alter::<SeenPod>(&on.name, |pod| {
            if pod.id.uid == on.uid {
                pod.deleting = true;
            }
        });
    }

    /// How long a pod without a kubelet that could stop it stays.
    pub(crate) fn collect_garbage_soon(&mut self) {
        let wait = self.random.between(secs(1), secs(20));
        self.after(wait, Event::DaemonSets);
    }
}

fn is_initially_active(template: &Value) -> bool {
    let env = template.pointer("/spec/containers/0/env");
    let env = env.and_then(Value::as_array).into_iter().flatten();
    let mut roles = env.filter(|one| one.get("name").and_then(Value::as_str) == Some(INITIAL_ROLE));
    let role = roles.next().and_then(|one| one.get("value"));
    role.and_then(Value::as_str) != Some("Standby")
}

/// Whether a DaemonSet's pod belongs on a node.
pub fn admits(template: &Value, node: &SeenNode) -> bool {
    let terms = template.pointer(TERMS).and_then(Value::as_array);
    let terms = terms.map(Vec::as_slice).unwrap_or_default();
    let has_term = |term: &Value| {
        let expressions = term.get("matchExpressions").and_then(Value::as_array);
        let expressions = expressions.map(Vec::as_slice).unwrap_or_default();
        !expressions.is_empty() && expressions.iter().all(|one| holds(one, node))
    };
    let tolerations = template.pointer("/spec/tolerations");
    let tolerations = tolerations.and_then(Value::as_array);
    let tolerations = tolerations.map(Vec::as_slice).unwrap_or_default();
    let mut hard = node
        .taints
        .iter()
        .filter(|one| one.effect != "PreferNoSchedule");
    terms.iter().any(has_term)
        && hard.all(|taint| tolerations.iter().any(|one| tolerates(one, taint)))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn holds(expression: &Value, node: &SeenNode) -> bool {
    let value = node.labels.get(text(expression, "key"));
    let values = expression.get("values").and_then(Value::as_array);
    let mut values = values.into_iter().flatten();
    let is_among = value.is_some_and(|value| values.any(|one| one.as_str() == Some(value)));
    match text(expression, "operator") {
        "In" => is_among,
        "NotIn" => !is_among,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

fn tolerates(toleration: &Value, taint: &Taint) -> bool {
    let (key, effect) = (text(toleration, "key"), text(toleration, "effect"));
    (key.is_empty() || key == taint.key)
        && (effect.is_empty() || effect == taint.effect)
        && (text(toleration, "operator") == "Exists" || text(toleration, "value") == taint.value)
}
