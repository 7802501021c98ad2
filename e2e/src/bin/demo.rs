//! The main job of the product, shown on a real cluster of this machine: a chart installed by
//! helm, a config applied with kubectl, a pod that opens its device. Runs again where it left off.

#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "the result of a demonstration belongs on standard output"
)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::cluster::{Cluster, Options};
use e2e::images::SHELL_IMAGE;
use e2e::product::{self, NAMESPACE, RELEASE};
use e2e::progress::Progress;
use serde_json::{Value, json};

/// The pod that uses the device.
const POD: &str = "demo";
/// Where it runs.
const NODE: &str = "n1";
/// How long its start may take: an image that is on the node, and one Allocate.
const POD_DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks at the pod.
const PAUSE: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let begun = Instant::now();
    let progress = Progress::to_stderr();
    let steps = progress.steps(6);
    steps.step("a local Kubernetes of two nodes: kubelets 1.37 and 1.36");
    let cluster = Cluster::up(&Options::default(), &progress)?;
    steps.step("images of the operator and the agent, built and loaded on both nodes");
    product::load_images(&cluster, &progress)?;
    steps.step("helm install");
    product::install_chart(&cluster, &[])?;
    let deployment = format!("deployment/{RELEASE}");
    cluster.kubectl(&[
        "rollout",
        "status",
        "-n",
        NAMESPACE,
        &deployment,
        "--timeout=120s",
    ])?;
    steps.step("kubectl apply -f examples/fuse.yaml");
    let example = product::checkout().join("examples/fuse.yaml");
    let example = example
        .to_str()
        .context("the checkout's path is not UTF-8")?;
    cluster.kubectl(&["apply", "-f", example])?;
    steps.step("waiting until both nodes serve the device");
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "dpc/fuse",
        "--timeout=120s",
    ])?;
    steps.step(format_args!(
        "a pod on {NODE} that asks for the device and opens it"
    ));
    let opened = run_pod(&cluster)?;
    progress.note(format_args!(
        "done after {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    show(&cluster, &opened)
}

/// Starts the pod anew and returns what it printed.
fn run_pod(cluster: &Cluster) -> Result<String> {
    cluster.kubectl(&["delete", "pod", POD, "--ignore-not-found", "--wait"])?;
    let script = "ls -l /dev/fuse && exec 3<>/dev/fuse && echo 'opened /dev/fuse for reading and writing' && exec sleep 2147483647";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": NODE},
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": SHELL_IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", script],
                "resources": {"limits": {"example.com/fuse": "1"}},
            }],
        },
    });
    cluster.apply(&pod.to_string())?;
    let begun = Instant::now();
    loop {
        let logs = cluster.kubectl(&["logs", POD]).unwrap_or_default();
        if logs.contains("opened") {
            return Ok(logs);
        }
        let pod: Value =
            serde_json::from_str(&cluster.kubectl(&["get", "pod", POD, "-o", "json"])?)?;
        let status = pod.get("status").cloned().unwrap_or_default();
        if status.get("phase").and_then(Value::as_str) == Some("Failed")
            || begun.elapsed() > POD_DEADLINE
        {
            bail!("the pod did not open its device: it printed {logs:?}, its status is {status}");
        }
        std::thread::sleep(PAUSE);
    }
}

fn show(cluster: &Cluster, opened: &str) -> Result<()> {
    println!("\n$ kubectl logs {POD}\n{opened}");
    for arguments in [
        ["get", "devicepluginconfigs"].as_slice(),
        &["get", "dpn"],
        &["get", "pod", POD, "-o", "wide"],
    ] {
        println!(
            "$ kubectl {}\n{}",
            arguments.join(" "),
            cluster.kubectl(arguments)?
        );
    }
    println!("To look around:");
    println!(
        "  export KUBECONFIG={}",
        cluster.kubeconfig_path().display()
    );
    println!("  export PATH={}:$PATH", cluster.programs_path().display());
    println!("  kubectl describe dpc fuse");
    println!("  kubectl explain devicepluginconfigs.spec.resources.discovery");
    println!("  kubectl get pods -n {NAMESPACE} -o wide");
    println!("To end it and leave nothing behind:");
    println!("  cargo xtask cluster down");
    Ok(())
}
