//! The safety rules, stated without looking at the planner. A plan that breaks one is a fault of
//! the planner: it is not executed, and says so.

mod claims;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crds::DevicePluginConfig;
use crds::config::DEFAULT_LABEL_LOSS_GRACE_SECONDS;
use crds::names::{
    CLEANUP_FINALIZER, CONFIG_LABEL, NODE_LABEL_PREFIX, POOL_LABEL_PREFIX, labelled_config,
    node_object,
};
use k8s_openapi::jiff::SignedDuration;
use serde_json::Value;

use crate::action::{Action, Kind, Verb, Write};
use crate::ledger::Claim;
use crate::plan::Plan;
use crate::rendering::unplaced;
use crate::seen::{Identity, controller_uid};
use crate::snapshot::Snapshot;

/// A rule that a plan breaks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// The config for which the write was planned.
    pub config: String,
    /// The write: verb, kind and name.
    pub write: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            config,
            write,
        } = self;
        write!(f, "{write} for config {config:?} breaks the rule: {rule}")
    }
}

/// Every rule that a plan breaks.
pub fn audit(seen: &Snapshot, plan: &Plan) -> Vec<Violation> {
    let mut violations = claims::of_ledger(seen, plan);
    let after = claims::after(seen, plan);
    let mut written = BTreeSet::new();
    for action in &plan.actions {
        let mut broken = broken(seen, after, action);
        if !written.insert((action.write.kind(), action.write.name())) {
            broken.push("an object is written at most once");
        }
        violations.extend(broken.into_iter().map(|rule| Violation {
            rule,
            config: action.config.clone(),
            write: format!(
                "{} {} {:?}",
                action.write.verb().as_str(),
                action.write.kind().as_str(),
                action.write.name()
            ),
        }));
    }
    violations
}

fn broken(seen: &Snapshot, after: &[Claim], action: &Action) -> Vec<&'static str> {
    let config = seen.configs.get(&action.config).map(|config| &**config);
    let rules: [(bool, &'static str); 10] = [
        (
            names_its_object(&action.write),
            "a write says what it was decided on, and a creation meets nothing",
        ),
        (
            belongs_to_us(seen, action, config),
            "what is written belongs to the operator",
        ),
        (
            keeps_agents(seen, action, config),
            "no agent of a live config is taken away within its grace",
        ),
        (
            keeps_revisions(seen, action, config),
            "the content of a revision never changes",
        ),
        (
            keeps_traces(seen, action, config),
            "the finalizer goes last",
        ),
        (
            names_known_revision(seen, action, config),
            "nodes are sent only to a revision that stands",
        ),
        (
            claims::is_claimed(seen, after, action),
            "what disrupts a node is claimed before",
        ),
        (
            claims::keeps_serving(seen, action),
            "no label takes away the agent that serves",
        ),
        (
            claims::is_idle(seen, after, action),
            "what a node is sent to, or may go back to, stays",
        ),
        (
            claims::is_proven(seen, after, action),
            "a revision becomes stable when nodes have proven it",
        ),
    ];
    rules
        .into_iter()
        .filter(|(holds, _)| !holds)
        .map(|(_, rule)| rule)
        .collect()
}

fn names_its_object(write: &Write) -> bool {
    match write.assumed() {
        Some(on) => !on.name.is_empty() && !on.uid.is_empty() && !on.version.is_empty(),
        None => write.verb() == Verb::Create && !write.name().is_empty(),
    }
}

