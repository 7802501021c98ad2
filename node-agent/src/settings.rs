//! Where the agent finds things, and how patient it is.

use std::path::PathBuf;
use std::time::Duration;

use crds::names::{AGENT_CONFIG_KEY, RUNNER_SOCKET, paths};
use node_agent_core::comparison;
use node_agent_core::first_time::Patience;
use node_agent_core::pace::Pace;
use node_agent_core::registration::Limits;
use node_agent_core::writing::Rates;

/// How to reach the API server.
#[derive(Clone, Debug)]
pub enum ApiAccess {
    /// As the pod's service account, or the user's kubeconfig.
    Infer,
    /// Like this.
    Given(Box<kube::Config>),
}

/// Places and times.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The kubelet's plugin directory.
    pub plugin_dir: PathBuf,
    /// The directory of the kubelet's pod-resources socket.
    pub pod_resources_dir: PathBuf,
    /// Where the host's `/dev` is.
    pub host_dev_dir: PathBuf,
    /// Where the host's sysfs is.
    pub sysfs_dir: PathBuf,
    /// Where the host's udev keeps what it knows at run time.
    pub udev_dir: PathBuf,
    /// The runner's socket.
    pub runner_socket: PathBuf,
    /// Locks that the agents of a node share.
    pub lock_dir: PathBuf,
    /// What is remembered over restarts.
    pub state_dir: PathBuf,
    /// Where container runtimes read CDI specifications.
    pub cdi_dir: PathBuf,
    /// Whether the kernel may be asked to tell of changed directories; without, everything is found by polling.
    pub file_events: bool,
    /// Whether the kernel may be asked to tell of changed devices; without, the same.
    pub device_events: bool,
    /// How patient the agent is.
    pub timing: Timing,
}

/// How patient the agent is. Only tests change it.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long registrations may take.
    pub registration: Limits,
    /// How the role is taken and left.
    pub role: RoleTiming,
    /// How the end of another process's streams is waited for.
    pub drain: Drain,
    /// When the kubelet's own list is compared with the one it was sent.
    pub comparison: comparison::Limits,
    /// How patiently a resource is approached the first time.
    pub first_time: Patience,
    /// Longest `Register` call: the kubelet itself dials back for up to 10 s within it.
    pub register_call: Duration,
    /// How often sockets are looked at, beside the kernel's events. Such a look is two system calls;
    /// events are lost only where the kernel's queue overflows or watches are used up.
    pub socket_poll: Duration,
    /// How often pod resources are read. The kubelet answers 100 requests a second to the whole node.
    pub allocations_poll: Duration,
    /// How long after an Allocate they are read: the pod becomes active in between.
    pub after_allocate: Duration,
    /// Waits after a failure to read them.
    pub allocations_retry: Pace,
    /// Longest call to the pod-resources socket.
    pub pod_resources_call: Duration,
    /// Shortest time between two messages of a stream: each costs the kubelet a write to its disk.
    pub between_messages: Duration,
    /// Shortest time between two looks at `/dev`: a flapping device must not keep the agent busy.
    pub between_looks: Duration,
    /// How long a second of the config is.
    pub second: Duration,
    /// Waits after a hook failed. A device that needs a person is tried every five minutes for ever.
    pub hook_retry: Pace,
    /// How long after a registration a container that held its device before may still wait for its
    /// reset: half would accuse those that a kubelet which has just restarted is about to start,
    /// twice as much only tells later.
    pub reset_grace: Duration,
    /// How long a device that was named in Allocate or PreStartContainer counts as held, whatever the
    /// kubelet tells: a pod is active within a second or two, but its image is not pulled by then.
    pub given: Duration,
    /// Longest PreStartContainer: the kubelet itself gives up after 30 s.
    pub prepare: Duration,
    /// How long a server may take to end its streams.
    pub close: Duration,
    /// How often reports may be written.
    pub reports: Rates,
    /// Waits after a report could not be written, or the node's object not be watched.
    pub api_retry: Pace,
    /// Longest call to the API server.
    pub api_call: Duration,
    /// How long the kubelet comes before the API server at the start. A registration takes a few
    /// milliseconds, about as many as it takes to get a TLS client ready, and pods wait for it.
    pub kubelet_first: Duration,
}

