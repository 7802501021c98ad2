//! One server at one socket: it lives for one registration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::Stream;
use node_agent_core::identity::socket_name;
use proto::v1beta1::device_plugin_server::DevicePluginServer;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::transport::Server;

use crate::error_chain::chained;
use crate::plugin_directory::FileIdentity;
use crate::plugin_service::{Answers, PluginService, StreamEvent};
use crate::random;

/// Largest request. A request for the preferred among 100,000 ids is larger than the usual 4 MiB, and
/// the kubelet sends whatever it has.
const REQUEST_MAX: usize = 64 << 20;

/// Wait after a connection that could not be accepted, which happens when the process has no file
/// descriptor left: at once it would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that runs.
pub struct PluginServer {
    name: String,
    path: PathBuf,
    identity: FileIdentity,
    number: u64,
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl PluginServer {
    /// Starts a server at a socket name that was never used before.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(
        directory: &Path,
        answers: &Answers,
        number: u64,
        streams: mpsc::UnboundedSender<StreamEvent>,
    ) -> io::Result<Self> {
        let name = socket_name(&answers.resource, random::number()?);
        let path = directory.join(&name);
        let listener = UnixListener::bind(&path)?;
        let identity = FileIdentity::at(&path).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "the socket vanished at once")
        })?;
        let (closing, closed) = watch::channel(false);
        let service = PluginService {
            answers: answers.clone(),
            server: number,
            streams,
            closing: closed.clone(),
        };
        let service = DevicePluginServer::new(service).max_decoding_message_size(REQUEST_MAX);
        let served = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(connections(listener), until_true(closed));
        let task = tokio::spawn(async move {
            if let Err(error) = served.await {
                let error = chained(&error);
                tracing::error!(error, "a plugin server ended");
            }
        });
        Ok(Self {
            name,
            path,
            identity,
            number,
            closing,
            task,
        })
    }

    /// Name of its socket in the plugin directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number, which its streams tell.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether its socket is still there, and is its own.
    pub fn is_reachable(&self) -> bool {
        FileIdentity::at(&self.path).is_some_and(|there| there.is_same_inode(self.identity))
    }

    /// Ends all streams and removes the socket. A client that does not listen is not waited for.
    pub async fn close(self, limit: Duration) {
        if self.is_reachable()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = ?self.path, %error, "failed to remove a socket of ours");
        }
        self.closing.send_replace(true);
        let aborter = self.task.abort_handle();
        if tokio::time::timeout(limit, self.task).await.is_err() {
            aborter.abort();
        }
    }
}

fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

async fn until_true(mut closed: watch::Receiver<bool>) {
    // An error means that nobody can close it any more, which is as good.
    let _dropped = closed.wait_for(|closed| *closed).await;
}