fn belongs_to_us(seen: &Snapshot, action: &Action, config: Option<&DevicePluginConfig>) -> bool {
    let uid = config.and_then(|config| config.metadata.uid.as_deref());
    let name = action.write.name();
    match &action.write {
        Write::SetFinalizers { on, .. } => uid == Some(&on.uid) && on.name == action.config,
        Write::LabelPool { key, .. } => *key == format!("{POOL_LABEL_PREFIX}{name}"),
        Write::LabelNode { labels, .. } => labels
            .keys()
            .all(|key| labelled_config(key) == Some(&action.config)),
        Write::CreateNodeObject { object } => {
            let owner = controller_uid(&object.metadata, "DevicePluginConfig");
            uid == Some(&owner) && *name == node_object(&action.config, &object.spec.node_name)
        }
        Write::CreateRevision { object, .. }
        | Write::CreateConfigMap { object, .. }
        | Write::CreateDaemonSet { object, .. } => {
            let text = |path: &str| object.pointer(path).and_then(Value::as_str);
            let label = object
                .pointer("/metadata/labels")
                .and_then(|labels| labels.get(CONFIG_LABEL));
            text("/metadata/namespace") == Some(&seen.settings.namespace)
                && uid.is_some()
                && text("/metadata/ownerReferences/0/uid") == uid
                && label.and_then(Value::as_str) == Some(&action.config)
        }
        Write::AnnotateRevision { on, .. } => owner(seen, Kind::Revision, on).as_deref() == uid,
        Write::PatchDaemonSet { on, .. } => owner(seen, Kind::DaemonSet, on).as_deref() == uid,
        Write::PatchNodeObject { on, .. } => owner(seen, Kind::NodeObject, on).as_deref() == uid,
        Write::Delete {
            kind: Kind::Pod,
            on,
        } => seen.pods.get(name).is_some_and(|pod| {
            pod.id == *on
                && pod.config == action.config
                && pod.of_daemon_set
                && pod.phase == "Failed"
        }),
        Write::Delete { kind, on } => uid.is_some() && owner(seen, *kind, on).as_deref() == uid,
    }
}

/// UID of the config that owns an object that was seen.
fn owner(seen: &Snapshot, kind: Kind, on: &Identity) -> Option<String> {
    let (id, owner) = match kind {
        Kind::DaemonSet => seen
            .daemon_sets
            .get(&on.name)
            .map(|one| (one.id.clone(), one.owner_uid.clone())),
        Kind::ConfigMap => seen
            .config_maps
            .get(&on.name)
            .map(|one| (one.id.clone(), one.owner_uid.clone())),
        Kind::Revision => seen
            .revisions
            .get(&on.name)
            .map(|one| (one.id.clone(), one.owner_uid.clone())),
        Kind::NodeObject => seen.node_objects.get(&on.name).map(|one| {
            (
                Identity::of(&one.metadata),
                controller_uid(&one.metadata, "DevicePluginConfig"),
            )
        }),
        // None of these is ever deleted or patched as something we own.
        Kind::Config | Kind::Pool | Kind::Node | Kind::Pod => None,
    }?;
    (id == *on).then_some(owner)
}

fn keeps_agents(seen: &Snapshot, action: &Action, config: Option<&DevicePluginConfig>) -> bool {
    let is_live = config.is_some_and(|config| config.metadata.deletion_timestamp.is_none());
    match &action.write {
        Write::LabelNode { on, labels } if unpins(&action.config, labels) => match config {
            None => !seen.unreadable_configs.contains(&action.config),
            Some(config) if is_live => may_leave(seen, config, &on.name, &action.config),
            Some(_) => true,
        },
        Write::Delete {
            kind: Kind::NodeObject,
            on,
        } if is_live => {
            let object = seen.node_objects.get(&on.name);
            object.is_none_or(|object| {
                let node = seen.nodes.get(&object.spec.node_name);
                let node = node.filter(|node| node.id.uid == object.spec.node_uid);
                node.is_none_or(|node| {
                    let label = format!("{NODE_LABEL_PREFIX}{}", action.config);
                    !node.labels.contains_key(&label)
                        && !has_pod(seen, &action.config, &node.id.name)
                })
            })
        }
        _ => true,
    }
}

/// Whether labels take away what keeps an agent on its node.
fn unpins(config: &str, labels: &BTreeMap<String, Option<String>>) -> bool {
    let pin = labels.get(&crds::names::node_revision_label(config));
    pin.is_some_and(Option::is_none)
}

fn has_pod(seen: &Snapshot, config: &str, node: &str) -> bool {
    let mut pods = seen.pods.values();
    pods.any(|pod| pod.of_daemon_set && pod.config == config && pod.node == node)
}

