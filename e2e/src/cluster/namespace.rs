//! The mount, network and UTS namespaces that make a node, held open by a process that does
//! nothing.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::layout::{Layout, Place};
use super::node_config::MARK;
use super::process::Process;
use crate::command::system;

/// Killed processes end at once, unless the kernel is still writing for them.
const END_DEADLINE: Duration = Duration::from_secs(15);

/// The name that a node's holder is recorded by.
pub fn holder_name(node: Place) -> String {
    format!("{}-namespaces", node.name())
}

/// Starts the process that holds the node's namespaces.
pub fn create(layout: &Layout, node: Place) -> Result<Process> {
    let mut command = system("unshare");
    command.args([
        "--mount",
        "--net",
        "--uts",
        "--propagation=private",
        "sleep",
        "infinity",
    ]);
    let holder = Process::start(layout, &holder_name(node), &command)?;
    // The process is there before it has left the host's namespaces; entered too early, the host
    // would be changed.
    super::wait::until(
        "namespaces of their own",
        Duration::from_secs(10),
        &[&holder],
        || Ok(is_apart(holder.pid())?.then_some(())),
    )?;
    Ok(holder)
}

/// `program`, to be run on the node by the holder's namespaces.
pub fn enter(holder: &Process, program: impl AsRef<OsStr>) -> Command {
    let mut command = system("nsenter");
    command
        .arg(format!("--target={}", holder.pid()))
        .args(["--mount", "--net", "--uts", "--"])
        .arg(program);
    command
}

/// Ends every process in the mount namespaces of `node`, its shims among them, and then there are
/// no namespaces.
pub fn end_processes(layout: &Layout, node: Place) -> Result<()> {
    let what = format!("the end of the processes of {:?}", node.name());
    super::wait::until(&what, END_DEADLINE, &[], || {
        let inhabitants = inhabitants(layout, node)?;
        if inhabitants.is_empty() {
            return Ok(Some(()));
        }
        for pid in &inhabitants {
            end(layout, node, *pid);
        }
        bail!("{inhabitants:?} still run")
    })
}

/// All three namespaces differ from ours.
fn is_apart(pid: i32) -> Result<bool> {
    for kind in ["mnt", "net", "uts"] {
        if fs::read_link(format!("/proc/{pid}/ns/{kind}"))?
            == fs::read_link(format!("/proc/self/ns/{kind}"))?
        {
            return Ok(false);
        }
    }
    // unshare(1) becomes sleep(1) only after it has made the mounts private.
    let command = fs::read(format!("/proc/{pid}/cmdline"))?;
    Ok(command.starts_with(b"sleep\0"))
}

/// Processes whose root shows the node's mark: a number of a namespace may be another's after it
/// has gone, a mark may not.
fn inhabitants(layout: &Layout, node: Place) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if bears_mark(layout, node, pid) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn bears_mark(layout: &Layout, node: Place, pid: i32) -> bool {
    let mark = format!("/proc/{pid}/root{MARK}");
    fs::read_to_string(mark).is_ok_and(|text| Path::new(text.trim()) == layout.node(node))
}

fn end(layout: &Layout, node: Place, pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else {
        return;
    };
    // Held before it is looked at again, so that its pid cannot become another's in between.
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    if bears_mark(layout, node, pid.as_raw_nonzero().get()) {
        // It may have ended by itself; the caller looks again.
        let _ = pidfd_send_signal(&descriptor, Signal::KILL);
    }
}
