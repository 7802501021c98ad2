//! The registration side of a kubelet's device manager, and its client of the plugins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::v1beta1::device_plugin_client::DevicePluginClient;
use proto::v1beta1::registration_server::{Registration, RegistrationServer};
use proto::v1beta1::{DevicePluginOptions, Empty, RegisterRequest};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status};

/// How long anything may take before a test fails. Generous: the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Which kubelet it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Model {
    /// 1.25 to 1.36: the end of any stream of a resource disconnects whoever registered last.
    V1_36,
    /// From 1.37 on: a socket path that is still held is refused.
    V1_37,
}

/// What the next `Register` call meets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Script {
    /// As usual.
    Accept,
    /// An error.
    Refuse(&'static str),
    /// No answer.
    Hang,
    /// Success, but `ListAndWatch` is never called.
    ForgetToWatch,
    /// `ListAndWatch` is called and runs before the answer is sent.
    WatchBeforeAnswer,
}

/// One `Register` call.
#[derive(Clone, Debug)]
pub struct Registered {
    /// What was sent.
    pub request: RegisterRequest,
    /// What the plugin answered when asked within the call.
    pub options: DevicePluginOptions,
    /// When.
    pub at: Instant,
}

/// What the kubelet knows of one resource.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// The socket of the plugin that serves it; empty when disconnected.
    pub endpoint: String,
    /// Devices and their health, as in the last message.
    pub devices: BTreeMap<String, String>,
    /// When each message came.
    pub messages: Vec<Instant>,
}

/// What the kubelet knows.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// Every call.
    pub calls: Vec<Registered>,
    /// Connected resources and those that were.
    pub resources: BTreeMap<String, Resource>,
    /// Registrations of a resource that came while a stream of it was open.
    pub overlaps: Vec<String>,
    /// When streams opened and ended, in order.
    pub streams: Vec<Stream>,
}

/// A stream opened or ended.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The resource.
    pub resource: String,
    /// Whether it opened.
    pub opened: bool,
    /// When.
    pub at: Instant,
}

impl Knowledge {
    /// Health of a resource's devices while a plugin is connected.
    pub fn healths(&self, resource: &str) -> Vec<&str> {
        let known = self
            .resources
            .get(resource)
            .filter(|known| !known.endpoint.is_empty());
        known
            .map(|known| known.devices.values().map(String::as_str).collect())
            .unwrap_or_default()
    }

    /// Whether a plugin is connected and has sent a list.
    pub fn is_served(&self, resource: &str) -> bool {
        let known = self.resources.get(resource);
        known.is_some_and(|known| !known.endpoint.is_empty() && !known.messages.is_empty())
    }

    /// The healthy devices of each resource: what the pod-resources socket lists.
    pub fn allocatable(&self) -> BTreeMap<String, Vec<String>> {
        let healthy = |known: &Resource| {
            let devices = known.devices.iter();
            let healthy = devices.filter(|(_, health)| *health == "Healthy");
            healthy.map(|(id, _)| id.clone()).collect()
        };
        let resources = self.resources.iter();
        resources
            .map(|(name, known)| (name.clone(), healthy(known)))
            .collect()
    }

    /// The gaps of a resource: from the end of its last stream to the opening of the next.
    pub fn gaps(&self, resource: &str) -> Vec<Duration> {
        let of = |stream: &&Stream| stream.resource == resource;
        let streams: Vec<&Stream> = self.streams.iter().filter(of).collect();
        let gaps = streams
            .windows(2)
            .filter(|pair| !pair[0].opened && pair[1].opened);
        gaps.map(|pair| pair[1].at - pair[0].at).collect()
    }

    /// The sockets of a resource's registrations, in order.
    pub fn endpoints(&self, resource: &str) -> Vec<&str> {
        let calls = self
            .calls
            .iter()
            .filter(|call| call.request.resource_name == resource);
        calls.map(|call| call.request.endpoint.as_str()).collect()
    }
}

#[derive(Clone)]
struct Shared {
    directory: PathBuf,
    model: Model,
    scripts: Arc<Mutex<VecDeque<Script>>>,
    knowledge: Arc<watch::Sender<Knowledge>>,
    streams: Arc<Mutex<BTreeMap<(String, String), AbortHandle>>>,
    /// How long it takes to notice that a stream has ended.
    slowness: Arc<Mutex<Duration>>,
    /// Resources whose last plugin it will never miss.
    phantoms: Arc<Mutex<BTreeSet<String>>>,
}

/// A kubelet.
pub struct FakeKubelet {
    shared: Shared,
    server: Option<JoinHandle<()>>,
}

impl FakeKubelet {
    /// A kubelet that is stopped.
    pub fn stopped(directory: &Path, model: Model) -> Self {
        let shared = Shared {
            directory: directory.to_owned(),
            model,
            scripts: Arc::default(),
            knowledge: Arc::new(watch::Sender::new(Knowledge::default())),
            streams: Arc::default(),
            slowness: Arc::default(),
            phantoms: Arc::default(),
        };
        Self {
            shared,
            server: None,
        }
    }

