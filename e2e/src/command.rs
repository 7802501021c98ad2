//! Running another program to its end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Where the system's programs are. Said outright, because root's own path lacks half of it under
/// some `su`.
pub const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `program` of the system, which finds its own helpers too.
pub fn system(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", SYSTEM_PATH);
    command
}

/// What a finished program said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Whether its exit status was zero.
    pub success: bool,
    /// Exit status in words, for messages.
    pub status: String,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

/// Runs `command` and returns what it said, whatever its exit status was.
pub fn output(command: &mut Command) -> Result<Output> {
    let said = command
        .output()
        .with_context(|| format!("failed to run {}", shown(command)))?;
    Ok(Output {
        success: said.status.success(),
        status: said.status.to_string(),
        stdout: String::from_utf8_lossy(&said.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&said.stderr).into_owned(),
    })
}

/// Runs `command`, demands that it succeeds, and returns its standard output.
pub fn run(command: &mut Command) -> Result<String> {
    let said = output(command.stdin(Stdio::null()))?;
    if !said.success {
        let words = if said.stderr.trim().is_empty() {
            &said.stdout
        } else {
            &said.stderr
        };
        bail!(
            "{} ended with {}: {}",
            shown(command),
            said.status,
            last_lines(words.trim(), 12)
        );
    }
    Ok(said.stdout)
}

/// The end of `text`: programs say last what made them fail.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    let skipped = lines.len().saturating_sub(count);
    lines
        .into_iter()
        .skip(skipped)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Where `program` is found: on the search path, in the system's directories, or where Go is
/// usually installed.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_PATH.split(':').map(PathBuf::from))
        .chain(["/usr/local/go/bin".into()])
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
}

/// Whether `path` is a regular file that somebody may execute.
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The program and its first arguments; long command lines bury the message.
fn shown(command: &Command) -> String {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .map(|word| word.into_owned())
        .collect();
    let mut text = words.join(" ");
    if text.chars().count() > 160 {
        text = text.chars().take(160).collect::<String>() + "…";
    }
    format!("`{text}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_the_program_and_its_words() {
        let error = run(Command::new("sh").args(["-c", "echo went wrong >&2; exit 3"]));
        let text = error
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(text.contains("exit status: 3: went wrong"), "{text}");
        assert!(text.starts_with("`sh -c"), "{text}");
    }

    #[test]
    fn programs_of_the_system_directories_are_found() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program-anywhere"), None);
    }
}
