//! The API server: objects with UIDs and resource versions, compare-and-swap, and a log of changes
//! per kind that watches read from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::{DevicePluginConfig, DevicePluginNode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use operator_core::ledger::{Ledger, SeenLedger};
use operator_core::seen::{
    Identity, SeenConfigMap, SeenDaemonSet, SeenNode, SeenPod, SeenRevision,
};

/// An object that has a name, a UID and a version.
pub trait Object: Clone + PartialEq {
    /// Which one it is, and which version of it.
    fn identity(&self) -> Identity;

    /// Makes it this object, at this version.
    fn identify(&mut self, uid: &str, version: u64);
}

macro_rules! seen_object {
    ($($kind:ty),+) => {
        $(impl Object for $kind {
            fn identity(&self) -> Identity {
                self.id.clone()
            }

            fn identify(&mut self, uid: &str, version: u64) {
                uid.clone_into(&mut self.id.uid);
                self.id.version = version.to_string();
            }
        })+
    };
}
seen_object!(
    SeenConfigMap,
    SeenDaemonSet,
    SeenNode,
    SeenPod,
    SeenRevision
);

macro_rules! wire_object {
    ($($kind:ty),+) => {
        $(impl Object for $kind {
            fn identity(&self) -> Identity {
                Identity::of(&self.metadata)
            }

            fn identify(&mut self, uid: &str, version: u64) {
                identify(&mut self.metadata, uid, version);
            }
        })+
    };
}
wire_object!(DevicePluginConfig, DevicePluginNode);

fn identify(metadata: &mut ObjectMeta, uid: &str, version: u64) {
    metadata.uid = Some(uid.to_owned());
    metadata.resource_version = Some(version.to_string());
}

/// Why a write is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// There is no such object.
    NotFound,
    /// It is another object, or another version of it; or the name of a new one is taken.
    Conflict,
    /// The API server cannot be reached, or fails.
    Failed,
}

/// A change of an object.
#[derive(Clone, Debug)]
pub struct Change<T> {
    /// The version of the change.
    pub version: u64,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// What it is now; absent: it is gone.
    pub object: Option<Arc<T>>,
}

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Watch {
    /// `DevicePluginConfig`.
    Configs,
    /// `DevicePluginNode`.
    NodeObjects,
    /// Node.
    Nodes,
    /// DaemonSet.
    DaemonSets,
    /// ControllerRevision.
    Revisions,
    /// ConfigMap.
    ConfigMaps,
    /// Pod.
    Pods,
}

impl Watch {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Configs,
        Self::NodeObjects,
        Self::Nodes,
        Self::DaemonSets,
        Self::Revisions,
        Self::ConfigMaps,
        Self::Pods,
    ];
}

/// All objects of a kind.
#[derive(Clone, Debug)]
pub struct Shelf<T> {
    /// By name.
    pub objects: BTreeMap<String, Arc<T>>,
    /// Every change there was.
    pub log: Vec<Change<T>>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            log: Vec::new(),
        }
    }
}

impl<T: Object> Shelf<T> {
    /// One object.
    pub fn get(&self, name: &str) -> Option<&Arc<T>> {
        self.objects.get(name)
    }

    /// Puts a new object there.
    fn create(&mut self, mut object: T, version: u64) -> Result<Arc<T>, Refusal> {
        let name = object.identity().name;
        if self.objects.contains_key(&name) {
            return Err(Refusal::Conflict);
        }
        object.identify(&format!("{name}#{version}"), version);
        Ok(self.put(name, object, version))
    }

    fn put(&mut self, name: String, object: T, version: u64) -> Arc<T> {
        let object = Arc::new(object);
        self.log.push(Change {
            version,
            uid: object.identity().uid,
            name: name.clone(),
            object: Some(object.clone()),
        });
        self.objects.insert(name, object.clone());
        object
    }

    /// Changes an object. A change that changes nothing makes no version.
    fn change(
        &mut self,
        on: &Identity,
        version: u64,
        change: impl FnOnce(&mut T),
    ) -> Result<Arc<T>, Refusal> {
        let present = self.objects.get(&on.name).ok_or(Refusal::NotFound)?;
        let id = present.identity();
        let is_other = !on.uid.is_empty() && on.uid != id.uid;
        if is_other || (!on.version.is_empty() && on.version != id.version) {
            return Err(Refusal::Conflict);
        }
        let mut object = (**present).clone();
        change(&mut object);
        if object == **present {
            return Ok(present.clone());
        }
        object.identify(&id.uid, version);
        Ok(self.put(id.name, object, version))
    }

    fn remove(&mut self, on: &Identity, version: u64) -> Result<(), Refusal> {
        let present = self.objects.get(&on.name).ok_or(Refusal::NotFound)?;
        let id = present.identity();
        if !on.uid.is_empty() && on.uid != id.uid {
            return Err(Refusal::Conflict);
        }
        self.objects.remove(&id.name);
        self.log.push(Change {
            version,
            name: id.name,
            uid: id.uid,
            object: None,
        });
        Ok(())
    }
}

