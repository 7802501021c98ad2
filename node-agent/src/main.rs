//! `device-plugin-agent`: serves the devices of one node for one config.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use crds::AgentConfig;
use crds::names::{HTTP_PORT, agent_env, paths};
use daemon::{Logs, Readiness, Stop};
use node_agent::metrics::Metrics;
use node_agent::runner::command::Command;
use node_agent::settings::{Settings, default_config_file};
use node_agent::{Agent, ApiAccess, run};
use node_agent_core::report::Identity;
use node_agent_core::role::InitialRole;
use prometheus_client::registry::Registry;

/// How long requests that came before the stop are answered; the pod has ten seconds in all.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Serves a node's devices to its kubelet, as a DevicePluginConfig says.
#[derive(Debug, Parser)]
#[command(
    name = "device-plugin-agent",
    version,
    after_help = "Also: run-hooks, install-runner and run-driver, each with --help, for the other \
                  containers of the agent's pod."
)]
struct Flags {
    /// Name of the config that this agent serves.
    #[arg(long, env = agent_env::CONFIG)]
    config: String,
    /// The revision that this agent runs.
    #[arg(long, env = agent_env::REVISION)]
    revision: String,
    /// Name of the node that this agent runs on.
    #[arg(long, env = agent_env::NODE_NAME)]
    node_name: String,
    /// UID of this agent's pod.
    #[arg(long, env = agent_env::POD_UID)]
    pod_uid: String,
    /// What this agent is where nothing on the node or in the cluster says otherwise: Active or
    /// Standby. Pods of operators that know no other have no such word.
    #[arg(long, env = agent_env::INITIAL_ROLE, default_value = "Active")]
    initial_role: InitialRole,
    /// The agent's configuration.
    #[arg(long, default_value_os_t = default_config_file())]
    config_file: PathBuf,
    /// The kubelet's plugin directory.
    #[arg(long, default_value = paths::DEVICE_PLUGIN_DIR)]
    plugin_dir: PathBuf,
    /// The directory of the kubelet's pod-resources socket.
    #[arg(long, default_value = paths::POD_RESOURCES_DIR)]
    pod_resources_dir: PathBuf,
    /// Where the host's /dev is mounted.
    #[arg(long, default_value = paths::HOST_DEV_DIR)]
    host_dev_dir: PathBuf,
    /// Where sysfs is mounted.
    #[arg(long, default_value = paths::SYSFS_DIR)]
    sysfs_dir: PathBuf,
    /// Where the host's /run/udev is mounted, if it is.
    #[arg(long, default_value = paths::UDEV_DIR)]
    udev_dir: PathBuf,
    /// Where CDI specifications are written.
    #[arg(long, default_value = paths::CDI_DIR)]
    cdi_dir: PathBuf,
    /// The runner's socket [default: where the pod's other container has it].
    #[arg(long)]
    runner_socket: Option<PathBuf>,
    /// Where the locks are that the agents of a node share.
    #[arg(long, default_value = paths::LOCK_DIR)]
    lock_dir: PathBuf,
    /// Where the agent remembers over restarts what it served.
    #[arg(long, default_value = paths::STATE_DIR)]
    state_dir: PathBuf,
    /// Where /metrics, /healthz and /readyz are served [default: port 8080 on all addresses].
    #[arg(long)]
    listen_address: Option<SocketAddr>,
}

fn main() -> ExitCode {
    // An agent has flags only.
    let is_command = |word: OsString| !word.as_encoded_bytes().starts_with(b"-");
    let (ended, what) = if std::env::args_os().nth(1).is_some_and(is_command) {
        (Command::parse().run(), "the command failed")
    } else {
        (start(), "the agent ends")
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(error, "{what}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    // Before anything can make a TLS client: nobody else names the provider.
    let provider = rustls::crypto::ring::default_provider().install_default();
    provider.map_err(|_| anyhow::anyhow!("failed to install the TLS provider"))?;
    let flags = Flags::parse();
    let logs = Logs::start("info")?;
    let config = read_config(&flags)?;
    // One thread: a kubelet asks one thing at a time, and a thread costs memory on every node.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(flags, config, logs));
    // A file of sysfs that does not answer must not keep the process.
    runtime.shutdown_timeout(LAST_ANSWERS);
    served
}

fn read_config(flags: &Flags) -> Result<AgentConfig> {
    let path = &flags.config_file;
    let text = fs::read(path).with_context(|| format!("failed to read {path:?}"))?;
    let config: AgentConfig = serde_json::from_slice(&text)
        .with_context(|| format!("failed to understand {path:?}: is it of a newer version?"))?;
    let (name, revision) = (&config.config, &config.revision);
    if (name, revision) != (&flags.config, &flags.revision) {
        bail!(
            "{path:?} is of revision {revision:?} of config {name:?}, but this pod is of revision \
             {:?} of config {:?}",
            flags.revision,
            flags.config
        );
    }
    Ok(config)
}

async fn serve(flags: Flags, config: AgentConfig, logs: Logs) -> Result<()> {
    let stop = Stop::on_signals().context("failed to listen for signals")?;
    let readiness = Readiness::new("the agent is starting");
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry, &config.revision);
    let address = flags.listen_address.unwrap_or_else(any_address);
    let endpoint = daemon::serve(address, registry, readiness.clone(), stop.clone());
    let identity = Identity {
        revision: config.revision.clone(),
        pod_uid: flags.pod_uid,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id(),
    };
    let defaults = Settings::default();
    let agent = Agent {
        settings: Settings {
            plugin_dir: flags.plugin_dir,
            pod_resources_dir: flags.pod_resources_dir,
            host_dev_dir: flags.host_dev_dir,
            sysfs_dir: flags.sysfs_dir,
            udev_dir: flags.udev_dir,
            cdi_dir: flags.cdi_dir,
            runner_socket: flags.runner_socket.unwrap_or(defaults.runner_socket),
            lock_dir: flags.lock_dir,
            state_dir: flags.state_dir,
            ..defaults
        },
        config,
        identity,
        node: flags.node_name,
        initial: flags.initial_role,
        api: Some(ApiAccess::Infer),
        metrics,
        readiness,
        logs: Some(logs),
    };
    let stopped = stop.clone();
    let served = tokio::spawn(async move {
        let served = endpoint
            .await
            .with_context(|| format!("failed to serve at {address}"));
        // Without probes and metrics the pod is of no use to anybody who runs it.
        stopped.request();
        served
    });
    let ran = run(agent, stop).await;
    // Whoever holds a connection and asks nothing is not waited for.
    match tokio::time::timeout(LAST_ANSWERS, served).await {
        Ok(served) => ran.and(served?),
        Err(_) => ran,
    }
}

/// All addresses of both families, or of the older one where the kernel knows no other.
fn any_address() -> SocketAddr {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    if TcpListener::bind(both).is_ok() {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, HTTP_PORT))
    } else {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, HTTP_PORT))
    }
}

/// Boot id of the node's kernel; empty where it does not tell.
fn boot_id() -> String {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}