/// How the role is taken and left.
#[derive(Clone, Copy, Debug)]
pub struct RoleTiming {
    /// Between two tries of the role lock in a hand-over. It is the longest part of the gap that a
    /// pod could fall into; a try is a handful of system calls.
    pub hand_over_poll: Duration,
    /// How long a hand-over may take: whoever leaves needs a second at most, and the operator gives
    /// up after a minute.
    pub hand_over: Duration,
    /// Between two tries after that, and between two looks whether a successor has come.
    pub lock_poll: Duration,
    /// Between two looks at the other processes of the config.
    pub look_around: Duration,
    /// The same while it does not matter who else is here.
    pub idle: Duration,
    /// How many times faster the long waits for others pass.
    pub haste: u32,
}

/// How the end of another process's streams is waited for. Kubelets from 1.25 to 1.36 end the
/// stream of a newcomer that registers before they have seen the end of the old one.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// Between two readings of the kubelet's list, which answers 100 requests a second to everybody.
    /// Mostly the second one shows what is waited for, so it comes soon.
    pub pace: Pace,
    /// How long where it cannot be seen. Kubelets needed up to 10 ms, and the resource serves nobody
    /// meanwhile, with or without the wait.
    pub unseen: Duration,
    /// How long at most. Kubelets needed up to 10 ms; what is still listed then is listed by
    /// somebody else, and waiting longer leaves the node without devices.
    pub limit: Duration,
}

impl Default for RoleTiming {
    fn default() -> Self {
        Self {
            hand_over_poll: Duration::from_millis(2),
            hand_over: Duration::from_secs(10),
            lock_poll: Duration::from_millis(50),
            look_around: Duration::from_secs(1),
            idle: Duration::from_secs(60),
            haste: 1,
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            pace: Pace {
                first: Duration::from_millis(2),
                limit: Duration::from_millis(10),
            },
            unseen: Duration::from_millis(100),
            limit: Duration::from_millis(500),
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            registration: Limits::default(),
            role: RoleTiming::default(),
            drain: Drain::default(),
            comparison: comparison::Limits::default(),
            first_time: Patience::default(),
            register_call: seconds(20),
            socket_poll: seconds(5),
            allocations_poll: seconds(10),
            after_allocate: seconds(1),
            allocations_retry: Pace {
                first: seconds(1),
                limit: seconds(60),
            },
            pod_resources_call: seconds(10),
            between_messages: Duration::from_millis(500),
            between_looks: Duration::from_millis(100),
            second: seconds(1),
            hook_retry: Pace {
                first: seconds(10),
                limit: seconds(300),
            },
            reset_grace: seconds(60),
            given: seconds(30),
            prepare: seconds(25),
            close: seconds(1),
            reports: Rates::default(),
            api_retry: Pace {
                first: seconds(1),
                limit: seconds(60),
            },
            api_call: seconds(30),
            kubelet_first: Duration::from_millis(50),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            plugin_dir: PathBuf::from(paths::DEVICE_PLUGIN_DIR),
            pod_resources_dir: PathBuf::from(paths::POD_RESOURCES_DIR),
            host_dev_dir: PathBuf::from(paths::HOST_DEV_DIR),
            sysfs_dir: PathBuf::from(paths::SYSFS_DIR),
            udev_dir: PathBuf::from(paths::UDEV_DIR),
            runner_socket: PathBuf::from(paths::RUNNER_SOCKET_DIR).join(RUNNER_SOCKET),
            lock_dir: PathBuf::from(paths::LOCK_DIR),
            state_dir: PathBuf::from(paths::STATE_DIR),
            cdi_dir: PathBuf::from(paths::CDI_DIR),
            file_events: true,
            device_events: true,
            timing: Timing::default(),
        }
    }
}

/// Where the agent's configuration is.
pub fn default_config_file() -> PathBuf {
    PathBuf::from(paths::AGENT_CONFIG_DIR).join(AGENT_CONFIG_KEY)
}
