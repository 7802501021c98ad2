use crds::DevicePluginConfig;

use super::*;
use crate::rendering::{AGENT_CONTAINER, content, tests::settings};

/// The spec of the pod of a config with these hooks, and a further member.
fn pod(hooks: &str, more: &str) -> Value {
    pod_of(&format!(
        "resources: [{{name: example.com/a, discovery: {{simulated: {{count: 1}}}}}}]\n\
         hooks: {{{hooks}}}\n{more}"
    ))
}

fn pod_of(spec: &str) -> Value {
    let mut config = DevicePluginConfig::new("a", serde_yaml::from_str(spec).unwrap());
    config.metadata.uid = Some("u".to_owned());
    let content = content(&config, "0123456789", "agent:1", &settings());
    content.template.get("spec").unwrap().clone()
}

fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let lists = ["initContainers", "containers"].map(|list| pod[list].as_array());
    let mut all = lists.into_iter().flatten().flatten();
    all.find(|one| one["name"] == name)
}

fn names(pod: &Value) -> Vec<&str> {
    let lists = ["initContainers", "containers"].map(|list| pod[list].as_array());
    let all = lists.into_iter().flatten().flatten();
    all.map(|one| one["name"].as_str().unwrap()).collect()
}

/// Paths that a container may write to.
fn writable(container: &Value) -> Vec<&str> {
    let mounts = container["volumeMounts"].as_array().unwrap();
    let writable = mounts.iter().filter(|mount| mount["readOnly"] != true);
    writable
        .map(|mount| mount["mountPath"].as_str().unwrap())
        .collect()
}

const HOOKS: &[&str] = &[
    "{type: Exec, command: [/a]}",
    "{type: PciReset}",
    "{type: UsbReset}",
    "{type: SysfsWrite, path: a, value: b}",
    "{type: DriverBind, driver: vfio-pci}",
];

/// Every kind of hook in every place, alone and with everything else, and nothing at all.
fn every_configuration() -> Vec<String> {
    let mut all = vec![String::new()];
    for hook in HOOKS {
        for place in ["init", "reset", "release"] {
            all.push(format!("{place}: {hook}"));
        }
    }
    for rest in [
        "toolsImage: tools",
        "privileged: true",
        "driver: {image: d, command: [/d]}",
        "driver: {image: d, command: [/d], privileged: true}",
    ] {
        let more: Vec<_> = all.iter().map(|one| format!("{rest}, {one}")).collect();
        all.extend(more);
    }
    all.retain(|one| one.matches("driver: {image").count() < 2);
    all
}

