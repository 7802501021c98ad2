//! Where things are, and running programs there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// The root of the checkout that this program was built from: it is run by cargo only.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The chart's directory.
pub fn chart() -> PathBuf {
    root().join("charts/device-plugin-operator")
}

/// What outlives a checkout: `$XDG_CACHE_HOME/device-plugin-operator`, by default in `~/.cache`.
pub fn cache() -> anyhow::Result<PathBuf> {
    // The same rule as the cluster's programs follow: a relative path is no directory of the user.
    let directory = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = directory("XDG_CACHE_HOME")
        .or_else(|| directory("HOME").map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME names an absolute path")?;
    Ok(base.join("device-plugin-operator"))
}

/// The cargo that runs this program.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Whether a program of the workspace was built before, beside this one.
pub fn built(program: &str) -> bool {
    std::env::current_exe().is_ok_and(|own| own.with_file_name(program).exists())
}

/// Runs a program to its end, its output going to the terminal.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("failed to run {}", shown(command)))?;
    ensure!(status.success(), "{} ended with {status}", shown(command));
    Ok(())
}

/// Runs a program to its end and returns what it printed; what it says on standard error is told
/// only if it fails.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let said = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run {}", shown(command)))?;
    // Some programs say what is wrong on standard output.
    let words = [&said.stdout, &said.stderr].map(|words| String::from_utf8_lossy(words));
    ensure!(
        said.status.success(),
        "{} ended with {}: {}",
        shown(command),
        said.status,
        words.join("\n").trim()
    );
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// Runs a program to its end and returns what it printed, its progress going to the terminal.
pub fn output_with_progress(command: &mut Command) -> anyhow::Result<String> {
    output(command.stderr(Stdio::inherit()))
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    format!("`{}`", words.join(" "))
}
