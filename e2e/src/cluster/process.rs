//! Processes that outlive the command that started them.
//!
//! Each is recorded in a file with its pid, its start time and the boot it belongs to, so that a
//! later command finds it and never takes a stranger's process for it.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};

use super::layout::Layout;
use crate::command::{last_lines, system};

/// How often a process that must end is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// After SIGKILL a process ends as soon as the kernel has freed its memory; half a gigabyte takes a
/// tenth of a second.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A process of the cluster, running or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    name: String,
    identity: Identity,
    record: PathBuf,
    log: PathBuf,
}

/// What makes a process unmistakable.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    pid: i32,
    /// In clock ticks since the boot.
    started: u64,
    boot: String,
}

impl Process {
    /// Starts `command` in a session of its own, with its output in a log file. `command` must not
    /// fork.
    pub fn start(layout: &Layout, name: &str, command: &Command) -> Result<Self> {
        let log = layout.logs().join(format!("{name}.log"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("failed to open {:?}", log.display()))?;
        // setsid(1) becomes the program itself, as it is no group leader: the pid stays.
        let mut session = system("setsid");
        session
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => session.env(variable, value),
                None => session.env_remove(variable),
            };
        }
        let child = session
            .spawn()
            .with_context(|| format!("failed to start {name:?}"))?;
        let pid = i32::try_from(child.id()).context("a pid does not fit")?;
        let started = start_time(pid)?.with_context(|| {
            format!(
                "{name:?} ended at once; last lines of its log:\n{}",
                tail(&log)
            )
        })?;
        let process = Self {
            name: name.to_owned(),
            identity: Identity {
                pid,
                started,
                boot: boot()?,
            },
            record: layout.processes().join(name),
            log,
        };
        fs::write(&process.record, process.identity.to_text())
            .with_context(|| format!("failed to write {:?}", process.record.display()))?;
        Ok(process)
    }

    /// The process that was recorded as `name`, if one was.
    pub fn find(layout: &Layout, name: &str) -> Result<Option<Self>> {
        let record = layout.processes().join(name);
        let text = match fs::read_to_string(&record) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("failed to read {:?}", record.display()));
            }
        };
        // A record cut short by a crash names no process.
        Ok(Identity::from_text(&text).map(|identity| Self {
            name: name.to_owned(),
            identity,
            record,
            log: layout.logs().join(format!("{name}.log")),
        }))
    }

    /// Like [`Process::find`], where its absence is a fault.
    pub fn expect(layout: &Layout, name: &str) -> Result<Self> {
        Self::find(layout, name)?.with_context(|| format!("{name:?} is not recorded"))
    }

    /// Every recorded process.
    pub fn all(layout: &Layout) -> Result<Vec<Self>> {
        let entries = match fs::read_dir(layout.processes()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("failed to list the recorded processes"),
        };
        let mut processes = Vec::new();
        for entry in entries {
            if let Some(name) = entry?.file_name().to_str() {
                processes.extend(Self::find(layout, name)?);
            }
        }
        Ok(processes)
    }

    /// Its process identifier.
    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Whether it is this very process that runs under its pid.
    pub fn is_running(&self) -> bool {
        if let Some(pid) = Pid::from_raw(self.identity.pid) {
            // Reaps it where we are its parent; otherwise there is nothing to do.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        self.look().is_some_and(|stat| !stat.has_ended)
    }

    /// Whether anything is left of it that keeps what it held, its sockets for example: until its
    /// last thread has ended that is so, also when its first one has.
    fn remains(&self) -> bool {
        self.is_running() || self.look().is_some() && has_threads(self.identity.pid)
    }

    /// What the kernel says of it; nothing if another process has its pid.
    fn look(&self) -> Option<Stat> {
        let same_boot = boot().is_ok_and(|boot| boot == self.identity.boot);
        let stat = stat(self.identity.pid).ok().flatten()?;
        (same_boot && stat.started == self.identity.started).then_some(stat)
    }

    /// Fails with the last lines of its log if it has ended.
    pub fn check(&self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        bail!(
            "{:?} has ended; last lines of {:?}:\n{}",
            self.name,
            self.log.display(),
            tail(&self.log)
        );
    }

    /// Ends it: SIGTERM, and SIGKILL after `grace`. Nothing happens if it does not run.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        if !grace.is_zero() {
            self.signal(Signal::TERM)?;
            self.wait_for_end(grace);
        }
        self.signal(Signal::KILL)?;
        if !self.wait_for_end(KILL_DEADLINE) {
            bail!("{:?} (pid {}) does not end", self.name, self.identity.pid);
        }
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to remove {:?}", self.record.display()))
            }
            _ => Ok(()),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.identity.pid) else {
            return Ok(());
        };
        // The descriptor holds the process fast: between look and signal its pid cannot become
        // another's.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        if !self.is_running() {
            return Ok(());
        }
        match pidfd_send_signal(&descriptor, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("failed to signal {:?}", self.name)),
        }
    }

    fn wait_for_end(&self, deadline: Duration) -> bool {
        let begun = Instant::now();
        while self.remains() {
            if begun.elapsed() > deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

impl Identity {
    fn to_text(&self) -> String {
        format!("{} {} {}\n", self.pid, self.started, self.boot)
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix('\n')?.split(' ');
        Some(Self {
            pid: words.next()?.parse().ok().filter(|pid| *pid > 1)?,
            started: words.next()?.parse().ok()?,
            boot: words.next()?.to_owned(),
        })
    }
}

/// What proc(5) says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// When it started, in ticks since the boot.
    started: u64,
    /// Whether only what waits for its parent is left of its first thread.
    has_ended: bool,
}

fn stat(pid: i32) -> Result<Option<Stat>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_stat(&stat)),
        // Depending on the moment, a process that ends is not found or no such process.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("failed to look at process {pid}")),
    }
}