#[test]
fn the_agent_is_unprivileged_in_every_configuration() {
    let plain = pod("", "");
    let mut agent = container(&plain, AGENT_CONTAINER).unwrap().clone();
    assert_eq!(names(&plain), ["agent"]);
    let configurations = every_configuration();
    assert!(configurations.len() > 150, "{}", configurations.len());
    for hooks in configurations {
        let pod = pod(&hooks, "");
        for shared in ["hostNetwork", "hostPID", "hostIPC", "hostUsers"] {
            assert_eq!(pod.get(shared), None, "{hooks}");
        }
        let here = container(&pod, AGENT_CONTAINER).unwrap();
        let mut mounts = plain["containers"][0]["volumeMounts"].clone();
        if container(&pod, RUNNER_CONTAINER).is_some() {
            let socket = json!({ "name": "runner", "mountPath": paths::RUNNER_SOCKET_DIR, "readOnly": true });
            mounts.as_array_mut().unwrap().push(socket);
        }
        // Nothing else of it depends on hooks.
        agent["volumeMounts"] = mounts;
        assert_eq!(*here, agent, "{hooks}");
        for name in names(&pod) {
            let one = container(&pod, name).unwrap();
            let privileged = one["securityContext"]["privileged"] == true;
            let may_be = match name {
                RUNNER_CONTAINER => {
                    hooks.starts_with("privileged") || hooks.contains(", privileged: true, ")
                }
                DRIVER_CONTAINER => hooks.contains("command: [/d], privileged: true}"),
                _ => false,
            };
            assert!(!privileged || may_be, "{name} with {hooks}");
            if !privileged {
                let security = &one["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false, "{hooks}");
                assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
            }
        }
    }
}

#[test]
fn a_runner_has_what_its_hooks_need() {
    let own = [paths::RUNNER_SOCKET_DIR, "/tmp"];
    for (hooks, more) in [
        ("toolsImage: t, reset: {type: Exec, command: [/a]}", &[][..]),
        ("reset: {type: PciReset}", &["/sys/devices"]),
        ("init: {type: UsbReset}", &["/sys/devices"]),
        (
            "release: {type: SysfsWrite, path: a, value: b}",
            &["/sys/devices"],
        ),
        (
            "init: {type: DriverBind, driver: d}",
            &["/sys/devices", "/sys/bus/pci"],
        ),
        (
            "privileged: true, reset: {type: UsbReset}",
            &["/dev", "/sys/devices"],
        ),
    ] {
        let pod = pod(hooks, "");
        let runner = container(&pod, RUNNER_CONTAINER).unwrap();
        assert_eq!(writable(runner), [&own[..], more].concat(), "{hooks}");
        let unconfined = runner["securityContext"]["appArmorProfile"]["type"] == "Unconfined";
        assert_eq!(
            unconfined,
            more == ["/sys/devices"] || more.len() == 2 && more[0] != "/dev"
        );
        let dev = if hooks.starts_with("privileged") {
            "/dev"
        } else {
            "/host/dev"
        };
        assert_eq!(
            runner["args"],
            json!(["run-hooks", format!("--host-dev-dir={dev}")])
        );
        // The host's /dev in the place of a container's own has no file of ours.
        let last_words = runner["terminationMessagePath"].as_str().unwrap();
        assert_eq!(last_words.starts_with("/dev"), dev != "/dev", "{hooks}");
    }
}

#[test]
fn containers_are_there_only_where_they_are_needed() {
    for (hooks, expected) in [
        ("toolsImage: t, privileged: true", &["agent"][..]),
        ("reset: {type: PciReset}", &["agent", "runner"]),
        (
            "toolsImage: t, reset: {type: PciReset}",
            &["install-runner", "agent", "runner"],
        ),
        (
            "driver: {image: d, command: [/d]}",
            &["install-runner", "driver", "agent"],
        ),
    ] {
        assert_eq!(names(&pod(hooks, "")), expected, "{hooks}");
    }
    for (check, expected) in [
        ("{type: Exists}", &["agent"][..]),
        ("{type: SysfsEquals, attribute: a, values: [b]}", &["agent"]),
        (
            "{type: Exec, command: [/a]}",
            &["install-runner", "agent", "runner"],
        ),
        ("{type: Open}", &["install-runner", "agent", "runner"]),
    ] {
        let more = format!(
            "resources: [{{name: example.com/a, discovery: {{simulated: {{count: 1}}}}, healthCheck: {check}}}]"
        );
        let pod = pod_of(&format!("{more}\nhooks: {{toolsImage: t}}"));
        assert_eq!(names(&pod), expected, "{check}");
        let runner = container(&pod, RUNNER_CONTAINER);
        let privileged = runner.is_some_and(|one| one["securityContext"]["privileged"] == true);
        assert_eq!(privileged, check.contains("Open"), "{check}");
        let agent = container(&pod, AGENT_CONTAINER).unwrap();
        assert_eq!(agent["securityContext"]["privileged"], false);
    }
    let spec = |text: &str| serde_yaml::from_str::<DevicePluginConfigSpec>(text).unwrap();
    let plain = "resources: []";
    assert!(!needs_runner(&spec(plain)) && !needs_privilege(&spec(plain)));
    let tools = format!("{plain}\nhooks: {{privileged: true, toolsImage: t}}");
    assert!(!needs_runner(&spec(&tools)) && !needs_privilege(&spec(&tools)));
    let open = format!("{plain}\nhooks: {{privileged: true, init: {{type: PciReset}}}}");
    assert!(needs_runner(&spec(&open)) && needs_privilege(&spec(&open)));
}

#[test]
fn programs_of_other_images_run_below_ours() {
    let pod = pod(
        "toolsImage: tools:2, init: {type: Exec, command: [/a]}, driver: {image: driver:3, \
         command: [/install, $(HOME), $$], timeoutSeconds: 7, privileged: true}",
        "agent: {imagePullPolicy: Always}",
    );
    let program = "/opt/device-plugin-agent/device-plugin-agent";
    let driver = container(&pod, DRIVER_CONTAINER).unwrap();
    assert_eq!(driver["image"], "driver:3");
    // The kubelet makes one dollar sign of two.
    let words = [
        "run-driver",
        "--timeout-seconds=7",
        "--",
        "/install",
        "$$(HOME)",
        "$$$$",
    ];
    assert_eq!(driver["command"], json!([&[program][..], &words].concat()));
    assert_eq!(writable(driver), ["/dev"]);
    let runner = container(&pod, RUNNER_CONTAINER).unwrap();
    assert_eq!(
        (&runner["image"], &runner["command"]),
        (&json!("tools:2"), &json!([program]))
    );
    assert!(!writable(runner).contains(&paths::RUNNER_PROGRAM_DIR));
    let install = container(&pod, INSTALL_CONTAINER).unwrap();
    assert_eq!(install["image"], "agent:1");
    for name in names(&pod) {
        let one = container(&pod, name).unwrap();
        assert_eq!(one["imagePullPolicy"], "Always", "{name}");
        assert_eq!(
            one["resources"]["requests"],
            json!({ "cpu": "0", "memory": "0" })
        );
    }
    // Every mount has its volume.
    let volumes: Vec<_> = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["name"])
        .collect();
    for name in names(&pod) {
        for mount in container(&pod, name).unwrap()["volumeMounts"]
            .as_array()
            .unwrap()
        {
            assert!(volumes.contains(&&mount["name"]), "{mount}");
        }
    }
}
