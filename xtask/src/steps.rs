//! Telling a person which step of how many runs, and how long each took.

#![expect(
    clippy::print_stderr,
    reason = "progress of a command belongs on standard error"
)]

use std::cell::Cell;
use std::time::Instant;

use anyhow::Context;

/// A step: what it is called, and what it does.
pub type Step = (&'static str, fn() -> anyhow::Result<()>);

/// Numbered steps.
pub struct Steps {
    total: usize,
    begun: Cell<usize>,
}

impl Steps {
    /// So many steps.
    pub fn new(total: usize) -> Self {
        Self {
            total,
            begun: Cell::new(0),
        }
    }

    /// Runs the next step and tells how long it took.
    pub fn step(&self, what: &str, act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let number = self.begun.get() + 1;
        self.begun.set(number);
        eprintln!("[{number}/{}] {what}", self.total);
        let begun = Instant::now();
        act().with_context(|| format!("step {number} ({what}) failed"))?;
        eprintln!("      {what}: {:.1} s", begun.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Says something beside the steps.
pub fn note(line: &str) {
    eprintln!("      {line}");
}

/// Says why the command fails, with the whole chain of causes.
pub fn failure(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
