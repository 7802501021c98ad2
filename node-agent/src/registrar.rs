//! Registers one resource at the kubelet and keeps it registered: does what `registration` of the core
//! says.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use daemon::Stop;
use futures::future::{Fuse, FusedFuture, FutureExt};
use jiff::Timestamp;
use node_agent_core::identity::socket_prefix;
use node_agent_core::registration::{Effect, Event, Phase, Registration};
use node_agent_core::seen::Standing;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::allocations::PodResources;
use crate::board::Board;
use crate::claim::{Claim, Claimed};
use crate::error_chain::chained;
use crate::metrics::{Metrics, RegistrationResult};
use crate::plugin_directory::{self, FileIdentity, KUBELET_SOCKET, View};
use crate::plugin_server::PluginServer;
use crate::plugin_service::{Answers, StreamEvent};
use crate::random::jitter;
use crate::register::{RegisterError, register};
use crate::roles::{Duty, Roles};
use crate::settings::Timing;
use crate::state_file::StateFile;

/// What one resource needs to be registered.
pub struct Registrar {
    /// What answers the kubelet.
    pub answers: Answers,
    /// The kubelet's plugin directory.
    pub plugin_dir: PathBuf,
    /// The looks at it.
    pub view: watch::Receiver<View>,
    /// The directory of the locks.
    pub lock_dir: PathBuf,
    /// The right to serve at all.
    pub roles: Roles,
    /// What is remembered over restarts.
    pub state: Arc<StateFile>,
    /// The kubelet's own list.
    pub pod_resources: PodResources,
    /// Told when the kubelet has other devices than it was sent.
    pub displaced: Arc<Notify>,
    /// Where the standing is posted.
    pub board: Board,
    /// Where registrations are counted.
    pub metrics: Metrics,
    /// How patient it is.
    pub timing: Timing,
}

/// A `Register` call under way, or none.
type Call = Fuse<futures::future::BoxFuture<'static, Result<(), RegisterError>>>;

/// What the loop of one resource holds.
struct Loop<'a> {
    registrar: &'a Registrar,
    registration: Registration,
    start: Instant,
    server: Option<PluginServer>,
    servers: u64,
    call: Call,
    timer: Option<Instant>,
    streams: mpsc::UnboundedSender<StreamEvent>,
    kubelet: Option<FileIdentity>,
    trouble: Option<Standing>,
    remembering: Option<JoinHandle<()>>,
}

impl Registrar {
    /// Serves the resource whenever the role allows it, until a stop is asked for; then nothing of it
    /// is left behind.
    pub async fn keep(self, stop: Stop) {
        let mut duty = self.roles.duty();
        loop {
            self.post_turn(&duty.borrow_and_update());
            if let Some(holding) = self.roles.hold() {
                self.take_turn(&stop).await;
                // The resource is let go of: the role may follow.
                drop(holding);
            }
            tokio::select! {
                biased;
                () = stop.requested() => return,
                Ok(()) = duty.changed() => {}
            }
        }
    }

    /// Takes the resource's lock and serves, for as long as the role allows it.
    async fn take_turn(&self, stop: &Stop) {
        let claimed = tokio::select! {
            () = stop.requested() => return,
            () = self.roles.until(|duty| !duty.may_take) => return,
            claimed = self.claim() => claimed,
        };
        if !self.roles.confirms() {
            return;
        }
        let Claimed { lock, phantom } = claimed;
        if phantom > 0 {
            let resource = self.resource();
            tracing::warn!(
                resource,
                phantom,
                "the kubelet lists devices that nobody serves"
            );
        }
        self.board.phantom(self.resource(), phantom);
        let prefix = socket_prefix(self.resource());
        let removed = plugin_directory::remove_stale_sockets(&self.plugin_dir, &prefix).await;
        if let Err(error) = removed {
            tracing::debug!(%error, "failed to look for stale sockets");
        }
        self.serve(stop).await;
        // The server is closed: whoever waits for the lock may register now.
        drop(lock);
    }

    /// Posts whose turn it is while it is not this agent's.
    fn post_turn(&self, duty: &Duty) {
        let standing = if duty.may_take {
            return;
        } else if !duty.awaits_role {
            Standing::StandingBy
        } else if duty.lock_error.is_empty() {
            Standing::AwaitingLock
        } else {
            Standing::Refused(duty.lock_error.clone())
        };
        self.board.standing(self.resource(), standing);
    }

    fn resource(&self) -> &str {
        &self.answers.resource
    }

