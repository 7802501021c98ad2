//! The objects of a config's revision.

use std::collections::BTreeSet;

use crds::DevicePluginNodeSpec;
use crds::names::{CLEANUP_FINALIZER, NODE_LABEL_PREFIX, PROMOTED_ANNOTATION, revision_object};
use serde_json::Value;

use crate::action::{Kind, Write};
use crate::ledger::Claim;
use crate::lineage::{Stable, orphans};
use crate::rendering::{
    Place, config_map, content, controller_revision, daemon_set, holds, placed,
};
use crate::revision::RevisionContent;
use crate::rollout::{blocked, settings};
use crate::scope::{Member, Scope, Target};
use crate::seen::{Identity, SeenDaemonSet, SeenRevision};
use crate::selection::Selection;

/// How many ControllerRevisions that nothing runs are kept, to go back to: ten Kubernetes keeps of a
/// Deployment are rarely looked at, and each of ours is a whole pod template.
const REVISIONS_KEPT: usize = 5;

/// What the objects of a config's revision still lack. Objects follow one another: the
/// ControllerRevision first, because everything else is made from it.
pub fn writes(scope: &Scope<'_>) -> Vec<Write> {
    let finalizers = scope.config.metadata.finalizers.clone().unwrap_or_default();
    if !finalizers.iter().any(|one| one == CLEANUP_FINALIZER) {
        let ours = std::iter::once(CLEANUP_FINALIZER.to_owned());
        return vec![Write::SetFinalizers {
            on: Identity::of(&scope.config.metadata),
            finalizers: finalizers.into_iter().chain(ours).collect(),
        }];
    }
    match &scope.stable {
        Stable::None => first(scope).into_iter().collect(),
        Stable::Rebuild { revision, content } => vec![create(scope, revision, content, true)],
        Stable::Lost(revision) => {
            let same = scope
                .target
                .as_ref()
                .filter(|target| target.revision == *revision);
            same.map(|target| rendered(scope, target, true))
                .into_iter()
                .collect()
        }
        Stable::Stands(revision) => match never_ran(scope, revision) {
            true => withdrawn(scope, revision),
            false => standing(scope, revision),
        },
    }
}

/// The first revision, once something is selected that can be acted on.
fn first(scope: &Scope<'_>) -> Option<Write> {
    match scope.selection {
        Selection::Terms(_) => {
            let target = scope.target.as_ref();
            target.map(|target| rendered(scope, target, true))
        }
        Selection::NoSelector | Selection::NoPools => None,
    }
}

fn rendered(scope: &Scope<'_>, target: &Target, promoted: bool) -> Write {
    let settings = &scope.seen.settings;
    let content = content(scope.config, &target.revision, &target.image, settings);
    create(scope, &target.revision, &content, promoted)
}

fn create(scope: &Scope<'_>, revision: &str, content: &RevisionContent, promoted: bool) -> Write {
    let number = next_number(scope);
    let settings = &scope.seen.settings;
    let object = controller_revision(scope.config, revision, content, number, promoted, settings);
    Write::CreateRevision {
        name: revision_object(scope.name, revision),
        object,
    }
}

/// A number that none of the config's revisions has had, neither when it was made nor when it was
/// promoted.
fn next_number(scope: &Scope<'_>) -> u64 {
    let numbers = scope.revisions.values().flat_map(|one| {
        let made = u64::try_from(one.number).unwrap_or_default();
        [made, one.promoted.unwrap_or_default()]
    });
    numbers.max().unwrap_or_default().saturating_add(1)
}

/// Whether the spec has changed before anything of the first revision ran anywhere, as when the API
/// server refused its DaemonSet: then the first revision may still be another one.
fn never_ran(scope: &Scope<'_>, revision: &SeenRevision) -> bool {
    let is_other = scope
        .target
        .as_ref()
        .is_some_and(|target| target.revision != revision.revision);
    let status = scope.config.status.as_ref();
    let sets = &scope.seen.daemon_sets;
    is_other
        && status.is_none_or(|status| status.stable_revision.is_none())
        && !sets.values().any(|set| set.owner_uid == scope.uid)
        && scope.pods.is_empty()
        && scope.stale_objects.is_empty()
        && scope.members.values().all(|member| member.object.is_none())
}

fn withdrawn(scope: &Scope<'_>, revision: &SeenRevision) -> Vec<Write> {
    let map = scope.seen.config_maps.get(&revision.id.name);
    let map = map.filter(|map| map.owner_uid == scope.uid && !map.deleting);
    let mut writes: Vec<_> = map
        .map(|map| delete(Kind::ConfigMap, &map.id))
        .into_iter()
        .collect();
    writes.push(delete(Kind::Revision, &revision.id));
    writes
}

