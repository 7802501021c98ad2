//! Everything that shows that the product works, in one command.

use clap::ValueEnum;

use crate::check;
use crate::steps::{Steps, note};
use crate::workspace::{cargo, run as run_program};

/// Parts of the suite.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Part {
    /// Formatting, lints, dependencies, generated files, chart, spelling.
    Check,
    /// Tests of units and shells.
    Unit,
    /// Tests on a real local cluster; needs root.
    Cluster,
}

/// Runs one part, or all of them in the order of what they cost.
pub fn run(only: Option<Part>) -> anyhow::Result<()> {
    let wanted = |part| only.is_none_or(|only| only == part);
    let total = [
        (Part::Check, check::STEPS),
        (Part::Unit, 1),
        (Part::Cluster, 1),
    ]
    .iter()
    .filter(|(part, _)| wanted(*part))
    .map(|(_, steps)| steps)
    .sum();
    let steps = Steps::new(total);
    if wanted(Part::Check) {
        check::run(&steps)?;
    }
    if wanted(Part::Unit) {
        steps.step("tests of units and shells", || {
            run_program(cargo().args(["test", "--quiet", "--workspace"]))
        })?;
    }
    if wanted(Part::Cluster) {
        steps.step("tests on a real cluster", || {
            note("a local cluster that is running is replaced");
            run_program(cargo().args([
                "test",
                "--quiet",
                "--package",
                "e2e",
                "--features",
                "cluster",
                "--test",
                "cluster",
            ]))
        })?;
    }
    Ok(())
}
