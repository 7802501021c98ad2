//! Who holds devices, as far as that is known.

use std::collections::BTreeSet;
use std::time::Duration;

/// What is known of who holds devices.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Devices that containers hold; nothing while it is not known.
    pub held: Option<&'a BTreeSet<String>>,
    /// Devices that Allocate or PreStartContainer named a short while ago: their pods may not be
    /// among those that the kubelet tells of yet.
    pub given: &'a BTreeSet<String>,
    /// Devices that the kubelet has noted on its disk as held. A kubelet that has just started and
    /// does not know its pods yet tells of none, and still gives none of these to anybody. One that
    /// runs on may have noted what is long free.
    pub noted: &'a BTreeSet<String>,
    /// When the kubelet registered this resource, which it does anew after its start.
    pub opened: Option<Duration>,
    /// The time of the look.
    pub now: Duration,
    /// Which reading this is.
    pub number: u64,
}
