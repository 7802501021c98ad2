//! A runner in a directory of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use node_agent::runner::{Action, ActionRequest, Outcome, Runner};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);
/// For what must be cut off: long enough to start a shell.
pub const SHORT: Duration = Duration::from_secs(1);

pub struct Rig {
    pub home: TempDir,
    pub runner: Option<Child>,
}

impl Rig {
    /// A directory without a runner.
    pub fn empty() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("sys")).unwrap();
        fs::create_dir(home.path().join("dev")).unwrap();
        Self { home, runner: None }
    }

    pub fn new() -> Self {
        let mut rig = Self::empty();
        rig.start("dev");
        rig
    }

    /// Starts a runner that finds the host's `/dev` at a path, relative to the home.
    pub fn start(&mut self, dev: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_device-plugin-agent"));
        command.arg("run-hooks");
        for (flag, path) in [
            ("--socket", self.path("socket")),
            ("--sys-dir", self.path("sys")),
            ("--host-dev-dir", self.path(dev)),
        ] {
            command.arg(flag).arg(path);
        }
        command.env("SECRET", "of the runner").stdout(Stdio::null());
        self.runner = Some(command.spawn().unwrap());
    }

    pub fn kill(&mut self) {
        if let Some(mut runner) = self.runner.take() {
            runner.kill().unwrap();
            runner.wait().unwrap();
        }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.home.path().join(below)
    }

    pub fn client(&self) -> Runner {
        Runner::new(self.path("socket"))
    }

    /// Runs a shell script in the home.
    pub async fn shell(&self, script: &str, timeout: Duration) -> Outcome {
        let request = self.script(script, timeout);
        self.client().run(&request).await.unwrap()
    }

    pub fn script(&self, script: &str, timeout: Duration) -> ActionRequest {
        let home = self.home.path().display();
        let script = format!("cd {home}\n{script}");
        let command = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        request(Action::Exec { command }, timeout)
    }

    pub async fn run(&self, action: Action) -> Outcome {
        self.client().run(&request(action, LONG)).await.unwrap()
    }

    /// The numbers that scripts have written to a file, one a line; waits for so many.
    pub async fn pids(&self, file: &str, count: usize) -> Vec<u32> {
        let path = self.path(file);
        let mut pids = Vec::new();
        until(&format!("{count} processes in {file:?}"), || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            // A line may not be whole yet.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            pids = whole.lines().map(|line| line.parse().unwrap()).collect();
            pids.len() >= count
        })
        .await;
        pids
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn request(action: Action, timeout: Duration) -> ActionRequest {
    let env = BTreeMap::from([("DEVICE_ID".to_owned(), "card0".to_owned())]);
    ActionRequest {
        action,
        env,
        timeout,
    }
}

/// Waits for a state.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until none of the processes runs.
pub async fn ended(pids: &[u32]) {
    for pid in pids {
        until(&format!("the end of {pid}"), || !runs(*pid)).await;
    }
}

/// Whether a process runs; one that nobody has reaped yet does not.
pub fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(!stat.rsplit_once(") ")?.1.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}
