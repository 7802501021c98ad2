//! What a process costs, as its kernel tells.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    /// What of it is in memory, shared pages included.
    pub resident: u64,
    /// What it wrote to and nobody shares: the part that is there once more for each process.
    pub private_dirty: u64,
}

/// What a process has used since its start, over all its threads.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Activity {
    /// Time on a processor.
    pub cpu: Duration,
    /// How often it went to sleep by itself: each time something woke it later.
    pub sleeps: u64,
}

/// Memory of a process now.
///
/// # Errors
/// When the process is gone.
pub fn memory(pid: u32) -> Result<Memory> {
    let text = read(pid, "smaps_rollup")?;
    let of = |name: &str| number(&text, name).map(|kilobytes| kilobytes * 1024);
    Ok(Memory {
        resident: of("Rss:").context("no resident memory is told")?,
        private_dirty: of("Private_Dirty:").context("no private memory is told")?,
    })
}

/// How many threads a process has.
///
/// # Errors
/// When the process is gone.
pub fn threads(pid: u32) -> Result<usize> {
    entries(pid, "task")
}

/// How many descriptors a process has open.
///
/// # Errors
/// When the process is gone.
pub fn descriptors(pid: u32) -> Result<usize> {
    entries(pid, "fd")
}

/// What a process has used until now.
///
/// # Errors
/// When the process is gone.
pub fn activity(pid: u32) -> Result<Activity> {
    let mut sum = Activity::default();
    let tasks = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&tasks).with_context(|| format!("failed to list {tasks:?}"))?;
    for task in entries {
        let task = task?.path();
        // A thread may end while we look.
        let (Ok(schedstat), Ok(status)) = (
            fs::read_to_string(task.join("schedstat")),
            fs::read_to_string(task.join("status")),
        ) else {
            continue;
        };
        let nanoseconds = schedstat.split(' ').next().and_then(|n| n.parse().ok());
        sum.cpu += Duration::from_nanos(nanoseconds.unwrap_or_default());
        sum.sleeps += number(&status, "voluntary_ctxt_switches:").unwrap_or_default();
    }
    Ok(sum)
}

fn entries(pid: u32, what: &str) -> Result<usize> {
    let path = format!("/proc/{pid}/{what}");
    let entries = fs::read_dir(&path).with_context(|| format!("failed to list {path:?}"))?;
    Ok(entries.count())
}

fn read(pid: u32, what: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{what}");
    fs::read_to_string(&path).with_context(|| format!("failed to read {path:?}"))
}

/// The number in the line that begins with a name.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_that_of_its_line() {
        let text = "Rss:    11 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty:  7 kB\n";
        assert_eq!(number(text, "Private_Dirty:"), Some(7));
        assert_eq!(number(text, "Rss:"), Some(11));
        assert_eq!(number(text, "Pss:"), None);
        let switches = "nonvoluntary_ctxt_switches:\t3\nvoluntary_ctxt_switches:\t9\n";
        assert_eq!(number(switches, "voluntary_ctxt_switches:"), Some(9));
    }

    #[test]
    fn this_process_costs_something() -> Result<()> {
        let own = std::process::id();
        let memory = memory(own)?;
        assert!(memory.resident > memory.private_dirty && memory.private_dirty > 0);
        assert!(threads(own)? >= 1 && descriptors(own)? >= 3);
        assert!(activity(own)?.cpu > Duration::ZERO);
        Ok(())
    }
}
