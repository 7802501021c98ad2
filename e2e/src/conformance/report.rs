//! What came of a run, and how it is told: one line for each behaviour.

use std::fmt::Write;
use std::time::Duration;

use super::behaviour::Level;
use super::driver::Driver;
use crate::kubelet::Model;

/// What came of one check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The behaviour was shown.
    Pass,
    /// It was not.
    Fail {
        /// What was expected.
        expected: String,
        /// What was seen.
        seen: String,
        /// How grave it is.
        level: Level,
    },
    /// It could not be brought about; what would make that possible.
    Skip(String),
    /// The suite itself failed.
    Broken(String),
}

/// What came of one behaviour at one kubelet.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its number.
    pub number: u8,
    /// Its name.
    pub name: &'static str,
    /// Which kubelet.
    pub model: Model,
    /// What came of it.
    pub outcome: Outcome,
    /// What was left out.
    pub notes: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// In order of their numbers.
    pub findings: Vec<Finding>,
    /// Failures up to this level count.
    pub level: Level,
    /// What was skipped counts as a failure.
    pub strict: bool,
}

/// How a finding counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Count {
    /// As a success.
    Pass,
    /// As a failure.
    Fail,
    /// Not at all: it is beyond the level that is wanted.
    Warn,
    /// Not at all: it could not be brought about.
    Skip,
    /// As a failure of the suite.
    Broken,
}

impl Report {
    /// How a finding counts in this run.
    pub fn count(&self, finding: &Finding) -> Count {
        match &finding.outcome {
            Outcome::Pass => Count::Pass,
            Outcome::Fail { level, .. } if *level <= self.level => Count::Fail,
            Outcome::Fail { .. } => Count::Warn,
            Outcome::Skip(_) if self.strict => Count::Fail,
            Outcome::Skip(_) => Count::Skip,
            Outcome::Broken(_) => Count::Broken,
        }
    }

    /// Findings that count like this.
    pub fn counted(&self, count: Count) -> usize {
        let findings = self.findings.iter();
        findings.filter(|one| self.count(one) == count).count()
    }

    /// 0: all that counts was shown; 1: something was not; 2: the suite could not tell.
    pub fn exit_code(&self) -> u8 {
        if self.counted(Count::Broken) > 0 {
            2
        } else {
            u8::from(self.counted(Count::Fail) > 0)
        }
    }

    /// One line for a finding, and two more for one that failed.
    pub fn line(&self, finding: &Finding) -> String {
        let word = match self.count(finding) {
            Count::Pass => "pass",
            Count::Fail => "FAIL",
            Count::Warn => "warn",
            Count::Skip => "skip",
            Count::Broken => "ERROR",
        };
        let Finding {
            number,
            name,
            model,
            outcome,
            notes,
            took,
        } = finding;
        let mut line = format!("{number:>2} {word:<5} {name} (kubelet {model}, {took:.1?})");
        for note in notes {
            let _infallible = write!(line, "; {note}");
        }
        match outcome {
            Outcome::Pass => {}
            Outcome::Fail {
                expected,
                seen,
                level,
            } => {
                let _infallible = write!(
                    line,
                    "\n         expected ({level}): {expected}\n         seen: {seen}"
                );
            }
            Outcome::Skip(what) => {
                let _infallible = write!(line, ": needs {what}");
            }
            Outcome::Broken(error) => {
                let _infallible = write!(line, "\n         {error}");
            }
        }
        line
    }

    /// The last line.
    pub fn summary(&self, driver: &Driver) -> String {
        let count = |count| self.counted(count);
        format!(
            "{}: {} passed, {} failed, {} warned, {} skipped, {} errors",
            driver.resource,
            count(Count::Pass),
            count(Count::Fail),
            count(Count::Warn),
            count(Count::Skip),
            count(Count::Broken),
        )
    }
}
