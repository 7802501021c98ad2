//! Programs that the checks need and a new machine does not have. Each is installed once, in a
//! version that is named here, below the cache directory.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::steps::note;
use crate::workspace::{cache, cargo, run};

/// Checks licences, sources and bans of dependencies.
const CARGO_DENY: &str = "0.20.2";
/// Finds misspelt words.
const TYPOS: &str = "1.52.0";
/// Holds the schemas of Kubernetes' own kinds.
const KUBERNETES_VALIDATE: &str = "1.37.0";

/// cargo-deny, built from the crate registry.
pub fn cargo_deny() -> anyhow::Result<PathBuf> {
    let tools = cache()?.join(format!("tools/cargo-deny-{CARGO_DENY}"));
    let program = tools.join("bin/cargo-deny");
    if !program.exists() {
        note("installing cargo-deny from the crate registry (about 4 minutes, once)");
        run(cargo()
            .args([
                "install",
                "--quiet",
                "--locked",
                "cargo-deny",
                "--version",
                CARGO_DENY,
                "--root",
            ])
            .arg(&tools)
            .env("CARGO_TARGET_DIR", tools.join("target")))?;
        std::fs::remove_dir_all(tools.join("target"))
            .context("failed to remove the build of cargo-deny")?;
    }
    Ok(program)
}

/// The directory of the programs that come from the Python package index.
pub fn python_programs() -> anyhow::Result<PathBuf> {
    let venv = cache()?.join(format!(
        "tools/python-typos-{TYPOS}-kubernetes-validate-{KUBERNETES_VALIDATE}"
    ));
    let programs = venv.join("bin");
    // pip writes the programs last: a venv without them is a broken attempt.
    if !programs.join("typos").exists() || !programs.join("kubernetes-validate").exists() {
        note("installing typos and kubernetes-validate from the Python package index (once)");
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&venv))
        .context("python3 with its venv module is needed: apt-get install python3-venv")?;
        run(Command::new(programs.join("pip")).args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            &format!("typos=={TYPOS}"),
            &format!("kubernetes-validate=={KUBERNETES_VALIDATE}"),
        ]))?;
    }
    Ok(programs)
}
