//! Checks that need no cluster.

use std::process::Command;

use anyhow::ensure;

use crate::steps::{Step, note};
use crate::tools;
use crate::workspace::{cargo, output, root, run};
use crate::{chart, generate};

/// All of them, those that fail most often first.
pub const STEPS: &[Step] = &[
    ("formatting", formatting),
    ("generated files", generate::compare),
    ("spelling", spelling),
    ("lints", lints),
    ("purity of the cores", cores_are_pure),
    ("dependencies", dependencies),
    ("chart: lint, render, validate", chart::check),
];

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

/// Longest wait for the database of advisories, in seconds: it is some 20 MB, and some networks drop
/// what they do not allow instead of refusing it.
const ADVISORIES_DEADLINE: &str = "60";

fn formatting() -> anyhow::Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))
}

fn spelling() -> anyhow::Result<()> {
    run(Command::new(tools::python_programs()?.join("typos")).current_dir(root()))
}

fn lints() -> anyhow::Result<()> {
    run(cargo()
        .args(["clippy", "--workspace", "--all-targets"])
        .args([
            "--features",
            "e2e/cluster,e2e/oracle",
            "--",
            "--deny",
            "warnings",
        ]))
}

fn cores_are_pure() -> anyhow::Result<()> {
    for core in CORES {
        // Not `cargo metadata`: it unifies features over the workspace.
        let tree = output(
            cargo()
                .args(["tree", "--package", core, "--edges", "normal"])
                .args(["--prefix", "none", "--format", "{p}"]),
        )?;
        let packages: Vec<&str> = tree
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        ensure!(
            packages.contains(&"crds"),
            "{core:?} does not depend on \"crds\": {tree}"
        );
        let found: Vec<&&str> = packages
            .iter()
            .filter(|package| IMPURE.contains(package))
            .collect();
        ensure!(
            found.is_empty(),
            "{core:?} depends on {found:?}: a core does no I/O"
        );
    }
    Ok(())
}

fn dependencies() -> anyhow::Result<()> {
    let deny = tools::cargo_deny()?;
    let cargo_deny = |words: &[&str]| {
        let mut command = Command::new(&deny);
        command
            .current_dir(root())
            .args(["--log-level", "error", "--workspace"])
            .args(words);
        command
    };
    run(&mut cargo_deny(&["check", "bans", "licenses", "sources"]))?;
    // `timeout` ends what cargo-deny has started, too.
    let mut fetch = Command::new("timeout");
    fetch
        .arg(ADVISORIES_DEADLINE)
        .arg(&deny)
        .current_dir(root())
        .env("GIT_TERMINAL_PROMPT", "0")
        .args(["fetch", "db"]);
    if output(&mut fetch).is_err() {
        note("advisories are not checked: their database cannot be reached from here");
        return Ok(());
    }
    run(&mut cargo_deny(&["check", "--disable-fetch", "advisories"]))
}
