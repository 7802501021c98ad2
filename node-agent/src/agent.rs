//! The whole agent: one task for each thing that goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use crds::{AgentConfig, Resource};
use daemon::{Logs, Readiness, Stop};
use node_agent_core::advertised::Sharing;
use node_agent_core::care::Care;
use node_agent_core::preferred::is_offered;
use node_agent_core::report::Identity;
use node_agent_core::resource_name;
use node_agent_core::role::InitialRole;
use node_agent_core::seen::Standing;
use node_agent_core::work::{Probes, Rules};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::actions::{Actions, Reading, init_hash};
use crate::allocations::{self, Held, PodResources, Polling};
use crate::board::Board;
use crate::cdi::CdiFile;
use crate::claim_table::{self, ClaimTable};
use crate::claims::SharedClaims;
use crate::comparer::{Comparer, SentLists};
use crate::devices::{Devices, Shared};
use crate::farewell::{self, Farewell, LastWord};
use crate::file_events::{self, FileEvents};
use crate::given::Given;
use crate::hook_record::HookRecord;
use crate::hooks::{Means, Tending};
use crate::host_dev::HostDev;
use crate::metrics::Metrics;
use crate::node_object::ObjectSeen;
use crate::observer;
use crate::plugin_directory::{self, View};
use crate::plugin_service::Answers;
use crate::registrar::Registrar;
use crate::reporter::Reporter;
use crate::resets::Resets;
use crate::roles::{Found, Keeper, Roles};
use crate::runner::Runner;
use crate::settings::{ApiAccess, Settings};
use crate::state_file::StateFile;
use crate::sysfs::Sysfs;
use crate::uevents::{self, Messages, Uevents};

/// Resets that may wait to be asked for. Whoever asks for more waits a little longer.
const RESETS_WAITING: usize = 64;

/// What an agent needs to run.
pub struct Agent {
    /// Places and times.
    pub settings: Settings,
    /// What to serve.
    pub config: AgentConfig,
    /// Who reports.
    pub identity: Identity,
    /// Name of the node.
    pub node: String,
    /// What the agent is where nothing on the node or in the cluster says otherwise.
    pub initial: InitialRole,
    /// How to reach the API server; nothing: there are no reports.
    pub api: Option<ApiAccess>,
    /// Where work is counted.
    pub metrics: Metrics,
    /// Set as resources come and go.
    pub readiness: Readiness,
    /// The process's logs.
    pub logs: Option<Logs>,
}

/// What all resources of the agent share.
struct Common {
    settings: Settings,
    config: AgentConfig,
    boot_id: String,
    host_dev: HostDev,
    sysfs: Sysfs,
    events: FileEvents,
    uevents: Uevents,
    claims: SharedClaims,
    view: watch::Receiver<View>,
    held: watch::Receiver<Held>,
    readings: watch::Receiver<u64>,
    allocated: Arc<Notify>,
    pod_resources: PodResources,
    state: Arc<StateFile>,
    roles: Roles,
    sent: Arc<watch::Sender<SentLists>>,
    board: Board,
    metrics: Metrics,
}

