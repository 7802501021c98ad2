//! What is measured, and how.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proto::v1beta1::device_plugin_client::DevicePluginClient;
use proto::v1beta1::{AllocateRequest, ContainerAllocateRequest};
use tonic::transport::Channel;

use super::cost;
use super::figures::Samples;
use super::kubelet::Event;
use super::subject::{Process, Scene, Subject};

/// Longer than any plugin polls; who needs more does not do it at all.
const DEADLINE: Duration = Duration::from_secs(12);

/// Devices of the common case.
const DEVICES: u32 = 8;

/// Devices of the large case.
const MANY: u32 = 10_000;

/// How often things are done in a round.
#[derive(Clone, Copy, Debug)]
pub struct Amounts {
    /// Starts of the process.
    pub starts: usize,
    /// `Allocate` calls one after the other, and as many by each of the callers at once.
    pub calls: usize,
    /// Devices taken away and given back.
    pub flaps: usize,
    /// Restarts of the kubelet.
    pub restarts: usize,
    /// How long the process is watched while nothing happens.
    pub idle: Duration,
}

/// Callers of `Allocate` at once.
const CALLERS: usize = 16;

/// What one subject was measured at, over all rounds.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// From the start of the process to its `Register`, in milliseconds.
    pub start: Samples,
    /// Resident memory at rest, in megabytes.
    pub resident: Samples,
    /// Memory of its own that it wrote to, in megabytes.
    pub dirty: Samples,
    /// Threads at rest.
    pub threads: Samples,
    /// Processor time at rest, in milliseconds per second.
    pub idle_cpu: Samples,
    /// How often it is woken at rest, per second.
    pub wakeups: Samples,
    /// One `Allocate`, in microseconds.
    pub allocate: Samples,
    /// Processor time of one `Allocate`, in microseconds.
    pub allocate_cpu: Samples,
    /// Calls per second with [`CALLERS`] callers.
    pub throughput: Samples,
    /// Processor time of one `Allocate` among those, in microseconds.
    pub crowded_cpu: Samples,
    /// From a device's end to the list that says so, in milliseconds.
    pub gone: Samples,
    /// From a device's return to the list that says so, in milliseconds.
    pub back: Samples,
    /// From the kubelet's socket to `Register`, in milliseconds.
    pub again: Samples,
    /// Registrations beyond one for each restart of the kubelet.
    pub surplus: Samples,
    /// Resident memory after the restarts, in megabytes.
    pub resident_later: Samples,
    /// Descriptors after the restarts beyond those before.
    pub descriptors_more: Samples,
    /// Threads after the restarts beyond those before.
    pub threads_more: Samples,
    /// Resident memory with [`MANY`] devices, in megabytes.
    pub resident_many: Samples,
    /// From the start of the process to the first list with [`MANY`] devices, in milliseconds.
    pub first_list_many: Samples,
    /// From a device's end to the list that says so with [`MANY`] devices, in milliseconds.
    pub gone_many: Samples,
}

impl Measured {
    /// Measures a subject once more.
    ///
    /// # Errors
    /// When it does not even register.
    pub async fn round(&mut self, subject: &Subject, amounts: Amounts) -> Result<()> {
        let mut scene = subject.scene(DEVICES).await?;
        for _ in 0..amounts.starts {
            scene.kubelet.restart()?;
            scene.kubelet.forget();
            let process = subject.start(&scene)?;
            let at = registered(&mut scene).await?;
            self.start.push_millis(at - process.started);
        }
        scene.kubelet.restart()?;
        scene.kubelet.forget();
        let process = subject.start(&scene)?;
        listed(&mut scene, DEVICES).await?;
        self.idle(&process, amounts.idle).await?;
        self.allocations(&scene, &process, amounts.calls).await?;
        self.flaps(&mut scene, amounts.flaps).await?;
        let restarts = amounts.restarts;
        self.restarts(&mut scene, &process, restarts).await?;
        drop(process);
        drop(scene);
        self.many(subject).await
    }

    async fn idle(&mut self, process: &Process, time: Duration) -> Result<()> {
        let pid = process.pid();
        // What a start leaves to be done later (reports, comparisons) is over by then.
        tokio::time::sleep(time).await;
        let before = cost::activity(pid)?;
        let begun = Instant::now();
        tokio::time::sleep(time).await;
        let after = cost::activity(pid)?;
        let seconds = begun.elapsed().as_secs_f64();
        let cpu = (after.cpu - before.cpu).as_secs_f64() * 1_000.0;
        self.idle_cpu.push(cpu / seconds);
        self.wakeups
            .push(count(after.sleeps - before.sleeps) / seconds);
        let memory = cost::memory(pid)?;
        self.resident.push(megabytes(memory.resident));
        self.dirty.push(megabytes(memory.private_dirty));
        self.threads.push(size(cost::threads(pid)?));
        Ok(())
    }

