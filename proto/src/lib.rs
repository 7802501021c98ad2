//! The kubelet's protocols, compiled from our own text of its wire tables: message and field names
//! and numbers, and the gRPC paths. It knows nothing of our own types.

/// Device plugins: what a plugin serves, and where it registers.
#[expect(missing_docs, reason = "generated; the .proto file explains")]
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// Pod resources: which devices the kubelet has, and who holds them.
#[expect(missing_docs, reason = "generated; the .proto file explains")]
pub mod podresources {
    tonic::include_proto!("v1");
}

/// The only version of the device plugin protocol that kubelets accept.
pub const DEVICE_PLUGIN_VERSION: &str = "v1beta1";
