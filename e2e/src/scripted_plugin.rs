//! A device plugin that behaves, and can be told to misbehave in one way: what the conformance suite
//! is held against. Its devices are files, so that a shell makes them come, go and fail.
//!
//! It is written for the eye of the suite and not for a node: it polls everything.

mod cdi;
mod fault;
mod list;
mod preparation;
mod registration;
mod service;

pub use fault::{Fault, expected_failures};

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::service::Resource;
use crate::kubelet::is_extended_resource_name;

/// How a scripted plugin is started.
#[derive(Clone, Debug, Parser)]
pub struct Settings {
    /// The kubelet's plugin directory.
    #[arg(long)]
    pub plugin_dir: PathBuf,
    /// The directory of the kubelet's pod-resources socket.
    #[arg(long)]
    pub pod_resources_dir: PathBuf,
    /// A resource and the directory of its devices: one file each, whose first word is the device's
    /// health, and whose second, if any, its NUMA nodes, with commas between.
    #[arg(long, value_name = "NAME=DIRECTORY")]
    pub resource: Vec<String>,
    /// Has so many devices more, which are no files.
    #[arg(long, default_value_t = 0)]
    pub count: usize,
    /// Offers preferred allocation.
    #[arg(long)]
    pub prefer: bool,
    /// Run for each device before a container starts, with the id as its argument.
    #[arg(long)]
    pub hook: Option<PathBuf>,
    /// Where CDI specs are written; then answers name them.
    #[arg(long)]
    pub cdi_dir: Option<PathBuf>,
    /// How it misbehaves.
    #[arg(long)]
    pub fault: Option<Fault>,
}

impl Settings {
    /// Whether it misbehaves like this.
    pub fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

/// Serves until SIGTERM.
///
/// # Errors
/// When it is started wrongly, or cannot be.
pub async fn serve(settings: Settings) -> Result<()> {
    let settings = Arc::new(settings);
    if settings.has(Fault::NeedsInotify) {
        let flags = rustix::fs::inotify::CreateFlags::CLOEXEC;
        let made = rustix::fs::inotify::init(flags);
        drop(made.context("failed to make an inotify instance")?);
    }
    if settings.has(Fault::NeedsKubelet) && !settings.plugin_dir.join("kubelet.sock").exists() {
        bail!("there is no kubelet");
    }
    let (stopping, stop) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut restart = None;
    for pair in &settings.resource {
        let (name, directory) = pair
            .split_once('=')
            .with_context(|| format!("{pair:?} is not of the form NAME=DIRECTORY"))?;
        if !is_extended_resource_name(name) && !settings.has(Fault::TakesAnyName) {
            bail!("{name:?} is not the name of an extended resource");
        }
        let resource = Resource::new(settings.clone(), name, directory.into());
        let restart = restart.get_or_insert_with(|| watch::Sender::new(0)).clone();
        tasks.spawn(list::keep(resource.clone()));
        tasks.spawn(preparation::report(resource.clone()));
        tasks.spawn(registration::keep(resource, restart, stop.clone()));
    }
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminated.recv() => {}
        Some(ended) = tasks.join_next() => {
            ended.context("a task panicked")??;
            bail!("a task ended");
        }
    }
    if settings.has(Fault::IgnoresSigterm) {
        std::future::pending::<()>().await;
    }
    stopping.send_replace(true);
    // Those that serve end by themselves; the others with the process.
    tokio::time::sleep(registration::LAST).await;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the suite reads what a plugin prints")]
fn tell(text: &str) {
    eprintln!("{text}");
}
