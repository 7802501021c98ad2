//! The containers beside the agent's: the runner, in which hooks and probes open and write to
//! devices, the driver's, and the one that brings our program into their images. They are rendered
//! only where a config needs them, with no more rights than it needs; the agent's container has none
//! in every case.

use crds::DevicePluginConfigSpec;
use crds::health::HealthCheckType;
use crds::hooks::{Driver, Hook, HookType, Hooks};
use crds::names::paths;
use crds::placement::{AgentSettings, ImagePullPolicy};
use serde_json::{Value, json};

use super::pod::unprivileged;

/// Name of the runner's container.
pub const RUNNER_CONTAINER: &str = "runner";
/// Name of the driver's container.
pub const DRIVER_CONTAINER: &str = "driver";
/// Name of the container that brings our program.
const INSTALL_CONTAINER: &str = "install-runner";
/// Name of our program in the directory of the containers' own.
const PROGRAM: &str = "device-plugin-agent";

/// Memory limit of the runner's container. Our own processes need about a tenth; half would kill
/// vendors' tools that load firmware, double would let a hook that leaks hurt its node.
const MEMORY_LIMIT: &str = "256Mi";
/// Room for files of hooks, in memory and counted as theirs.
const TMP_LIMIT: &str = "32Mi";
/// Size of the directory that the runner shares with the agent.
const SOCKET_LIMIT: &str = "1Mi";

/// What a config's actions need.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Needs {
    /// A runner.
    runner: bool,
    /// To open device nodes of the host.
    devices: bool,
    /// To write to the devices' directories in sysfs.
    sysfs: bool,
    /// To write to the drivers' directories of the PCI bus.
    pci_bus: bool,
}

/// Whether a config's agents have a runner beside them.
pub fn needs_runner(spec: &DevicePluginConfigSpec) -> bool {
    needs(spec).runner
}

/// Whether the runner of a config is privileged: only then it may open devices.
pub fn needs_privilege(spec: &DevicePluginConfigSpec) -> bool {
    needs(spec).devices
}

fn needs(spec: &DevicePluginConfigSpec) -> Needs {
    let mut needs = Needs::default();
    for resource in &spec.resources {
        match resource.health_check().type_ {
            // An attribute is read by the agent itself.
            HealthCheckType::Exists | HealthCheckType::SysfsEquals => {}
            HealthCheckType::Exec => needs.runner = true,
            HealthCheckType::Open => {
                needs.runner = true;
                needs.devices = true;
            }
        }
    }
    let Some(hooks) = &spec.hooks else {
        return needs;
    };
    for hook in hooks_of(hooks) {
        needs.runner = true;
        match hook.type_ {
            HookType::Exec => {}
            HookType::PciReset | HookType::UsbReset | HookType::SysfsWrite => needs.sysfs = true,
            HookType::DriverBind => {
                needs.sysfs = true;
                needs.pci_bus = true;
            }
        }
    }
    needs.devices |= needs.runner && hooks.privileged;
    needs
}

fn hooks_of(hooks: &Hooks) -> impl Iterator<Item = &Hook> {
    let Hooks {
        tools_image: _,
        privileged: _,
        driver: _,
        init,
        reset,
        release,
    } = hooks;
    [init, reset, release].into_iter().flatten()
}

/// Adds what a config needs beside its agent to the agents' pod.
pub fn add(pod: &mut Value, spec: &DevicePluginConfigSpec, image: &str) {
    let needs = needs(spec);
    let driver = spec.hooks.as_ref().and_then(|hooks| hooks.driver.as_ref());
    let tools = spec
        .hooks
        .as_ref()
        .and_then(|hooks| hooks.tools_image.as_deref());
    let default = AgentSettings::default();
    let agent = spec.agent.as_ref().unwrap_or(&default);
    let policy = agent
        .image_pull_policy
        .unwrap_or(ImagePullPolicy::IfNotPresent)
        .as_str();
    let mut parts = Parts::default();
    // An image of ours has our program already.
    if driver.is_some() || (needs.runner && tools.is_some()) {
        parts.init.push(install(image));
        parts
            .volumes
            .push(json!({ "name": "program", "emptyDir": {} }));
    }
    if let Some(driver) = driver {
        parts
            .init
            .push(driver_container(driver, &mut parts.volumes));
    }
    if needs.runner {
        parts
            .containers
            .push(runner(tools, image, needs, &mut parts.volumes));
        parts.agent_mounts.push(
            json!({ "name": "runner", "mountPath": paths::RUNNER_SOCKET_DIR, "readOnly": true }),
        );
    }
    for container in parts.init.iter_mut().chain(&mut parts.containers) {
        super::set(container, "imagePullPolicy", json!(policy));
        super::set(
            container,
            "terminationMessagePolicy",
            json!("FallbackToLogsOnError"),
        );
    }
    parts.put_into(pod);
}

/// What is added.
#[derive(Default)]
struct Parts {
    init: Vec<Value>,
    containers: Vec<Value>,
    volumes: Vec<Value>,
    agent_mounts: Vec<Value>,
}

impl Parts {
    fn put_into(self, pod: &mut Value) {
        extend(pod, "/containers/0/volumeMounts", self.agent_mounts);
        extend(pod, "/containers", self.containers);
        extend(pod, "/volumes", self.volumes);
        if !self.init.is_empty() {
            super::set(pod, "initContainers", json!(self.init));
        }
    }
}

