//! One node for one check: directories, a kubelet, the plugin, and what is done to its devices.

mod world;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::driver::{Action, Driver};
use super::hook::Hook;
use super::process::PluginProcess;
use super::run::Options;
use super::verdict::{Verdict, demand, mismatch};
use crate::kubelet::{Client, FakeKubelet, Held, Knowledge, Model, PodResourcesServer};

/// How long a plugin may take to be served with its devices where that is not what is judged.
const READY: Duration = Duration::from_secs(10);

/// How long a plugin may take to end where that is not what is judged: what a pod is given.
const END: Duration = Duration::from_secs(30);

/// The node.
pub struct Rig {
    home: PathBuf,
    /// Its kubelet. It runs once a check says so.
    pub kubelet: FakeKubelet,
    /// What containers hold.
    pub pods: PodResourcesServer,
    /// Added to every limit: how late a busy machine may be.
    pub slack: Duration,
    /// How often its kubelet restarts in a storm.
    pub restarts: u32,
    /// What was left out, for whoever reads the result.
    pub notes: Vec<String>,
    driver: Driver,
    plugins: Vec<PluginProcess>,
    wrapper: Vec<String>,
    is_set_up: bool,
    starts: usize,
    hook: Option<Hook>,
    port: u16,
}

impl Rig {
    /// A node in an empty directory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn new(home: &Path, options: &Options, model: Model) -> Result<Self> {
        let made = std::fs::create_dir_all(home);
        made.with_context(|| format!("failed to make {home:?}"))?;
        let kubelet = FakeKubelet::stopped(&home.join("p"), model);
        let pods = PodResourcesServer::start(&home.join("r"), &kubelet)?;
        kubelet.make_directory()?;
        Ok(Self {
            home: home.to_owned(),
            kubelet,
            pods,
            slack: options.slack,
            restarts: options.restarts,
            notes: Vec::new(),
            driver: options.driver.clone(),
            plugins: Vec::new(),
            wrapper: Vec::new(),
            is_set_up: false,
            starts: 0,
            hook: None,
            port: free_port()?,
        })
    }

    /// The driver as it is in this check.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Fills in a placeholder from now on.
    pub fn place(&mut self, name: &str, value: impl Into<String>) {
        self.driver.places.insert(name.to_owned(), value.into());
    }

    /// What the plugin is started by, in place of the suite.
    pub fn wrap(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
    }

    /// The resource that is looked at.
    pub fn resource(&self) -> String {
        self.driver.resource.clone()
    }

    /// Another resource is served by what is started from now on.
    pub fn rename(&mut self, resource: &str) {
        resource.clone_into(&mut self.driver.resource);
        self.is_set_up = false;
    }

    /// The second resource of a plugin that serves two.
    pub fn second(&self) -> String {
        self.driver
            .places
            .get("second")
            .cloned()
            .unwrap_or_default()
    }

    /// The program that a plugin runs before a container starts.
    ///
    /// # Errors
    /// When the plugin was not started with one.
    pub fn hook(&self) -> Result<&Hook> {
        self.hook.as_ref().context("the check uses no hook")
    }

    /// Where things are.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// A limit of so many seconds, and what a busy machine needs.
    pub fn seconds(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) + self.slack
    }

    /// How long a change of a device may take to be told.
    pub fn detection(&self) -> Duration {
        self.seconds(self.driver.detection_seconds + 1)
    }

    /// A kubelet that runs, so many devices, the plugin, and its list at the kubelet.
    ///
    /// # Errors
    /// When the plugin does not come so far.
    pub async fn serve(&mut self, devices: usize) -> Verdict<Vec<String>> {
        self.plug(devices).await?;
        self.kubelet.run()?;
        self.start().await?;
        self.served(devices).await
    }

    /// Waits until the kubelet has at least so many healthy devices, and returns their ids.
    ///
    /// # Errors
    /// When that is not so in time.
    pub async fn served(&mut self, devices: usize) -> Verdict<Vec<String>> {
        let resource = self.resource();
        let expected = format!("{resource} is served with {devices} healthy devices");
        let limit = READY + self.slack;
        self.until(limit, &expected, |known| {
            let healthy = known.resources.get(&resource)?.healthy.clone();
            let ready = known.is_served_by_newest(&resource) && healthy.len() >= devices;
            ready.then(|| healthy.into_iter().collect())
        })
        .await
    }

    /// Adds a device and waits for what turns Healthy by that.
    ///
    /// # Errors
    /// When nothing does in time.
    pub async fn learn(&mut self, device: usize) -> Verdict<String> {
        let resource = self.resource();
        let before: BTreeSet<String> = self.healthy();
        self.act(Action::AddDevice, device).await?;
        let limit = READY + self.slack;
        let expected = format!("device number {device} is listed as Healthy once it appears");
        self.until(limit, &expected, |known| {
            let healthy = known.resources.get(&resource)?.healthy.clone();
            healthy.into_iter().find(|id| !before.contains(id))
        })
        .await
    }

    /// Ids that are Healthy in the last list.
    pub fn healthy(&self) -> BTreeSet<String> {
        let resource = self.resource();
        self.kubelet.look(|known| {
            let known = known.resources.get(&resource);
            known.map(|known| known.healthy.clone()).unwrap_or_default()
        })
    }

    /// Waits until something is known.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn until<T>(
        &mut self,
        limit: Duration,
        expected: &str,
        found: impl FnMut(&Knowledge) -> Option<T>,
    ) -> Verdict<T> {
        match self.kubelet.until(limit, found).await {
            Some(found) => Ok(found),
            None => {
                let expected = format!("{expected}, within {limit:?}");
                Err(mismatch(expected, self.seen()))
            }
        }
    }

    /// Waits until something is true that nobody announces.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn until_true(
        &mut self,
        limit: Duration,
        expected: &str,
        mut is: impl FnMut(&mut Self) -> bool,
    ) -> Verdict {
        let end = Instant::now() + limit;
        let mut turn = tokio::time::interval(Duration::from_millis(10));
        while !is(self) {
            if Instant::now() > end {
                let expected = format!("{expected}, within {limit:?}");
                return Err(mismatch(expected, self.seen()));
            }
            turn.tick().await;
        }
        Ok(())
    }

    /// Waits for the next registration of the resource after so many.
    ///
    /// # Errors
    /// When it does not come in time.
    pub async fn registered(&mut self, after: usize, limit: Duration) -> Verdict {
        let resource = self.resource();
        let expected = format!("a Register call for {resource}, after {after} of them");
        self.until(limit, &expected, |known| {
            (known.calls_of(&resource).len() > after).then_some(())
        })
        .await
    }

    /// How many `Register` calls there were for the resource.
    pub fn calls(&self) -> usize {
        let resource = self.resource();
        self.kubelet.look(|known| known.calls_of(&resource).len())
    }

    /// Lets time pass in which nothing should happen. Only where that silence is what is judged.
    pub async fn silence(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// The newest instance of the plugin.
    ///
    /// # Errors
    /// When none was started.
    pub fn plugin(&mut self) -> Result<&mut PluginProcess> {
        self.plugins.last_mut().context("no plugin was started")
    }

    /// An instance of the plugin, the first being 0.
    ///
    /// # Errors
    /// When it was not started.
    pub fn instance(&mut self, number: usize) -> Result<&mut PluginProcess> {
        let instance = self.plugins.get_mut(number);
        instance.with_context(|| format!("instance {number} was not started"))
    }

    /// Tells the newest instance to end, waits for that, and forgets it.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn end(&mut self) -> Verdict {
        let mut plugin = self.plugins.pop().context("no plugin runs")?;
        plugin.signal(Signal::TERM);
        if plugin.wait(END).await.is_none() {
            let expected = format!("the plugin ends within {END:?} of SIGTERM");
            return Err(mismatch(expected, plugin.shown()));
        }
        Ok(())
    }

    /// A client of the plugin that serves the resource.
    ///
    /// # Errors
    /// When nobody does.
    pub async fn client(&mut self) -> Verdict<Client> {
        let resource = self.resource();
        let client = self.kubelet.plugin(&resource).await;
        client.map_err(|error| {
            let expected = format!("a plugin answers at the socket registered for {resource}");
            mismatch(expected, format!("{error:#}"))
        })
    }

    /// Fails if a stream of the resource has ended, or none is open.
    ///
    /// # Errors
    /// Unless one stream was opened, and goes on.
    pub fn stream_goes_on(&mut self, meanwhile: &str) -> Verdict {
        let resource = self.resource();
        let goes_on = self.kubelet.look(|known| {
            let mut streams = known.streams.iter();
            let ended = streams.any(|one| one.resource == resource && one.ended.is_some());
            known.open_streams(&resource) == 1 && !ended
        });
        demand(
            goes_on,
            format!("the first stream goes on {meanwhile}"),
            self.seen(),
        )
    }

    /// Containers hold these devices of the resource from now on.
    pub fn hold(&self, ids: &[&str]) {
        let held = ids.iter().map(|id| Held {
            pod: "conformance".to_owned(),
            container: "container".to_owned(),
            resource: self.resource(),
            id: (*id).to_owned(),
        });
        self.pods.hold(held.collect());
    }

    /// What there is to see, for messages.
    pub fn seen(&mut self) -> String {
        let known = self.kubelet.look(shown);
        let plugins = self.plugins.iter_mut();
        let plugins: Vec<String> = plugins.map(PluginProcess::shown).collect();
        format!("{known}; plugin: {}", plugins.join("; plugin: "))
    }
}

