//! What a check comes to.

use std::fmt::Display;

use super::behaviour::Level;

/// Why a check did not pass.
#[derive(Debug)]
pub enum Failed {
    /// The plugin behaved otherwise.
    Mismatch {
        /// What was expected.
        expected: String,
        /// What was seen.
        seen: String,
        /// How grave it is, where that is not the behaviour's own level.
        level: Option<Level>,
    },
    /// The caller did not say how to bring the situation about.
    Missing(String),
    /// The suite itself could not go on.
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

/// Whether a behaviour was shown.
pub type Verdict<T = ()> = Result<T, Failed>;

/// Fails with what was expected and what was seen unless something holds.
///
/// # Errors
/// Unless it holds.
pub fn demand(holds: bool, expected: impl Display, seen: impl Display) -> Verdict {
    if holds {
        return Ok(());
    }
    Err(mismatch(expected, seen))
}

/// The same for what only a plugin of ours promises, or what a plugin merely should do.
///
/// # Errors
/// Unless it holds.
pub fn demand_at(level: Level, holds: bool, expected: impl Display, seen: impl Display) -> Verdict {
    if holds {
        return Ok(());
    }
    Err(Failed::Mismatch {
        expected: expected.to_string(),
        seen: seen.to_string(),
        level: Some(level),
    })
}

/// What was expected and what was seen.
pub fn mismatch(expected: impl Display, seen: impl Display) -> Failed {
    Failed::Mismatch {
        expected: expected.to_string(),
        seen: seen.to_string(),
        level: None,
    }
}
