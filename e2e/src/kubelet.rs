//! Kubelets for plugins to meet: what a device manager does, and one that is played in this process.
//!
//! It knows the device plugin protocol and both models of registration. It deliberately does not
//! know what a plugin should do: that belongs to the conformance suite.

mod device_manager;

pub use device_manager::{Answer, Ask, Counts, DeviceManager, RunOptions};
