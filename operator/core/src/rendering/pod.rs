//! The pod of a revision's agents.

use crds::DevicePluginConfig;
use crds::container::Cdi;
use crds::names::{CONFIG_LABEL, HTTP_PORT, REVISION_LABEL, agent_env, paths, revision_object};
use crds::placement::{AgentSettings, ImagePullPolicy, Toleration};
use serde_json::{Value, json};

use super::{AGENT_CONTAINER, set};
use crate::revision::{Amounts, DEFAULT_PRIORITY_CLASS, amounts};
use crate::selection::OWN_TOLERATIONS;
use crate::settings::Settings;

/// The template, without what runs beside the agent.
pub fn template(
    config: &DevicePluginConfig,
    revision: &str,
    image: &str,
    settings: &Settings,
) -> Value {
    let name = config.metadata.name.as_deref().unwrap_or_default();
    let default = AgentSettings::default();
    let agent = config.spec.agent.as_ref().unwrap_or(&default);
    let mut spec = json!({
        "serviceAccountName": settings.agent_service_account,
        "priorityClassName": agent.priority_class_name.as_deref().unwrap_or(DEFAULT_PRIORITY_CLASS),
        // An agent has nothing to finish: it closes its sockets and leaves within a second. Three
        // times the kubelet's default would hold up a node drain, a third could cut off a write.
        "terminationGracePeriodSeconds": 10,
        "enableServiceLinks": false,
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "tolerations": tolerations(&agent.tolerations),
        "containers": [container(name, revision, image, agent)],
        "volumes": volumes(name, revision, settings),
    });
    if reads_udev(config) {
        // Made where no udev runs: the agent then finds what the kernel itself tells.
        let mount = json!({ "name": "udev", "mountPath": paths::UDEV_DIR, "readOnly": true });
        add_directory(&mut spec, "udev", paths::UDEV_DIR, mount);
    }
    if uses_cdi(config) {
        // Nobody else's agent sees the directory.
        let mount = json!({ "name": "cdi", "mountPath": paths::CDI_DIR });
        add_directory(&mut spec, "cdi", paths::CDI_DIR, mount);
    }
    if !agent.image_pull_secrets.is_empty() {
        set(
            &mut spec,
            "imagePullSecrets",
            json!(agent.image_pull_secrets),
        );
    }
    json!({
        "metadata": {
            "labels": {
                CONFIG_LABEL: name,
                REVISION_LABEL: revision,
                "app.kubernetes.io/name": "device-plugin-agent",
                "app.kubernetes.io/managed-by": crds::names::OPERATOR_FIELD_MANAGER,
            },
            "annotations": { "kubectl.kubernetes.io/default-container": AGENT_CONTAINER },
        },
        "spec": spec,
    })
}

fn container(name: &str, revision: &str, image: &str, agent: &AgentSettings) -> Value {
    let policy = agent
        .image_pull_policy
        .unwrap_or(ImagePullPolicy::IfNotPresent);
    json!({
        "name": AGENT_CONTAINER,
        "image": image,
        "imagePullPolicy": policy.as_str(),
        "env": [
            { "name": agent_env::CONFIG, "value": name },
            { "name": agent_env::REVISION, "value": revision },
            { "name": agent_env::NODE_NAME, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "spec.nodeName" } } },
            { "name": agent_env::POD_UID, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.uid" } } },
        ],
        "ports": [{ "name": "http", "containerPort": HTTP_PORT, "protocol": "TCP" }],
        "resources": compute(&amounts(agent.resources.as_ref())),
        "securityContext": unprivileged(),
        // Served within a second of the kubelet's list being read: `Ready` follows readiness.
        "readinessProbe": { "httpGet": { "path": "/readyz", "port": "http", "scheme": "HTTP" }, "periodSeconds": 2, "timeoutSeconds": 2, "successThreshold": 1, "failureThreshold": 1 },
        // Half a minute of silence is a hang; a busy node delays an answer by seconds.
        "livenessProbe": { "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" }, "periodSeconds": 10, "timeoutSeconds": 5, "successThreshold": 1, "failureThreshold": 3 },
        "terminationMessagePath": "/dev/termination-log",
        // The last lines of a log tell users more than an exit code.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            { "name": "config", "mountPath": paths::AGENT_CONFIG_DIR, "readOnly": true },
            read_only_dev(),
            { "name": "device-plugins", "mountPath": paths::DEVICE_PLUGIN_DIR },
            { "name": "pod-resources", "mountPath": paths::POD_RESOURCES_DIR, "readOnly": true },
            { "name": "locks", "mountPath": paths::LOCK_DIR },
            { "name": "state", "mountPath": paths::STATE_DIR },
        ],
    })
}

