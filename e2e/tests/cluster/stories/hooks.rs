//! Hooks that are programs of a tools image, on devices that are none.

use anyhow::{Context, Result, ensure};
use e2e::images::SHELL_IMAGE;
use e2e::product::{NAMESPACE, RELEASE};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};

use super::faults::agent_on;
use super::handover::NODES;
use crate::api::wait_until;
use crate::on_node::metric;
use crate::scene::{PATIENCE, Scene};

const NAME: &str = "hooked";
const RESOURCE: &str = "example.com/hooked";
const DEVICES: [&str; 2] = ["hooked0", "hooked1"];
/// Numbers of `/dev/full`, which no other story has.
const FULL: (u32, u32) = (1, 7);

/// Notes the device in a file of the runner. The reset fails where a file says so, and hangs, forks
/// and floods for a device of which another says so.
const RESET: &str = "\
if test -e /tmp/broken; then echo broken by the story; exit 3; fi
if test -e /tmp/hang-$DEVICE_ID; then (setsid sleep 4321 &); yes flood; fi
echo $DEVICE_ID >> /tmp/reset";

fn config() -> String {
    let exec = |script: &str| json!({"type": "Exec", "command": ["/bin/sh", "-c", script]});
    let mut reset = exec(RESET);
    reset["timeoutSeconds"] = json!(3);
    json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": NAME},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
            "resources": [{
                "name": RESOURCE,
                "discovery": {"paths": {"globs": ["/dev/dpo-test/hooked*"]}},
            }],
            "hooks": {
                "toolsImage": SHELL_IMAGE,
                "init": exec("echo $DEVICE_ID >> /tmp/init"),
                "reset": reset,
                "release": exec("echo $DEVICE_ID >> /tmp/release"),
            },
        },
    })
    .to_string()
}

pub fn hooks_prepare_reset_and_release_devices(scene: &Scene) -> Result<()> {
    let list = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{RELEASE}-allowlist");
    let before: Value = scene.api.get(&list)?;
    let image = SHELL_IMAGE.split(':').next().unwrap_or(SHELL_IMAGE);
    scene
        .api
        .patch(&list, &json!({"data": {"images": image}}))?;
    for node in NODES {
        for device in DEVICES {
            scene.node(node)?.make_device(device, FULL.0, FULL.1)?;
        }
    }
    // The API server learns of the list within a moment.
    wait_until("an accepted config", PATIENCE, || {
        scene.apply(&config()).map(Some)
    })?;
    scene.wait_for_condition(NAME, "Ready", "True", "Complete")?;
    let runners = [
        Runner::find(scene, NODES[0])?,
        Runner::find(scene, NODES[1])?,
    ];
    every_start_of_a_container_is_reset(scene, &runners)?;
    let [runner, _] = runners;
    a_failed_reset_keeps_the_container_from_starting(scene, &runner)?;
    a_reset_that_hangs_harms_no_other_device(scene, &runner)?;

    ensure!(runner.lines("/tmp/init")?.len() == 2, "init ran again");
    scene.delete_config(NAME)?;
    for node in NODES {
        for device in DEVICES {
            scene.node(node)?.remove_device(device)?;
        }
    }
    scene.api.patch(
        &list,
        &json!({"data": {"images": before["data"]["images"]}}),
    )
}

