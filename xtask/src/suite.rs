//! Everything that shows that the product works, in one command.

use std::time::Instant;

use anyhow::ensure;
use clap::ValueEnum;

use crate::check;
use crate::fuzz;
use crate::steps::{Step, Steps, note};
use crate::workspace::{cache, cargo, run as run_program};

/// Parts of the suite.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Part {
    /// Formatting, lints, dependencies, purity, generated files, chart, spelling.
    Check,
    /// Tests of units and shells.
    Unit,
    /// Rollouts in a simulated cluster, with faults by seed.
    Simulation,
    /// Fuzzing of what the agent reads and did not write.
    Fuzz,
    /// What is true of kubelets, of their real device managers and of the one that is played in tests.
    Oracle,
    /// Tests on a real local cluster; needs root, and replaces a local cluster that is running.
    Cluster,
}

const UNIT: &[Step] = &[("tests of units and shells", unit)];

const SIMULATION: &[Step] = &[
    ("scenarios in the simulation", scenarios),
    ("seeds in the simulation", seeds),
];

/// How many seeds every run of the tests plays: enough to have found each fault that the simulation
/// has found so far, and few enough for three minutes on two cores.
const SEEDS: &str = "0..20000";

const ORACLE: &[Step] = &[("oracle checks of kubelets", oracle)];

const CLUSTER: &[Step] = &[
    ("images of the operator and the agent", images),
    ("tests on a real cluster", cluster),
];

/// Runs the parts that are asked for, by default all, in the order of what they cost.
pub fn run(only: &[Part]) -> anyhow::Result<()> {
    let parts = [
        (Part::Check, check::STEPS),
        (Part::Unit, UNIT),
        (Part::Simulation, SIMULATION),
        (Part::Fuzz, fuzz::STEPS),
        (Part::Oracle, ORACLE),
        (Part::Cluster, CLUSTER),
    ];
    let wanted: Vec<&Step> = parts
        .iter()
        .filter(|(part, _)| only.is_empty() || only.contains(part))
        .flat_map(|(_, steps)| steps.iter())
        .collect();
    run_steps(&wanted)
}

/// Runs the checks whose name contains a word.
pub fn check(word: &str) -> anyhow::Result<()> {
    let wanted: Vec<&Step> = check::STEPS
        .iter()
        .filter(|(what, _)| what.contains(word))
        .collect();
    ensure!(!wanted.is_empty(), "no check is called {word:?}");
    run_steps(&wanted)
}

fn run_steps(wanted: &[&Step]) -> anyhow::Result<()> {
    let begun = Instant::now();
    let steps = Steps::new(wanted.len());
    for (what, act) in wanted {
        steps.step(what, act)?;
    }
    note(&format!(
        "all passed after {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn unit() -> anyhow::Result<()> {
    note("the tests on a cluster are no part of this step: cargo xtask test --only cluster");
    run_program(cargo().args(["test", "--workspace", "--exclude", SIMULATOR]))
}

/// The simulation's package; unoptimised it would take ten times as long.
const SIMULATOR: &str = "operator-sim";

fn scenarios() -> anyhow::Result<()> {
    run_program(cargo().args(["test", "--profile", "sim", "--package", SIMULATOR]))
}

fn seeds() -> anyhow::Result<()> {
    note("a seed that breaks a law is told as a short story with the command that plays it again");
    run_program(
        cargo()
            .args(["run", "--quiet", "--profile", "sim", "--package", SIMULATOR])
            .args(["--", "--seeds", SEEDS]),
    )
}

fn oracle() -> anyhow::Result<()> {
    note("device managers that are missing are built first (a few minutes, once)");
    run_program(cargo().args(["test", "--package", "e2e"]).args([
        "--features",
        "oracle",
        "--test",
        "oracle",
        "--",
        "--quiet",
    ]))
}

/// The same as the cluster tests ask for: they find the work done.
fn images() -> anyhow::Result<()> {
    run_program(
        cargo()
            .args(["run", "--package", "e2e", "--bin", "local-cluster", "--"])
            .args(["images", "--profile", "e2e", "--output"])
            .arg(cache()?.join("images")),
    )
}

fn cluster() -> anyhow::Result<()> {
    note("a local cluster that is running is replaced");
    run_program(cargo().args(["test", "--package", "e2e"]).args([
        "--features",
        "cluster",
        "--test",
        "cluster",
    ]))
}
