//! What the stories do on a node beside the API: ask its kubelet, end a container's process, run a
//! program of their own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::node::Node;
use proto::podresources::AllocatableResourcesRequest;
use proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tonic::transport::Endpoint;

use crate::api::wait_until;

/// The healthy devices of a resource as the node's kubelet itself lists them.
pub fn allocatable_devices(node: &Node, resource: &str) -> Result<Vec<String>> {
    let socket = node
        .directory()
        .join("var-lib/kubelet/pod-resources/kubelet.sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listed = runtime.block_on(async {
        let channel = Endpoint::try_from(format!("unix:{}", socket.display()))?
            .timeout(Duration::from_secs(5))
            .connect()
            .await?;
        let mut lister = PodResourcesListerClient::new(channel);
        anyhow::Ok(
            lister
                .get_allocatable_resources(AllocatableResourcesRequest {})
                .await?
                .into_inner(),
        )
    })?;
    Ok(listed
        .devices
        .into_iter()
        .filter(|entry| entry.resource_name == resource)
        .flat_map(|entry| entry.device_ids)
        .collect())
}

/// Kills a program that runs in a pod, as the kernel does when memory is short.
pub fn kill_in_pod(pod_uid: &str, program: &str) -> Result<()> {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let read =
            |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let in_pod = read("cgroup").contains(&format!("pod{pod_uid}"));
        let is_program = read("cmdline")
            .split('\0')
            .next()
            .is_some_and(|first| first.ends_with(program));
        if let (true, true, Some(pid)) = (
            in_pod,
            is_program,
            pid_of(&entry.file_name().to_string_lossy()),
        ) {
            kill_process(pid, Signal::KILL)?;
            killed += 1;
        }
    }
    ensure!(
        killed == 1,
        "{killed} processes {program:?} ran in pod {pod_uid:?}"
    );
    Ok(())
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
