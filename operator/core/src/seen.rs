//! What is kept of the objects that are watched: only what a decision needs, because 5,000 nodes
//! with their image lists would fill the memory.

mod daemon_set;
mod node;
mod owned;
mod pod;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use daemon_set::SeenDaemonSet;
pub use node::{SeenNode, Taint, WireNode};
pub use owned::{SeenConfigMap, SeenRevision};
pub use pod::{SeenPod, Trouble};

/// Which object, and which version of it, a decision was made on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its UID: an object made anew under the same name is another one.
    pub uid: String,
    /// Its resource version.
    pub version: String,
}

impl Identity {
    /// Reads it from an object's metadata.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            version: metadata.resource_version.clone().unwrap_or_default(),
        }
    }
}

/// The value of a label; empty where it is absent.
fn label(metadata: &ObjectMeta, key: &str) -> String {
    metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(key))
        .cloned()
        .unwrap_or_default()
}

/// UID of the controlling owner of the given kind; empty where there is none.
pub fn controller_uid(metadata: &ObjectMeta, kind: &str) -> String {
    metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.kind == kind && owner.controller == Some(true))
        .map(|owner| owner.uid.clone())
        .unwrap_or_default()
}