/// The ledger's ConfigMap.
#[derive(Clone, Debug)]
pub struct LedgerObject {
    /// Which one.
    pub id: Identity,
    /// Its data.
    pub data: BTreeMap<String, String>,
}

/// The API server.
#[derive(Clone, Debug, Default)]
pub struct Api {
    versions: u64,
    /// Configs.
    pub configs: Shelf<DevicePluginConfig>,
    /// Objects of nodes.
    pub node_objects: Shelf<DevicePluginNode>,
    /// Nodes.
    pub nodes: Shelf<SeenNode>,
    /// DaemonSets.
    pub daemon_sets: Shelf<SeenDaemonSet>,
    /// ControllerRevisions.
    pub revisions: Shelf<SeenRevision>,
    /// ConfigMaps.
    pub config_maps: Shelf<SeenConfigMap>,
    /// Pods.
    pub pods: Shelf<SeenPod>,
    /// Which DaemonSet made a pod, both by UID.
    pub owners: BTreeMap<String, String>,
    /// The ledger.
    pub ledger: Option<LedgerObject>,
    /// Kinds with changes that have not been spread yet.
    pub changed: BTreeSet<Watch>,
}

/// The shelf of a kind.
pub trait Shelved: Object + Sized {
    /// Its watch.
    const WATCH: Watch;

    /// Its shelf.
    fn shelf(api: &mut Api) -> &mut Shelf<Self>;
}

macro_rules! shelved {
    ($($kind:ty: $watch:ident $shelf:ident;)+) => {
        $(impl Shelved for $kind {
            const WATCH: Watch = Watch::$watch;

            fn shelf(api: &mut Api) -> &mut Shelf<Self> {
                &mut api.$shelf
            }
        })+
    };
}
shelved! {
    DevicePluginConfig: Configs configs;
    DevicePluginNode: NodeObjects node_objects;
    SeenNode: Nodes nodes;
    SeenDaemonSet: DaemonSets daemon_sets;
    SeenRevision: Revisions revisions;
    SeenConfigMap: ConfigMaps config_maps;
    SeenPod: Pods pods;
}

impl Api {
    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.versions
    }

    fn next(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    /// Makes an object.
    pub fn create<T: Shelved>(&mut self, object: T) -> Result<Arc<T>, Refusal> {
        let version = self.next();
        self.changed.insert(T::WATCH);
        T::shelf(self).create(object, version)
    }

    /// Changes an object. A UID or version that is not empty must be that of the object.
    pub fn change<T: Shelved>(
        &mut self,
        on: &Identity,
        change: impl FnOnce(&mut T),
    ) -> Result<Arc<T>, Refusal> {
        let version = self.next();
        self.changed.insert(T::WATCH);
        T::shelf(self).change(on, version, change)
    }

    /// Changes the object of a name, whatever its version.
    pub fn alter<T: Shelved>(&mut self, name: &str, change: impl FnOnce(&mut T)) -> bool {
        self.change(&named(name), change).is_ok()
    }

    /// Removes an object. A UID that is not empty must be that of the object.
    pub fn remove<T: Shelved>(&mut self, on: &Identity) -> Result<(), Refusal> {
        let version = self.next();
        self.changed.insert(T::WATCH);
        T::shelf(self).remove(on, version)
    }

    /// The ledger, as a quorum read gives it.
    pub fn read_ledger(&self) -> SeenLedger {
        match &self.ledger {
            None => SeenLedger::Absent,
            Some(object) => SeenLedger::read(object.id.clone(), Some(&object.data)),
        }
    }

    /// Writes the ledger if it is still the one that was read.
    pub fn write_ledger(
        &mut self,
        on: Option<&Identity>,
        ledger: &Ledger,
    ) -> Result<String, Refusal> {
        let fits = match (on, &self.ledger) {
            (None, None) => true,
            (Some(on), Some(present)) => *on == present.id,
            (None, Some(_)) => false,
            (Some(_), None) => return Err(Refusal::NotFound),
        };
        if !fits {
            return Err(Refusal::Conflict);
        }
        let text = serde_json::to_string(ledger).unwrap_or_default();
        self.put_ledger(text);
        let id = self.ledger.as_ref().map(|one| one.id.version.clone());
        Ok(id.unwrap_or_default())
    }

    /// Puts a text where the ledger is.
    pub fn put_ledger(&mut self, text: String) {
        let version = self.next();
        let uid = match &self.ledger {
            Some(present) => present.id.uid.clone(),
            None => format!("ledger#{version}"),
        };
        self.ledger = Some(LedgerObject {
            id: Identity {
                name: crds::names::LEDGER.to_owned(),
                uid,
                version: version.to_string(),
            },
            data: [(crds::names::LEDGER_KEY.to_owned(), text)].into(),
        });
    }
}

/// Any version of the object of a name.
pub fn named(name: &str) -> Identity {
    Identity {
        name: name.to_owned(),
        ..Identity::default()
    }
}
