//! The behaviours: numbers and texts of the kubelet's contract, in one table, with what checks each.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use super::checks::{allocation, lists, losses, preference, preparation, registration, sockets};
use super::rig::Rig;
use super::verdict::Verdict;

/// How grave it is when a behaviour is missing.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// The kubelet's contract demands it of every plugin.
    Must,
    /// A plugin is better with it.
    Should,
    /// Only the agent of this project promises it.
    Ours,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Must => "must",
            Self::Should => "should",
            Self::Ours => "ours",
        })
    }
}

/// Which kubelets a behaviour is judged at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Models {
    /// At each one that is wanted.
    Each,
    /// At any: it does not depend on how a kubelet takes registrations.
    Any,
    /// Only at one of 1.36.
    Old,
    /// Only at one of 1.37.
    New,
}

/// What a check does with a node.
pub(super) type Check =
    for<'a> fn(&'a mut Rig) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

/// One behaviour.
#[derive(Clone, Copy)]
pub struct Behaviour {
    /// Its number in the kubelet's contract.
    pub number: u8,
    /// How grave it is when it is missing.
    pub level: Level,
    /// Which kubelets it is judged at.
    pub models: Models,
    /// Its name.
    pub name: &'static str,
    /// What is done.
    pub stimulus: &'static str,
    /// What is expected.
    pub expectation: &'static str,
    /// Where that is seen in the kubelet, or in what goes wrong without it.
    pub source: &'static str,
    pub(super) check: Check,
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.name)
    }
}

macro_rules! behaviours {
    ($($number:literal $level:ident $models:ident $section:ident :: $name:ident
       $stimulus:literal $expectation:literal $source:literal)*) => {
        /// All of them, by number.
        pub const BEHAVIOURS: &[Behaviour] = &[$(Behaviour {
            number: $number,
            level: Level::$level,
            models: Models::$models,
            name: stringify!($name),
            stimulus: $stimulus,
            expectation: $expectation,
            source: $source,
            check: |rig| Box::pin($section::$name(rig)),
        }),*];
    };
}

