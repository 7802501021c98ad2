//! What a process of the operator knows of the cluster.

use crds::{DevicePluginConfig, DevicePluginNode};
use operator_core::seen::{SeenConfigMap, SeenDaemonSet, SeenNode, SeenPod, SeenRevision};

use crate::cache::Cache;

/// What a process knows.
#[derive(Default)]
pub struct Caches {
    /// Configs.
    pub configs: Cache<DevicePluginConfig>,
    /// Objects of nodes.
    pub node_objects: Cache<DevicePluginNode>,
    /// Nodes.
    pub nodes: Cache<SeenNode>,
    /// DaemonSets.
    pub daemon_sets: Cache<SeenDaemonSet>,
    /// ControllerRevisions.
    pub revisions: Cache<SeenRevision>,
    /// ConfigMaps.
    pub config_maps: Cache<SeenConfigMap>,
    /// Pods.
    pub pods: Cache<SeenPod>,
}

/// Does the same with the cache and the shelf of a kind.
macro_rules! of_kind {
    ($kind:expr, $caches:expr, $api:expr, |$cache:ident, $shelf:ident| $body:expr) => {
        match $kind {
            Watch::Configs => {
                let ($cache, $shelf) = (&mut $caches.configs, &$api.configs);
                $body
            }
            Watch::NodeObjects => {
                let ($cache, $shelf) = (&mut $caches.node_objects, &$api.node_objects);
                $body
            }
            Watch::Nodes => {
                let ($cache, $shelf) = (&mut $caches.nodes, &$api.nodes);
                $body
            }
            Watch::DaemonSets => {
                let ($cache, $shelf) = (&mut $caches.daemon_sets, &$api.daemon_sets);
                $body
            }
            Watch::Revisions => {
                let ($cache, $shelf) = (&mut $caches.revisions, &$api.revisions);
                $body
            }
            Watch::ConfigMaps => {
                let ($cache, $shelf) = (&mut $caches.config_maps, &$api.config_maps);
                $body
            }
            Watch::Pods => {
                let ($cache, $shelf) = (&mut $caches.pods, &$api.pods);
                $body
            }
        }
    };
}
pub(crate) use of_kind;
