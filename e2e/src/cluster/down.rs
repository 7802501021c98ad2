//! Taking a cluster down, whole or in pieces.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::layout::{Layout, MOST_NODES, Place};
use super::node::Node;
use super::process::Process;
use super::{cgroup, control_plane, network};
use crate::parts::Binaries;
use crate::progress::Progress;

/// Ends every process of the cluster and removes links, cgroups and state. Nothing happens if there
/// is none.
pub(super) fn down(layout: &Layout, progress: &Progress) -> Result<()> {
    let nodes: Vec<_> = Place::first(MOST_NODES)
        .filter(|place| {
            layout.node(*place).exists() || cgroup::exists(&place.cgroup()).unwrap_or(true)
        })
        .collect();
    if !layout.root().exists() && nodes.is_empty() {
        network::remove_bridge()?;
        progress.note("no cluster is there");
        return Ok(());
    }
    progress.note("ending kubelets, containers and containerds");
    for place in &nodes {
        Node::new(layout.clone(), Binaries::default(), *place, nodes.clone())
            .stop_processes()
            .with_context(|| format!("failed to stop node {:?}", place.name()))?;
    }
    progress.note("ending the control plane");
    for name in control_plane::PROCESSES.iter().rev() {
        if let Some(process) = Process::find(layout, name)? {
            // Nothing is to be saved, and a graceful end takes the API server and etcd seconds.
            process.stop(Duration::ZERO)?;
        }
    }
    for process in Process::all(layout)? {
        process.stop(Duration::ZERO)?;
    }
    network::remove_bridge()?;
    remove_state(layout)?;
    progress.note("the cluster is gone");
    Ok(())
}

/// Removes the state directory, but nothing that is mounted below it.
fn remove_state(layout: &Layout) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("failed to read the mounts")?;
    if let Some(point) = mount_below(&mounts, layout.root()) {
        bail!("{point:?} is mounted: unmount it, then try again");
    }
    match fs::remove_dir_all(layout.root()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {:?}", layout.root().display()))
        }
        _ => Ok(()),
    }
}

fn mount_below<'mounts>(mounts: &'mounts str, root: &Path) -> Option<&'mounts str> {
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .find(|point| Path::new(point).starts_with(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_state_matter() {
        let root = Path::new("/var/lib/dpo-cluster");
        let check = |mounts, expected| assert_eq!(mount_below(mounts, root), expected);
        check(
            "a /var/lib ext4 rw 0 0\nb /var/lib/dpo-cluster-2 x rw 0 0\n",
            None,
        );
        check(
            "a / ext4 rw 0 0\nb /var/lib/dpo-cluster/n1/dev tmpfs rw 0 0\n",
            Some("/var/lib/dpo-cluster/n1/dev"),
        );
    }
}
