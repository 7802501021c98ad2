//! The program that a plugin is told to run before a container starts: a script of the suite's that
//! records its runs and does what the suite wants next.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

/// What the program does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Succeeds at once.
    Succeed,
    /// Fails, and says [`COMPLAINT`].
    Fail,
    /// Succeeds after three seconds.
    Slow,
    /// Takes five minutes, and so does a process that it starts.
    Hang,
}

/// What it says when it fails.
pub const COMPLAINT: &str = "the-conformance-hook-fails";

/// The program and its records, in one directory.
#[derive(Clone, Debug)]
pub struct Hook {
    directory: PathBuf,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its pid.
    pub pid: i32,
    /// The pid of the process that it started, when it was to hang.
    pub child: Option<i32>,
    /// Its arguments and variables.
    pub told: String,
    /// When it began.
    pub began: SystemTime,
    /// When it succeeded; nothing if it did not.
    pub ended: Option<SystemTime>,
}

impl Hook {
    /// Makes the program in a directory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn make(directory: &Path) -> Result<Self> {
        let hook = Self {
            directory: directory.to_owned(),
        };
        fs::create_dir_all(directory.join("runs"))
            .with_context(|| format!("failed to make {directory:?}"))?;
        hook.mode(Mode::Succeed)?;
        // Only what the shell itself can do, and full paths: the environment may be empty.
        let script = format!(
            "#!/bin/sh\n\
             run={runs}/$$\n\
             {{ echo \"$@\"; export -p; }} > $run.told\n\
             : > $run.began\n\
             read mode < {mode}\n\
             case $mode in\n\
             Fail) echo {COMPLAINT} >&2; exit 3;;\n\
             Slow) /bin/sleep 3;;\n\
             Hang) /bin/sleep 300 & echo $! > $run.child; /bin/sleep 300;;\n\
             esac\n\
             : > $run.ended\n",
            runs = directory.join("runs").display(),
            mode = directory.join("mode").display(),
        );
        let path = hook.path();
        fs::write(&path, script).with_context(|| format!("failed to write {path:?}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(hook)
    }

    /// The program.
    pub fn path(&self) -> PathBuf {
        self.directory.join("hook")
    }

    /// What it does from now on.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn mode(&self, mode: Mode) -> Result<()> {
        let path = self.directory.join("mode");
        let text = format!("{mode:?}\n");
        fs::write(&path, text).with_context(|| format!("failed to write {path:?}"))
    }

    /// Its runs so far, in the order in which they began.
    pub fn runs(&self) -> Vec<Run> {
        let entries = fs::read_dir(self.directory.join("runs"));
        let entries = entries.into_iter().flatten().flatten();
        let mut runs: Vec<Run> = entries.filter_map(|entry| run(&entry.path())).collect();
        runs.sort_by_key(|run| run.began);
        runs
    }

    /// Its runs for one device.
    pub fn runs_for(&self, id: &str) -> Vec<Run> {
        let mut runs = self.runs();
        let between = |c: char| c.is_whitespace() || "'\"=,".contains(c);
        runs.retain(|run| run.told.split(between).any(|word| word == id));
        runs
    }
}

fn run(began: &Path) -> Option<Run> {
    if began.extension()? != "began" {
        return None;
    }
    let at = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    let child = fs::read_to_string(began.with_extension("child")).ok();
    let told = fs::read(began.with_extension("told")).unwrap_or_default();
    Some(Run {
        pid: began.file_stem()?.to_str()?.parse().ok()?,
        child: child.and_then(|child| child.trim().parse().ok()),
        told: String::from_utf8_lossy(&told).into_owned(),
        began: at(began)?,
        ended: at(&began.with_extension("ended")),
    })
}

/// Whether a process is a run of the program below a directory, or what one has started.
pub fn is_ours(pid: i32, home: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    line.contains(&*home.to_string_lossy()) || line.replace('\0', " ") == "/bin/sleep 300 "
}
