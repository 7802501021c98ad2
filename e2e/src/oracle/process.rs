//! The process around the device manager: a line of JSON for each command, one for each answer.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use crate::command::last_lines;
use crate::kubelet::Answer;

/// Longest wait for an answer: a plugin may let the kubelet wait 30 s before a container starts, and
/// twice that says that nothing comes.
const ANSWER: Duration = Duration::from_secs(60);

/// A device manager's process; it is killed when this is dropped.
pub(super) struct Process {
    child: Child,
    talk: Mutex<Talk>,
    log: NamedTempFile,
}

/// One command is under way at a time.
struct Talk {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    last: u64,
}

#[derive(Deserialize)]
struct Said {
    id: u64,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    value: Value,
}

impl Process {
    pub(super) fn start(program: &Path) -> Result<Self> {
        let log = NamedTempFile::new().context("failed to make a log")?;
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.reopen()?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("failed to run {:?}", program.display()))?;
        let input = child.stdin.take().context("the process has no input")?;
        let output = child.stdout.take().context("the process has no output")?;
        let talk = Mutex::new(Talk {
            input,
            output: BufReader::new(output).lines(),
            last: 0,
        });
        Ok(Self { child, talk, log })
    }

    /// Asks one thing and waits for the answer.
    pub(super) async fn ask(&self, what: &str, mut with: Value) -> Result<Answer<Value>> {
        let mut talk = self.talk.lock().await;
        let answer = tokio::time::timeout(ANSWER, talk.exchange(what, &mut with)).await;
        let said = match answer {
            Ok(Ok(said)) => said,
            Ok(Err(error)) => return Err(error.context(self.last_words())),
            Err(_) => bail!("no answer to {what:?} {with}: {}", self.last_words()),
        };
        Ok(match said.error {
            Some(told) => Err(told),
            None => Ok(said.value),
        })
    }

    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read(self.log.path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        // A panic is told before the stacks of all goroutines.
        let panic = log.find("panic:").and_then(|at| log.get(at..));
        match panic {
            Some(panic) => panic.lines().take(12).collect::<Vec<_>>().join("\n"),
            None => last_lines(log.trim(), 12),
        }
    }

    pub(super) async fn end(mut self) -> Result<()> {
        self.child.kill().await.context("failed to kill")
    }
}

impl Talk {
    async fn exchange(&mut self, what: &str, with: &mut Value) -> Result<Said> {
        self.last += 1;
        if let Some(members) = with.as_object_mut() {
            members.insert("id".to_owned(), self.last.into());
            members.insert("do".to_owned(), what.into());
        }
        let line = format!("{with}\n");
        let written = self.input.write_all(line.as_bytes()).await;
        written.with_context(|| format!("the device manager hears no {what:?}"))?;
        loop {
            let line = self.output.next_line().await?;
            let line = line.with_context(|| format!("the device manager ended in {what:?}"))?;
            let said: Said = serde_json::from_str(&line)
                .with_context(|| format!("the device manager said {line:?}"))?;
            // An answer that nobody waits for any more is passed over.
            if said.id == self.last {
                return Ok(said);
            }
        }
    }
}
