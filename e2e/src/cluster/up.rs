//! Bringing a cluster up.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::layout::{Layout, MOST_NODES, Place};
use super::node::Node;
use super::record::{self, Record};
use super::{
    Cluster, Options, certificates, control_plane, down, lock, network, node_config, wait,
};
use crate::images;
use crate::parts::cache::Cache;
use crate::parts::catalogue::Program;
use crate::parts::{Binaries, Survey, asset_directories};
use crate::preflight::{self, Needs};
use crate::progress::Progress;

/// Nodes are Ready 2 s after their kubelets have started, once the network's configuration was
/// seen.
const READY_DEADLINE: Duration = Duration::from_secs(90);

/// Numbered steps of starting a cluster.
const STEPS: usize = 5;

pub(super) fn up(options: &Options, progress: &Progress) -> Result<Cluster> {
    ensure!(
        (1..=MOST_NODES).contains(&options.nodes),
        "{} nodes were asked for; from 1 to {MOST_NODES} are possible",
        options.nodes
    );
    let layout = Layout::default();
    let binaries = binaries(options.assets.as_deref(), progress)?;
    let _lock = lock::take(&layout, progress)?;
    if let Some(cluster) = running(&layout, options, progress)? {
        return Ok(cluster);
    }
    network::check_addresses_are_free()?;
    let begun = Instant::now();
    let cluster = start(&layout, binaries, options.nodes, progress)
        .context("the cluster did not start; `cargo xtask cluster down` removes what is there")?;
    progress.note(format_args!(
        "the cluster is up after {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    Ok(cluster)
}

/// Checks the machine, installs and builds what is missing, and says where every program is.
pub(super) fn binaries(assets: Option<&Path>, progress: &Progress) -> Result<Binaries> {
    let layout = Layout::default();
    let cache = Cache::of_user()?;
    let assets = asset_directories(assets);
    let survey = Survey::of(&assets, &cache);
    preflight::check(&Needs {
        to_build: survey
            .missing()
            .iter()
            .map(|part| part.name.to_owned())
            .collect(),
        cache: cache.root().to_path_buf(),
        state: layout.root().to_path_buf(),
    })?;
    if !layout.root().exists() {
        network::check_ports_are_free()?;
    }
    preflight::install_packages(progress)?;
    for directory in survey.used(&assets) {
        progress.note(format_args!("using binaries of {:?}", directory.display()));
    }
    survey.complete(&cache, progress)
}

/// The cluster that is up already. What is there but not healthy is removed.
fn running(layout: &Layout, options: &Options, progress: &Progress) -> Result<Option<Cluster>> {
    if !layout.root().exists() {
        return Ok(None);
    }
    if let Some(cluster) = Cluster::find(layout)? {
        let complaints = cluster.complaints();
        if complaints.is_empty() {
            let count = cluster.nodes.len();
            if count != usize::from(options.nodes) {
                bail!(
                    "a cluster of {count} nodes is running, {} were asked for; `cargo xtask cluster down` removes it",
                    options.nodes
                );
            }
            progress.note("the cluster is up already");
            return Ok(Some(cluster));
        }
        for complaint in complaints {
            progress.note(complaint);
        }
    }
    progress.note("removing what is left of an earlier cluster");
    down::down(layout, progress)?;
    Ok(None)
}

fn start(layout: &Layout, binaries: Binaries, count: u8, progress: &Progress) -> Result<Cluster> {
    let steps = progress.steps(STEPS);
    let cluster = Cluster::assemble(layout.clone(), binaries, count);
    steps.step("writing certificates and images");
    prepare(&cluster, count)?;
    network::create_bridge()?;
    steps.step(format_args!(
        "starting the control plane and {count} containerds"
    ));
    thread::scope(|scope| {
        let runtimes: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| scope.spawn(|| node.start_runtime()))
            .collect();
        let outcome = control_plane::start(layout, &cluster.binaries);
        join(runtimes).and(outcome)
    })?;
    steps.step("starting the kubelets");
    each_node(&cluster.nodes, Node::start_kubelet)?;
    steps.step("waiting for the nodes");
    wait_for_nodes(&cluster)?;
    steps.step("waiting for the default ServiceAccount");
    control_plane::wait_for_default_account(layout, &cluster.binaries)?;
    record::write(
        layout,
        &Record {
            nodes: count,
            binaries: cluster.binaries.clone(),
        },
    )?;
    Ok(cluster)
}

fn prepare(cluster: &Cluster, count: u8) -> Result<()> {
    let layout = &cluster.layout;
    for directory in [
        layout.root().to_path_buf(),
        layout.certificates(),
        layout.logs(),
        layout.processes(),
        layout.images(),
        layout.user_programs(),
    ] {
        fs::create_dir_all(&directory)
            .with_context(|| format!("failed to create {:?}", directory.display()))?;
    }
    // Keys and tokens are below.
    fs::set_permissions(layout.root(), fs::Permissions::from_mode(0o700))?;
    for program in [Program::Kubectl, Program::Helm] {
        let link = layout.user_programs().join(program.file_name());
        symlink(cluster.binaries.path(program)?, &link)
            .with_context(|| format!("failed to create {:?}", link.display()))?;
    }
    let places: Vec<_> = Place::first(count).collect();
    certificates::create(layout, &places)?;
    images::write_cluster_images(node_config::PAUSE_IMAGE, &layout.images())
}

fn wait_for_nodes(cluster: &Cluster) -> Result<()> {
    wait::until("readiness of every node", READY_DEADLINE, &[], || {
        let list = cluster.kubectl(&[
            "get",
            "nodes",
            "--output=jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}",
        ])?;
        let ready = list.lines().filter(|line| line.ends_with(" True")).count();
        if ready < cluster.nodes.len() {
            bail!("{ready} of {} nodes are Ready", cluster.nodes.len());
        }
        Ok(Some(()))
    })
}

/// Does the same on every node at once.
fn each_node(nodes: &[Node], act: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let act = &act;
        join(
            nodes
                .iter()
                .map(|node| scope.spawn(move || act(node)))
                .collect(),
        )
    })
}

fn join(handles: Vec<thread::ScopedJoinHandle<'_, Result<()>>>) -> Result<()> {
    let mut outcome = Ok(());
    for handle in handles {
        let ended = handle
            .join()
            .unwrap_or_else(|_| Err(anyhow!("a thread has panicked")));
        outcome = outcome.and(ended);
    }
    outcome
}
