//! What the stories do on a node beside the API: ask its kubelet, end a container's process, run a
//! program of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::node::Node;
use proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use proto::podresources::{AllocatableResourcesRequest, ListPodResourcesRequest};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tonic::transport::{Channel, Endpoint};

use crate::api::wait_until;

/// The healthy devices of a resource as the node's kubelet itself lists them.
pub fn allocatable_devices(node: &Node, resource: &str) -> Result<Vec<String>> {
    let listed = ask_kubelet(node, async |mut kubelet| {
        let request = AllocatableResourcesRequest {};
        Ok(kubelet.get_allocatable_resources(request).await?)
    })?;
    Ok(listed
        .into_inner()
        .devices
        .into_iter()
        .filter(|entry| entry.resource_name == resource)
        .flat_map(|entry| entry.device_ids)
        .collect())
}

/// The devices of a resource that each container of a pod holds, as the node's kubelet lists them.
pub fn held_devices(
    node: &Node,
    pod: &str,
    resource: &str,
) -> Result<BTreeMap<String, Vec<String>>> {
    let listed = ask_kubelet(node, async |mut kubelet| {
        Ok(kubelet.list(ListPodResourcesRequest {}).await?)
    })?;
    let pods = listed.into_inner().pod_resources.into_iter();
    let containers = pods
        .filter(|one| one.name == pod)
        .flat_map(|one| one.containers);
    Ok(containers
        .map(|container| {
            let entries = container.devices.into_iter();
            let of_resource = entries.filter(|entry| entry.resource_name == resource);
            let ids = of_resource.flat_map(|entry| entry.device_ids).collect();
            (container.name, ids)
        })
        .collect())
}

fn ask_kubelet<Answer>(
    node: &Node,
    question: impl AsyncFnOnce(PodResourcesListerClient<Channel>) -> Result<Answer>,
) -> Result<Answer> {
    let socket = node
        .directory()
        .join("var-lib/kubelet/pod-resources/kubelet.sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let channel = Endpoint::try_from(format!("unix:{}", socket.display()))?
            .timeout(Duration::from_secs(5))
            .connect()
            .await?;
        question(PodResourcesListerClient::new(channel)).await
    })
}

/// Does something to the images of a node.
pub fn image(node: &Node, words: &[&str]) -> Result<()> {
    let ctr = node.directory().join("bin/ctr").display().to_string();
    let mut command = vec![ctr.as_str(), "--namespace=k8s.io", "image"];
    command.extend(words);
    let said = node.run_in_namespace(&command)?;
    ensure!(
        said.success,
        "{words:?} on {}: {}",
        node.name(),
        said.stderr
    );
    Ok(())
}

/// A metric of a program, read in its pod's network; nothing that has been counted is 0.
pub fn metric(node: &Node, address: &str, name: &str) -> Result<f64> {
    let page = format!("http://{address}:8080/metrics");
    let said = node.run_in_namespace(&["busybox", "wget", "-q", "-O", "-", &page])?;
    ensure!(said.success, "{page}: {}", said.stderr);
    let mut lines = said.stdout.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(Ok(0.0), |value| {
        value.parse().with_context(|| format!("{name} {value:?}"))
    })
}

/// Kills a program that runs in a pod, as the kernel does when memory is short.
pub fn kill_in_pod(pod_uid: &str, program: &str) -> Result<()> {
    let pids = pids_in_pod(pod_uid, program)?;
    let [pid] = pids[..] else {
        bail!(
            "{} processes {program:?} ran in pod {pod_uid:?}",
            pids.len()
        );
    };
    Ok(kill_process(pid, Signal::KILL)?)
}

/// Processes of a program that run in a pod.
pub fn pids_in_pod(pod_uid: &str, program: &str) -> Result<Vec<Pid>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    let found = entries.filter_map(|entry| {
        let read =
            |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let in_pod = read("cgroup").contains(&format!("pod{pod_uid}"));
        let is_program = read("cmdline")
            .split('\0')
            .next()
            .is_some_and(|first| first.ends_with(program));
        pid_of(&entry.file_name().to_string_lossy()).filter(|_| in_pod && is_program)
    });
    Ok(found.collect())
}

/// A program that a story started on a node.
pub struct Running {
    pid: Pid,
}

/// Starts a program on a node.
pub fn start(node: &Node, words: &[&str], log: &Path) -> Result<Running> {
    let log = log.to_str().context("a path in UTF-8")?;
    let mut command = vec![
        "sh",
        "-c",
        r#"log=$1; shift; "$@" >"$log" 2>&1 & echo $!"#,
        "sh",
        log,
    ];
    command.extend(words);
    let said = node.run_in_namespace(&command)?;
    ensure!(said.success, "{}", said.stderr);
    let pid = pid_of(said.stdout.trim()).with_context(|| format!("no pid in {:?}", said.stdout))?;
    Ok(Running { pid })
}

impl Running {
    /// Ends the program and waits until it is gone.
    pub fn stop(&self) -> Result<()> {
        kill_process(self.pid, Signal::TERM)?;
        wait_until("the program's end", Duration::from_secs(10), || {
            Ok(test_kill_process(self.pid).is_err().then_some(()))
        })
    }
}

fn pid_of(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}