/// Serves until a stop is asked for; then closes everything.
///
/// # Errors
/// When the plugin directory was replaced, or a task ended that never should.
pub async fn run(agent: Agent, stop: Stop) -> Result<()> {
    let Agent {
        settings,
        config,
        identity,
        node,
        initial,
        api,
        metrics,
        readiness,
        logs,
    } = agent;
    let mut tasks = Tasks {
        set: JoinSet::new(),
        stop: stop.clone(),
    };
    let timing = settings.timing.clone();
    let (object, object_seen) = watch::channel(ObjectSeen::default());
    let given = Foundation {
        config: &config,
        boot_id: identity.boot_id.clone(),
        initial,
        object: object_seen,
        metrics: metrics.clone(),
    };
    let common = Common::new(settings, given, &mut tasks);
    let (last_word, last_report) = farewell::last_word();
    let farewell = common.farewell(&config, last_word);
    let roles = common.roles.clone();
    tasks.spawn("roles", without_error(roles.keep(farewell, stop.clone())));
    let seen = || common.board.subscribe();
    let observed = observer::observe(seen(), metrics, readiness, stop.clone());
    tasks.spawn("observer", without_error(observed));
    if let Some(access) = api {
        let reporter = Reporter {
            access,
            name: crds::names::node_object(&config.config, &node),
            config_uid: config.config_uid.clone(),
            object,
            identity,
            seen: seen(),
            last: Some(last_report),
            logs,
            timing,
        };
        tasks.spawn("reporter", without_error(reporter.keep(stop.clone())));
    }
    let mut displaced = BTreeMap::new();
    for resource in config.resources {
        if let Some(problem) = resource_name::problem(&resource.name) {
            tracing::error!(resource = resource.name, problem, "never registered");
            let refused = Standing::Refused(problem);
            common.board.standing(&resource.name, refused);
            continue;
        }
        let again = Arc::new(Notify::new());
        common.start(&resource, again.clone(), &mut tasks, &stop);
        displaced.insert(resource.name, again);
    }
    let comparer = common.comparer(displaced);
    tasks.spawn("comparer", without_error(comparer.keep(stop.clone())));
    tasks.until_stopped().await
}

/// What an agent was given that its parts share.
struct Foundation<'a> {
    config: &'a AgentConfig,
    boot_id: String,
    initial: InitialRole,
    object: watch::Receiver<ObjectSeen>,
    metrics: Metrics,
}

impl Common {
    /// Starts what all resources share.
    fn new(settings: Settings, given: Foundation<'_>, tasks: &mut Tasks) -> Self {
        let Foundation {
            config,
            boot_id,
            initial,
            object,
            metrics,
        } = given;
        let stop = tasks.stop.clone();
        let timing = &settings.timing;
        let names: BTreeSet<String> = config.resources.iter().map(|r| r.name.clone()).collect();
        let board = Board::new(names.iter().cloned());
        let events = opened_events(&settings, tasks);

        let (looks, view) = watch::channel(View::default());
        plugin_directory::look(&settings.plugin_dir, &looks, &board);
        let watched = plugin_directory::watch(
            settings.plugin_dir.clone(),
            events.subscribe(plugin_directory::is_interesting),
            timing.socket_poll,
            looks,
            board.clone(),
            stop.clone(),
        );
        tasks.spawn("plugin directory", async {
            watched.await.map_err(anyhow::Error::from)
        });

        let pod_resources =
            PodResources::new(&settings.pod_resources_dir, timing.pod_resources_call);
        let (reads, held) = watch::channel(Held::None);
        let (counted, readings) = watch::channel(0);
        let allocated = Arc::new(Notify::new());
        let (asked, soon) = (pod_resources.clone(), allocated.clone());
        let polling = Polling {
            pod_resources: asked,
            resources: names,
            held: reads,
            readings: counted,
            allocated: soon,
            board: board.clone(),
            timing: timing.clone(),
        };
        let polled = allocations::poll(polling, stop);
        tasks.spawn("allocations", without_error(polled));

        let state = Arc::new(StateFile::open(&settings.state_dir, config));
        let roles = Roles::new(Keeper {
            config: config.config.clone(),
            revision: config.revision.clone(),
            initial,
            lock_dir: settings.lock_dir.clone(),
            object,
            state: state.clone(),
            board: board.clone(),
            timing: timing.role,
            found: Found::default(),
        });
        let host_dev = HostDev::new(settings.host_dev_dir.clone());
        let (sysfs, udev) = (settings.sysfs_dir.clone(), settings.udev_dir.clone());
        let sysfs = Sysfs::new(sysfs, udev, host_dev.clone());
        let uevents = opened_uevents(&settings, tasks);
        let (lock_dir, name) = (settings.lock_dir.clone(), config.config.clone());
        let table = ClaimTable::new(lock_dir, name, claim_table::ENDED_GRACE);
        Self {
            settings,
            config: config.clone(),
            boot_id,
            host_dev,
            sysfs,
            events,
            uevents,
            claims: SharedClaims::new(table),
            view,
            held,
            readings,
            allocated,
            pod_resources,
            state,
            roles,
            sent: Arc::new(watch::Sender::new(SentLists::new())),
            board,
            metrics,
        }
    }

