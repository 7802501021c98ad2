//! When the plugin registers, and registers again.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proto::v1beta1::RegisterRequest;
use proto::v1beta1::device_plugin_server::DevicePluginServer;
use proto::v1beta1::registration_client::RegistrationClient;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use tonic::transport::{Endpoint, Server, Uri};

use super::fault::Fault;
use super::service::{Resource, Service};

/// How often sockets are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long the end of the process waits for those that serve.
pub const LAST: Duration = Duration::from_millis(200);

/// How long a kubelet may take to answer.
const REGISTER: Duration = Duration::from_secs(20);

/// How long it may take to ask for the list.
const WATCHDOG: Duration = Duration::from_secs(25);

/// Largest request that is read.
const REQUEST_MAX: usize = 64 << 20;

/// Why a resource registers again when its kubelet reads no more.
const STREAM_ENDED: &str = "the stream ended";

/// Which file is at a path: an inode number alone is used again at once.
type Identity = Option<(u64, u64, i64, i64)>;

fn identity(path: &Path) -> Identity {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

/// A server at one socket.
struct Served {
    name: String,
    path: PathBuf,
    inode: Option<u64>,
    streams: watch::Receiver<(usize, usize)>,
    task: JoinHandle<()>,
    leaves: bool,
    is_fixed: bool,
    _open: watch::Sender<()>,
}

impl Served {
    fn start(resource: &Arc<Resource>) -> Result<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let number = u64::from_ne_bytes(random);
        let mut name = format!("scripted-{}-{number:016x}.sock", resource.hash);
        if resource.has(Fault::FixedSocketName) {
            name = format!("scripted-{}.sock", resource.hash);
        }
        if resource.has(Fault::LongSocketName) {
            name = format!("{}-{number:016x}.sock", "s".repeat(60));
        }
        let path = resource.settings.plugin_dir.join(&name);
        let _absent = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| format!("failed at {path:?}"))?;
        let inode = fs::symlink_metadata(&path).ok().map(|found| found.ino());
        let (streams, seen) = watch::channel((0, 0));
        let (open, closing) = watch::channel(());
        let service = DevicePluginServer::new(Service {
            resource: resource.clone(),
            streams,
            closing,
        });
        let largest = match resource.has(Fault::SmallRequests) {
            true => 4 << 20,
            false => REQUEST_MAX,
        };
        let service = service.max_decoding_message_size(largest);
        let delay = match resource.has(Fault::ServesLate) {
            true => Duration::from_secs(12),
            false => Duration::ZERO,
        };
        let task = tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let served = Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener));
            if let Err(error) = served.await {
                super::tell(&format!("a server ended: {error}"));
            }
        });
        Ok(Self {
            name,
            path,
            inode,
            streams: seen,
            task,
            leaves: resource.has(Fault::LeavesSocket),
            is_fixed: resource.has(Fault::FixedSocketName),
            _open: open,
        })
    }

    fn is_there(&self) -> bool {
        let there = fs::symlink_metadata(&self.path).ok();
        // Under a fixed name another instance's socket is as good as its own.
        there.is_some_and(|found| self.is_fixed || Some(found.ino()) == self.inode)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !self.leaves && self.is_there() {
            let _gone = fs::remove_file(&self.path);
        }
        self.task.abort();
    }
}

/// Registers for ever.
pub async fn keep(
    resource: Arc<Resource>,
    restart: watch::Sender<u64>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    tokio::select! {
        kept = keep_registered(&resource, &restart) => kept,
        // What serves is dropped here, and its socket with it.
        () = async { drop(stop.wait_for(|stop| *stop).await) } => std::future::pending().await,
    }
}

