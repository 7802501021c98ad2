//! The objects of a config's revision.

use crds::names::{CLEANUP_FINALIZER, revision_object};

use crate::action::{Kind, Write};
use crate::lineage::Stable;
use crate::rendering::{
    config_map, content, controller_revision, daemon_set, holds, placed, unplaced,
};
use crate::revision::RevisionContent;
use crate::scope::{Scope, Target};
use crate::seen::{Identity, SeenDaemonSet, SeenRevision};
use crate::selection::Selection;

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
        Stable::Rebuild { revision, content } => vec![create(scope, revision, content)],
        Stable::Lost(revision) => {
            let same = scope
                .target
                .as_ref()
                .filter(|target| target.revision == *revision);
            same.map(|target| rendered(scope, target))
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
        Selection::Terms(_) => scope.target.as_ref().map(|target| rendered(scope, target)),
        Selection::NoSelector | Selection::NoPools => None,
    }
}

fn rendered(scope: &Scope<'_>, target: &Target) -> Write {
    let settings = &scope.seen.settings;
    let content = content(scope.config, &target.revision, &target.image, settings);
    create(scope, &target.revision, &content)
}

fn create(scope: &Scope<'_>, revision: &str, content: &RevisionContent) -> Write {
    // The only revision of the config, so the first to be promoted.
    let object = controller_revision(scope.config, revision, content, 1, &scope.seen.settings);
    Write::CreateRevision {
        name: revision_object(scope.name, revision),
        object,
    }
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

/// ConfigMap and DaemonSet of a revision, made again where they were lost.
fn standing(scope: &Scope<'_>, revision: &SeenRevision) -> Vec<Write> {
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
    let template = placed(
        &content.template,
        scope.name,
        &revision.revision,
        &[&revision.revision],
        scope.selection.terms(),
    );
    match scope.seen.daemon_sets.get(&name) {
        None => writes.push(Write::CreateDaemonSet {
            object: daemon_set(scope.config, &revision.revision, &template, settings),
            name,
        }),
        Some(present) if present.owner_uid == scope.uid && !present.deleting => {
            // With something wrong in the spec, where agents run stays as it is.
            let template = match &scope.problem {
                None => template,
                Some(_) => with_affinity_of(present, &content.template),
            };
            if !is_as_wanted(present, &template) {
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

fn with_affinity_of(present: &SeenDaemonSet, template: &serde_json::Value) -> serde_json::Value {
    let mut template = unplaced(template);
    if let (Some(affinity), Some(spec)) = (
        present.template.pointer("/spec/affinity"),
        template
            .get_mut("spec")
            .and_then(serde_json::Value::as_object_mut),
    ) {
        spec.insert("affinity".to_owned(), affinity.clone());
    }
    template
}

fn is_as_wanted(present: &SeenDaemonSet, template: &serde_json::Value) -> bool {
    let affinity = "/spec/affinity";
    present.on_delete
        && holds(&present.template, template)
        && present.template.pointer(affinity) == template.pointer(affinity)
        && present.template.pointer("/spec/nodeSelector").is_none()
}