    /// What looks once more when the agent has stopped.
    fn farewell(&self, config: &AgentConfig, last_word: LastWord) -> Farewell {
        Farewell {
            resources: config.resources.iter().map(|r| r.name.clone()).collect(),
            plugin_dir: self.settings.plugin_dir.clone(),
            lock_dir: self.settings.lock_dir.clone(),
            pod_resources: self.pod_resources.clone(),
            board: self.board.clone(),
            drain: self.settings.timing.drain,
            reporter: last_word,
        }
    }

    /// What compares the kubelet's lists with those it was sent.
    fn comparer(&self, displaced: BTreeMap<String, Arc<Notify>>) -> Comparer {
        Comparer {
            displaced,
            sent: self.sent.subscribe(),
            pod_resources: self.pod_resources.clone(),
            plugin_dir: self.settings.plugin_dir.clone(),
            board: self.board.clone(),
            metrics: self.metrics.clone(),
            limits: self.settings.timing.comparison,
        }
    }

    /// Starts to look for the devices of a resource, and to register it.
    fn start(&self, resource: &Resource, displaced: Arc<Notify>, tasks: &mut Tasks, stop: &Stop) {
        let timing = &self.settings.timing;
        let look_again = Arc::new(Notify::new());
        let claims = self.claims.next(&resource.name, look_again.clone());
        let given = Given::new(timing.given);
        let (tending, resets) = self.tending(resource, &given);
        let shared = Shared {
            host_dev: self.host_dev.clone(),
            sysfs: self.sysfs.clone(),
            uevents: self.uevents.clone(),
            events: self.events.subscribe(|_| true),
            held: self.held.clone(),
            look_again: look_again.clone(),
            claims: claims.clone(),
            tending,
            board: self.board.clone(),
            between_looks: timing.between_looks,
            second: timing.second,
        };
        let devices = Devices::new(resource, shared);
        let cdi = CdiFile::new(&self.settings.cdi_dir, resource, self.board.clone());
        let answers = Answers {
            resource: resource.name.clone(),
            access: resource.container_access(),
            preference: is_offered(resource).then_some(resource.preferred_allocation),
            cdi: cdi.map(Arc::new),
            inventory: devices.subscribe(),
            host_dev: self.host_dev.clone(),
            look_again,
            claims,
            allocated: self.allocated.clone(),
            given,
            resets,
            sent: self.sent.clone(),
            metrics: self.metrics.clone(),
            between_messages: timing.between_messages,
        };
        let registrar = Registrar {
            answers,
            plugin_dir: self.settings.plugin_dir.clone(),
            view: self.view.clone(),
            lock_dir: self.settings.lock_dir.clone(),
            state: self.state.clone(),
            roles: self.roles.clone(),
            pod_resources: self.pod_resources.clone(),
            displaced,
            board: self.board.clone(),
            metrics: self.metrics.clone(),
            timing: timing.clone(),
        };
        tasks.spawn("devices", without_error(devices.keep(stop.clone())));
        tasks.spawn("registrar", without_error(registrar.keep(stop.clone())));
    }