    /// Waits for the right to register, and takes it.
    async fn claim(&self) -> Claimed {
        let duty = self.roles.duty().borrow().clone();
        let resource = self.resource();
        let claim = Claim {
            resource,
            served_before: self.state.has_served(resource) || duty.baseline.contains(resource),
            after_another: duty.after_another,
            lock_dir: &self.lock_dir,
            plugin_dir: &self.plugin_dir,
            view: self.view.clone(),
            pod_resources: &self.pod_resources,
            board: &self.board,
            patience: self.timing.first_time,
            drain: self.timing.drain,
        };
        claim.granted().await
    }

    /// Registers and registers again until the role ends or a stop is asked for.
    async fn serve(&self, stop: &Stop) {
        // What was told to an earlier registration is settled by this one.
        let _earlier = self.displaced.notified().now_or_never();
        let mut view = self.view.clone();
        let kubelet = view.borrow_and_update().kubelet;
        let (streams, mut stream_events) = mpsc::unbounded_channel();
        let (registration, effects) = Registration::start(kubelet.is_some());
        let mut state = Loop {
            registrar: self,
            registration,
            start: Instant::now(),
            server: None,
            servers: 0,
            call: Fuse::terminated(),
            timer: None,
            streams,
            kubelet,
            trouble: None,
            remembering: None,
        };
        state.apply(effects).await;
        loop {
            state.post();
            let timer = state.timer;
            let time_up = async move {
                match timer {
                    Some(timer) => sleep_until(timer).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.requested() => break,
                () = self.roles.until(|duty| !duty.may_keep) => break,
                answered = &mut state.call, if !state.call.is_terminated() => {
                    state.answered(answered).await;
                }
                Some(event) = stream_events.recv() => state.stream(event).await,
                Ok(()) = view.changed() => {
                    let kubelet = view.borrow_and_update().kubelet;
                    state.looked(kubelet).await;
                }
                () = self.displaced.notified() => state.displaced().await,
                () = time_up => {
                    state.timer = None;
                    state.happened(Event::TimeUp).await;
                }
            }
        }
        tracing::info!(resource = self.resource(), "ending the streams");
        state.close().await;
        state.remembered(self.timing.close).await;
    }
}

impl Loop<'_> {
    async fn happened(&mut self, event: Event) {
        let before = self.registration.phase();
        let limits = &self.registrar.timing.registration;
        let now = self.start.elapsed();
        let registration = self.registration.clone();
        let (registration, effects) = registration.next(event, now, jitter(), limits);
        self.registration = registration;
        let after = self.registration.phase();
        let resource = self.registrar.resource();
        let watched = |phase| matches!(phase, Phase::Watching { .. });
        if watched(before) && !watched(after) {
            tracing::warn!(
                resource,
                ?event,
                "the kubelet's stream is lost: registering again"
            );
            if event != Event::Displaced {
                self.registrar.metrics.stream_lost(resource);
                // A kubelet that restarted has forgotten everything; one that was only slow ends the
                // new stream with the old one, and listed no phantom.
                self.registrar.board.phantom(resource, 0);
            }
        }
        if watched(after) && !watched(before) {
            tracing::info!(resource, "the kubelet reads the devices");
            self.trouble = None;
            self.remember();
        }
        self.apply(effects).await;
    }

