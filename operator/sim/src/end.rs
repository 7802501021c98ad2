//! What must be so in the end, when nothing goes wrong any more.

use std::time::Duration;

use crds::DevicePluginConfig;
use crds::conditions::ConfigCondition;
use crds::names::{node_object, node_revision_label, node_stage_label, revision_object};
use operator_core::ledger::Phase;
use operator_core::revision::{agent_image, revision};
use operator_core::seen::SeenNode;

use crate::behaviour::Behaviour;
use crate::host::Host;
use crate::random::secs;
use crate::world::World;

/// How long nobody may have written anything before a cluster counts as quiet: longer than the
/// longest rest between two passes.
const QUIET: Duration = secs(65);

impl World {
    /// Whether nobody has written anything for a while.
    pub fn is_quiet(&self) -> bool {
        self.now.saturating_sub(self.laws.last_write) >= QUIET
    }

    /// Whether a node is tried again and again because its new agent cannot stand by there.
    fn is_tried_for_ever(&self) -> bool {
        let configs = self.api.configs.objects.values();
        let targets = configs.map(|config| self.target(config));
        let mut targets = targets.collect::<Vec<_>>().into_iter();
        targets.any(|target| {
            let mut hosts = self.hosts.iter();
            hosts.any(|host| self.is_bad(&host.name, &target))
        })
    }

    /// Why this is no end; nothing where it is one.
    pub fn unfinished(&self) -> Option<String> {
        if !self.is_quiet() && !self.is_tried_for_ever() {
            return Some("the operator still writes (I14)".to_owned());
        }
        self.unfinished_but_quiet()
    }

    /// The same, whether somebody still writes or not.
    pub fn unfinished_but_quiet(&self) -> Option<String> {
        let nodes = self.api.nodes.objects.values();
        let configs = || self.api.configs.objects.values();
        let of_nodes = nodes.flat_map(|node| {
            configs().filter_map(move |config| self.node_is_unfinished(config, node))
        });
        let of_nodes = of_nodes.collect::<Vec<_>>().into_iter().next();
        let of_configs = || configs().find_map(|config| self.config_is_unfinished(config));
        of_nodes
            .or_else(|| self.claim_is_left())
            .or_else(of_configs)
    }

    fn claim_is_left(&self) -> Option<String> {
        let claims = self.claims();
        let mut open = claims
            .iter()
            .filter(|claim| claim.phase != Phase::Quarantined)
            .filter(|claim| claim.phase.is_disruptive() || !self.is_bad(&claim.node, &claim.to));
        let claim = open.next()?;
        let phase = claim.phase.as_str();
        Some(format!("{}: a claim in {phase} is left (O7)", claim.node))
    }

    fn node_is_unfinished(&self, config: &DevicePluginConfig, node: &SeenNode) -> Option<String> {
        let name = config.metadata.name.as_deref()?;
        let host = self.hosts.iter().find(|host| host.name == node.id.name)?;
        let place = &node.id.name;
        let is_claimed = self
            .claims()
            .iter()
            .any(|one| one.config == name && one.node == *place);
        if is_claimed {
            return None;
        }
        if node.labels.contains_key(&node_stage_label(name)) {
            return Some(format!("{place}: the label G is left without a claim (O3)"));
        }
        let Some(object) = self.api.node_objects.get(&node_object(name, place)) else {
            return Some(format!("{place}: has no object for {name}"));
        };
        let spec = &object.spec;
        if spec.standby.is_some() || spec.baseline.is_some() {
            return Some(format!(
                "{place}: standby or baseline are left without a claim (O3)"
            ));
        }
        let label = node.labels.get(&node_revision_label(name));
        if label != Some(&spec.active) {
            let label = label.map(|label| self.nick(label)).unwrap_or_default();
            let active = self.nick(&spec.active);
            return Some(format!(
                "{place}: its label says {label:?}, its object {active:?}"
            ));
        }
        if spec.node_uid != node.id.uid {
            return Some(format!("{place}: its object is that of an earlier node"));
        }
        self.host_is_unfinished(config, host, &spec.active)
    }

    fn host_is_unfinished(
        &self,
        config: &DevicePluginConfig,
        host: &Host,
        active: &str,
    ) -> Option<String> {
        let name = config.metadata.name.as_deref()?;
        let place = &host.name;
        let nick = self.nick(active);
        if !self.is_proven(name, place, active) {
            return Some(format!(
                "{place}: rests at {nick}, which is not proven there (O9)"
            ));
        }
        for resource in &config.spec.resources {
            if self.is_bad(place, active) {
                // It was proven before it failed, or while the node was away.
                return None;
            }
            if host.list(&resource.name) != host.devices {
                return Some(format!("{place}: {} is not served (O1)", resource.name));
            }
            for stream in host.live(&resource.name) {
                let agent = self.agents.get(&stream.agent);
                if agent.is_none_or(|agent| agent.revision != active) {
                    return Some(format!("{place}: another revision than {nick} serves"));
                }
            }
        }
        let pods = self.api.pods.objects.values();
        let left = pods
            .filter(|pod| pod.node == *place && pod.config == name)
            .find(|pod| pod.revision != active);
        left.map(|pod| format!("{place}: pod {} is left", pod.id.name))
    }

