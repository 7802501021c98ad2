//! Programs that the checks need and a new machine does not have. Each is installed once, in a
//! version that is named here, below the cache directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::steps::note;
use crate::workspace::{built, cache, cargo, output, output_with_progress, run};

/// Checks licences, sources and bans of dependencies.
const CARGO_DENY: &str = "0.20.2";
/// Feeds inputs to fuzz targets and watches which code they reach.
const CARGO_FUZZ: &str = "0.13.2";
/// Finds misspelt words.
const TYPOS: &str = "1.52.0";
/// Holds the schemas of Kubernetes' own kinds.
const KUBERNETES_VALIDATE: &str = "1.37.0";

/// cargo-deny, built from the crate registry.
pub fn cargo_deny() -> anyhow::Result<PathBuf> {
    cargo_program("cargo-deny", CARGO_DENY, "4 minutes")
}

/// cargo-fuzz, built from the crate registry.
pub fn cargo_fuzz() -> anyhow::Result<PathBuf> {
    cargo_program("cargo-fuzz", CARGO_FUZZ, "1 minute")
}

/// A program for cargo, installed if it is not there yet.
fn cargo_program(name: &str, version: &str, time: &str) -> anyhow::Result<PathBuf> {
    let tools = cache()?.join(format!("tools/{name}-{version}"));
    let program = tools.join("bin").join(name);
    if !program.exists() {
        note(&format!(
            "installing {name} from the crate registry (about {time}, once)"
        ));
        run(cargo()
            .args(["install", "--quiet", "--locked", name])
            .args(["--version", version, "--root"])
            .arg(&tools)
            .env("CARGO_TARGET_DIR", tools.join("target")))?;
        std::fs::remove_dir_all(tools.join("target"))
            .with_context(|| format!("failed to remove the build of {name}"))?;
    }
    Ok(program)
}

/// The directory of the programs that come from the Python package index.
pub fn python_programs() -> anyhow::Result<PathBuf> {
    let environment = cache()?.join(format!(
        "tools/python-typos-{TYPOS}-kubernetes-validate-{KUBERNETES_VALIDATE}"
    ));
    let programs = environment.join("bin");
    // pip writes the programs last: an environment without them is a broken attempt.
    if !programs.join("typos").exists() || !programs.join("kubernetes-validate").exists() {
        note("installing typos and kubernetes-validate from the Python package index (once)");
        make_environment(&environment)?;
        run(Command::new(programs.join("python"))
            .args(["-m", "pip", "install", "--quiet"])
            .arg("--disable-pip-version-check")
            .arg(format!("typos=={TYPOS}"))
            .arg(format!("kubernetes-validate=={KUBERNETES_VALIDATE}")))?;
    }
    Ok(programs)
}

/// Debian keeps the module `venv` in a package of its own.
fn make_environment(environment: &Path) -> anyhow::Result<()> {
    let make = || {
        output(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(environment),
        )
    };
    let Err(refusal) = make() else {
        return Ok(());
    };
    note("installing the Debian package python3-venv");
    let apt = |words: &[&str]| {
        output(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["-qq", "-o", "DPkg::Lock::Timeout=120"])
                .args(words),
        )
    };
    apt(&["update"])
        .and_then(|_| {
            apt(&[
                "install",
                "--yes",
                "--no-install-recommends",
                "python3-venv",
            ])
        })
        .with_context(|| format!("python3 cannot make an environment ({refusal:#})"))?;
    make().map(|_| ())
}

/// The helm of the local cluster, built with the cluster's other programs where it is missing; or
/// the one of the search path, if it is of the same major version.
pub fn helm() -> anyhow::Result<PathBuf> {
    if let Ok(version) =
        output(Command::new("helm").args(["version", "--template", "{{.Version}}"]))
        && version.starts_with("v4.")
    {
        return Ok(PathBuf::from("helm"));
    }
    let mut command = cargo();
    command.arg("run");
    if built("local-cluster") {
        command.arg("--quiet");
    }
    let printed = output_with_progress(
        command
            .args(["--package", "e2e", "--bin", "local-cluster", "--"])
            .args(["program", "helm"]),
    )?;
    let helm = PathBuf::from(printed.trim());
    ensure!(
        helm.is_file(),
        "local-cluster says that helm is {printed:?}, which is no file"
    );
    Ok(helm)
}
