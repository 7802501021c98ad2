//! Handing a task to a program of the crate `e2e`.

use crate::steps::note;
use crate::workspace::{built, cargo, run};

/// Runs a program of `e2e`, built first; cargo shows how far that is.
pub fn to(program: &str, first: &[&str], arguments: &[String]) -> anyhow::Result<()> {
    let mut command = cargo();
    command.arg("run");
    if built(program) {
        command.arg("--quiet");
    } else {
        note(&format!("building {program} (a few minutes, once)"));
    }
    run(command
        .args(["--package", "e2e", "--bin", program, "--"])
        .args(first)
        .args(arguments))
}