fn every_start_of_a_container_is_reset(scene: &Scene, runners: &[Runner<'_>]) -> Result<()> {
    for runner in runners {
        scene.wait_for_allocatable(runner.node, RESOURCE, 2)?;
        runner.wait_for_lines("/tmp/init", 2)?;
        start(scene, &runner.user(), runner.node, "sleep 2")?;
    }
    for runner in runners {
        let restarts = wait_until("a container that was started again", PATIENCE, || {
            let status = container(scene, &runner.user())?.context("no container yet")?;
            Ok((status.restart_count >= 1).then_some(status.restart_count))
        })?;
        let resets = runner.wait_for_lines("/tmp/reset", usize::try_from(restarts)? + 1)?;
        let device = resets.first().context("a reset")?;
        ensure!(resets.iter().all(|one| one == device), "{resets:?}");
        let given = runner.allocations()?;
        ensure!(given == 1.0, "the kubelet called Allocate {given} times");
        scene.delete_pod(&runner.user())?;
    }
    for runner in runners {
        let device = runner.lines("/tmp/reset")?.into_iter().next();
        let released = runner.wait_for_lines("/tmp/release", 1)?;
        ensure!(
            released.first() == device.as_ref(),
            "{released:?} and not {device:?}"
        );
    }
    Ok(())
}

fn a_failed_reset_keeps_the_container_from_starting(
    scene: &Scene,
    runner: &Runner<'_>,
) -> Result<()> {
    runner.shell("touch /tmp/broken")?;
    start(scene, "hooked-b", runner.node, "sleep 1000")?;
    let told = wait_until("a container that is kept from starting", PATIENCE, || {
        let status = container(scene, "hooked-b")?.context("no container yet")?;
        let waiting = status.state.and_then(|state| state.waiting);
        let message = waiting.and_then(|waiting| waiting.message);
        Ok(message.filter(|message| message.contains("broken by the story")))
    })?;
    ensure!(told.contains("exit code 3"), "{told}");
    // Who looks at the node's object is told too.
    wait_until("the reason in the node's object", PATIENCE, || {
        let object = serde_json::to_string(&scene.node_object(NAME, "n1")?)?;
        ensure!(object.contains("broken by the story"), "{object}");
        Ok(Some(()))
    })?;
    runner.shell("rm /tmp/broken")?;
    scene.wait_for_running_pod("hooked-b")?;
    scene.delete_pod("hooked-b")
}

fn a_reset_that_hangs_harms_no_other_device(scene: &Scene, runner: &Runner<'_>) -> Result<()> {
    scene.wait_for_allocatable("n1", RESOURCE, 2)?;
    let devices = runner.lines("/tmp/init")?;
    let hanging = devices.first().context("a device")?;
    runner.shell(&format!("touch /tmp/hang-{hanging}"))?;
    let pods = ["hooked-c", "hooked-d"];
    for pod in pods {
        start(scene, pod, runner.node, "sleep 1000")?;
    }
    // One has the device that hangs, the other starts beside it.
    wait_until(
        "one that starts and one that is told why not",
        PATIENCE,
        || {
            let mut running = 0;
            let mut killed = 0;
            for pod in pods {
                let status = container(scene, pod)?.context("no container yet")?;
                let state = status.state.unwrap_or_default();
                running += u32::from(state.running.is_some());
                let message = state.waiting.and_then(|waiting| waiting.message);
                killed += u32::from(message.is_some_and(|text| text.contains("took too long")));
            }
            ensure!((running, killed) == (1, 1), "{running} run, {killed} hang");
            Ok(Some(()))
        },
    )?;
    runner.shell(&format!("rm /tmp/hang-{hanging}"))?;
    for pod in pods {
        scene.wait_for_running_pod(pod)?;
    }
    wait_until("the end of what hung", PATIENCE, || {
        let processes = runner.shell("ps")?;
        let left = processes
            .lines()
            .find(|line| line.contains("sleep 4321") || line.contains("yes flood"));
        ensure!(left.is_none(), "{left:?} is left");
        Ok(Some(()))
    })?;
    for pod in pods {
        scene.delete_pod(pod)?;
    }
    Ok(())
}

/// The runner's container on a node, seen from inside.
struct Runner<'a> {
    scene: &'a Scene,
    node: &'a str,
    pod: Pod,
}

impl<'a> Runner<'a> {
    fn find(scene: &'a Scene, node: &'a str) -> Result<Self> {
        let pod = agent_on(scene, NAME, node)?;
        Ok(Self { scene, node, pod })
    }

    /// A pod that uses a device beside it.
    fn user(&self) -> String {
        format!("hooked-{}", self.node)
    }

    /// How often the kubelet has asked the agent beside it for devices.
    fn allocations(&self) -> Result<f64> {
        let status = self.pod.status.as_ref();
        let address = status.and_then(|status| status.pod_ip.as_deref());
        let name = format!(
            "device_plugin_agent_allocations_total{{resource=\"{RESOURCE}\",result=\"given\"}}"
        );
        let node = self.scene.node(self.node)?;
        metric(node, address.context("the agent's address")?, &name)
    }

    fn shell(&self, script: &str) -> Result<String> {
        let pod = self.pod.metadata.name.as_deref().unwrap_or_default();
        let words = [
            "exec", "-n", NAMESPACE, pod, "-c", "runner", "--", "/bin/sh", "-c", script,
        ];
        self.scene.cluster.kubectl(&words)
    }

    fn lines(&self, file: &str) -> Result<Vec<String>> {
        let text = self.shell(&format!("cat {file} 2>/dev/null || true"))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn wait_for_lines(&self, file: &str, count: usize) -> Result<Vec<String>> {
        wait_until(&format!("{count} lines in {file:?}"), PATIENCE, || {
            let lines = self.lines(file)?;
            ensure!(lines.len() >= count, "{lines:?}");
            Ok(Some(lines))
        })
    }
}

/// Starts a pod with one device, whose container is started again whenever it ends.
fn start(scene: &Scene, name: &str, node: &str, script: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": SHELL_IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", script],
                "resources": {"limits": {RESOURCE: "1"}},
            }],
        },
    });
    scene.apply(&pod.to_string())
}

fn container(scene: &Scene, pod: &str) -> Result<Option<ContainerStatus>> {
    let pod = scene.api.pod(pod)?;
    let statuses = pod.status.and_then(|status| status.container_statuses);
    Ok(statuses.and_then(|statuses| statuses.into_iter().next()))
}
