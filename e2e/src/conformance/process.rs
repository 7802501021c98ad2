//! A plugin's process: started, told to end, and looked at from the outside.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};

/// The kernel counts work in hundredths of a second, whatever its own clock is.
const TICKS: u64 = 100;

/// A process that runs, or has ended. It and what it started are killed when this is dropped.
pub struct PluginProcess {
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl PluginProcess {
    /// Starts a command; what it prints goes to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("failed to make {log:?}"))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // What it starts is in its group, and ends with it.
            .process_group(0);
        let shown = format!("{:?}", command.as_std());
        let child = command
            .spawn()
            .with_context(|| format!("failed to start {shown}"))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid.and_then(Pid::from_raw).context("it has no pid")?;
        Ok(Self {
            child,
            pid,
            log: log.to_owned(),
        })
    }

    /// Sends a signal to it alone.
    pub fn signal(&self, signal: Signal) {
        // It may have ended already, which whoever waits for its end will see.
        let _ended = kill_process(self.pid, signal);
    }

    /// How it ended; nothing while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it has ended; nothing if it does not in time.
    pub async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let waited = tokio::time::timeout(limit, self.child.wait()).await;
        waited.ok().and_then(Result::ok)
    }

    /// What it printed so far.
    pub fn printed(&self) -> String {
        let printed = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&printed).into_owned()
    }

    /// How many file descriptors it has open.
    pub fn descriptors(&self) -> usize {
        self.entries("fd")
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.entries("task")
    }

    fn entries(&self, of: &str) -> usize {
        let path = format!("/proc/{}/{of}", self.pid.as_raw_nonzero());
        fs::read_dir(path).map_or(0, Iterator::count)
    }

    /// Its resident memory in kilobytes; 0 if it has ended.
    pub fn resident_kilobytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let status = fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// How long it has worked, in the kernel and out of it.
    pub fn worked(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.pid.as_raw_nonzero());
        let stat = fs::read_to_string(path).unwrap_or_default();
        // The name may contain anything, also spaces; it ends with the last bracket.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|n| n.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1000 / TICKS)
    }

    /// Whether a thread of it works or waits for a processor.
    pub fn wants_processor(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_nonzero()));
        tasks.into_iter().flatten().flatten().any(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.starts_with(" R"))
        })
    }

    /// Whether and how it has ended, and the end of what it printed: for messages.
    pub fn shown(&mut self) -> String {
        let state = match self.ended() {
            None => "it runs".to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("it ended with exit code {code}"),
                (None, Some(signal)) => format!("signal {signal} ended it"),
                (None, None) => "it ended".to_owned(),
            },
        };
        let printed = self.printed();
        let lines: Vec<&str> = printed.lines().collect();
        let last = lines.get(lines.len().saturating_sub(4)..);
        let last = last.unwrap_or_default().join(" | ");
        if last.is_empty() {
            return format!("{state} and printed nothing");
        }
        let cut: String = last.chars().take(1200).collect();
        format!("{state}; the last it printed: {cut}")
    }
}

impl Drop for PluginProcess {
    fn drop(&mut self) {
        // Also what it left behind; nothing of it may be there any more.
        let _ended = kill_process_group(self.pid, Signal::KILL);
        let _reaped = self.child.try_wait();
    }
}

/// Whether a process exists and is more than an entry that nobody has waited for.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default();
    !matches!(state.split_whitespace().next(), None | Some("Z" | "X"))
}
