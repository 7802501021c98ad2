//! Kubelets for plugins to meet: what a device manager does, and one that is played in this process.
//!
//! It knows the device plugin protocol and both models of registration. It deliberately does not
//! know what a plugin should do: that belongs to the conformance suite.

mod admission;
mod device_manager;
mod dial;
mod fake;
mod knowledge;
mod pod_resources;
mod registry;
mod resource_name;

pub use device_manager::{Answer, Ask, Counts, DeviceManager, RunOptions};
pub use dial::{Client, MESSAGE_MAX, dial, dial_with_window};
pub use fake::{Cleanup, FakeKubelet, Script};
pub use knowledge::{Call, Knowledge, Known, Message, Stream};
pub use pod_resources::{Held, PodResourcesServer};
pub use resource_name::is_extended_resource_name;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How a kubelet treats a second registration of a resource.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Model {
    /// 1.25 to 1.36: the end of any stream of a resource disconnects whoever registered last.
    V1_36,
    /// From 1.37 on: each socket path stands for itself, and one that is still held is refused.
    V1_37,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_36 => "1.36",
            Self::V1_37 => "1.37",
        })
    }
}

/// What a mutex guards; nothing here is left half done by a panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
