//! Labels and statuses of pools.

use std::collections::{BTreeMap, BTreeSet};

use crds::names::POOL_LABEL_PREFIX;
use crds::{DevicePluginPool, DevicePluginPoolStatus};

use crate::action::{Action, PoolStatus, Write};
use crate::seen::Identity;
use crate::selection::{matches, selects_pool};
use crate::snapshot::Snapshot;

/// Most names of configs in a pool's status, as the schema says.
const CONFIGS_MAX: usize = 32;

/// By config, the names of the nodes that serve all its resources.
pub type Serving<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// What pools lack: labels, and statuses that differ.
pub fn lacking(seen: &Snapshot, serving: &Serving<'_>) -> (Vec<Action>, Vec<PoolStatus>) {
    let (mut labels_lacking, mut statuses) = (Vec::new(), Vec::new());
    for (name, pool) in &seen.pools {
        if pool.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let on = Identity::of(&pool.metadata);
        let key = format!("{POOL_LABEL_PREFIX}{name}");
        let labels = pool.metadata.labels.as_ref();
        if labels
            .and_then(|labels| labels.get(&key))
            .is_none_or(|value| !value.is_empty())
        {
            labels_lacking.push(Action {
                config: String::new(),
                write: Write::LabelPool {
                    on: on.clone(),
                    key,
                },
            });
        }
        let status = status(seen, pool, serving);
        if pool.status.as_ref() != Some(&status) {
            statuses.push(PoolStatus { on, status });
        }
    }
    (labels_lacking, statuses)
}

fn status(
    seen: &Snapshot,
    pool: &DevicePluginPool,
    serving: &Serving<'_>,
) -> DevicePluginPoolStatus {
    let selector = pool.spec.node_selector.as_ref();
    let nodes: Vec<_> = seen
        .nodes
        .values()
        .filter(|node| !node.deleting && selector.is_some_and(|one| matches(one, &node.labels)))
        .map(|node| node.id.name.as_str())
        .collect();
    let configs: Vec<_> = seen
        .configs
        .iter()
        .filter(|(_, config)| {
            let selector = config.spec.machine_config_pool_selector.as_ref();
            selector.is_some_and(|selector| selects_pool(selector, pool))
        })
        .map(|(name, _)| name.as_str())
        .collect();
    let is_served = |config: &&str, node: &str| {
        serving
            .get(*config)
            .is_some_and(|nodes| nodes.contains(node))
    };
    let ready = nodes
        .iter()
        .filter(|node| configs.iter().all(|config| is_served(config, node)));
    DevicePluginPoolStatus {
        observed_generation: pool.metadata.generation,
        node_count: i32::try_from(nodes.len()).unwrap_or(i32::MAX),
        ready_node_count: i32::try_from(ready.count()).unwrap_or(i32::MAX),
        configs: configs
            .iter()
            .take(CONFIGS_MAX)
            .map(|name| (*name).to_owned())
            .collect(),
    }
}
