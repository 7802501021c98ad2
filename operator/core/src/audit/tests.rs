//! Each rule refuses what it is there for, and lets the rest through.

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