fn extend(pod: &mut Value, pointer: &str, more: Vec<Value>) {
    if let Some(list) = pod.pointer_mut(pointer).and_then(Value::as_array_mut) {
        list.extend(more);
    }
}

fn install(image: &str) -> Value {
    json!({
        "name": INSTALL_CONTAINER,
        "image": image,
        "args": ["install-runner"],
        "resources": small(None),
        "securityContext": unprivileged(),
        "terminationMessagePath": "/dev/termination-log",
        "volumeMounts": [{ "name": "program", "mountPath": paths::RUNNER_PROGRAM_DIR }],
    })
}

fn driver_container(driver: &Driver, volumes: &mut Vec<Value>) -> Value {
    let mut command = vec![
        program(),
        "run-driver".to_owned(),
        format!("--timeout-seconds={}", driver.timeout_seconds),
        "--".to_owned(),
    ];
    // The kubelet would replace `$(NAME)`, and make one dollar sign of two.
    command.extend(driver.command.iter().map(|word| word.replace('$', "$$")));
    let mut mounts = vec![program_mount()];
    if driver.privileged {
        let modules = json!({ "path": "/lib/modules", "type": "" });
        volumes.push(json!({ "name": "modules", "hostPath": modules }));
        mounts.push(json!({ "name": "modules", "mountPath": "/lib/modules", "readOnly": true }));
        mounts.push(json!({ "name": "dev", "mountPath": "/dev" }));
    }
    json!({
        "name": DRIVER_CONTAINER,
        "image": driver.image,
        "command": command,
        "resources": small(None),
        // Its image writes where it likes: it is gone when the agent starts.
        "securityContext": if driver.privileged {
            json!({ "runAsUser": 0, "runAsGroup": 0, "privileged": true })
        } else {
            without("readOnlyRootFilesystem", unprivileged())
        },
        "terminationMessagePath": termination(driver.privileged),
        "volumeMounts": mounts,
    })
}

fn runner(tools: Option<&str>, image: &str, needs: Needs, volumes: &mut Vec<Value>) -> Value {
    let memory = |limit: &str| json!({ "medium": "Memory", "sizeLimit": limit });
    // Room for a socket.
    volumes.push(json!({ "name": "runner", "emptyDir": memory(SOCKET_LIMIT) }));
    volumes.push(json!({ "name": "runner-tmp", "emptyDir": memory(TMP_LIMIT) }));
    // A privileged container has the devices of its start otherwise, and none that came later.
    let (dev, mount) = if needs.devices {
        let mount = json!({ "name": "dev", "mountPath": "/dev", "readOnly": false });
        ("/dev", mount)
    } else {
        (paths::HOST_DEV_DIR, super::pod::read_only_dev())
    };
    let mut mounts = vec![
        json!({ "name": "runner", "mountPath": paths::RUNNER_SOCKET_DIR }),
        json!({ "name": "runner-tmp", "mountPath": "/tmp" }),
        mount,
    ];
    // Only these: whoever may write to the rest of sysfs commands the kernel.
    for (wanted, volume, path) in [
        (needs.sysfs, "sys-devices", "/sys/devices"),
        (needs.pci_bus, "sys-bus-pci", "/sys/bus/pci"),
    ] {
        if wanted {
            let host = json!({ "path": path, "type": "Directory" });
            volumes.push(json!({ "name": volume, "hostPath": host }));
            mounts.push(json!({ "name": volume, "mountPath": path }));
        }
    }
    let mut security = if needs.devices {
        json!({ "runAsUser": 0, "runAsGroup": 0, "privileged": true, "readOnlyRootFilesystem": true })
    } else {
        unprivileged()
    };
    if needs.sysfs && !needs.devices {
        // The runtimes' default profile refuses every write below /sys, whatever is mounted there.
        super::set(
            &mut security,
            "appArmorProfile",
            json!({ "type": "Unconfined" }),
        );
    }
    let mut container = json!({
        "name": RUNNER_CONTAINER,
        "image": tools.unwrap_or(image),
        "args": ["run-hooks", format!("--host-dev-dir={dev}")],
        "resources": small(Some(MEMORY_LIMIT)),
        "securityContext": security,
        "terminationMessagePath": termination(needs.devices),
    });
    if tools.is_some() {
        super::set(&mut container, "command", json!([program()]));
        mounts.push(program_mount());
    }
    super::set(&mut container, "volumeMounts", json!(mounts));
    container
}

fn program() -> String {
    format!("{}/{PROGRAM}", paths::RUNNER_PROGRAM_DIR)
}

fn program_mount() -> Value {
    json!({ "name": "program", "mountPath": paths::RUNNER_PROGRAM_DIR, "readOnly": true })
}

/// Where a container may leave its last words. Where the host's `/dev` is in the place of its own,
/// the usual path would be made there, and stay.
fn termination(has_host_dev: bool) -> &'static str {
    if has_host_dev {
        "/tmp/termination-log"
    } else {
        "/dev/termination-log"
    }
}

/// Explicit zeros, as for the agent: nothing here may displace workloads.
fn small(memory: Option<&str>) -> Value {
    let mut resources = json!({ "requests": { "cpu": "0", "memory": "0" } });
    if let Some(memory) = memory {
        super::set(&mut resources, "limits", json!({ "memory": memory }));
    }
    resources
}

fn without(key: &str, mut object: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.remove(key);
    }
    object
}

#[cfg(test)]
mod tests;