    fn config_is_unfinished(&self, config: &DevicePluginConfig) -> Option<String> {
        let name = config.metadata.name.as_deref()?;
        let target = self.target(config);
        let nick = self.nick(&target);
        let status = config.status.clone().unwrap_or_default();
        if status.observed_generation != config.metadata.generation {
            return Some(format!("{name}: its status is about an earlier generation"));
        }
        let condition = |kind: ConfigCondition| {
            let of_kind = status
                .conditions
                .iter()
                .find(|one| one.type_ == kind.as_str());
            of_kind
                .map(|one| (one.status == "True", one.reason.clone()))
                .unwrap_or_default()
        };
        let (ready, _) = condition(ConfigCondition::Ready);
        let (_, reason) = condition(ConfigCondition::Progressing);
        let behind = self.behind(name, &target);
        if self.api.nodes.objects.is_empty() {
            // Nobody is there who could prove anything.
            return None;
        }
        if behind.is_empty() {
            let others = self.api.daemon_sets.objects.values();
            let others = others.filter(|set| set.config == name && set.revision != target);
            let object = self.api.revisions.get(&revision_object(name, &target));
            let is_failed = object.is_some_and(|object| object.failed.is_some());
            let is_hopeless = self
                .hosts
                .iter()
                .any(|host| self.is_bad(&host.name, &target));
            return match (ready || is_hopeless, others.count()) {
                // The node where it failed is gone; the failure is not forgotten.
                _ if is_failed => None,
                (false, _) => Some(format!(
                    "{name}: all nodes serve {nick} and it is not Ready (O8)"
                )),
                (true, 0) => None,
                (true, _) => Some(format!("{name}: DaemonSets of other revisions are left")),
            };
        }
        if ready {
            return Some(format!(
                "{name}: Ready although {behind:?} do not serve {nick} (O8)"
            ));
        }
        self.rollout_is_stuck(name, &target, &behind, &reason)
    }

    /// Nodes that are not at a revision.
    fn behind(&self, config: &str, revision: &str) -> Vec<String> {
        let label = node_revision_label(config);
        let nodes = self.api.nodes.objects.values();
        nodes
            .filter(|node| node.labels.get(&label).map(String::as_str) != Some(revision))
            .map(|node| node.id.name.clone())
            .collect()
    }

    /// A rollout that does not complete must say why, and be right.
    fn rollout_is_stuck(
        &self,
        config: &str,
        target: &str,
        behind: &[String],
        reason: &str,
    ) -> Option<String> {
        let nick = self.nick(target);
        let object = self.api.revisions.get(&revision_object(config, target));
        let is_failed = object.is_some_and(|object| object.failed.is_some());
        let mut behaviours = self.script.behaviours.values();
        let is_bad = behaviours.any(|one| *one == Behaviour::Hangs)
            || self
                .hosts
                .iter()
                .any(|host| self.is_bad(&host.name, target));
        if is_failed && !is_bad && !self.laws.harmed {
            return Some(format!(
                "{config}: {nick} counts as failed and nothing is wrong with it"
            ));
        }
        let claims = self.claims();
        let is_left_out = |node: &String| {
            let mut claims = claims.iter();
            if claims.any(|one| one.config == config && one.node == *node && one.to == target) {
                // It is being tried again.
                return self.is_bad(node, target);
            }
            let object = self.api.node_objects.get(&node_object(config, node));
            let outcome = object.and_then(|object| object.spec.outcome.as_ref());
            outcome.is_some_and(|outcome| outcome.revision == *target)
        };
        let is_told = match is_failed {
            true => ["Halted", "PreviouslyFailed", "Quarantined"].contains(&reason),
            false if reason == "Blocked" => self.laws.lost,
            false => (is_bad || self.laws.harmed) && behind.iter().all(is_left_out),
        };
        let failed = if is_failed { " (failed)" } else { "" };
        (!is_told).then(|| {
            format!("{config}: {behind:?} do not serve {nick}{failed}, and Progressing says {reason:?} (O7)")
        })
    }

    /// The revision that a config asks for.
    pub fn target(&self, config: &DevicePluginConfig) -> String {
        let image = agent_image(&config.spec, None, &self.settings.agent_image);
        revision(&config.spec, &image)
    }
}
