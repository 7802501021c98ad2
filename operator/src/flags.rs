//! Flags and environment of the process.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use clap::{Args, Parser, Subcommand};
use operator_core::settings::Settings;

/// Runs a node agent on every node that a DevicePluginConfig selects, and tells how that goes.
#[derive(Debug, Parser)]
#[command(name = "device-plugin-operator", version)]
pub struct Flags {
    /// What to do; left out: run the operator.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How much to log: error, warn, info, debug, trace, or filter directives.
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true)]
    pub log_level: String,
    /// Settings of the operator.
    #[command(flatten)]
    pub run: RunFlags,
}

/// Anything but running.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Exits 1 and says what to do while DevicePluginConfigs exist: for the chart's pre-delete hook.
    CheckUninstall,
}

/// Settings of the operator.
#[derive(Args, Clone, Debug)]
pub struct RunFlags {
    /// Namespace of the operator, where agents run.
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    pub namespace: String,
    /// Name of the operator's pod: what stands in the Lease while this process leads.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod_name: String,
    /// Agent image of configs that name none.
    #[arg(long, env = "AGENT_IMAGE", default_value = "")]
    pub agent_image: String,
    /// Service account of agents.
    #[arg(
        long,
        env = "AGENT_SERVICE_ACCOUNT",
        default_value = "device-plugin-agent"
    )]
    pub agent_service_account: String,
    /// The kubelet's plugin directory on the nodes.
    #[arg(
        long,
        env = "DEVICE_PLUGIN_DIR",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    pub device_plugin_dir: String,
    /// The kubelet's root directory on the nodes.
    #[arg(long, env = "KUBELET_ROOT_DIR", default_value = "/var/lib/kubelet")]
    pub kubelet_root_dir: String,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    pub http_address: SocketAddr,
    /// Most writes to Nodes and DevicePluginNodes per second: each reaches every watcher of nodes.
    #[arg(long, env = "NODE_WRITES_PER_SECOND", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub node_writes_per_second: u32,
    /// How often kubelets write their nodes' status, in seconds: their `nodeStatusUpdateFrequency`.
    #[arg(long, env = "NODE_STATUS_PERIOD_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub node_status_period_seconds: u64,
    /// Most nodes that are labelled per second.
    #[arg(long, env = "PINS_PER_SECOND", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pins_per_second: u32,
}

impl RunFlags {
    /// What the core needs of them.
    ///
    /// # Errors
    /// When something is missing or cannot be meant.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        for (flag, variable, value) in [
            ("--namespace", "POD_NAMESPACE", &self.namespace),
            ("--agent-image", "AGENT_IMAGE", &self.agent_image),
            (
                "--agent-service-account",
                "AGENT_SERVICE_ACCOUNT",
                &self.agent_service_account,
            ),
        ] {
            ensure!(
                !value.trim().is_empty(),
                "{flag} (or {variable}) must be given"
            );
        }
        for (flag, value) in [
            ("--device-plugin-dir", &self.device_plugin_dir),
            ("--kubelet-root-dir", &self.kubelet_root_dir),
        ] {
            ensure!(
                value.starts_with('/') && !value.split('/').any(|part| part == ".."),
                "{flag} {value:?} must be an absolute path without \"..\", such as \"/var/lib/kubelet\""
            );
        }
        Ok(Settings {
            namespace: self.namespace.clone(),
            agent_image: self.agent_image.clone(),
            agent_service_account: self.agent_service_account.clone(),
            device_plugin_dir: self.device_plugin_dir.clone(),
            kubelet_root_dir: self.kubelet_root_dir.clone(),
            node_status_period: Duration::from_secs(self.node_status_period_seconds),
        })
    }
}
