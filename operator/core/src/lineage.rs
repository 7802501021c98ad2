//! Which revision nodes run unless they are being changed.
//!
//! It is read from what is in the cluster, never remembered: a lost status, ControllerRevision or
//! label must not make the next spec look like a first installation.

use std::collections::BTreeMap;

use crds::names::{node_revision_label, revision_object};
use crds::{DevicePluginConfig, DevicePluginNode};
use serde_json::Value;

use crate::rendering::unplaced;
use crate::revision::{HASH_SCHEMA, RevisionContent};
use crate::seen::{SeenDaemonSet, SeenRevision};
use crate::snapshot::Snapshot;

/// The stable revision.
pub enum Stable<'a> {
    /// There is none: nothing of this config was ever installed.
    None,
    /// Its ControllerRevision is there.
    Stands(&'a SeenRevision),
    /// Its ControllerRevision is gone, and what it held can be read from its DaemonSet and its
    /// ConfigMap.
    Rebuild {
        /// The revision.
        revision: String,
        /// What it held.
        content: Box<RevisionContent>,
    },
    /// Something names it, and what it held is gone.
    Lost(String),
}

impl Stable<'_> {
    /// Its name.
    pub fn revision(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Stands(seen) => Some(&seen.revision),
            Self::Rebuild { revision, .. } | Self::Lost(revision) => Some(revision),
        }
    }

    /// Its agent image.
    pub fn image(&self) -> Option<&str> {
        match self {
            Self::None | Self::Lost(_) => None,
            Self::Stands(seen) => seen.content.as_ref().map(|one| one.agent_image.as_str()),
            Self::Rebuild { content, .. } => Some(&content.agent_image),
        }
    }
}

/// The stable revision of a config: the one promoted last, else the one its status names, else the
/// one that most nodes carry. A status can be edited, wiped or restored from a backup, so a
/// promotion beats it; node labels alone prove nothing, because an earlier config of the same name
/// may have left them.
pub fn stable<'a>(
    seen: &'a Snapshot,
    config: &DevicePluginConfig,
    objects: impl Iterator<Item = &'a DevicePluginNode>,
) -> Stable<'a> {
    let name = config.metadata.name.as_deref().unwrap_or_default();
    let uid = config.metadata.uid.as_deref().unwrap_or_default();
    let status = config.status.as_ref();
    let named = status.and_then(|status| status.stable_revision.as_deref());
    let own: Vec<_> = usable(seen, name, uid).collect();
    let carried = carried(seen, name);
    let carriers = |revision: &str| carried.get(revision).copied().unwrap_or_default();
    let promoted = own.iter().filter(|one| one.promoted.is_some());
    let newest = promoted.max_by_key(|one| (one.promoted, one.revision.as_str()));
    // The stable revision itself may be the one whose ControllerRevision is lost.
    let is_lost = |revision: &str| {
        Some(revision) == named
            || newest.is_none_or(|newest| {
                Some(newest.revision.as_str()) != named
                    && carriers(revision) > carriers(&newest.revision)
            })
    };
    let orphan = orphans(seen, name, uid)
        .into_iter()
        .filter(|(revision, _)| is_lost(revision))
        .max_by_key(|(revision, _)| (Some(*revision) == named, carriers(revision)));
    if let Some((revision, content)) = orphan.filter(|_| !own.is_empty()) {
        return Stable::Rebuild {
            revision: revision.to_owned(),
            content: Box::new(content),
        };
    }
    let known = newest.or_else(|| {
        own.iter().max_by_key(|one| {
            let is_named = Some(one.revision.as_str()) == named;
            (is_named, carriers(&one.revision))
        })
    });
    if let Some(known) = known {
        return Stable::Stands(known);
    }
    let mut sets: Vec<_> = seen
        .daemon_sets
        .values()
        .filter(|one| one.owner_uid == uid && one.config == name && !one.deleting)
        .collect();
    let by_most = |set: &&std::sync::Arc<SeenDaemonSet>| {
        let carriers = carried.get(set.revision.as_str());
        std::cmp::Reverse(carriers.copied().unwrap_or_default())
    };
    sets.sort_by_key(by_most);
    let named_set = sets.iter().find(|set| Some(set.revision.as_str()) == named);
    // What runs beats what is only named: a status can be edited by hand.
    for set in named_set.into_iter().chain(&sets) {
        if let Some(content) = rebuilt(seen, name, uid, set) {
            return Stable::Rebuild {
                revision: set.revision.clone(),
                content: Box::new(content),
            };
        }
    }
    let mut actives: BTreeMap<&str, usize> = BTreeMap::new();
    for object in objects {
        *actives.entry(object.spec.active.as_str()).or_default() += 1;
    }
    let revision = named
        .or_else(|| sets.first().map(|set| set.revision.as_str()))
        .or_else(|| {
            let most = actives.iter().max_by_key(|(_, count)| **count);
            most.map(|(revision, _)| *revision)
        });
    revision.map_or(Stable::None, |one| Stable::Lost(one.to_owned()))
}

/// The revisions of a config that can run.
pub fn usable<'a>(
    seen: &'a Snapshot,
    config: &str,
    uid: &str,
) -> impl Iterator<Item = &'a SeenRevision> {
    let all = seen.revisions.values().map(|one| &**one);
    all.filter(move |one| one.owner_uid == uid && one.config == config && is_usable(one))
}

/// Revisions that a DaemonSet runs and whose ControllerRevision is gone, with what it held.
pub fn orphans<'a>(seen: &'a Snapshot, config: &str, uid: &str) -> Vec<(&'a str, RevisionContent)> {
    let sets = seen.daemon_sets.values().map(|set| &**set);
    sets.filter(|set| set.owner_uid == uid && set.config == config && !set.deleting)
        .filter(|set| {
            let revision = seen.revisions.get(&revision_object(config, &set.revision));
            revision.is_none_or(|one| one.owner_uid != uid || !is_usable(one))
        })
        .filter_map(|set| Some((set.revision.as_str(), rebuilt(seen, config, uid, set)?)))
        .collect()
}

fn is_usable(revision: &SeenRevision) -> bool {
    revision.content.is_some() && !revision.revision.is_empty() && !revision.deleting
}

/// How many nodes carry each value of the config's label.
fn carried<'a>(seen: &'a Snapshot, config: &str) -> BTreeMap<&'a str, usize> {
    let label = node_revision_label(config);
    let mut carried = BTreeMap::new();
    for value in seen
        .nodes
        .values()
        .filter_map(|node| node.labels.get(&label))
    {
        *carried.entry(value.as_str()).or_default() += 1;
    }
    carried
}

/// What a lost ControllerRevision held, read from the objects that were made from it.
fn rebuilt(
    seen: &Snapshot,
    config: &str,
    uid: &str,
    set: &SeenDaemonSet,
) -> Option<RevisionContent> {
    let map = seen
        .config_maps
        .get(&revision_object(config, &set.revision))?;
    let agent_config = map.agent_config.clone().filter(|_| map.owner_uid == uid)?;
    let containers = set.template.pointer("/spec/containers")?.as_array()?;
    let agent = containers.iter().find(|one| {
        one.get("name").and_then(Value::as_str) == Some(crate::rendering::AGENT_CONTAINER)
    })?;
    let image = agent.get("image").and_then(Value::as_str)?;
    Some(RevisionContent {
        hash_schema: HASH_SCHEMA,
        agent_image: image.to_owned(),
        agent_config,
        template: unplaced(&set.template),
    })
}
