//! A kubelet's device manager, played: its directory and socket, and the strings that a test pulls.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use proto::v1beta1::registration_server::RegistrationServer;
use tokio::net::{UnixListener, UnixSocket};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::admission::Pods;
use super::dial::Client;
use super::knowledge::{Knowledge, Known};
use super::registry::Registry;
use super::{Model, locked};

/// What a `Register` call meets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Script {
    /// As usual.
    Accept,
    /// As usual, but the answer comes so much later; the plugin is asked for its options all the
    /// time.
    Delay(Duration),
    /// An error with this text.
    Refuse(String),
    /// No answer.
    Hang,
    /// Success, but `ListAndWatch` is never called.
    ForgetToWatch,
}

/// What a kubelet that starts removes from its plugin directory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Cleanup {
    /// Up to 1.32: everything that is no directory, except for its checkpoint.
    Everything,
    /// From 1.33 on.
    #[default]
    Sockets,
}

/// A resource and a plugin's socket.
pub(super) type Key = (String, String);

/// What the tasks of one kubelet share.
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) model: Model,
    pub(super) knowledge: watch::Sender<Knowledge>,
    pub(super) state: Mutex<State>,
    /// Moves on when the kubelet stops: calls under way end.
    pub(super) life: watch::Sender<u64>,
    /// False: no stream is read.
    pub(super) reading: watch::Sender<bool>,
}

impl Shared {
    /// A plugin's socket; an absolute endpoint is below the directory, too.
    pub(super) fn socket_of(&self, endpoint: &str) -> PathBuf {
        self.directory.join(endpoint.trim_start_matches('/'))
    }
}

/// What changes from call to call.
#[derive(Default)]
pub(super) struct State {
    pub(super) scripts: BTreeMap<String, VecDeque<Script>>,
    pub(super) streams: BTreeMap<Key, AbortHandle>,
    pub(super) clients: BTreeMap<Key, Client>,
    /// Connections that stay open although their streams were ended.
    pub(super) idle: Vec<Client>,
    /// Endpoints whose end will not be noticed: 1.37 forgets the client of a path that is registered
    /// twice.
    pub(super) phantoms: BTreeSet<Key>,
    /// Resources without a client: up to 1.36 a kubelet has one of each, and forgets it when any
    /// registration fails and when any stream ends. It notices no end after that.
    pub(super) forgotten: BTreeSet<String>,
    pub(super) pods: Pods,
    pub(super) window: Option<u32>,
    pub(super) forgets_messages: bool,
}

/// A kubelet.
pub struct FakeKubelet {
    pub(super) shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
    bound: Option<UnixSocket>,
    /// What a start removes.
    pub cleanup: Cleanup,
}

impl FakeKubelet {
    /// A kubelet that does not run yet.
    pub fn stopped(directory: &Path, model: Model) -> Self {
        let shared = Shared {
            directory: directory.to_owned(),
            model,
            knowledge: watch::Sender::new(Knowledge::default()),
            state: Mutex::default(),
            life: watch::Sender::new(0),
            reading: watch::Sender::new(true),
        };
        Self {
            shared: Arc::new(shared),
            server: None,
            bound: None,
            cleanup: Cleanup::default(),
        }
    }

    /// Which kubelet it is.
    pub fn model(&self) -> Model {
        self.shared.model
    }