    /// What looks after the devices of a resource, and how to have them reset.
    fn tending(&self, resource: &Resource, given: &Given) -> (Tending, Option<Resets>) {
        let Self {
            settings, config, ..
        } = self;
        let timing = &settings.timing;
        let hooks = config.hooks.clone().unwrap_or_default();
        let rules = Rules {
            probes: Probes::of(&resource.health_check()),
            init: init_hash(&hooks),
            reset: hooks.reset.is_some(),
            release: hooks.release.is_some(),
            boot_id: self.boot_id.clone(),
            pace: timing.hook_retry,
            reset_grace: timing.reset_grace,
        };
        let (requests, requested) = mpsc::channel(RESETS_WAITING);
        let resets = rules.reset.then(|| Resets {
            requests,
            given: given.clone(),
            limit: timing.prepare,
        });
        let actions = Actions {
            resource: resource.name.clone(),
            check: resource.health_check(),
            hooks,
            runner: Runner::new(settings.runner_socket.clone()),
            host_dev: self.host_dev.clone(),
            sysfs_dir: settings.sysfs_dir.clone(),
            second: timing.second,
            reading: Reading::default(),
        };
        let tending = Tending::new(Means {
            has_hooks: rules.has_hooks(),
            has_probes: rules.probes.is_some(),
            care: Care::new(rules),
            sharing: Sharing::new(resource),
            actions,
            given: given.clone(),
            record: HookRecord::new(&settings.state_dir, config, &resource.name),
            roles: self.roles.clone(),
            requests: requested,
            readings: self.readings.clone(),
            read_soon: self.allocated.clone(),
            sent: self.sent.subscribe(),
            plugin_dir: settings.plugin_dir.clone(),
            board: self.board.clone(),
            metrics: self.metrics.clone(),
        });
        (tending, resets)
    }
}

/// The kernel's file events, or none where the node has no instance left.
fn opened_events(settings: &Settings, tasks: &mut Tasks) -> FileEvents {
    if !settings.file_events {
        return FileEvents::none();
    }
    match FileEvents::open() {
        Ok((events, stream)) => {
            // Ends only where events cannot be read: polling goes on.
            tasks.set_aside(
                "file events",
                file_events::delivered(events.clone(), stream),
            );
            events
        }
        Err(error) => {
            tracing::warn!(%error, "no file events (fs.inotify.max_user_instances): polling instead");
            FileEvents::none()
        }
    }
}

/// The kernel's device events, or none where it does not tell them.
fn opened_uevents(settings: &Settings, tasks: &mut Tasks) -> Uevents {
    if !settings.device_events {
        return Uevents::none();
    }
    match Messages::open() {
        Ok(messages) => {
            let uevents = Uevents::new();
            tasks.set_aside(
                "device events",
                uevents::delivered(uevents.clone(), messages),
            );
            uevents
        }
        Err(error) => {
            tracing::warn!(%error, "no device events: polling instead");
            Uevents::none()
        }
    }
}

async fn without_error(task: impl Future<Output = ()>) -> Result<()> {
    task.await;
    Ok(())
}

/// The tasks of an agent. None ends before a stop is asked for.
struct Tasks {
    set: JoinSet<(&'static str, Result<()>)>,
    stop: Stop,
}

impl Tasks {
    fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Runs a task that may end whenever it likes.
    fn set_aside(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.spawn(name, async move {
            tokio::select! {
                () = stop.requested() => {}
                () = async { task.await; std::future::pending().await } => {}
            }
            Ok(())
        });
    }

    /// Waits for the stop, and then for every task. A task that fails stops the others: a restart
    /// begins with everything anew.
    async fn until_stopped(mut self) -> Result<()> {
        let mut failure = Ok(());
        while let Some(ended) = self.set.join_next().await {
            let failed = match ended {
                Ok((name, Ok(()))) if !self.stop.is_requested() => {
                    Err(anyhow!("task {name:?} ended by itself"))
                }
                Ok((_, ended)) => ended,
                Err(panicked) => Err(panicked).context("a task panicked"),
            };
            if failed.is_err() && failure.is_ok() {
                failure = failed;
            }
            if failure.is_err() {
                self.stop.request();
            }
        }
        failure
    }
}
