//! A real Kubernetes on this machine: one control plane, and nodes in namespaces of their own.
//!
//! There is one cluster for each machine, in one state directory. Its processes outlive the command
//! that starts them; any later process attaches to it or takes it down.

pub mod certificates;
pub mod layout;
pub mod node;

mod cgroup;
mod control_plane;
mod down;
mod lock;
mod namespace;
mod network;
mod node_config;
mod process;
mod record;
mod up;
mod wait;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::layout::{Layout, Place};
use self::node::Node;
use self::process::Process;
use crate::command::run;
use crate::parts::Binaries;
use crate::parts::catalogue::Program;
use crate::preflight;
use crate::progress::Progress;

/// What a cluster is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many nodes; newest and previous kubelet alternate.
    pub nodes: u8,
    /// A directory of existing binaries, which win over built ones.
    pub assets: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            assets: None,
        }
    }
}

/// A cluster that is up. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Cluster {
    layout: Layout,
    binaries: Binaries,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Brings the cluster up, or finds it up already. What is left of a broken one is removed
    /// first.
    pub fn up(options: &Options, progress: &Progress) -> Result<Self> {
        up::up(options, progress)
    }

    /// Installs and builds what a cluster needs, and says where every program is; starts nothing.
    pub fn prepare(assets: Option<&Path>, progress: &Progress) -> Result<Binaries> {
        up::binaries(assets, progress)
    }

    /// Finds the running cluster.
    pub fn attach() -> Result<Self> {
        Self::find(&Layout::default())?
            .context("no cluster is running; `cargo xtask cluster up` starts one")
    }

    /// Removes the cluster, whatever state it is in, and all that it left on this machine.
    pub fn down(progress: &Progress) -> Result<()> {
        preflight::check_root()?;
        let layout = Layout::default();
        let _lock = lock::take(&layout, progress)?;
        down::down(&layout, progress)
    }

    /// The nodes, `n1` first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node called `name`.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("the cluster has no node {name:?}"))
    }

    /// The kubeconfig of the cluster's admin.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.layout.kubeconfig("admin")
    }

    /// The API server's audit log: one JSON object a line, for each request its end.
    pub fn audit_log_path(&self) -> PathBuf {
        self.layout.audit_log()
    }

    /// A directory with kubectl and helm, for a search path.
    pub fn programs_path(&self) -> PathBuf {
        self.layout.user_programs()
    }

    /// The logs of the cluster's processes.
    pub fn logs_path(&self) -> PathBuf {
        self.layout.logs()
    }

    /// Runs kubectl as admin and returns what it printed.
    pub fn kubectl<Word: AsRef<OsStr>>(&self, arguments: &[Word]) -> Result<String> {
        run(self.kubectl_command()?.args(arguments))
    }

    /// Applies manifests given as text.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let mut command = self.kubectl_command()?;
        command
            .args(["apply", "--filename=-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("failed to run kubectl")?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(manifests.as_bytes())?;
        }
        let said = child.wait_with_output()?;
        if !said.status.success() {
            bail!(
                "kubectl apply: {}",
                String::from_utf8_lossy(&said.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    }

    /// kubectl as admin, for calls that need more than arguments.
    pub fn kubectl_command(&self) -> Result<Command> {
        control_plane::kubectl(&self.layout, &self.binaries)
    }

    /// Runs helm as admin and returns what it printed.
    pub fn helm<Word: AsRef<OsStr>>(&self, arguments: &[Word]) -> Result<String> {
        run(self.helm_command()?.args(arguments))
    }

    /// Helm as admin. Its caches are the cluster's, not the user's.
    pub fn helm_command(&self) -> Result<Command> {
        let mut command = Command::new(self.binaries.path(Program::Helm)?);
        let own = self.layout.helm();
        command
            .env("KUBECONFIG", self.kubeconfig_path())
            .env("HELM_CACHE_HOME", own.join("cache"))
            .env("HELM_CONFIG_HOME", own.join("config"))
            .env("HELM_DATA_HOME", own.join("data"));
        Ok(command)
    }

    /// Loads an archive of images on every node.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        self.nodes
            .iter()
            .try_for_each(|node| node.import_image(archive))
    }

    /// Kills the API server. A graceful end waits for every watch, up to a minute.
    pub fn stop_api_server(&self) -> Result<()> {
        match Process::find(&self.layout, "apiserver")? {
            Some(process) => process.stop(Duration::ZERO),
            None => Ok(()),
        }
    }

    /// Starts the API server and waits until it is ready.
    pub fn start_api_server(&self) -> Result<()> {
        control_plane::start_api_server(&self.layout, &self.binaries)
    }

    /// Kills the API server and starts it again.
    pub fn restart_api_server(&self) -> Result<()> {
        self.stop_api_server()?;
        self.start_api_server()
    }

    /// Whether everything that was started runs and says that it is well.
    pub fn is_healthy(&self) -> bool {
        self.complaints().is_empty()
    }

    /// What is not as it should be, one line each.
    pub fn complaints(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for name in control_plane::PROCESSES {
            let running = Process::find(&self.layout, name)
                .ok()
                .flatten()
                .is_some_and(|process| process.is_running());
            if !running {
                lines.push(format!("{name} does not run"));
            }
        }
        if lines.is_empty()
            && !control_plane::api_server_is_ready(&self.layout, &self.binaries).unwrap_or(false)
        {
            lines.push("the API server is not ready".to_owned());
        }
        for node in &self.nodes {
            if !node.is_running() {
                lines.push(format!("node {} does not run", node.name()));
            } else if !node.kubelet_ready() {
                lines.push(format!(
                    "the kubelet of node {} is not healthy",
                    node.name()
                ));
            }
        }
        lines
    }

    fn assemble(layout: Layout, binaries: Binaries, count: u8) -> Self {
        let places: Vec<_> = Place::first(count).collect();
        let nodes = places
            .iter()
            .map(|place| Node::new(layout.clone(), binaries.clone(), *place, places.clone()))
            .collect();
        Self {
            layout,
            binaries,
            nodes,
        }
    }

    fn find(layout: &Layout) -> Result<Option<Self>> {
        Ok(record::read(layout)?
            .map(|record| Self::assemble(layout.clone(), record.binaries, record.nodes)))
    }
}