    /// The plugin directory.
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.shared.directory.join("kubelet.sock")
    }

    /// Starts as a kubelet does: makes the directory, removes what lies there, listens.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn run(&mut self) -> Result<()> {
        self.make_directory()?;
        self.clean_up()?;
        self.bind()
    }

    /// Makes the directory as a kubelet does.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn make_directory(&self) -> Result<()> {
        let directory = &self.shared.directory;
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(directory);
        made.with_context(|| format!("failed to make {directory:?}"))
    }

    /// Removes what a kubelet removes when it starts.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn clean_up(&self) -> Result<()> {
        let directory = &self.shared.directory;
        let entries =
            fs::read_dir(directory).with_context(|| format!("failed to list {directory:?}"))?;
        for entry in entries {
            let path = entry?.path();
            // Follows links, as the kubelet does; what leads nowhere stays.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            let is_checkpoint = path.ends_with("kubelet_internal_checkpoint");
            let removed = match self.cleanup {
                Cleanup::Everything => !metadata.is_dir() && !is_checkpoint,
                Cleanup::Sockets => metadata.file_type().is_socket(),
            };
            if removed {
                fs::remove_file(&path).with_context(|| format!("failed to remove {path:?}"))?;
            }
        }
        Ok(())
    }

    /// Makes its socket anew and serves at it, without a word to anybody; streams stay.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(&mut self) -> Result<()> {
        let path = self.socket();
        let _absent = fs::remove_file(&path);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("failed to listen at {path:?}"))?;
        self.serve(listener);
        Ok(())
    }

    /// Makes its socket anew, but does not listen yet: whoever connects is refused.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind_only(&mut self) -> Result<()> {
        let path = self.socket();
        let _absent = fs::remove_file(&path);
        let socket = UnixSocket::new_stream()?;
        socket
            .bind(&path)
            .with_context(|| format!("failed to bind {path:?}"))?;
        self.bound = Some(socket);
        Ok(())
    }

    /// Listens at the socket of [`Self::bind_only`]: nothing changes in the directory.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses.
    pub fn listen(&mut self) -> Result<()> {
        let socket = self.bound.take().context("no socket is bound")?;
        let listener = socket.listen(64).context("failed to listen")?;
        self.serve(listener);
        Ok(())
    }

    fn serve(&mut self, listener: UnixListener) {
        let service = RegistrationServer::new(Registry(self.shared.clone()));
        let incoming = UnixListenerStream::new(listener);
        let served = Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming);
        // It ends with the listener; who waits for its answers has a deadline.
        let server = tokio::spawn(async move { drop(served.await) });
        if let Some(old) = self.server.replace(server) {
            old.abort();
        }
    }

    /// Stops: calls and streams end, its socket stays behind and refuses.
    pub fn halt(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
        self.bound = None;
        self.shared.life.send_modify(|life| *life += 1);
        self.end_connections();
        {
            // A new kubelet holds nothing; what is left of the old one's streams ends by itself.
            let mut state = locked(&self.shared.state);
            state.streams.clear();
            state.phantoms.clear();
            state.forgotten.clear();
        }
        self.shared.knowledge.send_modify(|known| {
            // Resources that had a list come back from the checkpoint, with nothing.
            known.resources.retain(|_, known| known.is_listed);
            for known in known.resources.values_mut() {
                *known = Known {
                    is_listed: true,
                    ..Known::default()
                };
            }
        });
    }

    /// What the next calls meet, in this order, whatever resource they are for.
    pub fn script(&self, scripts: impl IntoIterator<Item = Script>) {
        self.script_for("", scripts);
    }

    /// What the next calls for one resource meet, in this order.
    pub fn script_for(&self, resource: &str, scripts: impl IntoIterator<Item = Script>) {
        let mut state = locked(&self.shared.state);
        let scripted = state.scripts.entry(resource.to_owned()).or_default();
        scripted.extend(scripts);
    }

    /// Ends the streams of a resource; connections stay.
    pub fn end_streams(&self, resource: &str) {
        let mut state = locked(&self.shared.state);
        let is_of = |(of, _): &Key| of == resource;
        let clients = state.clients.iter().filter(|(key, _)| is_of(key));
        let clients: Vec<Client> = clients.map(|(_, client)| client.clone()).collect();
        state.idle.extend(clients);
        for (_, stream) in state.streams.iter().filter(|(key, _)| is_of(key)) {
            stream.abort();
        }
    }

    /// Closes the connections to all plugins, and with them the streams.
    pub fn end_connections(&self) {
        let mut state = locked(&self.shared.state);
        state.clients.clear();
        state.idle.clear();
        for stream in state.streams.values() {
            stream.abort();
        }
    }

    /// Streams are read from now on, or not.
    pub fn read_streams(&self, reading: bool) {
        self.shared.reading.send_replace(reading);
    }

    /// Plugins that register from now on are read through a flow control window of so many bytes.
    pub fn narrow_window(&self, bytes: u32) {
        locked(&self.shared.state).window = Some(bytes);
    }

    /// Messages are counted from now on, and not kept.
    pub fn forget_messages(&self) {
        locked(&self.shared.state).forgets_messages = true;
    }

    /// Everything it knows, now and later.
    pub fn subscribe(&self) -> watch::Receiver<Knowledge> {
        self.shared.knowledge.subscribe()
    }

    /// What it knows now.
    pub fn known(&self) -> Knowledge {
        self.shared.knowledge.borrow().clone()
    }

    /// Looks at what it knows without a copy.
    pub fn look<T>(&self, look: impl FnOnce(&Knowledge) -> T) -> T {
        look(&self.shared.knowledge.borrow())
    }

    /// Waits until something is known, and returns it; nothing if it was not in time.
    pub async fn until<T>(
        &self,
        limit: Duration,
        mut found: impl FnMut(&Knowledge) -> Option<T>,
    ) -> Option<T> {
        let mut result = None;
        let mut knowledge = self.shared.knowledge.subscribe();
        let waited = knowledge.wait_for(|known| {
            result = found(known);
            result.is_some()
        });
        // The sender lives as long as this kubelet.
        let _in_time = tokio::time::timeout(limit, waited).await;
        result
    }

    /// A client of the plugin that serves a resource.
    ///
    /// # Errors
    /// When nobody serves it, or does not answer.
    pub async fn plugin(&self, resource: &str) -> Result<Client> {
        let endpoint = self.look(|known| known.endpoint(resource).map(str::to_owned));
        let endpoint = endpoint.ok_or_else(|| anyhow!("nobody serves {resource:?}"))?;
        let path = self.shared.socket_of(&endpoint);
        let client = super::dial(&path).await;
        client.with_context(|| format!("failed to connect to {path:?}"))
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.halt();
    }
}
