//! Everything that is watched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crds::names::CONFIG_LABEL;
use crds::{DevicePluginConfig, DevicePluginNode, DevicePluginPool};
use daemon::Stop;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Client;
use kube::api::Api;
use kube::core::{DeserializeGuard, Resource};
use operator_core::seen::{
    Identity, SeenConfigMap, SeenDaemonSet, SeenNode, SeenPod, SeenRevision,
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::slim_node::SlimNode;
use crate::store::{Health, Store, Watched};
use crate::watch::{Term, Watch};

/// One object of ours, or why it cannot be read.
#[derive(Debug)]
pub struct Readable<K> {
    /// Which one.
    pub id: Identity,
    /// The object.
    pub object: Result<Arc<K>, String>,
}

/// One store for each kind.
#[derive(Debug)]
pub struct Caches {
    /// Configs.
    pub configs: Arc<Store<Readable<DevicePluginConfig>>>,
    /// Pools.
    pub pools: Arc<Store<Readable<DevicePluginPool>>>,
    /// `DevicePluginNode`s.
    pub node_objects: Arc<Store<Readable<DevicePluginNode>>>,
    /// Nodes.
    pub nodes: Arc<Store<SeenNode>>,
    /// DaemonSets.
    pub daemon_sets: Arc<Store<SeenDaemonSet>>,
    /// ControllerRevisions.
    pub revisions: Arc<Store<SeenRevision>>,
    /// ConfigMaps.
    pub config_maps: Arc<Store<SeenConfigMap>>,
    /// Pods.
    pub pods: Arc<Store<SeenPod>>,
}

impl Caches {
    /// Empty stores that tell `wake` what is new.
    pub fn new(wake: &Arc<Notify>) -> Self {
        Self {
            configs: Arc::new(Store::new(wake.clone())),
            pools: Arc::new(Store::new(wake.clone())),
            node_objects: Arc::new(Store::new(wake.clone())),
            nodes: Arc::new(Store::new(wake.clone())),
            daemon_sets: Arc::new(Store::new(wake.clone())),
            revisions: Arc::new(Store::new(wake.clone())),
            config_maps: Arc::new(Store::new(wake.clone())),
            pods: Arc::new(Store::new(wake.clone())),
        }
    }

    /// Starts a watch for each.
    pub fn watch(&self, client: &Client, namespace: &str, stop: &Stop) -> JoinSet<()> {
        let mut watches = JoinSet::new();
        let ours = || Some(CONFIG_LABEL.to_owned());
        let client = || client.clone();
        watches
            .spawn(watch(Api::all(client()), None, &self.configs, keep_config).run(stop.clone()));
        watches.spawn(watch(Api::all(client()), None, &self.pools, keep_pool).run(stop.clone()));
        watches.spawn(
            watch(
                Api::all(client()),
                None,
                &self.node_objects,
                keep_node_object,
            )
            .short()
            .run(stop.clone()),
        );
        let nodes = watch(Api::all(client()), None, &self.nodes, keep_node).short();
        watches.spawn(nodes.run(stop.clone()));
        let sets = Api::namespaced(client(), namespace);
        watches.spawn(watch(sets, ours(), &self.daemon_sets, keep_daemon_set).run(stop.clone()));
        let revisions = Api::namespaced(client(), namespace);
        watches.spawn(watch(revisions, ours(), &self.revisions, keep_revision).run(stop.clone()));
        let maps = Api::namespaced(client(), namespace);
        watches.spawn(watch(maps, ours(), &self.config_maps, keep_config_map).run(stop.clone()));
        let pods = Api::namespaced(client(), namespace);
        let pods = watch(pods, ours(), &self.pods, keep_pod).short();
        watches.spawn(pods.run(stop.clone()));
        watches
    }

    /// For how long until now the operator did not see for certain what happens to nodes and
    /// agents: no clock of a claim may run then. Two watches that are blind at once count twice,
    /// which errs to the safe side.
    pub fn blind(&self, now: Instant) -> Duration {
        self.nodes.blind(now) + self.pods.blind(now) + self.node_objects.blind(now)
    }

    /// Whether every watch stands.
    pub fn state(&self) -> Complete {
        let Self {
            configs,
            pools,
            node_objects,
            nodes,
            daemon_sets,
            revisions,
            config_maps,
            pods,
        } = self;
        let all = [
            ("devicepluginconfigs", configs.health()),
            ("devicepluginpools", pools.health()),
            ("devicepluginnodes", node_objects.health()),
            ("nodes", nodes.health()),
            ("daemonsets", daemon_sets.health()),
            ("controllerrevisions", revisions.health()),
            ("configmaps", config_maps.health()),
            ("pods", pods.health()),
        ];
        let mut missing = false;
        let mut starting = None;
        for (kind, health) in all {
            match health {
                Health::Synced => {}
                Health::Missing => missing = true,
                Health::Starting => starting = starting.or(Some(kind)),
                Health::Failing(why) => {
                    return Complete::No(format!("failed to watch {kind}: {why}"));
                }
            }
        }
        match (missing, starting) {
            (false, None) => Complete::Yes,
            (false, Some(kind)) => Complete::No(format!("waits for the first list of {kind}")),
            // Kinds that are missing are one thing to do, however many of them there are.
            (true, None) if configs.health() == Health::Synced => Complete::DeletionsOnly(MISSING),
            (true, _) => Complete::No(MISSING.to_owned()),
        }
    }
}

/// Whether enough is known to decide on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Complete {
    /// Everything is.
    Yes,
    /// Configs are known and a kind of ours is gone; the text says what to do.
    DeletionsOnly(&'static str),
    /// It is not; why, in words.
    No(String),
}

/// What to do when the API server does not know our kinds.
pub const MISSING: &str = "the CustomResourceDefinitions of deviceplugins.dev are not installed: install them with the chart (value crds.enabled=true) or with `kubectl apply -f crds/manifests`; the operator waits for them and goes on by itself";

fn watch<K, T>(
    api: Api<K>,
    labels: Option<String>,
    store: &Arc<Store<T>>,
    keep: fn(K) -> Option<T>,
) -> Watch<K, T> {
    Watch {
        api,
        labels,
        store: store.clone(),
        keep,
        term: Term::Long,
    }
}

/// What is kept of a config.
pub fn keep_config(
    guarded: DeserializeGuard<DevicePluginConfig>,
) -> Option<Readable<DevicePluginConfig>> {
    readable(guarded)
}

/// What is kept of a pool.
pub fn keep_pool(
    guarded: DeserializeGuard<DevicePluginPool>,
) -> Option<Readable<DevicePluginPool>> {
    readable(guarded)
}

/// What is kept of a `DevicePluginNode`: not its devices, which are most of it.
pub fn keep_node_object(
    mut guarded: DeserializeGuard<DevicePluginNode>,
) -> Option<Readable<DevicePluginNode>> {
    if let Ok(object) = &mut guarded.0
        && let Some(active) = object
            .status
            .as_mut()
            .and_then(|status| status.active.as_mut())
    {
        active.devices = Vec::new();
    }
    readable(guarded)
}

/// What is kept of a node.
pub fn keep_node(object: SlimNode) -> Option<SeenNode> {
    Some(object.seen)
}

/// What is kept of a DaemonSet.
pub fn keep_daemon_set(object: DaemonSet) -> Option<SeenDaemonSet> {
    Some(object.into())
}

/// What is kept of a ControllerRevision: only ours, not those that the DaemonSet controller makes
/// and labels like its pods.
pub fn keep_revision(object: ControllerRevision) -> Option<SeenRevision> {
    Some(SeenRevision::from(object)).filter(|revision| !revision.owner_uid.is_empty())
}

/// What is kept of a ConfigMap.
pub fn keep_config_map(object: ConfigMap) -> Option<SeenConfigMap> {
    Some(object.into())
}

/// What is kept of a pod.
pub fn keep_pod(object: Pod) -> Option<SeenPod> {
    Some(object.into())
}

fn readable<K>(guarded: DeserializeGuard<K>) -> Option<Readable<K>>
where
    K: Resource + DeserializeOwned,
    K::DynamicType: Default,
{
    let id = Identity::of(match &guarded.0 {
        Ok(object) => object.meta(),
        Err(invalid) => &invalid.metadata,
    });
    let object = match guarded.0 {
        Ok(mut object) => {
            object.meta_mut().managed_fields = None;
            Ok(Arc::new(object))
        }
        Err(invalid) => {
            let kind = K::kind(&K::DynamicType::default()).into_owned();
            tracing::error!(
                kind,
                name = id.name,
                error = invalid.error,
                "an object cannot be read"
            );
            Err(invalid.error)
        }
    };
    Some(Readable { id, object })
}

impl<K: PartialEq + Resource + Clone> Watched for Readable<K> {
    fn id(&self) -> Identity {
        self.id.clone()
    }

    fn is_same(&self, other: &Self) -> bool {
        match (&self.object, &other.object) {
            (Ok(one), Ok(other)) => {
                let mut same = K::clone(other);
                let version = one.meta().resource_version.clone();
                same.meta_mut().resource_version = version;
                **one == same
            }
            (Err(one), Err(other)) => one == other,
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
        }
    }
}

impl Watched for SeenNode {
    fn id(&self) -> Identity {
        self.id.clone()
    }

    fn is_same(&self, other: &Self) -> bool {
        self.is_same_but_version(other)
    }
}

impl Watched for SeenDaemonSet {
    fn id(&self) -> Identity {
        self.id.clone()
    }

    fn is_same(&self, other: &Self) -> bool {
        self.is_same_but_version(other)
    }
}

impl Watched for SeenPod {
    fn id(&self) -> Identity {
        self.id.clone()
    }

    fn is_same(&self, other: &Self) -> bool {
        self.is_same_but_version(other)
    }
}

impl Watched for SeenRevision {
    fn id(&self) -> Identity {
        self.id.clone()
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

impl Watched for SeenConfigMap {
    fn id(&self) -> Identity {
        self.id.clone()
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}
