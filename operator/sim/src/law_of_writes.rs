//! What must hold for every write of an operator, judged from how things are when it arrives.

use std::time::Duration;

use crds::DevicePluginNode;
use crds::names::{CONFIG_LABEL, node_revision_label, node_stage_label};
use operator_core::action::{Kind, Write};
use operator_core::ledger::Phase;

use crate::act::revision_of;
use crate::daemon_sets::admits;
use crate::world::World;

impl World {
    /// What would be wrong about a write, as things really are.
    pub(crate) fn check_write(&mut self, at: usize, write: &Write) {
        if let Some(what) = self.complaint(write)
            && !self.is_being_repaired()
            && self.would_succeed(write)
        {
            self.break_law(&format!("op{at}"), &what);
        }
    }

    fn would_succeed(&self, write: &Write) -> bool {
        let Some(on) = write.assumed() else {
            return true;
        };
        let present = match write.kind() {
            Kind::Node => self.api.nodes.get(&on.name).map(|one| one.id.clone()),
            Kind::NodeObject => {
                let object = self.api.node_objects.get(&on.name);
                object.map(|one| operator_core::seen::Identity::of(&one.metadata))
            }
            Kind::DaemonSet => self.api.daemon_sets.get(&on.name).map(|one| one.id.clone()),
            Kind::Revision => self.api.revisions.get(&on.name).map(|one| one.id.clone()),
            Kind::Config | Kind::Pool | Kind::ConfigMap | Kind::Pod => return true,
        };
        let deletes = matches!(write, Write::Delete { .. });
        present.is_some_and(|id| id.uid == on.uid && (deletes || id.version == on.version))
    }

    fn complaint(&self, write: &Write) -> Option<String> {
        match write {
            Write::PatchNodeObject { on, spec } => {
                let before = self.api.node_objects.get(&on.name)?;
                self.switch_complaint(before, spec)
            }
            Write::LabelNode { on, labels } => {
                let complaints = labels.iter().map(|(key, value)| {
                    let value = value.as_deref();
                    self.label_complaint(&on.name, key, value)
                });
                complaints.flatten().next()
            }
            Write::Delete {
                kind: Kind::DaemonSet | Kind::Revision,
                on,
            } => self.pruning_complaint(&on.name),
            Write::SetFinalizers { .. }
            | Write::CreateRevision { .. }
            | Write::CreateConfigMap { .. }
            | Write::CreateDaemonSet { .. }
            | Write::PatchDaemonSet { .. }
            | Write::CreateNodeObject { .. }
            | Write::AnnotateRevision { .. }
            | Write::LabelPool { .. }
            | Write::Delete { .. } => None,
        }
    }

    fn switch_complaint(
        &self,
        before: &DevicePluginNode,
        spec: &crds::DevicePluginNodeSpec,
    ) -> Option<String> {
        let (config, node) = (&spec.config_name, &spec.node_name);
        if before.spec.active == spec.active {
            return None;
        }
        let to = self.nick(&spec.active);
        let Some(claim) = self.claim(config, node) else {
            return Some(format!("switches {node} to {to} without a claim (I2)"));
        };
        if self.is_proven(config, node, &spec.active) {
            return None;
        }
        if claim.phase != Phase::Switching || claim.to != spec.active {
            let phase = claim.phase.as_str();
            return Some(format!(
                "switches {node} to {to} while its claim is {phase} (I2)"
            ));
        }
        // A node that served nothing when the operator looked has nothing to lose.
        if claim.outside {
            return None;
        }
        let outside: std::collections::BTreeSet<String> = self
            .claims()
            .into_iter()
            .filter(|one| one.config == *config && one.outside)
            .map(|one| one.node)
            .collect();
        let objects = self.api.node_objects.objects.values();
        let unproven = objects
            .filter(|one| !outside.contains(&one.spec.node_name))
            .filter(|one| one.spec.config_name == *config && one.spec.node_name != *node)
            .filter(|one| self.api.nodes.objects.contains_key(&one.spec.node_name))
            .filter(|one| !self.is_proven(config, &one.spec.node_name, &one.spec.active))
            .count();
        let limit = self.laws.budgets.get(config).copied().unwrap_or(1);
        let unproven = i32::try_from(unproven).unwrap_or(i32::MAX);
        (unproven >= limit).then(|| {
            format!(
                "switches {node} to {to} beside {unproven} nodes with an unproven revision (I1)"
            )
        })
    }

    fn label_complaint(&self, node: &str, key: &str, value: Option<&str>) -> Option<String> {
        let seen = self.api.nodes.get(node)?;
        let config = crds::names::labelled_config(key)?;
        let before = seen.labels.get(key).map(String::as_str);
        if before == value {
            return None;
        }
        let claim = self.claim(config, node);
        let nick = value.map(|value| self.nick(value)).unwrap_or_default();
        if key == node_stage_label(config) {
            let is_missing = value.is_some() && claim.is_none();
            return is_missing.then(|| format!("stages {nick} on {node} without a claim (I2)"));
        }
        let Some(value) = value else {
            let is_live = self.api.configs.get(config);
            let is_live = is_live.is_some_and(|one| one.metadata.deletion_timestamp.is_none());
            return is_live.then(|| format!("takes the label off {node}"));
        };
        if self.is_proven(config, node, value) {
            return None;
        }
        let is_committed =
            claim.is_some_and(|claim| claim.phase == Phase::Committing && claim.to == value);
        if !is_committed {
            return Some(format!(
                "labels {node} with {nick}, which is not proven there (I2, I6)"
            ));
        }
        let id = self.host_id(node)?;
        let soak = self
            .api
            .configs
            .get(config)
            .and_then(|one| one.spec.rollout.clone());
        let soak = soak
            .and_then(|one| one.gate)
            .and_then(|gate| gate.soak_seconds);
        let soak = Duration::from_secs(u64::try_from(soak.unwrap_or(30)).unwrap_or_default());
        let first = (id, config.to_owned(), value.to_owned());
        let since = self.laws.registered.get(&first).copied();
        let soaked = since.is_some_and(|since| since + soak <= self.now);
        (!soaked).then(|| format!("labels {node} with {nick}, which has not soaked there"))
    }

