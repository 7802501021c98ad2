//! A plugin under measurement: directories of its own, a kubelet, devices, and its process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::json;
use tempfile::TempDir;

use super::api::Api;
use super::kubelet::Kubelet;

/// The resource that every subject serves.
pub const RESOURCE: &str = "example.com/bench";

const REVISION: &str = "0123456789";

/// What is measured.
#[derive(Clone, Debug)]
pub enum Subject {
    /// Our agent, with its API client, TLS, metrics and comparison of lists.
    Agent(PathBuf),
    /// Any plugin: its name, and a command line for `sh`. `{plugin_dir}`, `{pod_resources_dir}`,
    /// `{dev_dir}`, `{resource}` and `{devices}` are replaced.
    Other(String, String),
}

/// Where one plugin runs.
pub struct Scene {
    home: TempDir,
    /// Its kubelet.
    pub kubelet: Kubelet,
    devices: u32,
    _api: Option<Api>,
}

/// A process, killed when it is dropped.
pub struct Process {
    child: Child,
    /// When it was started.
    pub started: Instant,
}

impl Subject {
    /// What tables call it.
    pub fn name(&self) -> &str {
        match self {
            Self::Agent(_) => "agent",
            Self::Other(name, _) => name,
        }
    }

    /// A place with so many devices, whose kubelet runs.
    ///
    /// # Errors
    /// When directories, devices or sockets cannot be made.
    pub async fn scene(&self, devices: u32) -> Result<Scene> {
        let home = tempfile::tempdir().context("failed to make a directory")?;
        for name in ["plugins", "pod-resources", "dev", "locks", "state"] {
            fs::create_dir(home.path().join(name))?;
        }
        let kubelet = Kubelet::start(
            &home.path().join("plugins"),
            &home.path().join("pod-resources"),
        )?;
        let api = match self {
            Self::Agent(_) => {
                Some(Api::start(&home.path().join("kubeconfig"), "bench.n1", REVISION).await?)
            }
            Self::Other(..) => None,
        };
        let scene = Scene {
            home,
            kubelet,
            devices,
            _api: api,
        };
        for index in 0..devices {
            scene.plug(index)?;
        }
        if let Self::Agent(_) = self {
            scene.prepare_agent()?;
        }
        Ok(scene)
    }

    /// Starts the plugin.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, scene: &Scene) -> Result<Process> {
        let mut command = match self {
            Self::Agent(program) => scene.agent(program),
            Self::Other(_, line) => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("exec {}", scene.filled(line))]);
                command
            }
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("failed to start {:?}", self.name()))?;
        Ok(Process { child, started })
    }
}

impl Scene {
    /// Makes a device node. Nothing answers at its numbers: only its being there counts.
    ///
    /// # Errors
    /// When this process may not make one.
    pub fn plug(&self, index: u32) -> Result<()> {
        let path = self.device(index);
        let (kind, mode) = (FileType::CharacterDevice, Mode::RUSR | Mode::WUSR);
        mknodat(CWD, &path, kind, mode, makedev(511, index))
            .with_context(|| format!("failed to make the device node {path:?}"))
    }

    /// Takes a device away.
    ///
    /// # Errors
    /// When it is not there.
    pub fn unplug(&self, index: u32) -> Result<()> {
        let path = self.device(index);
        fs::remove_file(&path).with_context(|| format!("failed to remove {path:?}"))
    }

    fn device(&self, index: u32) -> PathBuf {
        self.at("dev").join(format!("bench{index}"))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The agent's configuration, and its memory of having served here before: a first start waits
    /// to see whether somebody else serves the resource.
    fn prepare_agent(&self) -> Result<()> {
        let config = json!({
            "config": "bench",
            "configUid": "config",
            "revision": REVISION,
            "resources": [{ "name": RESOURCE, "discovery": { "paths": { "globs": ["/dev/bench*"] } } }],
        });
        fs::write(self.at("agent.json"), config.to_string())?;
        let state = json!({ "configUid": "config", "revision": REVISION, "resources": [RESOURCE] });
        fs::write(self.at("state").join("bench"), state.to_string())?;
        Ok(())
    }

    fn agent(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        let variables = [
            ("CONFIG", "bench"),
            ("REVISION", REVISION),
            ("NODE_NAME", "n1"),
            ("POD_UID", "pod"),
            ("INITIAL_ROLE", "Active"),
        ];
        command.envs(variables);
        command.env("KUBECONFIG", self.at("kubeconfig"));
        let flags = [
            ("--config-file", "agent.json"),
            ("--plugin-dir", "plugins"),
            ("--pod-resources-dir", "pod-resources"),
            ("--host-dev-dir", "dev"),
            ("--lock-dir", "locks"),
            ("--state-dir", "state"),
        ];
        for (flag, name) in flags {
            command.arg(flag).arg(self.at(name));
        }
        command.args(["--listen-address", "127.0.0.1:0"]);
        command
    }

    fn filled(&self, line: &str) -> String {
        let paths = [
            ("{plugin_dir}", "plugins"),
            ("{pod_resources_dir}", "pod-resources"),
            ("{dev_dir}", "dev"),
        ];
        let filled = paths.iter().fold(line.to_owned(), |line, (word, name)| {
            line.replace(word, &self.at(name).display().to_string())
        });
        filled
            .replace("{resource}", RESOURCE)
            .replace("{devices}", &self.devices.to_string())
    }
}

impl Process {
    /// Its process identifier.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