/// A deletion.
pub fn delete(kind: Kind, on: &Identity) -> Write {
    Write::Delete {
        kind,
        on: on.clone(),
    }
}

/// What the objects of the live revisions lack, and those of others that may go.
fn standing(scope: &Scope<'_>, stable: &SeenRevision) -> Vec<Write> {
    let live = scope.live();
    let mut writes = Vec::new();
    if stable.promoted.is_none() {
        writes.push(promote(scope, stable));
    }
    for (revision, content) in orphans(scope.seen, scope.name, scope.uid) {
        if is_carried(scope, revision) {
            writes.push(create(scope, revision, &content, false));
        }
    }
    if let Some(target) = wanted_target(scope) {
        writes.push(rendered(scope, target, false));
    }
    for revision in live.iter().filter_map(|one| scope.revisions.get(one)) {
        writes.extend(objects(scope, revision, stable, &live));
    }
    writes.extend(idle(scope, &live));
    writes
}

/// Marks a revision as the one that nodes run from now on.
pub fn promote(scope: &Scope<'_>, revision: &SeenRevision) -> Write {
    let promoted = scope.revisions.values().filter_map(|one| one.promoted);
    let number = promoted
        .max()
        .unwrap_or_default()
        .saturating_add(1)
        .to_string();
    Write::AnnotateRevision {
        on: revision.id.clone(),
        annotations: [(PROMOTED_ANNOTATION.to_owned(), number)].into(),
    }
}

/// Whether a node runs, or is to run, a revision.
fn is_carried(scope: &Scope<'_>, revision: &str) -> bool {
    let is_claimed = |claim: &Claim| claim.from == revision || claim.to == revision;
    let of_spec = |spec: &DevicePluginNodeSpec| {
        let baseline = spec.baseline.as_ref().map(|baseline| &baseline.revision);
        let named = [Some(&spec.active), spec.standby.as_ref(), baseline];
        named.into_iter().flatten().any(|one| one == revision)
    };
    let mut stale = scope.stale_objects.iter();
    scope.claims.values().any(is_claimed)
        || stale.any(|object| of_spec(&object.spec))
        || scope.members.values().any(|member| {
            [member.pinned, member.staged].contains(&Some(revision))
                || member.object.is_some_and(|object| of_spec(&object.spec))
        })
}

/// The target, where it is to be rolled out and nothing of it is there yet.
fn wanted_target<'a>(scope: &'a Scope<'_>) -> Option<&'a Target> {
    let target = scope.target.as_ref()?;
    let is_known = scope.revisions.contains_key(target.revision.as_str());
    let is_wanted = !is_known && blocked(scope).is_none() && !settings::is_paused(scope.config);
    let mut members = scope.members.values();
    (is_wanted && members.any(Member::is_served_or_waits)).then_some(target)
}

/// ConfigMap and DaemonSet of a revision, made again where they were lost.
fn objects(
    scope: &Scope<'_>,
    revision: &SeenRevision,
    stable: &SeenRevision,
    live: &BTreeSet<&str>,
) -> Vec<Write> {
    let Some(content) = &revision.content else {
        return Vec::new();
    };
    let settings = &scope.seen.settings;
    let name = revision_object(scope.name, &revision.revision);
    let mut writes = Vec::new();
    if !scope.seen.config_maps.contains_key(&name) {
        writes.push(Write::CreateConfigMap {
            object: config_map(scope.config, &revision.revision, content, settings),
            name: name.clone(),
        });
    }
    let template = template(scope, revision, stable, live);
    match scope.seen.daemon_sets.get(&name) {
        None => writes.push(Write::CreateDaemonSet {
            object: daemon_set(scope.config, &revision.revision, &template, settings),
            name,
        }),
        Some(present) if present.owner_uid == scope.uid && !present.deleting => {
            // With something wrong in the spec, where agents run stays as it is.
            let template = match &scope.problem {
                None => template,
                Some(_) => with_affinity_of(present, &template),
            };
            let is_stable = revision.revision == stable.revision;
            let narrows = !is_stable && is_wide(&present.template) && !is_wide(&template);
            let waits = narrows && !may_narrow(scope, stable, live);
            if !waits && !is_as_wanted(present, &template) {
                writes.push(Write::PatchDaemonSet {
                    on: present.id.clone(),
                    template,
                });
            }
        }
        Some(_) => {}
    }
    writes
}

/// The template of a revision, placed where its agents are to run.
fn template(
    scope: &Scope<'_>,
    revision: &SeenRevision,
    stable: &SeenRevision,
    live: &BTreeSet<&str>,
) -> Value {
    let live: Vec<_> = live.iter().copied().collect();
    let place = if revision.revision == stable.revision {
        Place::Stable {
            selection: scope.selection.terms(),
            live: &live,
        }
    } else {
        Place::Labelled
    };
    let content = revision.content.as_ref().map(|one| &one.template);
    placed(
        content.unwrap_or(&Value::Null),
        scope.name,
        &revision.revision,
        place,
    )
}

