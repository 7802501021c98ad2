//! What is done before a container starts: a hook for each device.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use proto::podresources::ListPodResourcesRequest;
use proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tonic::Status;
use tonic::transport::{Endpoint, Uri};

use super::fault::Fault;
use super::service::Resource;

/// How long a hook may take: less than the kubelet waits.
const HOOK: Duration = Duration::from_secs(20);

/// How often it is read who holds what.
const READ: Duration = Duration::from_secs(1);

pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was prepared.
#[derive(Default)]
pub struct Preparations {
    done: Mutex<BTreeSet<String>>,
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// Runs the hook for each device. Whoever asks may go away meanwhile: a run is finished.
pub async fn prepare(resource: &Arc<Resource>, ids: &[String]) -> Result<(), Status> {
    for id in ids {
        if resource.has(Fault::PreparesAllocatedOnly) && !locked(&resource.allocated).contains(id) {
            return Err(Status::failed_precondition(format!(
                "{id:?} is not allocated"
            )));
        }
        let run = tokio::spawn(prepare_one(resource.clone(), id.clone()));
        let ran = run.await.unwrap_or_else(|error| Err(error.to_string()));
        if let Err(why) = ran
            && !resource.has(Fault::HidesHookFailure)
        {
            return Err(Status::internal(format!(
                "device {id:?} is not ready: {why}"
            )));
        }
    }
    Ok(())
}

async fn prepare_one(resource: Arc<Resource>, id: String) -> Result<(), String> {
    let turn = {
        let mut turns = locked(&resource.preparations.turns);
        turns.entry(id.clone()).or_default().clone()
    };
    let _turn = match resource.has(Fault::OverlappingHooks) {
        true => None,
        false => Some(turn.lock().await),
    };
    let is_new = locked(&resource.preparations.done).insert(id.clone());
    let skips = match resource.settings.fault {
        Some(Fault::NoHook) => true,
        Some(Fault::HookOnce) => !is_new,
        _ => false,
    };
    match &resource.settings.hook {
        Some(hook) if !skips => run(&resource, hook, &id).await,
        Some(_) | None => Ok(()),
    }
}

async fn run(resource: &Resource, hook: &std::path::Path, id: &str) -> Result<(), String> {
    let mut command = Command::new(hook);
    command
        .arg(id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command.spawn().map_err(|error| error.to_string())?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let group = pid.and_then(Pid::from_raw);
    let limit = match resource.has(Fault::NoHookLimit) {
        true => Duration::from_secs(3600),
        false => HOOK,
    };
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            if let Some(group) = group {
                let _ended = kill_process_group(group, Signal::KILL);
            }
            Err(format!("the hook took longer than {limit:?}"))
        }
    }
}

/// Tells of devices that containers hold without having been prepared.
pub async fn report(resource: Arc<Resource>) -> Result<()> {
    let mut told = BTreeSet::new();
    loop {
        for id in held(&resource).await.unwrap_or_default() {
            let is_given = locked(&resource.allocated).contains(&id);
            let is_prepared = locked(&resource.preparations.done).contains(&id);
            let is_amiss = resource.settings.hook.is_some() && is_given && !is_prepared;
            let says = is_amiss && !resource.has(Fault::HidesMissedHook);
            if says && told.insert(id.clone()) {
                super::tell(&format!("a container started with {id} without its reset"));
            }
        }
        tokio::time::sleep(READ).await;
    }
}

async fn held(resource: &Resource) -> Result<BTreeSet<String>> {
    let socket = resource.settings.pod_resources_dir.join("kubelet.sock");
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?
        .origin(Uri::from_static("http://localhost"));
    let mut client = PodResourcesListerClient::new(endpoint.connect().await?);
    let list = client.list(ListPodResourcesRequest {}).await?.into_inner();
    let containers = list
        .pod_resources
        .into_iter()
        .flat_map(|pod| pod.containers);
    let devices = containers.flat_map(|container| container.devices);
    let ours = devices.filter(|devices| devices.resource_name == resource.name);
    Ok(ours.flat_map(|devices| devices.device_ids).collect())
}