    async fn allocations(&mut self, scene: &Scene, process: &Process, calls: usize) -> Result<()> {
        let ids = scene.kubelet.ids();
        let id = ids.first().context("no device is healthy")?;
        let mut client = scene.kubelet.client().await?;
        let before = cost::activity(process.pid())?.cpu;
        for _ in 0..calls {
            let begun = Instant::now();
            client.allocate(request(id)).await?;
            self.allocate.push_micros(begun.elapsed());
        }
        let between = cost::activity(process.pid())?.cpu;
        let per_call = |cpu: Duration, calls: usize| cpu.as_secs_f64() * 1_000_000.0 / size(calls);
        self.allocate_cpu.push(per_call(between - before, calls));
        let begun = Instant::now();
        let callers = (0..CALLERS).map(|_| tokio::spawn(caller(client.clone(), id.clone(), calls)));
        for caller in callers.collect::<Vec<_>>() {
            caller.await??;
        }
        let (time, all) = (begun.elapsed(), calls * CALLERS);
        let after = cost::activity(process.pid())?.cpu;
        self.throughput.push(size(all) / time.as_secs_f64());
        self.crowded_cpu.push(per_call(after - between, all));
        Ok(())
    }

    /// Takes a device away and gives it back, as long as the plugin notices.
    async fn flaps(&mut self, scene: &mut Scene, flaps: usize) -> Result<()> {
        for _ in 0..flaps {
            settle().await;
            let begun = Instant::now();
            scene.unplug(0)?;
            let gone = listed(scene, DEVICES - 1).await;
            settle().await;
            let replugged = Instant::now();
            scene.plug(0)?;
            let Ok(gone) = gone else {
                return Ok(());
            };
            self.gone.push_millis(gone - begun);
            let back = listed(scene, DEVICES).await?;
            self.back.push_millis(back - replugged);
        }
        Ok(())
    }

    async fn restarts(
        &mut self,
        scene: &mut Scene,
        process: &Process,
        restarts: usize,
    ) -> Result<()> {
        let pid = process.pid();
        let (descriptors, threads) = (cost::descriptors(pid)?, cost::threads(pid)?);
        for _ in 0..restarts {
            scene.kubelet.forget();
            let bound = scene.kubelet.restart()?;
            // A plugin that does not come back is no less one that was measured.
            let Ok(at) = registered(scene).await else {
                return Ok(());
            };
            self.again.push_millis(at - bound);
            listed(scene, DEVICES).await?;
            self.surplus.push(size(scene.kubelet.forget()));
        }
        let memory = cost::memory(pid)?;
        self.resident_later.push(megabytes(memory.resident));
        self.descriptors_more
            .push(size(cost::descriptors(pid)?) - size(descriptors));
        self.threads_more
            .push(size(cost::threads(pid)?) - size(threads));
        Ok(())
    }

    async fn many(&mut self, subject: &Subject) -> Result<()> {
        let mut scene = subject.scene(MANY).await?;
        let process = subject.start(&scene)?;
        let Ok(at) = listed(&mut scene, MANY).await else {
            return Ok(());
        };
        self.first_list_many.push_millis(at - process.started);
        settle().await;
        let begun = Instant::now();
        scene.unplug(0)?;
        if let Ok(at) = listed(&mut scene, MANY - 1).await {
            self.gone_many.push_millis(at - begun);
        }
        self.resident_many
            .push(megabytes(cost::memory(process.pid())?.resident));
        Ok(())
    }
}

/// Plugins may hold back a second change for a while: half a second is as often as a kubelet wants to
/// hear of one.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(600)).await;
}

async fn registered(scene: &mut Scene) -> Result<Instant> {
    let is = |event: &Event| matches!(event, Event::Register);
    scene.kubelet.until("a registration", DEADLINE, is).await
}

async fn listed(scene: &mut Scene, devices: u32) -> Result<Instant> {
    let is =
        |event: &Event| matches!(event, Event::List { healthy } if *healthy == devices as usize);
    let what = format!("a list of {devices} healthy devices");
    scene.kubelet.until(&what, DEADLINE, is).await
}

async fn caller(mut client: DevicePluginClient<Channel>, id: String, calls: usize) -> Result<()> {
    for _ in 0..calls {
        client.allocate(request(&id)).await?;
    }
    Ok(())
}

fn request(id: &str) -> AllocateRequest {
    AllocateRequest {
        container_requests: vec![ContainerAllocateRequest {
            devices_ids: vec![id.to_owned()],
        }],
    }
}

fn megabytes(bytes: u64) -> f64 {
    count(bytes) / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}

fn size(number: usize) -> f64 {
    count(u64::try_from(number).unwrap_or(u64::MAX))
}