/// Whether a template also runs on nodes whose label names no live revision: the terms beside those
/// of its own two labels.
fn is_wide(template: &Value) -> bool {
    let terms = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = template.pointer(terms).and_then(Value::as_array);
    terms.is_some_and(|terms| terms.iter().any(says_not_in))
}

fn says_not_in(term: &Value) -> bool {
    let expressions = term.get("matchExpressions").and_then(Value::as_array);
    let ours = |one: &Value| {
        let key = one.get("key").and_then(Value::as_str);
        one.get("operator").and_then(Value::as_str) == Some("NotIn")
            && key.is_some_and(|key| key.starts_with(NODE_LABEL_PREFIX))
    };
    expressions.is_some_and(|expressions| expressions.iter().any(ours))
}

/// Whether a revision that was stable may give up the nodes without a label: the new stable one has
/// them, its controller knows, and no node would lose its agent. A node matches at least one
/// DaemonSet at every moment.
fn may_narrow(scope: &Scope<'_>, stable: &SeenRevision, live: &BTreeSet<&str>) -> bool {
    let set = scope.daemon_set(&stable.revision);
    let is_wide_enough = set.is_some_and(|set| {
        set.is_observed && is_as_wanted(set, &template(scope, stable, stable, live))
    });
    let mut members = scope.members.values();
    let is_pinned = |member: &Member<'_>| {
        let pinned = member.pinned;
        !member.is_served_or_waits() || pinned.is_some_and(|one| scope.revisions.contains_key(one))
    };
    is_wide_enough && members.all(is_pinned)
}

/// What nothing names any more: DaemonSets at once, the rest when their pods are gone. Of
/// ControllerRevisions the newest promoted ones stay, to go back to, and those that failed, so that
/// they are not tried again.
fn idle(scope: &Scope<'_>, live: &BTreeSet<&str>) -> Vec<Write> {
    let seen = scope.seen;
    let mut writes = Vec::new();
    let sets = seen.daemon_sets.values();
    for set in sets.filter(|set| set.config == scope.name && set.owner_uid == scope.uid) {
        // One without a ControllerRevision is made whole again while a node has it.
        let is_named = live.contains(set.revision.as_str()) || is_carried(scope, &set.revision);
        if !set.deleting && !is_named {
            writes.push(delete(Kind::DaemonSet, &set.id));
        }
    }
    let is_used = |revision: &str| {
        let mut pods = scope.pods.values().flatten();
        live.contains(revision)
            || is_carried(scope, revision)
            || pods.any(|pod| pod.revision == revision)
            || seen
                .daemon_sets
                .contains_key(&revision_object(scope.name, revision))
    };
    let maps = seen.config_maps.values();
    for map in maps.filter(|map| map.config == scope.name && map.owner_uid == scope.uid) {
        let revision = map.id.name.strip_prefix(scope.name);
        let revision = revision.and_then(|rest| rest.strip_prefix('-'));
        if !map.deleting && revision.is_some_and(|one| !is_used(one)) {
            writes.push(delete(Kind::ConfigMap, &map.id));
        }
    }
    let mut old: Vec<_> = scope.revisions.values().copied().collect();
    old.retain(|one| {
        let map = seen.config_maps.contains_key(&one.id.name);
        !is_used(&one.revision) && !map
    });
    old.sort_by_key(|one| std::cmp::Reverse((one.promoted, one.number)));
    let (kept, rest): (Vec<_>, Vec<_>) = old
        .into_iter()
        .partition(|one| one.promoted.is_some() || one.failed.is_some());
    let superfluous = kept.into_iter().skip(REVISIONS_KEPT).chain(rest);
    writes.extend(superfluous.map(|one| delete(Kind::Revision, &one.id)));
    writes
}

fn with_affinity_of(present: &SeenDaemonSet, template: &Value) -> Value {
    let mut template = template.clone();
    if let (Some(affinity), Some(spec)) = (
        present.template.pointer("/spec/affinity"),
        template.get_mut("spec").and_then(Value::as_object_mut),
    ) {
        spec.insert("affinity".to_owned(), affinity.clone());
    }
    template
}

fn is_as_wanted(present: &SeenDaemonSet, template: &Value) -> bool {
    let affinity = "/spec/affinity";
    present.on_delete
        && holds(&present.template, template)
        && present.template.pointer(affinity) == template.pointer(affinity)
        && present.template.pointer("/spec/nodeSelector").is_none()
}