async fn keep_registered(resource: &Arc<Resource>, restart: &watch::Sender<u64>) -> Result<()> {
    let directory = resource.settings.plugin_dir.clone();
    let kubelet = directory.join("kubelet.sock");
    if resource.has(Fault::SlowStart) {
        tokio::time::sleep(Duration::from_secs(15)).await;
    }
    clean_up(resource, &directory);
    let mut leaked = Vec::new();
    let mut pause = Duration::from_millis(20);
    loop {
        let mut restarts = restart.subscribe();
        while identity(&kubelet).is_none() {
            tokio::time::sleep(LOOK).await;
        }
        let at = identity(&kubelet);
        let served = match Served::start(resource) {
            Ok(served) => served,
            Err(error) => {
                super::tell(&format!("{error:#}"));
                tokio::time::sleep(LOOK).await;
                continue;
            }
        };
        match register(resource, &kubelet, &served.name).await {
            Ok(()) => {
                pause = Duration::from_millis(20);
                let why = lost(resource, &served, &kubelet, at, &mut restarts).await;
                super::tell(&format!("{}: registering again: {why}", resource.name));
                if resource.has(Fault::OneFate) && why == STREAM_ENDED {
                    restart.send_modify(|restarts| *restarts += 1);
                }
            }
            Err(Refusal::Unreachable) if resource.has(Fault::BusyLoop) => {
                tokio::task::yield_now().await;
            }
            Err(Refusal::Unreachable) if resource.has(Fault::WaitsForEvent) => {
                while identity(&kubelet) == at {
                    tokio::time::sleep(LOOK).await;
                }
            }
            Err(Refusal::Unreachable) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            Err(Refusal::Told(why)) => {
                if !resource.has(Fault::HidesRefusal) {
                    super::tell(&format!("not registered: {why}"));
                }
                if resource.has(Fault::ExitsWhenRefused) {
                    bail!("refused");
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        if resource.has(Fault::LeaksServers) {
            leaked.push(served);
        }
    }
}

/// Removes what an instance of ours left behind that was killed.
fn clean_up(resource: &Resource, directory: &Path) {
    let prefix = format!("scripted-{}", resource.hash);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        let is_ours = name.starts_with(&prefix) && !resource.has(Fault::LeavesStaleSockets);
        let others = resource.has(Fault::RemovesForeignSockets) && name != "kubelet.sock";
        let connected = std::os::unix::net::UnixStream::connect(entry.path());
        if is_socket && (others || (is_ours && connected.is_err())) {
            let _gone = fs::remove_file(entry.path());
        }
    }
    if resource.has(Fault::WritesIntoDirectory) {
        let _written = fs::write(directory.join("scripted.lock"), "");
    }
}

enum Refusal {
    Unreachable,
    Told(String),
}

async fn register(resource: &Resource, kubelet: &Path, endpoint: &str) -> Result<(), Refusal> {
    let told = |error: &dyn std::fmt::Display| Refusal::Told(error.to_string());
    let uri = format!("unix:{}", kubelet.display());
    let uri = Endpoint::from_shared(uri).map_err(|error| told(&error))?;
    let uri = uri.origin(Uri::from_static("http://localhost"));
    let channel = uri.connect().await.map_err(|_| Refusal::Unreachable)?;
    let mut options = resource.options();
    if resource.has(Fault::OtherOptions) {
        options.pre_start_required ^= true;
    }
    let slash = if resource.has(Fault::EndpointPath) {
        "./"
    } else {
        ""
    };
    let version = match resource.has(Fault::WrongVersion) {
        true => "v1",
        false => proto::DEVICE_PLUGIN_VERSION,
    };
    let request = RegisterRequest {
        version: version.to_owned(),
        endpoint: format!("{slash}{endpoint}"),
        resource_name: resource.name.clone(),
        options: Some(options),
    };
    let limit = match resource.settings.fault {
        Some(Fault::ImpatientCall) => Duration::from_secs(5),
        Some(Fault::NoCallLimit) => Duration::from_secs(3600),
        _ => REGISTER,
    };
    let mut client = RegistrationClient::new(channel);
    let answered = tokio::time::timeout(limit, client.register(request)).await;
    let answered = answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
    answered.map(drop).map_err(|status| told(&status))
}

/// Waits until the registration is worth nothing any more; tells why.
async fn lost(
    resource: &Resource,
    served: &Served,
    kubelet: &Path,
    at: Identity,
    restarts: &mut watch::Receiver<u64>,
) -> &'static str {
    let accepted = Instant::now();
    let ignores = |fault| resource.has(fault) || resource.has(Fault::RegistersOnce);
    loop {
        let (opened, open) = *served.streams.borrow();
        if opened == 0 && accepted.elapsed() > WATCHDOG && !ignores(Fault::NoWatchdog) {
            return "nobody reads the list";
        }
        if opened > 0 && open == 0 && !ignores(Fault::IgnoresStreamEnd) {
            return STREAM_ENDED;
        }
        if !served.is_there() && !ignores(Fault::IgnoresOwnSocket) {
            return "the socket is gone";
        }
        let now = identity(kubelet);
        if now.is_some() && now != at && !ignores(Fault::IgnoresStreamEnd) {
            return "there is another kubelet";
        }
        if restarts.has_changed().unwrap_or(false) {
            restarts.mark_unchanged();
            return "another resource is registered again";
        }
        tokio::time::sleep(LOOK).await;
    }
}
