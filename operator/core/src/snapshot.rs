//! Everything that was seen at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crds::{DevicePluginConfig, DevicePluginNode, DevicePluginPool};
use k8s_openapi::jiff::Timestamp;

use crate::ledger::SeenLedger;
use crate::seen::{SeenConfigMap, SeenDaemonSet, SeenNode, SeenPod, SeenRevision};
use crate::settings::Settings;

/// The cluster as it was seen. Maps are by name.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When.
    pub now: Timestamp,
    /// What the operator was started with.
    pub settings: Arc<Settings>,
    /// Pools or `DevicePluginNode`s are not served, because somebody removed their definitions:
    /// nothing is made, and what is being deleted goes on being deleted.
    pub kinds_missing: bool,
    /// Every config.
    pub configs: BTreeMap<String, Arc<DevicePluginConfig>>,
    /// Configs that exist but cannot be read: nothing of theirs is touched.
    pub unreadable_configs: BTreeSet<String>,
    /// Every pool.
    pub pools: BTreeMap<String, Arc<DevicePluginPool>>,
    /// Every `DevicePluginNode`.
    pub node_objects: BTreeMap<String, Arc<DevicePluginNode>>,
    /// Every node.
    pub nodes: BTreeMap<String, Arc<SeenNode>>,
    /// DaemonSets with our config label in our namespace.
    pub daemon_sets: BTreeMap<String, Arc<SeenDaemonSet>>,
    /// ControllerRevisions with our config label in our namespace.
    pub revisions: BTreeMap<String, Arc<SeenRevision>>,
    /// ConfigMaps with our config label in our namespace.
    pub config_maps: BTreeMap<String, Arc<SeenConfigMap>>,
    /// Pods with our config label in our namespace.
    pub pods: BTreeMap<String, Arc<SeenPod>>,
    /// The ledger, read live after everything else here.
    pub ledger: SeenLedger,
    /// This leader's number.
    pub epoch: u64,
    /// For how long the operator has seen the cluster, with fresh caches, since the ledger above was
    /// written or first read by it: the clocks of claims advance by as much.
    pub watched: Duration,
    /// By config, what the API server refused when the last plan was executed.
    pub write_failures: BTreeMap<String, String>,
}

impl Snapshot {
    /// Nothing seen yet.
    pub fn empty(settings: Arc<Settings>, now: Timestamp) -> Self {
        Self {
            now,
            settings,
            kinds_missing: false,
            configs: BTreeMap::new(),
            unreadable_configs: BTreeSet::new(),
            pools: BTreeMap::new(),
            node_objects: BTreeMap::new(),
            nodes: BTreeMap::new(),
            daemon_sets: BTreeMap::new(),
            revisions: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            pods: BTreeMap::new(),
            ledger: SeenLedger::Absent,
            epoch: 1,
            watched: Duration::ZERO,
            write_failures: BTreeMap::new(),
        }
    }
}
