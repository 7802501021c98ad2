//! Checks that need no cluster.

use std::process::Command;

use anyhow::ensure;

use crate::steps::{Steps, note};
use crate::tools;
use crate::workspace::{self, cache, cargo, output, root};
use crate::{chart, generate};

/// How many steps [`run`] takes.
pub const STEPS: usize = 7;

/// The crates that decide.
const CORES: &[&str] = &["operator-core", "node-agent-core"];

/// What a crate that does no I/O has no use for.
const IMPURE: &[&str] = &[
    "axum",
    "hyper",
    "inotify",
    "kube-client",
    "kube-runtime",
    "mio",
    "nix",
    "rand",
    "rustix",
    "rustls",
    "socket2",
    "tokio",
    "tonic",
    "tracing-subscriber",
];

/// All of them.
pub fn run(steps: &Steps) -> anyhow::Result<()> {
    steps.step("formatting", || {
        workspace::run(cargo().args(["fmt", "--all", "--check"]))
    })?;
    steps.step("generated files", generate::compare)?;
    steps.step("lints", || {
        workspace::run(cargo().args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--features",
            "e2e/cluster",
            "--",
            "--deny",
            "warnings",
        ]))
    })?;
    steps.step("purity of the cores", cores_are_pure)?;
    steps.step("dependencies: bans, licences, sources", dependencies)?;
    steps.step("chart: lint, render, validate", chart::check)?;
    steps.step("spelling", || {
        workspace::run(Command::new(tools::python_programs()?.join("typos")).current_dir(root()))
    })
}

fn cores_are_pure() -> anyhow::Result<()> {
    for core in CORES {
        // Not `cargo metadata`: it unifies features over the workspace.
        let tree = output(cargo().args([
            "tree",
            "--package",
            core,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ]))?;
        let found: Vec<&str> = tree
            .lines()
            .filter_map(|line| line.split(' ').next())
            .filter(|package| IMPURE.contains(package))
            .collect();
        ensure!(
            found.is_empty(),
            "{core} depends on {found:?}: a core does no I/O"
        );
        ensure!(
            tree.lines().any(|line| line.starts_with("crds ")),
            "{core} has no dependency tree: {tree}"
        );
    }
    Ok(())
}

fn dependencies() -> anyhow::Result<()> {
    let deny = tools::cargo_deny()?;
    let check = |what: &[&str]| {
        let mut command = Command::new(&deny);
        command
            .current_dir(root())
            .args(["--log-level", "error", "--workspace", "check"])
            .args(what);
        command
    };
    workspace::run(&mut check(&["bans", "licenses", "sources"]))?;
    // The advisory database is a git repository, which not every machine reaches.
    let database = cache()?.join("advisory-db");
    if database.exists() {
        workspace::run(&mut check(&["advisories"]))
    } else {
        note(
            "advisories are not checked: no copy of the advisory database is in the cache directory's advisory-db",
        );
        Ok(())
    }
}
