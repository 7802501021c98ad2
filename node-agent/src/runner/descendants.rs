//! All that a process has started, however it hid: whoever is a subreaper inherits what its children
//! leave behind, so everything stays below it until it is reaped.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper, wait,
    waitpid,
};

/// Between two looks at what is left. A killed process ends within a fraction of it; half would only
/// look more often, double would be felt by a container that waits for its reset.
const BETWEEN_LOOKS: Duration = Duration::from_millis(4);

/// A process, as `/proc` tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its state, such as `D` while it waits in the kernel and `Z` when it has ended.
    pub state: char,
    /// Nobody, for the first process of a container.
    parent: Option<Pid>,
    /// None of this container's, for processes that its runtime has started.
    group: Option<Pid>,
}

/// Makes the calling process inherit what its descendants leave behind.
///
/// # Errors
/// When the kernel refuses.
pub fn inherit_orphans() -> rustix::io::Result<()> {
    set_child_subreaper(Some(getpid()))
}

/// Kills all descendants of the calling process, and reaps them; those that do not end in time are
/// returned. Nobody else may wait for a child of this process meanwhile.
pub fn end_all(patience: Duration) -> Vec<Process> {
    let deadline = Instant::now() + patience;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let left = of(getpid(), &processes());
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        kill(&left);
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// Kills what was inherited: descendants that are below none of the children to keep. What has ended
/// is reaped. Whether nothing is left.
pub fn end_inherited(keep: &BTreeSet<u32>) -> bool {
    let mut nothing_left = true;
    let all = processes();
    let kept =
        |process: &Process| keep.contains(&process.pid.as_raw_nonzero().get().unsigned_abs());
    for child in all.iter().filter(|one| one.parent == Some(getpid())) {
        if kept(child) {
            continue;
        }
        if child.state != 'Z' {
            let mut tree = of(child.pid, &all);
            tree.push(*child);
            kill(&tree);
        }
        // A child's id is nobody else's until it is reaped here.
        let ended = waitpid(Some(child.pid), WaitOptions::NOHANG);
        // Its own children are ours from now on.
        nothing_left &= child.state == 'Z' && matches!(ended, Ok(Some(_)));
    }
    nothing_left
}

/// A group is killed as one, whatever it forks meanwhile. Each keeper has a session of its own, so no
/// group but the caller's holds processes that are not below it.
fn kill(processes: &[Process]) {
    let own = process(Path::new("/proc/self")).and_then(|own| own.group);
    let mut killed = Vec::new();
    for group in processes.iter().filter_map(|process| process.group) {
        if Some(group) != own && !killed.contains(&group) {
            let _gone = kill_process_group(group, Signal::KILL);
            killed.push(group);
        }
    }
    for process in processes {
        let _gone = kill_process(process.pid, Signal::KILL);
    }
}

/// Everything below a process.
fn of(root: Pid, all: &[Process]) -> Vec<Process> {
    let mut below = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for child in all.iter().filter(|one| one.parent == Some(parent)) {
            // A list that was read while ids were given anew could have a circle.
            if child.pid != root && !below.contains(child) {
                below.push(*child);
                parents.push(child.pid);
            }
        }
    }
    below
}

fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        })
        .filter_map(|entry| process(&entry.path()))
        .collect()
}

fn process(directory: &Path) -> Option<Process> {
    let stat = fs::read(directory.join("stat")).ok()?;
    parsed(&String::from_utf8_lossy(&stat))
}

/// `pid (name) state parent group …`; a name may hold spaces and brackets.
fn parsed(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (_, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let mut id = || fields.next()?.parse().ok();
    let (parent, group) = (id()?, id()?);
    Some(Process {
        pid: Pid::from_raw(pid.parse().ok()?)?,
        state,
        parent: Pid::from_raw(parent),
        group: Pid::from_raw(group),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(raw: i32) -> Pid {
        Pid::from_raw(raw).unwrap()
    }

    #[test]
    fn a_process_may_be_called_anything() {
        let process = parsed("12 (a) R 1 (b) S 7 12 12 0 -1").unwrap();
        assert_eq!((process.pid, process.parent), (id(12), Some(id(7))));
        assert_eq!((process.group, process.state), (Some(id(12)), 'S'));
        for wrong in ["", "12", "12 (a", "12 (a) S", "x (a) S 1 1", "0 (a) S 1 1"] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
        // The first process of a container, as it sees itself.
        let first = parsed("1 (device-plugin-a) S 0 0 0 0 -1").unwrap();
        assert_eq!((first.parent, first.group), (None, None));
    }

    #[test]
    fn descendants_are_found_at_every_depth_and_in_circles() {
        let process = |pid, parent| Process {
            pid: id(pid),
            state: 'S',
            parent: Some(id(parent)),
            group: None,
        };
        let all = [
            process(2, 1),
            process(4, 3),
            process(3, 2),
            process(9, 8),
            process(8, 9),
        ];
        let pids = |root| -> Vec<i32> {
            let below = of(id(root), &all);
            below
                .iter()
                .map(|one| one.pid.as_raw_nonzero().get())
                .collect()
        };
        assert_eq!(pids(1), [2, 3, 4]);
        assert_eq!(pids(3), [4]);
        assert_eq!(pids(9), [8]);
        assert!(pids(7).is_empty());
    }
}