/// When the process `pid` started; `None` if it does not run.
fn start_time(pid: i32) -> Result<Option<u64>> {
    let running = stat(pid)?.filter(|stat| !stat.has_ended);
    Ok(running.map(|stat| stat.started))
}

/// Whether the process has threads beside its first one.
fn has_threads(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads.is_ok_and(|threads| threads.count() > 1)
}

/// The program's name stands in parentheses and may hold anything, so fields are counted from the
/// last one.
fn parse_stat(stat: &str) -> Option<Stat> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let has_ended = matches!(fields.next()?, "Z" | "X");
    // The state is field 3 of proc(5), the start time field 22.
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { started, has_ended })
}

fn boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {path:?}"))?;
    Ok(text.trim().to_owned())
}

/// The last lines of the log at `path`.
fn tail(path: &Path) -> String {
    const BYTES: u64 = 16 * 1024;
    const LINES: usize = 12;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            last_lines(&text, LINES)
        }
        Err(error) => format!("(the log cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_program_with_spaces_and_parentheses_is_read() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let stat = |has_ended| {
            Some(Stat {
                started: 4711,
                has_ended,
            })
        };
        assert_eq!(parse_stat(&format!("12 (a) b) S {rest}")), stat(false));
        assert_eq!(parse_stat(&format!("12 (a) Z {rest}")), stat(true));
        assert_eq!(parse_stat("12 (a) S 1"), None);
    }

    #[test]
    fn a_record_cut_short_names_no_process() {
        let whole = Identity {
            pid: 12,
            started: 4711,
            boot: "b".to_owned(),
        };
        assert_eq!(Identity::from_text(&whole.to_text()), Some(whole));
        for text in ["", "12", "12 47", "12 4711 b", "1 4711 b\n", "-5 4711 b\n"] {
            assert_eq!(Identity::from_text(text), None, "{text:?}");
        }
    }

    #[test]
    fn an_other_process_under_the_same_pid_is_not_ours() -> Result<()> {
        let own = i32::try_from(std::process::id())?;
        let started = start_time(own)?.context("this test runs")?;
        let process = |started| -> Result<Process> {
            Ok(Process {
                name: "self".to_owned(),
                identity: Identity {
                    pid: own,
                    started,
                    boot: boot()?,
                },
                record: "/nonexistent".into(),
                log: "/nonexistent".into(),
            })
        };
        assert!(process(started)?.is_running());
        let stranger = process(started + 1)?;
        assert!(!stranger.is_running());
        // Would end this test if it took the process for its own.
        stranger.stop(Duration::ZERO)?;
        Ok(())
    }
}