/// Whether a node has been unselected for the whole grace, or its label pins it to nothing.
fn may_leave(seen: &Snapshot, config: &DevicePluginConfig, node: &str, name: &str) -> bool {
    // An object of an earlier config of this name, or of an earlier node, says nothing.
    let node_uid = seen.nodes.get(node).map(|node| node.id.uid.as_str());
    let object = seen
        .node_objects
        .get(&node_object(name, node))
        .filter(|object| {
            let owner = controller_uid(&object.metadata, "DevicePluginConfig");
            config.metadata.uid.as_ref() == Some(&owner)
                && Some(object.spec.node_uid.as_str()) == node_uid
        });
    let Some(object) = object else {
        let label = format!("{NODE_LABEL_PREFIX}{name}");
        let value = seen
            .nodes
            .get(node)
            .and_then(|node| node.labels.get(&label));
        return value.is_none_or(|value| {
            let revision = seen
                .revisions
                .get(&crds::names::revision_object(name, value));
            revision
                .is_none_or(|revision| Some(&revision.owner_uid) != config.metadata.uid.as_ref())
        });
    };
    let seconds = config.spec.label_loss_grace_seconds;
    let grace = seconds.unwrap_or(DEFAULT_LABEL_LOSS_GRACE_SECONDS);
    let ends = object.spec.unmatched_since.as_ref().and_then(|since| {
        since
            .0
            .checked_add(SignedDuration::from_secs(grace.into()))
            .ok()
    });
    ends.is_some_and(|ends| ends <= seen.now)
}

fn keeps_revisions(seen: &Snapshot, action: &Action, config: Option<&DevicePluginConfig>) -> bool {
    match &action.write {
        Write::CreateRevision { name, .. } => {
            config.is_some() && !seen.revisions.contains_key(name)
        }
        Write::CreateDaemonSet { name, object } => {
            is_of_revision(seen, name, object.pointer("/spec/template"))
        }
        Write::PatchDaemonSet { on, template } => is_of_revision(seen, &on.name, Some(template)),
        Write::CreateConfigMap { name, object } => {
            let content = seen
                .revisions
                .get(name)
                .and_then(|one| one.content.as_ref());
            let text = object
                .pointer("/data")
                .and_then(|data| data.get(crds::names::AGENT_CONFIG_KEY));
            content
                .is_some_and(|content| text.and_then(Value::as_str) == Some(&content.agent_config))
        }
        _ => true,
    }
}

fn is_of_revision(seen: &Snapshot, name: &str, template: Option<&Value>) -> bool {
    let content = seen
        .revisions
        .get(name)
        .and_then(|one| one.content.as_ref());
    let wanted = content.map(|content| unplaced(&content.template));
    wanted.is_some() && template.map(unplaced) == wanted
}

fn keeps_traces(seen: &Snapshot, action: &Action, config: Option<&DevicePluginConfig>) -> bool {
    let Write::SetFinalizers { finalizers, .. } = &action.write else {
        return true;
    };
    let Some(config) = config else {
        return false;
    };
    let present: BTreeSet<_> = config
        .metadata
        .finalizers
        .iter()
        .flatten()
        .cloned()
        .collect();
    let wanted: BTreeSet<_> = finalizers.iter().cloned().collect();
    let mut others = present.symmetric_difference(&wanted);
    if others.any(|one| one != CLEANUP_FINALIZER) {
        return false;
    }
    if wanted.contains(CLEANUP_FINALIZER) {
        return config.metadata.deletion_timestamp.is_none();
    }
    let uid = config.metadata.uid.as_deref().unwrap_or_default();
    let label = format!("{NODE_LABEL_PREFIX}{}", action.config);
    let owns = |owner: &str, deleting: bool| owner == uid && !deleting;
    config.metadata.deletion_timestamp.is_some()
        && !seen
            .nodes
            .values()
            .any(|node| !node.deleting && node.labels.contains_key(&label))
        && !seen
            .daemon_sets
            .values()
            .any(|one| owns(&one.owner_uid, one.deleting))
        && !seen
            .revisions
            .values()
            .any(|one| owns(&one.owner_uid, one.deleting))
        && !seen
            .config_maps
            .values()
            .any(|one| owns(&one.owner_uid, one.deleting))
}

