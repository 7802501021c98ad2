//! The first of the five calls: everything that is known, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use operator_core::settings::Settings;
use operator_core::snapshot::Snapshot;

use crate::caches::{Caches, Readable};
use crate::client::CallError;
use crate::ledger::Ledgers;

/// The snapshot to plan on.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn observe(
    caches: &Caches,
    settings: &Arc<Settings>,
    kinds_missing: bool,
    epoch: u64,
    write_failures: BTreeMap<String, String>,
    ledgers: &mut Ledgers,
) -> Result<Snapshot, CallError> {
    let start = Instant::now();
    let blind = caches.blind(start);
    let mut seen = cached(caches, settings, kinds_missing);
    // After everything else: what the caches show of an earlier leader's acts is then in it.
    (seen.ledger, seen.watched) = ledgers.read(start, blind).await?;
    seen.epoch = epoch;
    seen.write_failures = write_failures;
    Ok(seen)
}

/// What the watches have brought.
fn cached(caches: &Caches, settings: &Arc<Settings>, kinds_missing: bool) -> Snapshot {
    let now = Timestamp::now();
    // The API keeps whole seconds: a finer time would differ from what is read back.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let (mut configs, mut unreadable_configs) = split(caches.configs.objects());
    let (pools, unreadable_pools) = split(caches.pools.objects());
    let (node_objects, _) = split(caches.node_objects.objects());
    if !unreadable_pools.is_empty() {
        // A pool that cannot be read must not look like one that selects nothing.
        let by_pool: Vec<_> = configs
            .extract_if(.., |_, config| {
                config.spec.machine_config_pool_selector.is_some()
            })
            .collect();
        unreadable_configs.extend(by_pool.into_iter().map(|(name, _)| name));
    }
    Snapshot {
        kinds_missing,
        configs,
        unreadable_configs,
        pools,
        node_objects,
        nodes: caches.nodes.objects(),
        daemon_sets: caches.daemon_sets.objects(),
        revisions: caches.revisions.objects(),
        config_maps: caches.config_maps.objects(),
        pods: caches.pods.objects(),
        ..Snapshot::empty(settings.clone(), now)
    }
}

type Split<K> = (BTreeMap<String, Arc<K>>, BTreeSet<String>);

fn split<K>(objects: BTreeMap<String, Arc<Readable<K>>>) -> Split<K> {
    let mut readable = BTreeMap::new();
    let mut unreadable = BTreeSet::new();
    for (name, object) in objects {
        match &object.object {
            Ok(object) => {
                readable.insert(name, object.clone());
            }
            Err(_) => {
                unreadable.insert(name);
            }
        }
    }
    (readable, unreadable)
}
