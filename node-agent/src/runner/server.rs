//! The runner's side of the socket: a keeper for each action, so many at once.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::Stop;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::runner::descendants;
use crate::runner::frame;
use crate::runner::output::message;
use crate::runner::{ActionRequest, Outcome, Roots};

/// Actions at once. Each is two processes; half would make the devices of a large node wait for each
/// other's resets, double could use up the memory of the container.
const AT_ONCE: usize = 16;
/// Connections at once, those that wait for their turn included: one for each of many devices. More
/// wait unaccepted.
const CONNECTIONS: usize = 512;
/// How long a request may take to come: it is one message of a process on this node.
const REQUEST: Duration = Duration::from_secs(5);
/// Longest action, whatever is asked for: the longest hook takes 600 s.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long a keeper may take, beyond the action's time, to kill and to tell: it gives killed
/// processes a second. Less would report actions whose keeper was about to answer; more than the
/// client's two seconds would be heard by nobody.
const KEEPER: Duration = Duration::from_millis(1_600);

/// What a runner is made of.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where it listens.
    pub socket: PathBuf,
    /// This program, for keepers.
    pub program: PathBuf,
    /// Where the host's directories are.
    pub roots: Roots,
}

struct Shared {
    service: Service,
    turns: Semaphore,
    /// Keepers that live.
    keepers: Mutex<BTreeSet<u32>>,
}

/// Runs actions until a stop is asked for.
///
/// # Errors
/// When it cannot listen.
pub async fn serve(service: Service, stop: Stop) -> io::Result<()> {
    descendants::inherit_orphans()?;
    // A container that was killed leaves its socket.
    match fs::remove_file(&service.socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&service.socket)?;
    let shared = Arc::new(Shared {
        service,
        turns: Semaphore::new(AT_ONCE),
        keepers: Mutex::default(),
    });
    let mut talks = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.requested() => break,
            Some(_ended) = talks.join_next() => {}
            accepted = listener.accept(), if talks.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    talks.spawn(talk(stream, shared.clone()));
                }
                Err(error) => {
                    // Out of descriptors for a moment: whoever asks is still in the queue.
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    // Keepers end what they started when their standard input ends.
    talks.shutdown().await;
    Ok(())
}

async fn talk(mut stream: UnixStream, shared: Arc<Shared>) {
    let request = match timeout(REQUEST, frame::next::<ActionRequest>(&mut stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return tracing::warn!(%error, "failed to read a request"),
        Err(_) => return tracing::warn!("a request did not come to its end"),
    };
    let request = ActionRequest {
        timeout: request.timeout.min(LONGEST),
        ..request
    };
    let start = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let mut outcome = {
        // Nothing is sent after the request: what can be read is the end.
        let mut nothing = [0];
        let gone = reader.read(&mut nothing);
        tokio::select! {
            outcome = shared.outcome(&request, start) => outcome,
            _ = gone => return tracing::info!(action = ?request.action, "given up by whoever asked"),
        }
    };
    outcome.duration = start.elapsed();
    let Ok(frame) = frame::framed(&outcome) else {
        return tracing::error!("an outcome is too long to be told");
    };
    if let Err(error) = writer.write_all(&frame).await {
        tracing::info!(%error, "failed to tell an outcome");
    }
}

impl Shared {
    async fn outcome(self: &Arc<Self>, request: &ActionRequest, start: Instant) -> Outcome {
        let deadline = start + request.timeout;
        let turn = match timeout_at(deadline, self.turns.acquire()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) | Err(_) => {
                let waited = request.timeout;
                return not_begun(&format!(
                    "waited {waited:?} for its turn: {AT_ONCE} other actions run"
                ));
            }
        };
        let left = ActionRequest {
            timeout: deadline.saturating_duration_since(Instant::now()),
            ..request.clone()
        };
        let outcome = match self.keeper() {
            Ok(keeper) => {
                let told = timeout_at(deadline + KEEPER, keeper.told(&left)).await;
                told.unwrap_or_else(|_| failure("took too long and did not end when it was killed"))
            }
            Err(error) => not_begun(&format!("failed to start its keeper: {error}")),
        };
        drop(turn);
        outcome
    }

    fn keeper(self: &Arc<Self>) -> io::Result<Keeper> {
        let mut command = Command::new(&self.service.program);
        command
            .arg("keep-action")
            .args(self.service.roots.arguments())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let child = command.spawn()?;
        let id = child.id().unwrap_or_default();
        self.keepers().insert(id);
        Ok(Keeper {
            child: Some(child),
            id,
            shared: self.clone(),
        })
    }

    /// What a keeper could not end, or what outlived it, is ours now. What does not end within this
    /// time is reaped after the next action.
    async fn end_inherited(&self) {
        for _ in 0..100 {
            let keepers = self.keepers().clone();
            if descendants::end_inherited(&keepers) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn keepers(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A keeper that lives. Where this is dropped, it is told to end its action, and seen to its end by a
/// task of its own.
struct Keeper {
    child: Option<Child>,
    id: u32,
    shared: Arc<Shared>,
}

impl Keeper {
    async fn told(mut self, request: &ActionRequest) -> Outcome {
        match self.talk(request).await {
            Ok(outcome) => outcome,
            Err(error) => failure(&format!("its keeper ended before it: {error}")),
        }
    }

    async fn talk(&mut self, request: &ActionRequest) -> io::Result<Outcome> {
        let child = self.child.as_mut().ok_or(ErrorKind::NotConnected)?;
        let (Some(input), Some(output)) = (&mut child.stdin, &mut child.stdout) else {
            return Err(ErrorKind::NotConnected.into());
        };
        input.write_all(&frame::framed(request)?).await?;
        frame::next(output).await
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let (Some(mut child), id) = (self.child.take(), self.id) else {
            return;
        };
        // The end of its input tells it to end its action.
        drop(child.stdin.take());
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if timeout(KEEPER, child.wait()).await.is_err() {
                let _ended = child.start_kill();
                let _ended = timeout(KEEPER, child.wait()).await;
            }
            shared.keepers().remove(&id);
            shared.end_inherited().await;
        });
    }
}

fn not_begun(why: &str) -> Outcome {
    Outcome {
        begun: false,
        ..failure(why)
    }
}

fn failure(why: &str) -> Outcome {
    Outcome {
        success: false,
        begun: true,
        message: message(why, ""),
        duration: Duration::ZERO,
    }
}
