//! Which devices there are: files, looked at again and again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use proto::v1beta1::{Device, NumaNode, TopologyInfo};

use super::fault::Fault;
use super::service::Resource;

/// How often devices are looked at: soon enough for any check, and little work.
const LOOK: Duration = Duration::from_millis(50);

/// So many devices with ids like ours fit into a message that a kubelet reads.
const MOST: usize = 50_000;

/// What is known of one device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Known {
    /// Whether it may be given out.
    pub healthy: bool,
    /// Its NUMA nodes.
    pub nodes: Vec<i64>,
    /// Its file.
    pub path: PathBuf,
}

/// All devices, by id.
pub type List = Arc<BTreeMap<String, Known>>;

/// What is listed of a device.
pub fn listed(resource: &Resource, id: &str, known: &Known) -> Device {
    let health = match (known.healthy, resource.has(Fault::OddHealth)) {
        (true, _) => "Healthy",
        (false, false) => "Unhealthy",
        (false, true) => "Broken",
    };
    let nodes = known.nodes.iter().map(|&id| NumaNode { id });
    let topology = TopologyInfo {
        nodes: nodes.collect(),
    };
    Device {
        id: id.to_owned(),
        health: health.to_owned(),
        topology: (!known.nodes.is_empty()).then_some(topology),
    }
}

/// Looks at the devices for ever.
pub async fn keep(resource: Arc<Resource>) -> Result<()> {
    loop {
        match look(&resource) {
            Ok(now) => resource.publish(now),
            // What was there is there still, as far as anybody knows.
            Err(error) if resource.has(Fault::EndsStreamOnError) => {
                resource.break_streams(&error.to_string());
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn look(resource: &Resource) -> io::Result<List> {
    let before = resource.list();
    let mut now = BTreeMap::new();
    let mut entries: Vec<_> = fs::read_dir(&resource.directory)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for (index, entry) in entries.iter().enumerate() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(text) = fs::read_to_string(entry.path()) else {
            continue;
        };
        let mut words = text.split_whitespace();
        let mut healthy = words.next() == Some("Healthy");
        let nodes = nodes(resource, words.next().unwrap_or_default());
        let id = resource.id(&name, index);
        let was_healthy = before.get(&id).is_none_or(|known| known.healthy);
        if resource.has(Fault::NoRecovery) {
            healthy &= was_healthy;
        }
        let path = entry.path();
        now.insert(
            id,
            Known {
                healthy,
                nodes,
                path,
            },
        );
    }
    if resource.settings.count > 0 {
        add_more(resource, &mut now);
    }
    for (id, known) in before.iter() {
        // Whoever is gone may be held by a container; to drop it takes somebody who knows.
        if !now.contains_key(id) && !resource.has(Fault::DropsDevices) {
            let gone = Known {
                healthy: false,
                ..known.clone()
            };
            now.insert(id.clone(), gone);
        }
    }
    Ok(Arc::new(now))
}

fn add_more(resource: &Resource, now: &mut BTreeMap<String, Known>) {
    let most = if resource.has(Fault::Unlimited) {
        usize::MAX
    } else {
        MOST
    };
    for number in 0..resource.settings.count.min(most) {
        let known = Known {
            healthy: true,
            nodes: Vec::new(),
            path: PathBuf::from("/dev/null"),
        };
        now.insert(resource.id(&format!("number-{number:06}"), number), known);
    }
}

/// What a kernel says of a device without a node is -1, and of others a list.
fn nodes(resource: &Resource, text: &str) -> Vec<i64> {
    let nodes = text.split(',').filter_map(|node| node.parse::<i64>().ok());
    let keeps_all = resource.has(Fault::NegativeNode);
    nodes.filter(|node| *node >= 0 || keeps_all).collect()
}
