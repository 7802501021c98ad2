//! Our product on the local cluster: its images on every node, its chart installed by helm.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::images;
use crate::parts::cache::Cache;
use crate::progress::Progress;

/// Namespace of the operator and its agents.
pub const NAMESPACE: &str = "device-plugin-system";
/// Name of the Helm release, and so of the operator's Deployment.
pub const RELEASE: &str = "device-plugin-operator";

/// The checkout that this program was built from: it is run by cargo only.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Builds our two images quickly (profile `e2e`) and loads them on every node.
///
/// # Errors
/// When the build or a node's containerd fails.
pub fn load_images(cluster: &Cluster, progress: &Progress) -> Result<()> {
    let cache = Cache::of_user()?;
    let options = images::Options {
        workspace: checkout(),
        output: cache.root().join("images"),
        tag: images::DEFAULT_TAG.to_owned(),
        profile: "e2e".to_owned(),
    };
    for archive in images::build(&options, &cache, progress)? {
        cluster.import_image(&archive.path)?;
    }
    Ok(())
}

/// The agent's program, which the images' build has left.
///
/// # Errors
/// When the user has no cache directory.
pub fn agent_program() -> Result<PathBuf> {
    Ok(images::agent_program(&Cache::of_user()?, "e2e"))
}

/// Installs the chart, or changes the installed one; `settings` are values such as
/// `crds.enabled=false`. Returns what helm said.
///
/// # Errors
/// When helm refuses or fails.
pub fn install_chart(cluster: &Cluster, settings: &[&str]) -> Result<String> {
    let chart = checkout().join("charts/device-plugin-operator");
    let chart = chart.to_str().context("the checkout's path is not UTF-8")?;
    let mut arguments = vec![
        "upgrade",
        "--install",
        RELEASE,
        chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        // The images are on the nodes and in no registry.
        "--set",
        "image.registry=localhost",
        "--set",
        "image.pullPolicy=Never",
        // As the local cluster's kubelets are configured.
        "--set",
        "nodeStatusPeriodSeconds=1",
    ];
    for setting in settings {
        arguments.extend(["--set", setting]);
    }
    cluster.helm(&arguments)
}