    /// Starts it as a kubelet starts: the sockets in the directory are removed first.
    pub fn start(&mut self) {
        fs::create_dir_all(&self.shared.directory).unwrap();
        self.remove_sockets();
        self.bind();
    }

    /// Stops it: streams end, its socket stays behind and refuses.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
        self.end_streams();
        self.shared.phantoms.lock().unwrap().clear();
        self.shared
            .knowledge
            .send_modify(|known| known.resources.clear());
    }

    /// Makes its socket anew without a word to anybody; streams stay.
    pub fn bind(&mut self) {
        let socket = self.socket();
        let _absent = fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).unwrap();
        let service = RegistrationServer::new(self.shared.clone());
        let incoming = UnixListenerStream::new(listener);
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming);
        if let Some(old) = self
            .server
            .replace(tokio::spawn(async move { server.await.unwrap() }))
        {
            old.abort();
        }
    }

    /// Removes all sockets of the directory, as a kubelet does before it listens.
    pub fn remove_sockets(&self) {
        for entry in fs::read_dir(&self.shared.directory).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "sock")
            {
                // A plugin may remove its own at the same moment.
                let removed = fs::remove_file(path);
                let is_gone = |error: &Error| error.kind() == ErrorKind::NotFound;
                assert!(removed.as_ref().err().is_none_or(is_gone), "{removed:?}");
            }
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.shared.directory.join("kubelet.sock")
    }

    /// What the next calls meet, in this order.
    pub fn script(&self, scripts: &[Script]) {
        self.shared.scripts.lock().unwrap().extend(scripts);
    }

    /// Ends all streams from the kubelet's side.
    pub fn end_streams(&self) {
        let streams = std::mem::take(&mut *self.shared.streams.lock().unwrap());
        for stream in streams.into_values() {
            stream.abort();
        }
    }

    /// Ends the streams of one resource.
    pub fn end_streams_of(&self, resource: &str) {
        let streams = self.shared.streams.lock().unwrap();
        for ((of, _), stream) in streams.iter() {
            if of == resource {
                stream.abort();
            }
        }
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.shared.streams.lock().unwrap().len()
    }

    /// How long it takes from now on to notice that a stream has ended.
    pub fn slow_down(&self, slowness: Duration) {
        *self.shared.slowness.lock().unwrap() = slowness;
    }

    /// A surge of another plugin with one socket name left its devices behind: the kubelet lists them
    /// with no plugin at all, until it restarts.
    pub fn haunt(&self, resource: &str, ids: &[&str]) {
        let shared = &self.shared;
        shared.phantoms.lock().unwrap().insert(resource.to_owned());
        shared.knowledge.send_modify(|known| {
            let known = known.resources.entry(resource.to_owned()).or_default();
            let healthy = |id: &&str| ((*id).to_owned(), "Healthy".to_owned());
            known.devices = ids.iter().map(healthy).collect();
        });
    }

    /// Another plugin sends its list over the same resource, or the end of an older instance's stream
    /// makes it empty: the last message wins.
    pub fn overwrite(&self, resource: &str, ids: &[&str]) {
        self.shared.knowledge.send_modify(|known| {
            let known = known.resources.get_mut(resource).unwrap();
            let healthy = |id: &&str| ((*id).to_owned(), "Healthy".to_owned());
            known.devices = ids.iter().map(healthy).collect();
        });
    }

    /// Everything it knows, now and later.
    pub fn subscribe(&self) -> watch::Receiver<Knowledge> {
        self.shared.knowledge.subscribe()
    }

    /// What it knows now.
    pub fn known(&self) -> Knowledge {
        self.shared.knowledge.borrow().clone()
    }

    /// Waits until something is known.
    pub async fn until(&self, what: &str, is: impl Fn(&Knowledge) -> bool) -> Knowledge {
        let mut knowledge = self.shared.knowledge.subscribe();
        let found = tokio::time::timeout(DEADLINE, knowledge.wait_for(|known| is(known))).await;
        match found {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!(
                "not within {DEADLINE:?}: {what}; known: {:#?}",
                self.known()
            ),
        }
    }

    /// Waits until a resource is served with devices of these healths.
    pub async fn until_healths(&self, resource: &str, expected: &[&str]) -> Knowledge {
        let what = format!("{resource} with {expected:?}");
        let is =
            |known: &Knowledge| known.is_served(resource) && known.healths(resource) == expected;
        self.until(&what, is).await
    }

    /// A client of the plugin that serves a resource.
    pub async fn plugin(&self, resource: &str) -> DevicePluginClient<Channel> {
        let endpoint = self.known().resources[resource].endpoint.clone();
        dial(&self.shared.directory.join(endpoint)).await.unwrap()
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Calls a plugin as kubelets do since 1.26: the authority is `localhost`.
pub async fn dial(socket: &Path) -> Result<DevicePluginClient<Channel>, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
    let channel = endpoint
        .origin(Uri::from_static("http://localhost"))
        .connect()
        .await?;
    Ok(DevicePluginClient::new(channel).max_decoding_message_size(4 << 20))
}