// Sources: SRV, HND, CLI and STUB are the device manager's plugin server, handler, client and stub,
// DM its manager, EP its endpoint; numbers are issues and pull requests of kubernetes/kubernetes.
behaviours! {
    1 Must Each registration::registers_with_a_bare_socket_name
        "started while kubelet.sock is there"
        "Register within 5 s: version v1beta1, a bare socket name, the configured resource"
        "SRV.Register"
    2 Must Each registration::serves_before_it_registers
        "the kubelet asks for the options before it answers Register"
        "the plugin answers"
        "HND, CLI.Connect"
    3 Must Each registration::waits_for_a_slow_answer
        "the answer to Register comes after 9 s, with questions meanwhile"
        "all are answered, and there is no second Register"
        "CLI.dial"
    4 Must Any registration::registers_with_the_options_it_answers
        "options in Register and in GetDevicePluginOptions"
        "the same"
        "DM.PluginConnected"
    5 Must Each registration::waits_for_a_kubelet
        "started without plugin directory and kubelet.sock, which come later"
        "stays alive; Register within 2 s of the socket"
        "SRV.Start"
    6 Must Any registration::retries_at_a_dead_socket_without_haste
        "kubelet.sock refuses connections for 7 s"
        "no busy loop; Register within 5 s once it listens"
        "SRV.Start"
    7 Must Any registration::survives_the_gap_between_bind_and_listen
        "kubelet.sock appears, and listens 500 ms later"
        "Register without another event"
        "SRV.Start"
    8 Must Each registration::tries_again_after_a_refusal
        "Register is refused three times"
        "tried again; the process and other resources live on; the reason is told"
        "KEP-3573"
    9 Must Any registration::gives_up_a_call_that_hangs
        "Register is never answered"
        "given up after 15 to 30 s, and tried again"
        "CLI.dial"
    10 Must Any registration::checks_the_resource_name
        "resource names that no kubelet takes, and one that is unusual"
        "no Register but an error that is told; the unusual one is registered"
        "IsExtendedResourceName"
    11 Must Each registration::resources_register_independently
        "two resources; the stream of one ends"
        "two sockets; the other resource is not registered again"
        "SRV.clients"
    12 Must Any registration::socket_paths_are_short
        "resource names of 307 bytes that differ in the last one"
        "a socket name of at most 75 bytes for each of its own"
        "sun_path"
    13 Must Each sockets::every_start_has_a_fresh_socket_name
        "started three times"
        "three socket names"
        "135437, 139338"
    14 Must Each sockets::cleans_up_after_a_killed_instance
        "killed, and started again, twice at once"
        "its dead socket is removed; living and foreign ones are not"
        "SRV"
    15 Should Any sockets::sigterm_leaves_nothing
        "SIGTERM"
        "exit code 0 within 10 s; no file left; streams ended"
        "STUB.Stop"
    16 Must Each sockets::leaves_the_directory_as_it_is
        "directories, links and files in the plugin directory"
        "unchanged; nothing but sockets is added"
        "DM.CleanupPluginDirectory"
    17 Must Each losses::registers_again_when_a_stream_ends
        "the kubelet ends the ListAndWatch stream and keeps the connection"
        "Register within 2 s"
        "HND.runClient, 121994"
    18 Must Each losses::registers_again_when_the_connection_closes
        "the kubelet closes the connection; kubelet.sock stays"
        "Register within 2 s"
        "CLI.Disconnect"
    19 Must Each losses::registers_at_a_restarted_kubelet
        "the kubelet restarts: all sockets removed, kubelet.sock made anew"
        "every resource served within 2 s"
        "DM.CleanupPluginDirectory, STUB.Watch"
    20 Must Any losses::notices_that_its_socket_is_gone
        "only the plugin's socket is removed"
        "Register at a new one within 5 s"
        "DM.CleanupPluginDirectory"
    21 Must Each losses::a_storm_of_kubelets_leaves_one_registration
        "the kubelet restarts 20 times in 10 s"
        "one registration and stream; no more descriptors, threads and memory than before"
        "SRV.Start"
    22 Must Any losses::notices_that_a_dying_kubelet_took_its_socket
        "Register is accepted, then the socket is removed, and nobody reads the list"
        "Register at a new one within 6 s"
        "DM.CleanupPluginDirectory"
    23 Must Any losses::registers_again_when_nobody_reads_its_list
        "Register is accepted, but ListAndWatch is never called"
        "Register again after at most 30 s"
        "HND.runClient"
    24 Must Any losses::does_without_inotify
        "no inotify instance can be made; the kubelet restarts"
        "served by the new one within 7 s"
        "fs.inotify.max_user_instances"
    25 Must Old losses::a_surge_loses_nothing
        "a second instance starts, the first ends; a kubelet to 1.36 then disconnects the second"
        "all devices healthy again within 3 s, and so they stay"
        "121994"
    26 Must New losses::a_surge_is_never_refused
        "a second instance starts beside the first; the kubelet refuses paths that it holds"
        "no refusal; all devices healthy when the first has ended"
        "135437, 139338"
    27 Must Any losses::serves_two_streams_at_once
        "a second ListAndWatch stream"
        "both have the full list and all changes; neither ends the other"
        "HND.runClient"
    28 Must Any losses::follows_a_replaced_directory
        "another plugin directory at the same path"
        "Register there, or an end that leads to a restart"
        "hostPath"
    29 Must Any lists::lists_at_once_even_without_devices
        "the kubelet opens the stream; there is no device"
        "a first message within 1 s"
        "DM.genericDeviceUpdateCallback"
    30 Must Any lists::tells_each_change_once
        "a device appears, vanishes, fails and recovers"
        "one message with the complete list each time, soon"
        "DM.genericDeviceUpdateCallback"
    31 Must Any lists::is_silent_while_nothing_changes
        "nothing changes for 60 s"
        "no message: each costs the kubelet a write to its disk"
        "DM.writeCheckpoint"
    32 Must Any lists::damps_a_flapping_device
        "a device changes up to 1,000 times a second for 5 s"
        "at most two messages a second; the final state is right"
        "DM.writeCheckpoint"
    33 Must Any lists::ids_and_healths_are_wellformed
        "ids and healths in every message"
        "unique, not empty, UTF-8, at most 63 bytes; Healthy or Unhealthy"
        "DM.genericDeviceUpdateCallback"
    34 Must Any lists::ids_belong_to_devices
        "restarted with one device less and the others in another order"
        "each device has its id"
        "DM.devicesToAllocate"
    35 Must Any lists::ids_differ_between_resources
        "two resources"
        "no id in both"
        "140323"
    36 Must Any lists::keeps_a_held_device_that_vanished
        "a device vanishes that a container holds"
        "it stays listed as Unhealthy"
        "DM.UpdateAllocatedResourcesStatus"
    37 Must Any lists::a_device_may_vanish_during_allocate
        "a device vanishes while Allocate is called for it"
        "every call is answered or refused; it stays listed as Unhealthy"
        "DM.allocateContainerResources"
    38 Must Any lists::more_devices_than_fit_break_no_stream
        "200,000 devices are configured"
        "an error, or a list below 4 MiB; the stream stays"
        "109304"
    39 Should Any lists::a_slow_reader_costs_nothing
        "the kubelet stops reading for 30 s while a device flaps"
        "bounded memory; the latest state when it reads again"
        "CLI.Run"
    40 Must Any lists::topology_is_told_as_kubelets_take_it
        "NUMA node -1, unknown, 0, and 0 with 1"
        "no topology, none, node 0, both"
        "topology hints"
    41 Must Any lists::a_failing_discovery_ends_no_stream
        "looking for devices fails"
        "the last list, or its devices as Unhealthy; the stream stays"
        "HND.runClient"
    42 Must Any allocation::answers_for_exactly_these_devices
        "one device, another, and both"
        "one response with what belongs to exactly these"
        "DM.Allocate"
    43 Must Any allocation::answers_containers_in_order
        "three containers in one call"
        "three responses in order"
        "api.proto"
    44 Must Any allocation::empty_requests_have_empty_answers
        "no container, and a container without ids"
        "no response, and one with nothing"
        "api.proto"
    45 Must Any allocation::an_unknown_device_is_refused
        "an id that was never listed"
        "an error that names it; nothing else changes"
        "DM.Allocate"
    46 Must Any allocation::an_unhealthy_device_is_refused
        "an id that is Unhealthy"
        "a message that says so, and an error"
        "api.proto"
    47 Must Any allocation::a_device_may_be_asked_for_again
        "the same id twice, as for an init container and its pod's"
        "the same answer"
        "DM.devicesToAllocate"
    48 Must Any allocation::answers_are_deterministic
        "the same ids again, in any order"
        "the same answer"
        "DM.writeCheckpoint"
    49 Must Any allocation::answers_in_time
        "200 calls one after another"
        "99 of 100 within 100 ms, all within 2 s"
        "DM.Allocate"
    50 Must Any allocation::many_may_ask_at_once
        "64 calls at once while a device's health changes"
        "all are answered; the list is right afterwards"
        "DM.Allocate"
    51 Must Any allocation::container_paths_and_permissions_are_sound
        "the answer's device nodes and mounts"
        "permissions as promised; absolute container paths, each once"
        "DM.deviceRunContainerOptions"
    52 Must Any allocation::host_paths_exist_and_stay
        "the answer's host paths, before and after a restart with devices reordered"
        "they exist, and the answer is the same"
        "DM.GetDeviceRunContainerOptions"
    53 Must Any allocation::resources_of_one_container_do_not_clash
        "devices of two resources for one container"
        "no variable, path or annotation of both with two values"
        "DM.deviceRunContainerOptions"
    54 Should Any allocation::cdi_specs_are_there_and_stay
        "CDI names in the answer"
        "specs that define them are there when it comes, and after a restart"
        "CDI"
    55 Must Any preference::an_unwanted_question_does_no_harm
        "GetPreferredAllocation although it is not offered"
        "an empty response or UNIMPLEMENTED"
        "DM.callGetPreferredAllocationIfAvailable"
    56 Must Any preference::prefers_as_many_as_were_asked_for
        "8 available, 1 that must be, size 4"
        "4 different ones, available, the one among them; the same again"
        "DM.filterByAffinity"
    57 Must Any preference::a_preference_is_never_an_error
        "more than available, unknown ids, size 0 and below"
        "no error: it would cost the pod"
        "DM.callGetPreferredAllocationIfAvailable"
    58 Must Any preference::large_questions_are_read
        "100,000 available ids, 6 MB"
        "an answer within 1 s"
        "109304"
    59 Must Any preparation::prepares_each_device_once
        "PreStartContainer for two devices"
        "the hook runs once for each"
        "EP.preStartContainer"
    60 Must Any preparation::prepares_again_for_every_start
        "the same again, as for a container that restarts"
        "the hook runs again"
        "DM.PreStartContainer"
    61 Must Any preparation::a_hook_that_hangs_is_ended
        "the hook and what it starts take five minutes"
        "an error after at most 25 s; all of it is killed; the next try works"
        "KubeletPreStartContainerRPCTimeoutInSecs"
    62 Must Any preparation::a_retry_overlaps_no_earlier_run
        "the call is given up while the hook runs, and made again"
        "no two runs for one device at once; the retry succeeds"
        "EP.preStartContainer"
    63 Must Any preparation::a_hook_that_fails_is_told
        "the hook fails"
        "an error that names the device and what the hook said"
        "EP.preStartContainer"
    64 Must Any preparation::prepares_what_it_never_allocated
        "PreStartContainer after a restart of the plugin"
        "the hook runs: kubelets answer Allocate from their checkpoint"
        "DM.devicesToAllocate"
    65 Should Any preparation::a_start_without_preparation_is_reported
        "a container holds a device, and PreStartContainer was never called"
        "the plugin reports it"
        "DM.PreStartContainer"
    81 Must New losses::two_instances_leave_no_phantom
        "two instances at once, and then none"
        "no socket path is used again while the kubelet holds it; no device stays healthy"
        "135437"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_behaviour_of_the_first_rig_is_there_once() {
        let numbers: Vec<u8> = BEHAVIOURS.iter().map(|one| one.number).collect();
        let expected: Vec<u8> = (1..=65).chain([81]).collect();
        assert_eq!(numbers, expected);
    }
}