fn names_known_revision(
    seen: &Snapshot,
    action: &Action,
    config: Option<&DevicePluginConfig>,
) -> bool {
    let spec = match &action.write {
        Write::LabelNode { labels, .. } => {
            let mut named = labels.values().flatten();
            return named.all(|revision| stands(seen, config, revision));
        }
        Write::CreateNodeObject { object } => &object.spec,
        Write::PatchNodeObject { spec, .. } => spec,
        _ => return true,
    };
    let mut named = std::iter::once(&spec.active).chain(&spec.standby);
    named.all(|revision| stands(seen, config, revision))
}

/// Whether a revision can run: its content is known and its DaemonSet is there.
fn stands(seen: &Snapshot, config: Option<&DevicePluginConfig>, revision: &str) -> bool {
    let Some((name, uid)) = config.and_then(|config| {
        let metadata = &config.metadata;
        metadata.name.as_deref().zip(metadata.uid.as_deref())
    }) else {
        return false;
    };
    let name = crds::names::revision_object(name, revision);
    let set = seen.daemon_sets.get(&name).filter(|one| !one.deleting);
    let content = seen
        .revisions
        .get(&name)
        .and_then(|one| one.content.as_ref());
    content.is_some() && set.is_some_and(|set| set.owner_uid == uid)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::ledger::{Ledger, LedgerWrite, Phase, SeenLedger};
    use crate::scenario::World;
    use crds::DevicePluginNodeSpec;

    fn world() -> World {
        let mut world = World::with_fuse(&["n1"]);
        world.settle();
        world
    }

    fn rules(seen: &Snapshot, write: Write) -> Vec<&'static str> {
        let action = Action {
            config: "fuse".to_owned(),
            write,
        };
        let plan = Plan {
            actions: vec![action],
            ..Plan::default()
        };
        audit(seen, &plan).into_iter().map(|one| one.rule).collect()
    }

    const AGENTS: &str = "no agent of a live config is taken away within its grace";
    const OURS: &str = "what is written belongs to the operator";
    const CONTENT: &str = "the content of a revision never changes";
    const IDLE: &str = "what a node is sent to, or may go back to, stays";
    const CLAIMED: &str = "what disrupts a node is claimed before";
    const SERVING: &str = "no label takes away the agent that serves";
    const PROVEN: &str = "a revision becomes stable when nodes have proven it";
    const LAST: &str = "the finalizer goes last";
    const STANDS: &str = "nodes are sent only to a revision that stands";
    const ASSUMED: &str = "a write says what it was decided on, and a creation meets nothing";

    fn delete(kind: Kind, on: &Identity) -> Write {
        Write::Delete {
            kind,
            on: on.clone(),
        }
    }

    #[test]
    fn a_daemon_set_goes_only_with_its_config() {
        let mut world = world();
        let set = world.seen.daemon_sets.values().next().unwrap().id.clone();
        assert_eq!(rules(&world.seen, delete(Kind::DaemonSet, &set)), [IDLE]);
        world.delete_config("fuse");
        assert_eq!(
            rules(&world.seen, delete(Kind::DaemonSet, &set)),
            Vec::<&str>::new()
        );
        let other = Identity {
            uid: "other".to_owned(),
            ..set
        };
        assert_eq!(rules(&world.seen, delete(Kind::DaemonSet, &other)), [OURS]);
    }

    #[test]
    fn a_label_goes_only_after_the_grace() {
        let mut world = world();
        let unlabel = |seen: &Snapshot| Write::LabelNode {
            on: seen.nodes["n1"].id.clone(),
            labels: [(crds::names::node_revision_label("fuse"), None)].into(),
        };
        assert_eq!(rules(&world.seen, unlabel(&world.seen)), [AGENTS]);
        let now = world.seen.now;
        world.change_object("fuse.n1", |object| {
            object.spec.unmatched_since =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        });
        world.wait(299);
        assert_eq!(rules(&world.seen, unlabel(&world.seen)), [AGENTS]);
        world.wait(1);
        assert_eq!(rules(&world.seen, unlabel(&world.seen)), Vec::<&str>::new());
        world.seen.node_objects.clear();
        assert_eq!(
            rules(&world.seen, unlabel(&world.seen)),
            [AGENTS],
            "a lost object starts the grace anew"
        );
    }

    #[test]
    fn labels_and_objects_name_revisions_that_stand() {
        let world = world();
        let label = |key: &str, value: &str| Write::LabelNode {
            on: world.seen.nodes["n1"].id.clone(),
            labels: [(key.to_owned(), Some(value.to_owned()))].into(),
        };
        let key = crds::names::node_revision_label("fuse");
        assert_eq!(
            rules(&world.seen, label(&key, "0123456789")),
            [STANDS, SERVING]
        );
        assert_eq!(
            rules(
                &world.seen,
                label("kubernetes.io/os", &world.revision("fuse"))
            ),
            [OURS]
        );
        let object = &world.seen.node_objects["fuse.n1"];
        let mut spec = object.spec.clone();
        spec.active = "0123456789".to_owned();
        let on = Identity::of(&object.metadata);
        assert_eq!(
            rules(
                &world.seen,
                Write::PatchNodeObject {
                    on,
                    spec: Box::new(spec)
                }
            ),
            [STANDS, CLAIMED]
        );
    }

    #[test]
    fn a_revision_is_made_once_and_its_objects_are_made_from_it() {
        let world = world();
        let present = world.seen.revisions.values().next().unwrap();
        let config = world.config("fuse");
        let settings = &world.seen.settings;
        let content = present.content.clone().unwrap();
        let again = crate::rendering::controller_revision(
            config,
            &present.revision,
            &content,
            2,
            false,
            settings,
        );
        let write = Write::CreateRevision {
            name: present.id.name.clone(),
            object: again,
        };
        assert_eq!(rules(&world.seen, write), [CONTENT]);
        let mut template = content.template.clone();
        let set = world.seen.daemon_sets.values().next().unwrap();
        let patch = |template: &Value| Write::PatchDaemonSet {
            on: set.id.clone(),
            template: template.clone(),
        };
        assert_eq!(rules(&world.seen, patch(&template)), Vec::<&str>::new());
        template["spec"]["hostNetwork"] = json!(true);
        assert_eq!(rules(&world.seen, patch(&template)), [CONTENT]);
        assert_eq!(
            rules(&world.seen, delete(Kind::Revision, &present.id)),
            [IDLE]
        );
        let map = world.seen.config_maps.values().next().unwrap();
        assert_eq!(rules(&world.seen, delete(Kind::ConfigMap, &map.id)), [IDLE]);
    }

    /// A world whose config asks for another revision, which is there and on no node yet.
    fn changing() -> (World, String, String) {
        let mut world = world();
        let old = world.revision("fuse");
        world.change_config("fuse", |config| {
            config.spec.rollout = Some(serde_yaml::from_str("{maxUnavailable: 1}").unwrap());
            let paths = config.spec.resources[0].discovery.paths.as_mut().unwrap();
            paths.globs.push("/dev/other".to_owned());
        });
        world.pass();
        world.pass();
        let own = world.seen.revisions.values();
        let new = own.map(|one| one.revision.clone()).find(|one| *one != old);
        (world, old, new.unwrap())
    }

    fn claimed(world: &World, from: &str, to: &str, phase: Phase) -> Claim {
        Claim {
            config: "fuse".to_owned(),
            node: "n1".to_owned(),
            node_uid: world.seen.nodes["n1"].id.uid.clone(),
            from: from.to_owned(),
            to: to.to_owned(),
            phase,
            elapsed: 0,
            verified: 0,
            restarts: 0,
            outside: false,
            blames: false,
            reason: String::new(),
            message: String::new(),
        }
    }

    fn rules_with(world: &World, claims: Vec<Claim>, write: Option<Write>) -> Vec<&'static str> {
        let epoch = world.seen.epoch;
        let actions = write.into_iter().map(|write| Action {
            config: "fuse".to_owned(),
            write,
        });
        let plan = Plan {
            ledger: Some(LedgerWrite {
                on: None,
                ledger: Ledger { epoch, claims },
            }),
            actions: actions.collect(),
            ..Plan::default()
        };
        let violations = audit(&world.seen, &plan).into_iter();
        violations.map(|one| one.rule).collect()
    }

    #[test]
    fn a_node_is_switched_only_under_a_claim_and_with_what_it_is_judged_by() {
        let (mut world, old, new) = changing();
        world.seen.ledger = SeenLedger::Absent;
        let object = &world.seen.node_objects["fuse.n1"];
        let on = Identity::of(&object.metadata);
        let mut spec = object.spec.clone();
        spec.active.clone_from(&new);
        spec.standby = Some(old.clone());
        let write = |spec: &DevicePluginNodeSpec| Write::PatchNodeObject {
            on: on.clone(),
            spec: Box::new(spec.clone()),
        };
        let claim = |phase| vec![claimed(&world, &old, &new, phase)];
        assert_eq!(rules(&world.seen, write(&spec)), [CLAIMED]);
        for phase in [Phase::Staging, Phase::Switching] {
            let broken = rules_with(&world, claim(phase), Some(write(&spec)));
            assert_eq!(broken, [CLAIMED], "without a baseline, {phase:?}");
        }
        spec.baseline = Some(
            serde_json::from_value(json!({
                "takenAt": "2026-11-21T12:00:00Z", "revision": old, "resources": [],
            }))
            .unwrap(),
        );
        let staging = rules_with(&world, claim(Phase::Staging), Some(write(&spec)));
        assert_eq!(staging, [CLAIMED]);
        let switching = rules_with(&world, claim(Phase::Switching), Some(write(&spec)));
        assert_eq!(switching, Vec::<&str>::new());
    }

    #[test]
    fn a_label_is_moved_last_and_a_stage_is_claimed() {
        let (mut world, old, new) = changing();
        world.seen.ledger = SeenLedger::Absent;
        let on = world.seen.nodes["n1"].id.clone();
        let label = |key: String| Write::LabelNode {
            on: on.clone(),
            labels: [(key, Some(new.clone()))].into(),
        };
        let pin = label(crds::names::node_revision_label("fuse"));
        let claim = |phase| vec![claimed(&world, &old, &new, phase)];
        let broken = rules_with(&world, claim(Phase::Committing), Some(pin));
        assert_eq!(broken, [SERVING], "the old one still serves");
        let stage = label(crds::names::node_stage_label("fuse"));
        assert_eq!(
            rules_with(&world, Vec::new(), Some(stage.clone())),
            [CLAIMED]
        );
        let staging = rules_with(&world, claim(Phase::Staging), Some(stage));
        assert_eq!(staging, Vec::<&str>::new());
    }

    #[test]
    fn claims_keep_to_budgets_epochs_and_traces() {
        let (mut world, old, new) = changing();
        let claim = claimed(&world, &old, &new, Phase::Switching);
        let second = Claim {
            node: "n2".to_owned(),
            ..claim.clone()
        };
        world.seen.ledger = SeenLedger::Absent;
        let broken = |claims: &[&Claim]| {
            let claims = claims.iter().map(|one| (*one).clone()).collect();
            rules_with(&world, claims, None)
        };
        const BUDGET: &str = "no more nodes are disrupted at once than the config allows";
        assert_eq!(broken(&[&claim, &second]), [BUDGET]);
        assert_eq!(broken(&[&claim, &claim]), ["a node has one claim", BUDGET]);
        let present = |epoch, claims| SeenLedger::Present {
            on: Identity::default(),
            content: Ok(Ledger { epoch, claims }),
        };
        world.seen.ledger = present(7, Vec::new());
        let later = rules_with(&world, vec![claim.clone()], None);
        assert_eq!(later, ["one epoch writes at a time"]);
        world.change_object("fuse.n1", |object| object.spec.standby = Some(new));
        world.seen.ledger = present(1, vec![claim]);
        let dropped = rules_with(&world, Vec::new(), None);
        assert_eq!(dropped, ["a claim goes after its traces"]);
    }

    #[test]
    fn a_revision_is_promoted_by_nodes_that_have_proven_it() {
        let (mut world, old, new) = changing();
        world.seen.ledger = SeenLedger::Absent;
        let revision = world.seen.revisions[&format!("fuse-{new}")].id.clone();
        let promote = || Write::AnnotateRevision {
            on: revision.clone(),
            annotations: [(crds::names::PROMOTED_ANNOTATION.to_owned(), "2".to_owned())].into(),
        };
        assert_eq!(rules(&world.seen, promote()), [PROVEN]);
        world.change_node("n1", |node| {
            let key = crds::names::node_revision_label("fuse");
            node.labels.insert(key, new.clone());
        });
        assert_eq!(rules(&world.seen, promote()), Vec::<&str>::new());
        let claim = claimed(&world, &old, &new, Phase::Soaking);
        assert_eq!(rules_with(&world, vec![claim], Some(promote())), [PROVEN]);
    }

    #[test]
    fn only_failed_pods_of_ours_are_deleted() {
        let mut world = world();
        let pod = world.seen.pods.values().next().unwrap().id.clone();
        assert_eq!(rules(&world.seen, delete(Kind::Pod, &pod)), [OURS]);
        world.change_pod_on("n1", |pod| pod.phase = "Failed".to_owned());
        let pod = world.seen.pods.values().next().unwrap().id.clone();
        assert_eq!(
            rules(&world.seen, delete(Kind::Pod, &pod)),
            Vec::<&str>::new()
        );
    }

    #[test]
    fn finalizers_of_others_and_early_ends_are_refused() {
        let mut world = world();
        let set = |world: &World, finalizers: &[&str]| Write::SetFinalizers {
            on: Identity::of(&world.config("fuse").metadata),
            finalizers: finalizers.iter().map(|one| (*one).to_owned()).collect(),
        };
        assert_eq!(rules(&world.seen, set(&world, &[])), [LAST]);
        assert_eq!(
            rules(
                &world.seen,
                set(&world, &[CLEANUP_FINALIZER, "example.com/other"])
            ),
            [LAST]
        );
        world.delete_config("fuse");
        assert_eq!(
            rules(&world.seen, set(&world, &[])),
            [LAST],
            "everything is still there"
        );
    }

    #[test]
    fn nodes_users_and_assumptions_are_respected() {
        let world = world();
        for kind in [Kind::Node, Kind::Config, Kind::Pool] {
            let on = world.seen.nodes["n1"].id.clone();
            assert_eq!(rules(&world.seen, delete(kind, &on)), [OURS], "{kind:?}");
        }
        let key = crds::names::node_revision_label("fuse");
        let on = Identity {
            version: String::new(),
            ..world.seen.nodes["n1"].id.clone()
        };
        let write = Write::LabelNode {
            on,
            labels: [(key, Some(world.revision("fuse")))].into(),
        };
        assert_eq!(rules(&world.seen, write), [ASSUMED]);
        let object = &world.seen.node_objects["fuse.n1"];
        let on = Identity::of(&object.metadata);
        assert_eq!(rules(&world.seen, delete(Kind::NodeObject, &on)), [AGENTS]);
        let mut foreign = (**object).clone();
        foreign.metadata.owner_references = None;
        let create = Write::CreateNodeObject {
            object: Box::new(foreign),
        };
        assert_eq!(rules(&world.seen, create), [OURS]);
    }

    #[test]
    fn an_object_is_written_once_and_a_violation_names_it() {
        let mut world = world();
        world.change_pod_on("n1", |pod| pod.phase = "Failed".to_owned());
        let pod = Arc::clone(world.seen.pods.values().next().unwrap());
        let action = Action {
            config: "fuse".to_owned(),
            write: delete(Kind::Pod, &pod.id),
        };
        let plan = Plan {
            actions: vec![action.clone(), action],
            ..Plan::default()
        };
        let violations = audit(&world.seen, &plan);
        assert_eq!(violations.len(), 1);
        assert_eq!(
            violations[0].to_string(),
            format!(
                "delete Pod {:?} for config \"fuse\" breaks the rule: an object is written at most once",
                pod.id.name
            )
        );
    }
}