#[tonic::async_trait]
impl Registration for Shared {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let script = self
            .scripts
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(Script::Accept);
        if request.version != "v1beta1" {
            return Err(Status::unknown(
                "requested API version is not supported by kubelet",
            ));
        }
        let (resource, endpoint) = (request.resource_name.clone(), request.endpoint.clone());
        let key = (resource.clone(), endpoint.clone());
        let held = self.streams.lock().unwrap().contains_key(&key);
        if self.model == Model::V1_37 && held {
            return Err(Status::unknown("device plugin already connected"));
        }
        // The kubelet dials back before it answers.
        let mut plugin = dial(&self.directory.join(&endpoint))
            .await
            .map_err(|error| Status::unknown(format!("failed to dial: {error:?}")))?;
        let options = plugin
            .get_device_plugin_options(Empty {})
            .await?
            .into_inner();
        let call = Registered {
            request,
            options,
            at: Instant::now(),
        };
        self.knowledge.send_modify(|known| known.calls.push(call));
        match script {
            Script::Refuse(why) => return Err(Status::unknown(why)),
            Script::Hang => std::future::pending::<()>().await,
            Script::ForgetToWatch => return Ok(Response::new(Empty {})),
            Script::Accept | Script::WatchBeforeAnswer => {}
        }
        self.connect(&resource, &endpoint);
        let watching = self.clone().watch(key.clone(), plugin);
        let stream = tokio::spawn(watching).abort_handle();
        self.streams.lock().unwrap().insert(key, stream);
        if script == Script::WatchBeforeAnswer {
            let mut knowledge = self.knowledge.subscribe();
            let is_served = |known: &Knowledge| known.is_served(&resource);
            tokio::time::timeout(DEADLINE, knowledge.wait_for(is_served))
                .await
                .unwrap()
                .unwrap();
        }
        Ok(Response::new(Empty {}))
    }
}

impl Shared {
    /// The devices of an older instance stay until the first message of the new one.
    fn connect(&self, resource: &str, endpoint: &str) {
        let overlaps = {
            let streams = self.streams.lock().unwrap();
            streams.keys().any(|(of, _)| of == resource)
        };
        self.knowledge.send_modify(|known| {
            let known = known.resources.entry(resource.to_owned()).or_default();
            known.endpoint = endpoint.to_owned();
            known.messages.clear();
        });
        self.knowledge.send_modify(|known| {
            known.overlaps.extend(overlaps.then(|| endpoint.to_owned()));
        });
    }

    async fn watch(self, key: (String, String), mut plugin: DevicePluginClient<Channel>) {
        // Also when it is aborted.
        let _end = EndOfStream {
            shared: self.clone(),
            key: key.clone(),
        };
        let Ok(stream) = plugin.list_and_watch(Empty {}).await else {
            return;
        };
        let mut stream = stream.into_inner();
        self.tell(&key.0, true);
        while let Ok(Some(message)) = stream.message().await {
            self.knowledge.send_modify(|known| {
                // The last message wins, whoever sent it.
                let known = known.resources.entry(key.0.clone()).or_default();
                known.messages.push(Instant::now());
                known.devices = message
                    .devices
                    .into_iter()
                    .map(|d| (d.id, d.health))
                    .collect();
            });
        }
        self.tell(&key.0, false);
        let slowness = *self.slowness.lock().unwrap();
        tokio::time::sleep(slowness).await;
    }

    fn tell(&self, resource: &str, opened: bool) {
        let stream = Stream {
            resource: resource.to_owned(),
            opened,
            at: Instant::now(),
        };
        self.knowledge
            .send_modify(|known| known.streams.push(stream));
    }
}

struct EndOfStream {
    shared: Shared,
    key: (String, String),
}

impl Drop for EndOfStream {
    fn drop(&mut self) {
        let (resource, endpoint) = &self.key;
        let mut streams = self.shared.streams.lock().unwrap();
        streams.remove(&self.key);
        let mut current = None;
        self.shared.knowledge.send_modify(|known| {
            let Some(known) = known.resources.get_mut(resource) else {
                return;
            };
            let regression = self.shared.model == Model::V1_36;
            if !regression && known.endpoint == *endpoint {
                // An arbitrary other one is promoted, and the devices stay as they are.
                let mut others = streams.keys().filter(|(of, _)| of == resource);
                let phantom = self.shared.phantoms.lock().unwrap().contains(resource);
                if let Some((_, other)) = others.next() {
                    known.endpoint.clone_from(other);
                    return;
                }
                if phantom {
                    known.endpoint.clear();
                    return;
                }
            }
            if regression || known.endpoint == *endpoint {
                current = Some(std::mem::take(&mut known.endpoint));
                known.devices.clear();
            }
        });
        // On 1.25 to 1.36 it is the newest client that is disconnected.
        if let Some(current) = current
            && let Some(stream) = streams.remove(&(resource.clone(), current))
        {
            stream.abort();
        }
    }
}
