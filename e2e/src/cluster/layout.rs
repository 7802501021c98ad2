//! Names, addresses and paths of the cluster: everything that two of its modules must agree on.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::parts::catalogue::Program;

/// State of the one cluster of this machine. Short, because a unix socket path has at most 107
/// bytes.
pub const STATE: &str = "/var/lib/dpo-cluster";

/// The bridge between the nodes and the host.
pub const BRIDGE: &str = "dpo0";

/// The host's address on the bridge; the API server listens there and nowhere else.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);

/// Where the API server listens.
pub const API_PORT: u16 = 6443;

/// Where etcd listens for clients. Not its usual port: a machine may have an etcd of its own.
pub const ETCD_PORT: u16 = 12379;

/// Where etcd would listen for other members.
pub const ETCD_PEER_PORT: u16 = 12380;

/// Where the controller manager answers about itself: its usual port.
pub const CONTROLLER_MANAGER_PORT: u16 = 10257;

/// Where the scheduler answers about itself: its usual port.
pub const SCHEDULER_PORT: u16 = 10259;

/// The `kubernetes` Service, by which pods reach the API server.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Addresses of all pods.
pub const POD_NETWORK: &str = "10.201.0.0/16";

/// Where the kubelet answers `/healthz`, on its node's address.
pub const HEALTHZ_PORT: u16 = 10248;

/// The directory of `/dev` for the devices that tests make and remove.
pub const TEST_DEVICES: &str = "/dev/dpo-test";

/// More nodes than one machine can carry; also keeps addresses within one byte.
pub const MOST_NODES: u8 = 32;

/// Paths of the cluster's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self { root: STATE.into() }
    }
}

impl Layout {
    /// The state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Certificates and keys.
    pub fn certificates(&self) -> PathBuf {
        self.root.join("certificates")
    }

    /// The certificate that everybody trusts.
    pub fn authority(&self) -> PathBuf {
        self.certificates().join("ca.crt")
    }

    /// Log files, one for each process.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Records of running processes.
    pub fn processes(&self) -> PathBuf {
        self.root.join("processes")
    }

    /// What the cluster was started with.
    pub fn record(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// etcd's data.
    pub fn etcd(&self) -> PathBuf {
        self.root.join("etcd")
    }

    /// What each request to the API server was: one JSON object a line.
    pub fn audit_log(&self) -> PathBuf {
        self.root.join("audit.log")
    }

    /// Which requests are logged.
    pub fn audit_policy(&self) -> PathBuf {
        self.root.join("audit-policy.yaml")
    }

    /// The kubeconfig of `user`.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.root.join(format!("{user}.kubeconfig"))
    }

    /// Links to kubectl and helm, for the user's search path.
    pub fn user_programs(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Helm's own files, kept away from the user's.
    pub fn helm(&self) -> PathBuf {
        self.root.join("helm")
    }

    /// Archives of the images that every node gets.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Everything of one node.
    pub fn node(&self, node: Place) -> PathBuf {
        self.root.join(node.name())
    }
}

/// Which node of the cluster, counted from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u8);

impl Place {
    /// The first `count` nodes.
    pub fn first(count: u8) -> impl Iterator<Item = Self> {
        (1..=count).map(Self)
    }

    /// `n1`, `n2`, …
    pub fn name(self) -> String {
        format!("n{}", self.0)
    }

    /// Its address on the bridge.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200, 0, 10 + self.0)
    }

    /// The addresses of its pods.
    pub fn pod_network(self) -> String {
        format!("10.201.{}.0/24", self.0)
    }

    /// The host's end of its cable.
    pub fn link(self) -> String {
        format!("dpo-n{}", self.0)
    }

    /// Its directory in every cgroup hierarchy.
    pub fn cgroup(self) -> String {
        format!("dpo-n{}", self.0)
    }

    /// Newest and previous kubelet alternate: both registration models are always there.
    pub fn kubelet(self) -> Program {
        if self.0 % 2 == 1 {
            Program::Kubelet
        } else {
            Program::PreviousKubelet
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_alternate() {
        let kubelets: Vec<_> = Place::first(3).map(Place::kubelet).collect();
        assert_eq!(
            kubelets,
            [Program::Kubelet, Program::PreviousKubelet, Program::Kubelet]
        );
    }

    #[test]
    fn sockets_fit_and_link_names_fit() {
        let last = Place(MOST_NODES);
        let socket = Layout::default()
            .node(last)
            .join("var-lib/kubelet/device-plugins/0123456789012345678901234567890.sock");
        assert!(socket.as_os_str().len() <= 107, "{socket:?}");
        assert!(last.link().len() <= 15);
        assert_eq!(last.address().to_string(), "10.200.0.42");
    }
}
