//! Benchmarks: what is shipped, beside others, in one run.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::ValueEnum;

use crate::steps::note;
use crate::workspace::{cargo, run as run_program};

/// What can be measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum What {
    /// The node agent: memory, wakeups, and the times that a kubelet sees.
    Agent,
}

/// Builds what is measured as it is shipped, and measures it.
pub fn run(what: What, arguments: &[String]) -> anyhow::Result<()> {
    match what {
        What::Agent => agent(arguments),
    }
}

fn agent(arguments: &[String]) -> anyhow::Result<()> {
    note("building the agent as it is shipped, the stub and the benchmark");
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cargo();
    // As in the images: without shared libraries.
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    build.args([
        "build",
        "--target",
        &platform,
        "--release",
        "--package",
        "node-agent",
        "--package",
        "e2e",
    ]);
    for program in ["device-plugin-agent", "naive-plugin", "bench-agent"] {
        build.args(["--bin", program]);
    }
    run_program(&mut build)?;
    let programs = target()?.join(platform).join("release");
    note(
        "about a minute and a half for each round and plugin; a quiet machine gives quiet figures",
    );
    let mut bench = Command::new(programs.join("bench-agent"));
    bench
        .arg("--agent")
        .arg(programs.join("device-plugin-agent"));
    bench.arg("--stub").arg(programs.join("naive-plugin"));
    run_program(bench.args(arguments))
}

/// Where cargo builds: this program lies in a profile's directory there.
fn target() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("failed to find this program")?;
    let target = own.parent().and_then(|profile| profile.parent());
    target
        .map(PathBuf::from)
        .with_context(|| format!("{own:?} is not in a target directory"))
}
