//! Building parts with Go.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::cache::Cache;
use super::catalogue::{GO_TOOLCHAIN, Part};
use crate::command::{find_program, run};
use crate::progress::Progress;

/// Variables that would change what is built without changing the key.
const FOREIGN: [&str; 6] = [
    "GOARCH",
    "GOOS",
    "GOAMD64",
    "GOARM64",
    "GOEXPERIMENT",
    "GOBIN",
];

/// How the names of directories begin in which something is being built.
const UNFINISHED: &str = ".building-";

/// Builds `parts` into the cache; another process may have done some of it since it was looked for.
pub(super) fn parts(parts: &[&Part], cache: &Cache, progress: &Progress) -> Result<()> {
    // A directory of its own, removed afterwards: it grows to 9 GB, and the user's own build cache
    // would keep them. An interrupted build leaves it, and the next one continues from there.
    let go_cache = cache.parts().join("go-build");
    fs::create_dir_all(&go_cache)
        .with_context(|| format!("failed to create {:?}", go_cache.display()))?;
    remove_unfinished(&cache.parts())?;
    let steps = progress.steps(parts.len());
    for part in parts {
        let target = cache.part_directory(part);
        if target.exists() {
            steps.step(format_args!("{} was built meanwhile", part.name));
            continue;
        }
        let names: Vec<_> = part.built_files().map(|(_, name)| name).collect();
        steps.step(format_args!(
            "building {} {} ({}), about {} min on two cores",
            part.name,
            part.version(),
            names.join(", "),
            part.minutes
        ));
        let begun = Instant::now();
        one(part, &target, &go_cache)
            .with_context(|| format!("failed to build part {:?}", part.name))?;
        progress.note(format_args!("took {} s", begun.elapsed().as_secs()));
    }
    fs::remove_dir_all(&go_cache)
        .with_context(|| format!("failed to remove {:?}", go_cache.display()))
}

/// Removes what killed builds left; the cache's lock is held, so nobody builds there now.
fn remove_unfinished(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)
        .with_context(|| format!("failed to list {:?}", directory.display()))?
    {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("failed to remove {:?}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Builds one part beside its place and renames: an interrupted build leaves no half part behind.
fn one(part: &Part, target: &Path, go_cache: &Path) -> Result<()> {
    let parent = target
        .parent()
        .context("a part's directory has no parent")?;
    let scratch = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(parent)?;
    let module = scratch.path().join("module");
    let built = scratch.path().join("built");
    fs::create_dir(&module)?;
    fs::create_dir(&built)?;
    fs::write(module.join("go.mod"), part.go_mod)?;
    fs::write(module.join("go.sum"), part.go_sum)?;
    for (name, text) in part.sources {
        fs::write(module.join(name), text)?;
    }
    let packages = if part.sources.is_empty() { "tool" } else { "." };
    run(go()?
        .current_dir(&module)
        .env("GOCACHE", go_cache)
        .arg("build")
        .args(part.build_flags())
        .arg("-o")
        .arg(format!("{}/", built.display()))
        .arg(packages))?;
    for (go_name, name) in part.built_files() {
        if go_name != name {
            fs::rename(built.join(go_name), built.join(name))
                .with_context(|| format!("Go built no {go_name:?}"))?;
        }
    }
    fs::rename(&built, target)
        .with_context(|| format!("failed to move the part to {:?}", target.display()))
}

/// Go with the pinned toolchain. The proxy settings of the environment stay as they are.
pub(super) fn go() -> Result<Command> {
    let program = find_program("go").context("Go is not installed")?;
    let mut command = Command::new(program);
    command
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", GO_TOOLCHAIN)
        // Not empty: Go takes an empty variable for an unset one and reads the user's own flags
        // from its settings file.
        .env("GOFLAGS", "-buildvcs=false")
        .env("GOWORK", "off");
    for variable in FOREIGN {
        command.env_remove(variable);
    }
    Ok(command)
}
