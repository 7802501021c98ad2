//! How long-running steps tell a person what they are doing.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Takes lines of progress; clones share one sink.
#[derive(Clone)]
pub struct Progress {
    sink: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Progress {
    /// Lines go to standard error, so that standard output stays fit for pipes.
    pub fn to_stderr() -> Self {
        Self::new(|line| {
            // A closed terminal must not end a build.
            let _ = writeln!(std::io::stderr(), "{line}");
        })
    }

    /// Nobody listens, as in tests.
    pub fn silent() -> Self {
        Self::new(|_| {})
    }

    /// Lines go to `sink`.
    pub fn new(sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            sink: Arc::new(sink),
        }
    }

    /// Says something beside the numbered steps.
    pub fn note(&self, line: impl fmt::Display) {
        (self.sink)(&format!("      {line}"));
    }

    /// Begins a piece of work of `total` numbered steps.
    pub fn steps(&self, total: usize) -> Steps {
        Steps {
            progress: self.clone(),
            total,
            done: AtomicUsize::new(0),
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Progress")
    }
}

/// Numbered steps of one piece of work: `[3/12] starting etcd`.
#[derive(Debug)]
pub struct Steps {
    progress: Progress,
    total: usize,
    done: AtomicUsize,
}

impl Steps {
    /// Announces the next step.
    pub fn step(&self, line: impl fmt::Display) {
        let number = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        (self.progress.sink)(&format!("[{number}/{}] {line}", self.total));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn steps_are_numbered_and_notes_are_not() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let progress = Progress::new(move |line| {
            if let Ok(mut lines) = seen.lock() {
                lines.push(line.to_owned());
            }
        });
        let steps = progress.steps(2);
        steps.step("one");
        progress.note("beside");
        steps.step("two");
        let lines = lines.lock().map(|lines| lines.clone()).unwrap_or_default();
        assert_eq!(lines, ["[1/2] one", "      beside", "[2/2] two"]);
    }
}
