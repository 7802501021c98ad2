//! A Node that is read without its images: on large nodes they are nine tenths of it.

use std::borrow::Cow;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Resource;
use operator_core::seen::{SeenNode, WireNode};
use serde::Deserialize;

/// A Node, and the few fields of its metadata that the client needs.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WireNode")]
pub struct SlimNode {
    metadata: ObjectMeta,
    /// What is kept of it.
    pub seen: SeenNode,
}

impl From<WireNode> for SlimNode {
    fn from(node: WireNode) -> Self {
        let seen = SeenNode::from(node);
        let metadata = ObjectMeta {
            name: Some(seen.id.name.clone()),
            uid: Some(seen.id.uid.clone()),
            resource_version: Some(seen.id.version.clone()),
            ..ObjectMeta::default()
        };
        Self { metadata, seen }
    }
}

impl Resource for SlimNode {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind(dynamic: &()) -> Cow<'_, str> {
        Node::kind(dynamic)
    }

    fn group(dynamic: &()) -> Cow<'_, str> {
        Node::group(dynamic)
    }

    fn version(dynamic: &()) -> Cow<'_, str> {
        Node::version(dynamic)
    }

    fn plural(dynamic: &()) -> Cow<'_, str> {
        Node::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
