//! One cgroup directory for each node in every hierarchy, version 1 and 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::wait::until;

/// Killed processes leave their cgroup once the kernel has freed their memory.
const EMPTY_DEADLINE: Duration = Duration::from_secs(15);

/// Where hierarchies are mounted.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// The controllers that a kubelet refuses to run without; a kernel may hold the others back.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Makes the directory `name` in every hierarchy and lets it use every controller.
pub fn create(name: &str) -> Result<()> {
    let hierarchies = hierarchies()?;
    if hierarchies.is_empty() {
        bail!("no cgroup hierarchy is mounted below /sys/fs/cgroup");
    }
    for hierarchy in hierarchies {
        let directory = hierarchy.root.join(name);
        // Beside version 1 (hybrid) the controllers are all there, and version 2 only keeps track
        // of processes.
        if hierarchy.version == Version::Two && hierarchy.root == Path::new(MOUNT_POINT) {
            pass_controllers_on(&hierarchy.root)?;
        }
        if !directory.exists() {
            fs::create_dir(&directory)
                .with_context(|| format!("failed to create {:?}", directory.display()))?;
        }
        // In version 1 a new cpuset allows nothing at all, and processes cannot enter it.
        if hierarchy.version == Version::One && directory.join("cpuset.cpus").exists() {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let parent = fs::read_to_string(hierarchy.root.join(file))?;
                fs::write(directory.join(file), parent)
                    .with_context(|| format!("failed to set {file} of {name:?}"))?;
            }
        }
    }
    Ok(())
}

/// Ends every process below `name` in every hierarchy, then removes the directories, the deepest
/// first.
pub fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let directory = hierarchy.root.join(name);
        let what = format!("the end of {:?}", directory.display());
        until(&what, EMPTY_DEADLINE, &[], || {
            if !directory.exists() {
                return Ok(Some(()));
            }
            kill_all(&directory);
            remove_tree(&directory)?;
            Ok((!directory.exists()).then_some(()))
        })?;
    }
    Ok(())
}

/// Whether the directory `name` is in some hierarchy.
pub fn exists(name: &str) -> Result<bool> {
    Ok(hierarchies()?
        .iter()
        .any(|hierarchy| hierarchy.root.join(name).exists()))
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("failed to read \"/proc/self/mounts\"")?;
    Ok(parse_mounts(&mounts))
}

fn parse_mounts(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(root), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        let version = match kind {
            "cgroup" => Version::One,
            "cgroup2" => Version::Two,
            _ => continue,
        };
        let root = PathBuf::from(root);
        if root.starts_with(MOUNT_POINT) && found.iter().all(|known| known.root != root) {
            found.push(Hierarchy { root, version });
        }
    }
    found
}

/// In version 2 a directory's children get only the controllers that it passes on. This stays:
/// others may rely on it.
fn pass_controllers_on(root: &Path) -> Result<()> {
    let available = fs::read_to_string(root.join("cgroup.controllers"))
        .with_context(|| format!("failed to read the controllers of {:?}", root.display()))?;
    let file = root.join("cgroup.subtree_control");
    let passed = fs::read_to_string(&file)
        .with_context(|| format!("failed to read {:?}", file.display()))?;
    for controller in available.split_whitespace() {
        if passed.split_whitespace().any(|other| other == controller) {
            continue;
        }
        let outcome = fs::write(&file, format!("+{controller}"));
        if NEEDED.contains(&controller) {
            outcome.with_context(|| {
                format!("failed to pass {controller:?} on in {:?}", file.display())
            })?;
        }
    }
    Ok(())
}

/// Whoever is in our cgroup was started by our containers.
fn kill_all(directory: &Path) {
    for child in children(directory) {
        kill_all(&child);
    }
    let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        if let Some(pid) = Pid::from_raw(pid) {
            // It may have ended meanwhile; the directory is looked at again until it is empty.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn remove_tree(directory: &Path) -> Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    fs::remove_dir(directory).with_context(|| format!("{:?} is in use", directory.display()))
}

fn children(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mounts: &str, expected: &[(&str, Version)]) {
        let found = parse_mounts(mounts);
        let found: Vec<_> = found
            .iter()
            .map(|hierarchy| {
                (
                    hierarchy.root.to_str().unwrap_or_default(),
                    hierarchy.version,
                )
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn hierarchies_of_both_versions_are_found_once() {
        check(
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /mnt/elsewhere cgroup rw 0 0\n",
            &[
                ("/sys/fs/cgroup/cpu", Version::One),
                ("/sys/fs/cgroup/unified", Version::Two),
            ],
        );
        check(
            "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
            &[("/sys/fs/cgroup", Version::Two)],
        );
    }
}
