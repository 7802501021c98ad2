//! Logs as JSON lines on standard output, at a level that can change while running.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::{Registry, fmt, prelude::*, reload};

/// Why logs could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is neither a level nor a filter directive.
    #[error("failed to read log level {level:?}: expected error, warn, info, debug or trace")]
    ReadLevel {
        /// What was given.
        level: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logs were started twice in one process.
    #[error("failed to start logs a second time in one process")]
    StartTwice,
    /// The subscriber is gone, which happens only while the process ends.
    #[error("failed to change the log level")]
    ChangeLevel(#[source] reload::Error),
}

/// The process's logs.
#[derive(Clone, Debug)]
pub struct Logs {
    level: reload::Handle<Targets, Registry>,
}

impl Logs {
    /// Starts logging to standard output. `level` is a level, or filter directives of `tracing`
    /// such as `info,kube=debug`.
    ///
    /// # Errors
    /// When the level cannot be read, or logs were started before.
    pub fn start(level: &str) -> Result<Self, LogError> {
        let (filter, handle) = reload::Layer::new(filter(level)?);
        tracing_subscriber::registry()
            .with(filter)
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false),
            )
            .try_init()
            .map_err(|_| LogError::StartTwice)?;
        Ok(Self { level: handle })
    }

    /// Changes the level of everything logged from now on.
    ///
    /// # Errors
    /// When the level cannot be read.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        self.level
            .reload(filter(level)?)
            .map_err(LogError::ChangeLevel)
    }
}

fn filter(level: &str) -> Result<Targets, LogError> {
    // Levels by target are what is offered; the filter that also understands spans is a larger program.
    level.parse().map_err(|source| LogError::ReadLevel {
        level: level.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused_by_value() {
        let refused = filter("kube=loud")
            .map(|_| ())
            .map_err(|error| error.to_string());
        assert_eq!(
            refused,
            Err("failed to read log level \"kube=loud\": expected error, warn, info, debug or trace".to_owned())
        );
        assert!(filter("info,kube=debug").is_ok());
    }
}
