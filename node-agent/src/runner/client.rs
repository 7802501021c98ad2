//! The agent's side: one connection per action. Whoever drops the future closes the connection, and
//! the runner then kills what it started.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use node_agent_core::pace::Pace;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::random;
use crate::runner::frame::{self, FrameError};
use crate::runner::{ActionRequest, Outcome};

/// How long a runner may take, after the time of an action is over, to kill what it started and to
/// say so. Half would call a busy node a dead runner; double would bring a reset of the longest time
/// too close to the kubelet's own 30 s.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Waits for a runner that is not there (yet): its container starts beside the agent's, and again
/// after a crash.
const RETRY: Pace = Pace {
    first: Duration::from_millis(50),
    limit: Duration::from_secs(1),
};

/// Why an action has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// Nobody answered at the socket for the whole time of the action. Normal for a moment while the
    /// runner's container starts.
    #[error("the runner did not answer at {socket:?} for {waited:?}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// How long it was tried.
        waited: Duration,
        /// The last try's error.
        source: io::Error,
    },
    /// The request cannot be sent.
    #[error("failed to write the request")]
    Request(#[from] FrameError),
    /// The connection ended before the outcome: the runner's container died, and what it ran with it.
    #[error("the runner went away before the action had ended")]
    Talk(#[source] io::Error),
    /// The runner said nothing in time.
    #[error("the runner did not say within {0:?} how the action ended")]
    Silent(Duration),
}

/// Where actions are run.
#[derive(Clone, Debug)]
pub struct Runner {
    socket: PathBuf,
}

impl Runner {
    /// The runner that listens at `socket`. It need not be there yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Runs an action, and waits for the runner as long as the action may take. Takes at most two
    /// seconds longer than the action's timeout.
    ///
    /// # Errors
    /// When it is not known how the action ended. An action that fails is no error.
    pub async fn run(&self, request: &ActionRequest) -> Result<Outcome, RunnerError> {
        let start = Instant::now();
        let deadline = start + request.timeout;
        let mut stream = self.connected(start, deadline).await?;
        // What the wait has used is no longer there for the action.
        let left = ActionRequest {
            timeout: deadline.saturating_duration_since(Instant::now()),
            ..request.clone()
        };
        let frame = frame::framed(&left)?;
        let talk = async {
            stream.write_all(&frame).await?;
            frame::next(&mut stream).await
        };
        match timeout_at(deadline + LAST_WORD, talk).await {
            Ok(outcome) => outcome.map_err(RunnerError::Talk),
            Err(_) => Err(RunnerError::Silent(request.timeout + LAST_WORD)),
        }
    }

    async fn connected(
        &self,
        start: Instant,
        deadline: Instant,
    ) -> Result<UnixStream, RunnerError> {
        let mut failures = 0;
        loop {
            let source = match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(source) => source,
            };
            failures += 1;
            let next = Instant::now() + RETRY.wait(failures, random::jitter());
            if next >= deadline {
                return Err(RunnerError::Connect {
                    socket: self.socket.clone(),
                    waited: start.elapsed(),
                    source,
                });
            }
            tokio::time::sleep_until(next).await;
        }
    }
}