    fn pruning_complaint(&self, name: &str) -> Option<String> {
        let revision = revision_of(name);
        let config = name.strip_suffix(&format!("-{revision}"))?;
        let is_live = self
            .api
            .configs
            .get(config)?
            .metadata
            .deletion_timestamp
            .is_none();
        let keys = [node_revision_label(config), node_stage_label(config)];
        let nodes = self.api.nodes.objects.values();
        let mut carriers = nodes.filter(|node| {
            keys.iter()
                .any(|key| node.labels.get(key) == Some(&revision))
        });
        let mut objects = self.api.node_objects.objects.values().filter(|object| {
            let spec = &object.spec;
            let named = [Some(&spec.active), spec.standby.as_ref()];
            spec.config_name == config
                && self.api.nodes.objects.contains_key(&spec.node_name)
                && named.contains(&Some(&revision))
        });
        let user = carriers.next().map(|node| node.id.name.clone());
        let user = user.or_else(|| objects.next().map(|object| object.spec.node_name.clone()));
        let user = user.filter(|_| is_live)?;
        Some(format!(
            "deletes {} that {user} still names (I9)",
            self.nick(&revision)
        ))
    }

    /// A write has been done.
    pub(crate) fn written(&mut self, at: usize, write: &Write) {
        self.laws.last_write = self.now;
        if let Some(node) = self
            .deserted_by(write)
            .filter(|_| !self.is_being_repaired())
        {
            let text = format!("leaves {node} without a DaemonSet that selects it (I9)");
            self.break_law(&format!("op{at}"), &text);
        }
        match write {
            Write::LabelNode { on, labels } => {
                *self.laws.node_writes.entry(on.name.clone()).or_default() += 1;
                let uid = on.uid.clone();
                for (key, value) in labels {
                    let config = crds::names::labelled_config(key).unwrap_or_default();
                    let Some(value) = value
                        .clone()
                        .filter(|_| *key == node_revision_label(config))
                    else {
                        continue;
                    };
                    let proven = (config.to_owned(), uid.clone(), value);
                    self.laws.proven.insert(proven);
                }
            }
            Write::PatchNodeObject { on, spec } => {
                *self.laws.node_writes.entry(on.name.clone()).or_default() += 1;
                let log = self.api.node_objects.log.iter().rev();
                let mut of_object = log.filter(|change| change.name == on.name).skip(1);
                let before = of_object.find_map(|change| change.object.clone());
                if before.is_some_and(|before| before.spec.active != spec.active) {
                    *self.laws.switches.entry(on.name.clone()).or_default() += 1;
                }
            }
            Write::AnnotateRevision { on, .. } => {
                if let Some(revision) = self.api.revisions.get(&on.name)
                    && revision.promoted.is_some()
                {
                    let promoted = (revision.config.clone(), revision.revision.clone());
                    self.laws.promoted.insert(promoted);
                }
            }
            Write::CreateRevision { object, .. } => {
                let name = write.name();
                let promoted = self
                    .api
                    .revisions
                    .get(name)
                    .is_some_and(|one| one.promoted.is_some());
                let config = object
                    .pointer("/metadata/labels")
                    .and_then(|one| one.get(CONFIG_LABEL));
                let config = config
                    .and_then(serde_json::Value::as_str)
                    .unwrap_or_default();
                if promoted {
                    self.laws
                        .promoted
                        .insert((config.to_owned(), revision_of(name)));
                }
            }
            Write::CreateNodeObject { .. }
            | Write::SetFinalizers { .. }
            | Write::CreateConfigMap { .. }
            | Write::CreateDaemonSet { .. }
            | Write::PatchDaemonSet { .. }
            | Write::LabelPool { .. }
            | Write::Delete { .. } => {}
        }
    }

    /// A node that no DaemonSet of a config selects after a write that could have that effect.
    fn deserted_by(&self, write: &Write) -> Option<String> {
        let moves_agents = matches!(
            write,
            Write::LabelNode { .. }
                | Write::PatchDaemonSet { .. }
                | Write::Delete {
                    kind: Kind::DaemonSet,
                    ..
                }
        );
        let configs = self.api.configs.objects.keys().filter(|_| moves_agents);
        configs.into_iter().find_map(|config| {
            let sets = || {
                let sets = self.api.daemon_sets.objects.values();
                sets.filter(|set| set.config == *config && !set.deleting)
            };
            let mut nodes = self.api.nodes.objects.values();
            let node = nodes.find(|node| !sets().any(|set| admits(&set.template, node)));
            node.filter(|_| sets().next().is_some())
                .map(|node| node.id.name.clone())
        })
    }
}
