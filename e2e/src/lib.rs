//! The real local cluster, the images that run on it, and what the cluster tests need to drive
//! both.
//!
//! Everything here is blocking code around other programs: etcd, the Kubernetes binaries,
//! containerd, `ip`, `nsenter`. It knows how to make, find and remove a cluster on this machine. It
//! deliberately does not know our custom resources, our chart or what a test wants to see: that
//! belongs to the tests.
//!
//! Apart from that stand kubelets that are played in this process, and the conformance suite that
//! plays them to any device plugin: those need no cluster.

pub mod bench;
pub mod cluster;
pub mod command;
pub mod conformance;
pub mod images;
pub mod kubelet;
pub mod oci;
pub mod oracle;
pub mod parts;
pub mod preflight;
pub mod product;
pub mod progress;
pub mod scripted_plugin;
