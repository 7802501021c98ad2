//! Handing a task to a program of the crate `e2e`, which is too heavy to be built with this one.

use crate::workspace::{cargo, run};

/// Runs a program of `e2e`.
pub fn to(program: &str, first: &[&str], arguments: &[String]) -> anyhow::Result<()> {
    run(cargo()
        .args(["run", "--quiet", "--package", "e2e", "--bin", program, "--"])
        .args(first)
        .args(arguments))
}