    async fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Close => self.close().await,
                Effect::Serve => {
                    if let Err(error) = self.start_server() {
                        self.trouble(Standing::Refused(format!(
                            "failed to make a socket: {error}"
                        )));
                        // Boxed, because it leads here again.
                        return Box::pin(self.happened(Event::ServeFailed)).await;
                    }
                }
                Effect::Register => self.register(),
                Effect::Wait(time) => self.timer = Some(Instant::now() + time),
                Effect::StopWaiting => self.timer = None,
            }
        }
    }

    fn start_server(&mut self) -> std::io::Result<()> {
        self.servers += 1;
        let Registrar {
            plugin_dir,
            answers,
            ..
        } = self.registrar;
        let streams = self.streams.clone();
        self.server = Some(PluginServer::start(
            plugin_dir,
            answers,
            self.servers,
            streams,
        )?);
        Ok(())
    }

    fn register(&mut self) {
        let Some(server) = &self.server else {
            return;
        };
        let kubelet = self.registrar.plugin_dir.join(KUBELET_SOCKET);
        let resource = self.registrar.resource().to_owned();
        let options = self.registrar.answers.options();
        let (endpoint, limit) = (
            server.name().to_owned(),
            self.registrar.timing.register_call,
        );
        tracing::debug!(resource, endpoint, "registering");
        self.call = async move { register(&kubelet, endpoint, resource, options, limit).await }
            .boxed()
            .fuse();
    }

    async fn close(&mut self) {
        self.call = Fuse::terminated();
        if let Some(server) = self.server.take() {
            server.close(self.registrar.timing.close).await;
        }
    }

    async fn answered(&mut self, answered: Result<(), RegisterError>) {
        let (resource, metrics) = (self.registrar.resource(), &self.registrar.metrics);
        let event = match answered {
            Ok(()) => {
                metrics.registration(resource, RegistrationResult::Accepted);
                self.registrar.board.post(resource, |seen| {
                    seen.registrations = seen.registrations.saturating_add(1);
                    true
                });
                self.trouble = None;
                Event::Accepted
            }
            Err(error @ RegisterError::Connect(_)) => {
                metrics.registration(resource, RegistrationResult::Unreachable);
                self.trouble(Standing::Unreachable(chained(&error)));
                Event::Unreachable
            }
            Err(error @ (RegisterError::Refuse(_) | RegisterError::WaitForAnswer(_))) => {
                metrics.registration(resource, RegistrationResult::Refused);
                self.trouble(Standing::Refused(error.to_string()));
                Event::Refused
            }
        };
        self.happened(event).await;
    }

    /// Remembers what went wrong, and says so once: it may go wrong every few milliseconds.
    fn trouble(&mut self, standing: Standing) {
        if self.trouble.as_ref() != Some(&standing) {
            let (resource, told) = (self.registrar.resource(), standing.message());
            tracing::warn!(resource, told, "not registered: trying again");
        }
        self.trouble = Some(standing);
    }

    /// The end of our own stream, too, ends whatever is newer on kubelets from 1.25 to 1.36.
    async fn displaced(&mut self) {
        // Without a kubelet there is nobody to register at, and a stream that is open is all there is.
        let is_watched = matches!(self.registration.phase(), Phase::Watching { .. });
        if is_watched && self.kubelet.is_some() {
            self.close().await;
            let Registrar {
                pod_resources,
                timing,
                ..
            } = self.registrar;
            // Where the list is empty already, it does not show that end.
            sleep(timing.drain.unseen).await;
            let resource = self.registrar.resource();
            pod_resources.drained(resource, &timing.drain).await;
        }
        self.happened(Event::Displaced).await;
    }

    async fn stream(&mut self, event: StreamEvent) {
        // Streams of a server that was given up tell nothing about its successor.
        if self
            .server
            .as_ref()
            .is_some_and(|server| server.number() == event.server)
        {
            let event = if event.opened {
                Event::StreamOpened
            } else {
                Event::StreamClosed
            };
            self.happened(event).await;
        }
    }

    async fn looked(&mut self, kubelet: Option<FileIdentity>) {
        if self.kubelet != kubelet {
            self.kubelet = kubelet;
            let there = kubelet.is_some();
            let event = if there {
                Event::KubeletAppeared
            } else {
                Event::KubeletVanished
            };
            self.happened(event).await;
        }
        if self
            .server
            .as_ref()
            .is_some_and(|server| !server.is_reachable())
        {
            self.happened(Event::OwnSocketGone).await;
        }
    }

    /// Remembers on the host that the resource is served. The write waits for the disk, which
    /// nothing else shall do.
    fn remember(&mut self) {
        let resource = self.registrar.resource().to_owned();
        let state = self.registrar.state.clone();
        self.remembering = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = state.remember(&resource) {
                tracing::warn!(resource, %error, "failed to write the state file");
            }
        }));
    }

    /// Waits for the last such write: the next holder's must come after it.
    async fn remembered(&mut self, limit: Duration) {
        if let Some(remembering) = self.remembering.take() {
            let waited = tokio::time::timeout(limit, remembering).await;
            if waited.is_err() {
                tracing::warn!("the disk did not answer in time: handing over all the same");
            }
        }
    }

    fn post(&self) {
        let trouble = || self.trouble.clone().unwrap_or_default();
        let standing = match self.registration.phase() {
            Phase::AwaitingKubelet => Standing::AwaitingKubelet,
            Phase::Registering { .. } | Phase::BackingOff { .. } => trouble(),
            Phase::AwaitingStream => Standing::AwaitingStream,
            Phase::Watching { .. } => {
                let now = Timestamp::now();
                let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
                Standing::Watching(seconds)
            }
        };
        self.registrar
            .board
            .post(self.registrar.resource(), |seen| {
                // The time of a stream that is still the same stays.
                let same = seen.standing.is_registered() && standing.is_registered();
                let changed = !same && seen.standing != standing;
                if changed {
                    seen.standing = standing;
                }
                changed
            });
    }
}
