//! The registry that a played kubelet serves, and how it takes plugins on and lets go of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::DEVICE_PLUGIN_VERSION;
use proto::v1beta1::registration_server::Registration;
use proto::v1beta1::{DevicePluginOptions, Empty, ListAndWatchResponse, RegisterRequest};
use tonic::{Request, Response, Status};

use super::dial::{Client, dial_with_window};
use super::fake::{Key, Script, Shared};
use super::knowledge::{Call, Message, Stream};
use super::{Model, is_extended_resource_name, locked};

/// How often a plugin is asked while its registration is delayed: a few dozen times in the 10 s that
/// a kubelet may take.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// The registry of one kubelet.
pub(super) struct Registry(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl Registration for Registry {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let shared = &self.0;
        let request = request.into_inner();
        let number = shared.begin(&request);
        let mut life = shared.life.subscribe();
        let born = *life.borrow_and_update();
        let answer = tokio::select! {
            answer = shared.clone().answer(number, request) => answer,
            // An error means that the kubelet is gone, which is the same.
            _stopped = life.wait_for(|life| *life != born) => {
                Err(Status::unavailable("the kubelet stops"))
            }
        };
        let told = match &answer {
            Ok(_) => Ok(()),
            Err(status) => Err(status.message().to_owned()),
        };
        shared.with_call(number, |call| call.answer = Some((Instant::now(), told)));
        if let Some(plugin) = answer? {
            plugin.watch();
        }
        Ok(Response::new(Empty {}))
    }
}

impl Shared {
    fn begin(&self, request: &RegisterRequest) -> usize {
        let mut number = 0;
        self.knowledge.send_modify(|known| {
            number = known.calls.len();
            known.calls.push(Call {
                request: request.clone(),
                at: Instant::now(),
                options: Vec::new(),
                answer: None,
            });
        });
        number
    }

    fn with_call(&self, number: usize, change: impl FnOnce(&mut Call)) {
        self.knowledge.send_modify(|known| {
            if let Some(call) = known.calls.get_mut(number) {
                change(call);
            }
        });
    }

    fn next_script(&self, resource: &str) -> Script {
        let mut state = locked(&self.state);
        let mut next = |name: &str| state.scripts.get_mut(name)?.pop_front();
        let own = next(resource);
        own.or_else(|| next("")).unwrap_or(Script::Accept)
    }

    /// What a kubelet checks and does within the call, in its order. Nothing: the plugin is taken on,
    /// but its list is never asked for.
    async fn answer(
        self: Arc<Self>,
        number: usize,
        request: RegisterRequest,
    ) -> Result<Option<Plugin>, Status> {
        let RegisterRequest {
            version,
            endpoint,
            resource_name: resource,
            options: _,
        } = request;
        if version != DEVICE_PLUGIN_VERSION {
            return Err(Status::unknown(format!(
                "requested API version {version:?} is not supported by kubelet. Supported version \
                 is {DEVICE_PLUGIN_VERSION:?}"
            )));
        }
        if !is_extended_resource_name(&resource) {
            return Err(Status::unknown(format!(
                "the ResourceName {resource:?} is invalid"
            )));
        }
        // Whoever calls is the resource's client from here on.
        locked(&self.state).forgotten.remove(&resource);
        let key = (resource.clone(), endpoint);
        let taken = self.clone().take_on(number, key).await;
        if taken.is_err() {
            locked(&self.state).forgotten.insert(resource);
        }
        taken
    }

    async fn take_on(self: Arc<Self>, number: usize, key: Key) -> Result<Option<Plugin>, Status> {
        let path = self.socket_of(&key.1);
        let window = locked(&self.state).window;
        let dialled = dial_with_window(&path, window).await;
        let mut client = dialled.map_err(|error| {
            Status::unknown(format!("failed to dial device plugin: {path:?}: {error:?}"))
        })?;
        let options = self.ask(number, &mut client).await?;
        self.refuse_what_is_held(&key)?;
        let script = self.next_script(&key.0);
        match &script {
            Script::Refuse(why) => return Err(Status::unknown(why)),
            Script::Hang => std::future::pending().await,
            Script::Delay(time) => {
                let end = Instant::now() + *time;
                while Instant::now() < end {
                    tokio::time::sleep(ASK_AGAIN).await;
                    // What was answered is kept for whoever judges it.
                    let _judged_later = self.ask(number, &mut client).await;
                }
            }
            Script::Accept | Script::ForgetToWatch => {}
        }
        self.connect(&key, options);
        let plugin = Plugin {
            shared: self,
            key,
            client,
        };
        Ok((script != Script::ForgetToWatch).then_some(plugin))
    }

    /// From 1.37 on a path that is still held is refused, and the refusal forgets the client that
    /// holds it: its end goes unnoticed.
    fn refuse_what_is_held(&self, key: &Key) -> Result<(), Status> {
        if self.model == Model::V1_36 {
            return Ok(());
        }
        let mut state = locked(&self.state);
        if !state.streams.contains_key(key) && !state.phantoms.contains(key) {
            return Ok(());
        }
        state.phantoms.insert(key.clone());
        let path = self.socket_of(&key.1);
        Err(Status::unknown(format!(
            "device plugin already connected: {}",
            path.display()
        )))
    }