/// The host's `/dev`, and what is mounted below it, such as `/dev/shm`, which everybody may write to.
pub fn read_only_dev() -> Value {
    json!({
        "name": "dev", "mountPath": paths::HOST_DEV_DIR,
        "readOnly": true, "recursiveReadOnly": "IfPossible",
    })
}

/// The rights of a container that is not privileged: the plugin directory and what hooks work on are
/// root's and closed to others, and nothing more is needed.
pub fn unprivileged() -> Value {
    json!({
        "runAsUser": 0,
        "runAsGroup": 0,
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    })
}

fn compute(amounts: &Amounts) -> Value {
    // Explicit zeros: limits alone would become requests, and an agent that asks for room could
    // displace workloads.
    let mut compute = json!({
        "requests": { "cpu": amounts.request_cpu, "memory": amounts.request_memory },
    });
    let mut limits = json!({});
    if let Some(cpu) = &amounts.limit_cpu {
        set(&mut limits, "cpu", json!(cpu));
    }
    if let Some(memory) = &amounts.limit_memory {
        set(&mut limits, "memory", json!(memory));
    }
    if limits.as_object().is_some_and(|limits| !limits.is_empty()) {
        set(&mut compute, "limits", limits);
    }
    compute
}

fn tolerations(own: &[Toleration]) -> Value {
    let ours = OWN_TOLERATIONS.iter().map(|(key, effect)| match effect {
        Some(effect) => json!({ "key": key, "operator": "Exists", "effect": effect }),
        None => json!({ "key": key, "operator": "Exists" }),
    });
    ours.chain(own.iter().map(|one| json!(one))).collect()
}

/// Whether a resource is found by what only udev's database has; sysfs is in every container.
fn reads_udev(config: &DevicePluginConfig) -> bool {
    let mut resources = config.spec.resources.iter();
    resources.any(|resource| {
        let udev = resource.discovery.udev.as_ref();
        udev.is_some_and(|udev| !udev.properties.is_empty())
    })
}

/// Adds a directory of the host to the pod and the agent.
fn add_directory(spec: &mut Value, name: &str, path: &str, mount: Value) {
    let host = json!({ "path": path, "type": "DirectoryOrCreate" });
    let volume = json!({ "name": name, "hostPath": host });
    if let Some(Value::Array(mounts)) = spec.pointer_mut("/containers/0/volumeMounts") {
        mounts.push(mount);
    }
    if let Some(Value::Array(volumes)) = spec.pointer_mut("/volumes") {
        volumes.push(volume);
    }
}

fn volumes(name: &str, revision: &str, settings: &Settings) -> Value {
    let host = |volume: &str, path: &str, kind: &str| json!({ "name": volume, "hostPath": { "path": path, "type": kind } });
    json!([
        { "name": "config", "configMap": { "name": revision_object(name, revision), "defaultMode": 0o444 } },
        host("dev", "/dev", "Directory"),
        // Made where they are missing, so that the agent starts and can tell what is wrong with the
        // kubelet; a mount error would be an event on a pod that nobody looks at.
        host("device-plugins", &settings.device_plugin_dir, "DirectoryOrCreate"),
        host("pod-resources", &settings.pod_resources_dir(), "DirectoryOrCreate"),
        host("locks", paths::LOCK_DIR, "DirectoryOrCreate"),
        host("state", paths::STATE_DIR, "DirectoryOrCreate"),
    ])
}

fn uses_cdi(config: &DevicePluginConfig) -> bool {
    let access = |resource: &crds::Resource| resource.container_access().cdi;
    let mut resources = config.spec.resources.iter();
    resources.any(|resource| access(resource) == Cdi::Enabled)
}
