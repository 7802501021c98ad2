//! One node for one test: directories, devices, a kubelet, agents.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crds::AgentConfig;
use daemon::{Readiness, Stop};
use node_agent::metrics::Metrics;
use node_agent::settings::Settings;
use node_agent::{Agent, ApiAccess, run};
use node_agent_core::report::Identity;
use node_agent_core::role::InitialRole;
use prometheus_client::registry::Registry;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fake_kubelet::{DEADLINE, FakeKubelet, Model};
use crate::fake_pod_resources::FakePodResources;
use crate::fake_runner::FakeRunner;

/// The resource of most tests.
pub const TTY: &str = "example.com/tty";

/// The revision of most tests.
pub const REVISION: &str = "0123456789";

/// A node.
pub struct Rig {
    /// Where everything is.
    pub home: TempDir,
    /// Its kubelet.
    pub kubelet: FakeKubelet,
    /// Its kubelet's other socket.
    pub pod_resources: FakePodResources,
    /// What agents are started with.
    pub settings: Settings,
    /// How agents reach the API server.
    pub api: Option<ApiAccess>,
}

/// An agent that runs.
pub struct Running {
    stop: Stop,
    /// Whether it says that it is ready.
    pub readiness: Readiness,
    registry: Registry,
    task: JoinHandle<anyhow::Result<()>>,
    kill: Option<oneshot::Sender<()>>,
}

impl Rig {
    /// A node with a kubelet that runs.
    pub fn new(model: Model) -> Self {
        let mut rig = Self::without_kubelet(model);
        rig.kubelet.start();
        rig
    }

    /// A node with a kubelet that does not run.
    pub fn without_kubelet(model: Model) -> Self {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = home.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let mut settings = Settings {
            plugin_dir: at("plugins"),
            pod_resources_dir: at("pod-resources"),
            host_dev_dir: at("dev"),
            sysfs_dir: at("sys"),
            udev_dir: at("udev"),
            runner_socket: home.path().join("runner.sock"),
            lock_dir: at("locks"),
            state_dir: at("state"),
            cdi_dir: at("cdi"),
            ..Settings::default()
        };
        let timing = &mut settings.timing;
        // The kubelet of a test is always young, and nobody else is on the node.
        timing.first_time.between_readings = Duration::from_millis(2);
        timing.first_time.after_kubelet_start = Duration::from_millis(4);
        timing.first_time.look_again = Duration::from_millis(10);
        timing.after_allocate = Duration::from_millis(10);
        let kubelet = FakeKubelet::stopped(&settings.plugin_dir, model);
        Self {
            pod_resources: FakePodResources::start(&settings.pod_resources_dir, &kubelet),
            kubelet,
            settings,
            home,
            api: None,
        }
    }

