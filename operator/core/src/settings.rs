//! What the operator was started with and what no config can change.

use std::time::Duration;

/// Settings of the installation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The operator's namespace, where everything namespaced is made.
    pub namespace: String,
    /// The agent image of configs that name none.
    pub agent_image: String,
    /// The service account of agents.
    pub agent_service_account: String,
    /// The kubelet's plugin directory on the host.
    pub device_plugin_dir: String,
    /// The kubelet's root directory on the host.
    pub kubelet_root_dir: String,
    /// How often kubelets write their nodes' status: `nodeStatusUpdateFrequency`, 10 s unless the
    /// distribution changes it.
    pub node_status_period: Duration,
}

impl Settings {
    /// The directory of the kubelet's pod-resources socket on the host.
    pub fn pod_resources_dir(&self) -> String {
        format!(
            "{}/pod-resources",
            self.kubelet_root_dir.trim_end_matches('/')
        )
    }
}
