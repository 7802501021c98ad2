//! The ways in which the scripted plugin misbehaves, and which behaviours that takes from it.

use clap::ValueEnum;

macro_rules! faults {
    ($($name:ident $text:literal $numbers:expr;)*) => {
        /// One way to misbehave.
        #[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
        pub enum Fault {
            $(#[doc = $text] $name,)*
        }

        /// Numbers of the behaviours that a plugin with this fault does not show. There may be
        /// others that it does not show either.
        pub fn expected_failures(fault: Fault) -> &'static [u8] {
            match fault {
                $(Fault::$name => &$numbers,)*
            }
        }
    };
}

faults! {
    SlowStart "Registers 15 s after its start." [1, 2];
    WrongVersion "Registers with another version." [1];
    EndpointPath "Registers a path in place of a name." [1];
    ServesLate "Answers only a while after it has registered." [2];
    ImpatientCall "Gives up a Register call after 5 s." [3, 9];
    OtherOptions "Registers with other options than it answers." [4];
    NeedsKubelet "Ends where there is no kubelet." [5, 7];
    BusyLoop "Tries again at once." [6];
    WaitsForEvent "Waits for another file when a kubelet refuses." [6, 7];
    ExitsWhenRefused "Ends when it is refused." [8];
    HidesRefusal "Does not say why it was refused." [8];
    NoCallLimit "Waits for ever for an answer." [9];
    TakesAnyName "Registers whatever name it is told." [10];
    OneFate "Registers all resources again when the stream of one ends." [11];
    LongSocketName "Has sockets with long names." [12];
    FixedSocketName "Has one socket name for ever." [13, 26, 81];
    LeavesStaleSockets "Leaves the socket of a killed instance." [14];
    RemovesForeignSockets "Removes the sockets of others." [14];
    IgnoresSigterm "Does not end with SIGTERM." [15];
    LeavesSocket "Leaves its socket when it ends." [15];
    WritesIntoDirectory "Has a file in the plugin directory." [16];
    IgnoresStreamEnd "Does not mind when a stream ends." [17, 18];
    RegistersOnce "Registers once and never again." [17, 18, 19, 20, 21, 22, 23, 24, 25, 28];
    IgnoresOwnSocket "Does not notice that its socket is gone." [20, 22];
    LeaksServers "Keeps every server for ever." [21];
    NoWatchdog "Waits for ever for somebody to read its list." [23];
    NeedsInotify "Ends where no inotify instance can be made." [24];
    OneStream "Ends a stream when another one opens." [27];
    SilentWhenEmpty "Sends nothing while it has no device." [29];
    NoRecovery "Never calls a device Healthy again." [30, 32];
    PartialList "Sends only what changed." [30];
    Chatty "Sends the same list every five seconds." [31];
    Undamped "Sends every change." [32];
    DuplicateIds "Lists a device twice." [33];
    LongIds "Has long ids." [33];
    OddHealth "Says Broken in place of Unhealthy." [33];
    NumberedIds "Numbers its devices." [34];
    SharedIds "Has the same ids in two resources." [35];
    DropsDevices "Leaves out a device as soon as it vanishes." [36, 37];
    Unlimited "Lists more than fits into a message." [38];
    UnboundedQueue "Keeps every list for a reader who is slow." [39];
    NegativeNode "Tells of NUMA node -1." [40];
    EndsStreamOnError "Ends its stream when it cannot look for devices." [41];
    WrongDevice "Gives the first device, whatever was asked for." [42];
    OneResponse "Answers for the first container only." [43];
    EmptyIsError "Refuses a container without ids." [44];
    GivesUnknown "Gives devices that it does not know." [45];
    GivesUnhealthy "Gives devices that are Unhealthy." [46];
    GivesOnce "Gives a device only once." [47, 48];
    RandomAnswer "Answers otherwise each time." [47, 48];
    SlowAllocate "Takes 300 ms for an Allocate." [49];
    Deadlocks "Forgets to answer when many ask at once." [50];
    OddPermissions "Has permissions and paths that nobody understands." [51];
    MissingPath "Answers with host paths that do not exist." [52];
    SameVariable "Has one variable for all resources." [53];
    LateCdi "Writes CDI specs some time later." [54];
    NoPreferenceError "Has an error for a question that it did not invite." [55];
    PrefersFewer "Prefers one device too few." [56];
    PreferenceError "Has an error where it cannot prefer as many." [57];
    SmallRequests "Reads requests of at most 4 MiB." [58];
    NoHook "Never runs the hook." [59, 60];
    HookOnce "Runs the hook once for each device." [60];
    NoHookLimit "Waits for ever for the hook." [61];
    OverlappingHooks "Runs a hook beside an earlier one." [62];
    HidesHookFailure "Succeeds although the hook failed." [63];
    PreparesAllocatedOnly "Prepares only what it gave itself." [64];
    HidesMissedHook "Says nothing of a container that started without the hook." [65];
}