    /// Makes a character device that does nothing: one that needs no privileges to be made.
    pub fn plug(&self, name: &str) -> PathBuf {
        let path = self.settings.host_dev_dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::RUSR,
            makedev(0, 0),
        )
        .unwrap();
        path
    }

    /// Starts a runner.
    pub fn runner(&self) -> FakeRunner {
        FakeRunner::start(&self.settings.runner_socket)
    }

    /// Tells which devices of [`TTY`] containers hold.
    pub fn hold(&self, ids: &[&String]) {
        let ids: Vec<String> = ids.iter().map(|id| (*id).clone()).collect();
        self.pod_resources
            .answer(|answers| _ = answers.held.insert(TTY.to_owned(), ids));
    }

    /// Takes a device away.
    pub fn unplug(&self, name: &str) {
        fs::remove_file(self.settings.host_dev_dir.join(name)).unwrap();
    }

    /// Makes a link in `/dev`.
    pub fn link(&self, name: &str, to: &str) {
        let path = self.settings.host_dev_dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    /// Starts an agent that serves all `tty*` as [`TTY`].
    pub fn start(&self) -> Running {
        self.start_with(config(&[tty()]))
    }

    /// Starts an agent.
    pub fn start_with(&self, config: AgentConfig) -> Running {
        self.start_as(config, InitialRole::Active)
    }

    /// Starts an agent with an initial role. Its pod is named after its revision.
    pub fn start_as(&self, config: AgentConfig, initial: InitialRole) -> Running {
        let (agent, mut running) = self.prepared(config, initial);
        running.task = tokio::spawn(run(agent, running.stop.clone()));
        running
    }

    /// Starts an agent that can be killed: it has a thread and a runtime of its own, and with them
    /// ends everything that it does.
    pub fn start_mortal(&self, revision: &str, initial: InitialRole) -> Running {
        self.start_mortal_with(revision, initial, &[tty()])
    }

    /// The same with other resources.
    pub fn start_mortal_with(
        &self,
        revision: &str,
        initial: InitialRole,
        resources: &[Value],
    ) -> Running {
        let config = AgentConfig {
            revision: revision.to_owned(),
            ..config(resources)
        };
        let (agent, mut running) = self.prepared(config, initial);
        let (kill, killed) = oneshot::channel();
        let stop = running.stop.clone();
        running.kill = Some(kill);
        running.task = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let ended = runtime.block_on(async {
                tokio::select! {
                    ended = run(agent, stop) => ended,
                    _killed = killed => Ok(()),
                }
            });
            runtime.shutdown_background();
            ended
        });
        running
    }

    /// Waits until the host remembers that a resource was served.
    pub async fn until_remembered(&self, text: &str) {
        let path = self.settings.state_dir.join("test");
        let remembered = || fs::read_to_string(&path).is_ok_and(|state| state.contains(text));
        until("remembered", remembered).await;
    }

    fn prepared(&self, config: AgentConfig, initial: InitialRole) -> (Agent, Running) {
        let (stop, readiness) = (Stop::default(), Readiness::new("starting"));
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry, &config.revision);
        let agent = Agent {
            settings: self.settings.clone(),
            identity: Identity {
                revision: config.revision.clone(),
                pod_uid: format!("pod-{}", config.revision),
                agent_version: "test".to_owned(),
                boot_id: "boot-1".to_owned(),
            },
            config,
            node: "n1".to_owned(),
            initial,
            api: self.api.clone(),
            metrics,
            readiness: readiness.clone(),
            logs: None,
        };
        let running = Running {
            stop,
            readiness,
            registry,
            task: tokio::spawn(std::future::pending()),
            kill: None,
        };
        (agent, running)
    }

    /// Sockets in the plugin directory beside the kubelet's.
    pub fn plugin_sockets(&self) -> Vec<String> {
        names(&self.settings.plugin_dir)
            .into_iter()
            .filter(|name| name.ends_with(".sock") && name != "kubelet.sock")
            .collect()
    }
}

impl Running {
    /// Stops it and returns how it ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.request();
        self.ended().await
    }

    /// Kills it: nothing is closed in order.
    pub async fn kill(mut self) {
        self.kill.take().unwrap().send(()).unwrap();
        self.ended().await.unwrap();
    }

    /// Waits for its end.
    pub async fn ended(self) -> anyhow::Result<()> {
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .unwrap()
            .unwrap()
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        !self.task.is_finished()
    }

    /// The value of a metric with labels, such as `registered{resource="a"}`.
    pub fn metric(&self, metric: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = format!("device_plugin_agent_{metric} ");
        text.lines()
            .find_map(|one| one.strip_prefix(&line))
            .map(|value| value.parse().unwrap())
    }

    /// Waits until it says that it is ready.
    pub async fn until_ready(&self) {
        until("ready", || self.readiness.get().is_ok()).await;
    }
}

/// Waits until something is true that nobody announces.
pub async fn until(what: &str, is: impl Fn() -> bool) {
    let mut turn = tokio::time::interval(Duration::from_millis(2));
    let waited = async {
        while !is() {
            turn.tick().await;
        }
    };
    assert!(
        tokio::time::timeout(DEADLINE, waited).await.is_ok(),
        "not within {DEADLINE:?}: {what}"
    );
}

/// Names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A config of one revision.
pub fn config(resources: &[Value]) -> AgentConfig {
    serde_json::from_value(json!({
        "config": "test",
        "configUid": "uid-1",
        "revision": REVISION,
        "resources": resources,
    }))
    .unwrap()
}

/// The resource [`TTY`].
pub fn tty() -> Value {
    paths(TTY, &["/dev/tty*"])
}

/// A resource found by paths.
pub fn paths(name: &str, globs: &[&str]) -> Value {
    json!({ "name": name, "discovery": { "paths": { "globs": globs } } })
}

/// A resource that is simulated.
pub fn simulated(name: &str, count: i32) -> Value {
    json!({ "name": name, "discovery": { "simulated": { "count": count } } })
}
