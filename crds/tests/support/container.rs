//! The cases about what a container gets.

use serde_json::{Value, json};

use crate::{Refusal, refusal};

const PERMISSIONS: &str = "/spec/resources/0/container/permissions";
const PATH: &str = "/spec/resources/0/container/path";
const ENV: &str = "/spec/resources/0/container/env";
const CONTAINER: &str = "/spec/resources/0/container";
const MOUNTS: &str = "/spec/resources/0/container/mounts";
const ANNOTATIONS: &str = "/spec/resources/0/container/annotations";

/// What is refused.
pub fn refusals() -> Vec<Refusal> {
    let mut all = access_refusals();
    all.extend(mount_refusals());
    all.extend(annotation_refusals());
    all.extend(cdi_refusals());
    all
}

/// What is accepted, by its place.
pub fn accepted() -> Vec<(&'static str, Value)> {
    vec![
        (PERMISSIONS, json!("r")),
        (PERMISSIONS, json!("rwm")),
        (PATH, json!("")),
        (PATH, json!("/dev/cards/")),
        (ENV, env("$(DEVICE_IDS):$(DEVICE_PATHS)")),
        (ENV, env("cost: 5$, $$(HOME), $$$(DEVICE_IDS)$")),
        (ENV, env("")),
        (ENV, env("$(PCI_ADDRESSES)$(NUMA_NODES)")),
        (MOUNTS, mount("/run/.x/..y", "/a")),
        (ANNOTATIONS, annotation("mode")),
        (ANNOTATIONS, annotation("example.com/Mode.1_a")),
        (ANNOTATIONS, annotation("k8s.io.example.com/a")),
        (ANNOTATIONS, annotation("notk8s.io/a")),
        (CONTAINER, json!({"cdi": "Enabled"})),
        (CONTAINER, json!({"cdi": "Enabled", "path": "/dev/cards/"})),
        (CONTAINER, json!({"cdi": "Disabled", "path": "/dev/card"})),
    ]
}

fn env(value: &str) -> Value {
    json!([{"name": "A", "value": value}])
}

fn mount(host_path: &str, container_path: &str) -> Value {
    json!([{"hostPath": host_path, "containerPath": container_path}])
}

fn annotation(key: &str) -> Value {
    json!({key: "x"})
}

fn access_refusals() -> Vec<Refusal> {
    let permissions = "spec.resources[0].container.permissions";
    let path = "spec.resources[0].container.path";
    let value = "spec.resources[0].container.env[0].value";
    let unknown: &[&str] = &[
        "unknown expansion",
        "$(DEVICE_IDS), $(DEVICE_PATHS), $(PCI_ADDRESSES) and $(NUMA_NODES)",
        "$$(",
    ];
    vec![
        refusal(
            PERMISSIONS,
            json!("wr"),
            permissions,
            &["\"wr\"", "such as rw"],
        ),
        refusal(
            PERMISSIONS,
            json!("rr"),
            permissions,
            &["\"rr\"", "at most once"],
        ),
        refusal(
            PERMISSIONS,
            json!("x"),
            permissions,
            &["\"x\"", "any of r, w and m"],
        ),
        refusal(
            PATH,
            json!("dev/card"),
            path,
            &["\"dev/card\"", "absolute path", "/dev/cards/"],
        ),
        refusal(PATH, json!("/"), path, &["\"/\"", "absolute path"]),
        refusal(
            PATH,
            json!("/dev/../a"),
            path,
            &["\"/dev/../a\"", "segments . and .."],
        ),
        refusal(ENV, env("$(DEVICES)"), value, unknown),
        refusal(ENV, env("a$$$(HOME)"), value, unknown),
        refusal(ENV, env("$(NUMA_NODE)"), value, unknown),
    ]
}

fn mount_refusals() -> Vec<Refusal> {
    let host = "spec.resources[0].container.mounts[0].hostPath";
    let container = "spec.resources[0].container.mounts[0].containerPath";
    let refused = |path: &'static str, word: &'static [&'static str]| {
        [
            refusal(MOUNTS, mount(path, "/run/x"), host, word),
            refusal(MOUNTS, mount("/run/x", path), container, word),
        ]
    };
    [
        refused(
            "run/x",
            &["\"run/x\"", "absolute path", "such as /run/cards"],
        ),
        refused("/run/", &["\"/run/\"", "without a slash at its end"]),
        refused("//run", &["\"//run\"", "without empty segments"]),
        refused("/run/../etc", &["\"/run/../etc\"", ". and .."]),
        refused("/run/.", &["\"/run/.\"", ". and .."]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn annotation_refusals() -> Vec<Refusal> {
    let field = "spec.resources[0].container.annotations";
    let refused = |key: &str, words| refusal(ANNOTATIONS, annotation(key), field, words);
    let not_a_name: &[&str] = &["a name of 1 to 63 letters", "such as example.com/mode"];
    let reserved: &[&str] = &["must not be under k8s.io", "org.systemd."];
    vec![
        refused("", not_a_name),
        refused("a b", not_a_name),
        refused("Example.com/a", not_a_name),
        refused("a/b/c", not_a_name),
        refused("cdi.k8s.io/card", reserved),
        refused("kubernetes.io/a", reserved),
        refused("io.kubernetes.cri-o.Devices", reserved),
        refused("io.containerd.rdt", reserved),
        refused("org.systemd.property.DeviceAllow", reserved),
        refused("run.oci.hooks.stdout", reserved),
    ]
}

fn cdi_refusals() -> Vec<Refusal> {
    let words: &[&str] = &["\"/dev/card\"", "cdi Enabled", "such as /dev/cards/"];
    vec![refusal(
        CONTAINER,
        json!({"cdi": "Enabled", "path": "/dev/card"}),
        "spec.resources[0].container",
        words,
    )]
}