/// A port that nobody listens at now, for what a plugin serves beside its socket.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("failed to find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// What a kubelet knows, in one line.
fn shown(known: &Knowledge) -> String {
    let mut parts = Vec::new();
    let calls = known.calls.len();
    let last = known.calls.last().map(|call| {
        let answer = match &call.answer {
            None => "not answered".to_owned(),
            Some((_, Ok(()))) => "accepted".to_owned(),
            Some((_, Err(why))) => format!("refused: {why}"),
        };
        let request = &call.request;
        format!(
            ", the last for {:?} at {:?} {answer}",
            request.resource_name, request.endpoint
        )
    });
    parts.push(format!(
        "{calls} Register calls{}",
        last.unwrap_or_default()
    ));
    if let Some(stream) = known.streams.last() {
        let state = match &stream.ended {
            None => "open".to_owned(),
            Some((_, why)) => format!("ended ({why})"),
        };
        parts.push(format!("{} streams, the last {state}", known.streams.len()));
    }
    for (name, resource) in &known.resources {
        let devices = resource.devices.iter().take(8);
        let devices: Vec<String> = devices
            .map(|(id, health)| format!("{id} {health}"))
            .collect();
        let (count, listed) = (resource.devices.len(), devices.join(", "));
        parts.push(format!("{name} has {count} devices [{listed}]"));
    }
    parts.join("; ")
}

impl Drop for Rig {
    fn drop(&mut self) {
        let runs = self.hook.as_ref().map(Hook::runs).unwrap_or_default();
        for run in runs.iter().filter(|run| run.ended.is_none()) {
            // Those are ours, wherever the plugin has put them.
            for pid in [Some(run.pid), run.child].into_iter().flatten() {
                if super::hook::is_ours(pid, &self.home)
                    && let Some(pid) = Pid::from_raw(pid)
                {
                    let _ended = kill_process(pid, Signal::KILL);
                }
            }
        }
    }
}