    async fn ask(&self, number: usize, client: &mut Client) -> Result<DevicePluginOptions, Status> {
        let asked = client.get_device_plugin_options(Empty {}).await;
        let options = asked.map(Response::into_inner);
        let told = match &options {
            Ok(options) => Ok(*options),
            Err(status) => Err(status.to_string()),
        };
        self.with_call(number, |call| call.options.push(told));
        options.map_err(|status| {
            Status::unknown(format!("failed to get device plugin options: {status}"))
        })
    }

    /// The devices of an older instance stay until the first message of the new one.
    fn connect(&self, (resource, endpoint): &Key, options: DevicePluginOptions) {
        self.knowledge.send_modify(|known| {
            let known = known.resources.entry(resource.clone()).or_default();
            known.endpoint.clone_from(endpoint);
            known.options = options;
            known.messages = 0;
            known.stopped = None;
        });
    }
}

/// A plugin that was taken on.
struct Plugin {
    shared: Arc<Shared>,
    key: Key,
    client: Client,
}

impl Plugin {
    /// Asks for the list, once, and takes in what comes until the stream ends.
    fn watch(self) {
        let shared = self.shared.clone();
        let key = self.key.clone();
        // The end of the task waits for this lock, and so finds itself among the streams.
        let mut state = locked(&shared.state);
        state.clients.insert(key.clone(), self.client.clone());
        let task = tokio::spawn(self.read());
        state.streams.insert(key, task.abort_handle());
    }

    async fn read(self) {
        let Self {
            shared,
            key,
            mut client,
        } = self;
        let mut stream = OpenStream::begin(shared.clone(), key);
        let mut messages = match client.list_and_watch(Empty {}).await {
            Ok(messages) => messages.into_inner(),
            Err(status) => {
                stream.reason = format!("ListAndWatch failed: {status}");
                return;
            }
        };
        let mut reading = shared.reading.subscribe();
        loop {
            // An error means that the kubelet is gone, and this task with it.
            drop(reading.wait_for(|reading| *reading).await);
            match messages.message().await {
                Ok(Some(message)) => stream.take_in(message),
                Ok(None) => {
                    "the plugin ended it".clone_into(&mut stream.reason);
                    return;
                }
                Err(status) => {
                    stream.reason = format!("it broke: {status}");
                    return;
                }
            }
        }
    }
}

/// A stream that is open; dropped when it ends, however that comes about.
struct OpenStream {
    shared: Arc<Shared>,
    key: Key,
    number: usize,
    reason: String,
}

impl OpenStream {
    fn begin(shared: Arc<Shared>, key: Key) -> Self {
        let mut number = 0;
        shared.knowledge.send_modify(|known| {
            number = known.streams.len();
            known.streams.push(Stream {
                resource: key.0.clone(),
                endpoint: key.1.clone(),
                opened: Instant::now(),
                ended: None,
            });
        });
        Self {
            shared,
            key,
            number,
            reason: "the kubelet ended it".to_owned(),
        }
    }

    /// The last message wins, whoever sent it.
    fn take_in(&self, message: ListAndWatchResponse) {
        let keeps = !locked(&self.shared.state).forgets_messages;
        let resource = &self.key.0;
        self.shared.knowledge.send_modify(|all| {
            let known = all.resources.entry(resource.clone()).or_default();
            known.take_in(&message.devices);
            if keeps {
                all.messages.push(Message {
                    resource: resource.clone(),
                    stream: self.number,
                    at: Instant::now(),
                    devices: message.devices,
                });
            }
        });
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let (resource, endpoint) = &self.key;
        let mut state = locked(&self.shared.state);
        // A kubelet that was restarted meanwhile knows nothing of this stream.
        let is_known = state.streams.remove(&self.key).is_some();
        let is_phantom = match self.shared.model {
            Model::V1_36 => state.forgotten.contains(resource),
            Model::V1_37 => state.phantoms.contains(&self.key),
        };
        let others = state.streams.keys().chain(&state.phantoms);
        let mut others = others.filter(|key| key.0 == *resource && *key != &self.key);
        let other = others.next().map(|(_, endpoint)| endpoint.clone());
        let mut disconnected = None;
        self.shared.knowledge.send_modify(|all| {
            if let Some(stream) = all.streams.get_mut(self.number) {
                stream.ended = Some((Instant::now(), std::mem::take(&mut self.reason)));
            }
            let Some(known) = all.resources.get_mut(resource).filter(|_| is_known) else {
                return;
            };
            match self.shared.model {
                Model::V1_36 | Model::V1_37 if is_phantom => {}
                // Whoever registered last is looked up, and disconnected.
                Model::V1_36 => {
                    disconnected = Some(known.endpoint.clone());
                    known.disconnect();
                }
                Model::V1_37 => {
                    disconnected = Some(endpoint.clone());
                    if known.endpoint == *endpoint {
                        // Another one is promoted, and the devices stay as they are.
                        match other {
                            Some(other) => known.endpoint = other,
                            None => known.disconnect(),
                        }
                    }
                }
            }
        });
        let Some(disconnected) = disconnected else {
            return;
        };
        state.forgotten.insert(resource.clone());
        let disconnected = (resource.clone(), disconnected);
        state.clients.remove(&disconnected);
        if let Some(stream) = state.streams.get(&disconnected) {
            stream.abort();
        }
    }
}
