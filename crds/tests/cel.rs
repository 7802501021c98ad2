//! Each CEL rule of the three kinds: what it accepts, what it refuses, and that the refusal names
//! the field, the value and what would be right.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets the unexpected fails"
)]

#[path = "support/container.rs"]
mod container;
#[path = "support/health.rs"]
mod health;
#[path = "support/hooks.rs"]
mod hooks;
#[path = "support/validation.rs"]
mod validation;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::validation::{complaints, rules, schema};

/// One refusal: how an accepted object is spoilt, and what is then said.
struct Refusal {
    /// Pointer to the member that is replaced or added.
    pointer: &'static str,
    value: Value,
    /// The field that the complaint is about.
    field: &'static str,
    /// Words that the message must hold: the value, and what would be right.
    words: &'static [&'static str],
}

fn refusal(
    pointer: &'static str,
    value: Value,
    field: &'static str,
    words: &'static [&'static str],
) -> Refusal {
    Refusal {
        pointer,
        value,
        field,
        words,
    }
}

fn config() -> Value {
    json!({
        "apiVersion": "deviceplugins.dev/v1alpha1",
        "kind": "DevicePluginConfig",
        "metadata": {"name": "serial"},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
            "resources": [{
                "name": "example.com/serial",
                "discovery": {"paths": {"globs": ["/dev/ttyUSB*"]}},
            }],
        },
    })
}

fn simulated() -> Value {
    let mut config = config();
    config["spec"]["resources"][0]["discovery"] = json!({"simulated": {"count": 2}});
    config
}

fn pool() -> Value {
    json!({
        "apiVersion": "deviceplugins.dev/v1alpha1",
        "kind": "DevicePluginPool",
        "metadata": {"name": "edge"},
        "spec": {"nodeSelector": {"matchLabels": {"site": "edge"}}},
    })
}

/// Puts a value where a pointer leads, making the objects on the way.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for segment in pointer.trim_start_matches('/').split('/') {
        place = match segment.parse::<usize>() {
            Ok(index) if place.is_array() => &mut place[index],
            _ => &mut place[segment],
        };
    }
    *place = value;
}

const NAME: &str = "/spec/resources/0/name";
const GLOBS: &str = "/spec/resources/0/discovery/paths/globs";
const EXCLUDE: &str = "/spec/resources/0/discovery/paths/exclude";
const EXPRESSIONS: &str = "/spec/nodeSelector/matchExpressions";
const TOLERATIONS: &str = "/spec/agent/tolerations";
const IMAGE: &str = "/spec/agent/image";
const UNHEALTHY: &str = "/spec/resources/0/discovery/simulated/unhealthy";

const PCI: &str = "/spec/resources/0/discovery/pci";
const ID_FROM: &str = "/spec/resources/0/idFrom";

fn config_refusals() -> Vec<Refusal> {
    let long_name: &'static str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";
    let name_words: &[&str] = &["metadata.name", "DNS label of at most 50 characters"];
    vec![
        refusal("/metadata/name", json!(long_name), "", name_words),
        refusal(
            "/metadata/name",
            json!("a.b"),
            "",
            &["\"a.b\"", "DNS label"],
        ),
        refusal("/metadata/name", json!("a-"), "", &["\"a-\"", "DNS label"]),
        refusal(
            "/spec/machineConfigPoolSelector",
            json!({"matchLabels": {"a": "b"}}),
            "spec",
            &["at most one of nodeSelector and machineConfigPoolSelector"],
        ),
    ]
}

fn selector_refusals() -> Vec<Refusal> {
    let field = "spec.nodeSelector.matchExpressions[0]";
    let words: &[&str] = &["label \"a\"", "In and NotIn", "Exists and DoesNotExist"];
    vec![
        refusal(
            EXPRESSIONS,
            json!([{"key": "a", "operator": "In"}]),
            field,
            words,
        ),
        refusal(
            EXPRESSIONS,
            json!([{"key": "a", "operator": "NotIn", "values": []}]),
            field,
            words,
        ),
        refusal(
            EXPRESSIONS,
            json!([{"key": "a", "operator": "Exists", "values": ["b"]}]),
            field,
            words,
        ),
    ]
}

fn resource_refusals() -> Vec<Refusal> {
    let field = "spec.resources[0].name";
    vec![
        refusal(
            NAME,
            json!("fpga"),
            field,
            &["\"fpga\"", "one slash", "example.com/fpga"],
        ),
        refusal(NAME, json!("a/b/c"), field, &["\"a/b/c\"", "one slash"]),
        refusal(
            NAME,
            json!("kubernetes.io/a"),
            field,
            &["\"kubernetes.io/a\"", "reserves"],
        ),
        refusal(
            NAME,
            json!("mykubernetes.io/a"),
            field,
            &["\"mykubernetes.io/a\"", "your own"],
        ),
        refusal(
            NAME,
            json!("requests.a.b/c"),
            field,
            &["\"requests.a.b/c\"", "quotas"],
        ),
        refusal(
            NAME,
            json!("A.b/c"),
            field,
            &["\"A.b/c\"", "lower-case DNS subdomain"],
        ),
        refusal(
            NAME,
            json!("a..b/c"),
            field,
            &["\"a..b/c\"", "lower-case DNS subdomain"],
        ),
        refusal(
            NAME,
            json!("-a.b/c"),
            field,
            &["\"-a.b/c\"", "lower-case DNS subdomain"],
        ),
        refusal(
            NAME,
            json!(format!("{}/c", "a".repeat(245))),
            field,
            &["at most 244"],
        ),
        refusal(
            NAME,
            json!("a.b/-c"),
            field,
            &["\"a.b/-c\"", "1 to 63 letters"],
        ),
        refusal(
            NAME,
            json!("a.b/c d"),
            field,
            &["\"a.b/c d\"", "1 to 63 letters"],
        ),
        refusal(
            NAME,
            json!(format!("a.b/{}", "c".repeat(64))),
            field,
            &["1 to 63 letters"],
        ),
        refusal(
            "/spec/resources/0/discovery/simulated",
            json!({"count": 1}),
            "spec.resources[0].discovery",
            &["exactly one kind of discovery", "pci, usb or simulated"],
        ),
        refusal(
            "/spec/resources/0/discovery",
            json!({}),
            "spec.resources[0].discovery",
            &["exactly one kind of discovery"],
        ),
    ]
}

fn path_refusals() -> Vec<Refusal> {
    let field = "spec.resources[0].discovery.paths.globs";
    let exclude = "spec.resources[0].discovery.paths.exclude";
    vec![
        refusal(
            GLOBS,
            json!(["/dev/a", "/etc/*"]),
            field,
            &["under /dev/", "wrong: /etc/*"],
        ),
        refusal(
            GLOBS,
            json!(["/dev/"]),
            field,
            &["such as /dev/ttyUSB*", "wrong: /dev/"],
        ),
        refusal(GLOBS, json!(["dev/a"]), field, &["wrong: dev/a"]),
        refusal(
            GLOBS,
            json!(["/dev/../etc/a"]),
            field,
            &["segments . or ..", "wrong: /dev/../etc/a"],
        ),
        refusal(GLOBS, json!(["/dev/a/.."]), field, &["wrong: /dev/a/.."]),
        refusal(GLOBS, json!(["/dev/./a"]), field, &["wrong: /dev/./a"]),
        refusal(
            GLOBS,
            json!(["/dev/{..,b}/a"]),
            field,
            &["wrong: /dev/{..,b}/a"],
        ),
        refusal(
            GLOBS,
            json!(["/dev/{b,../c}"]),
            field,
            &["wrong: /dev/{b,../c}"],
        ),
        refusal(
            EXCLUDE,
            json!(["/dev/a", "/tmp/b"]),
            exclude,
            &["under /dev/", "wrong: /tmp/b"],
        ),
    ]
}

fn agent_refusals() -> Vec<Refusal> {
    let field = "spec.agent.tolerations[0]";
    vec![
        refusal(
            TOLERATIONS,
            json!([{"operator": "Equal"}]),
            field,
            &["without a key", "Exists"],
        ),
        refusal(
            TOLERATIONS,
            json!([{"key": ""}]),
            field,
            &["operator: Exists"],
        ),
        refusal(
            TOLERATIONS,
            json!([{"key": "a", "operator": "Exists", "value": "b"}]),
            field,
            &["operator Exists must not have a value"],
        ),
        refusal(
            IMAGE,
            json!("agent :1"),
            "spec.agent.image",
            &["\"agent :1\"", "white space", "registry.example.com"],
        ),
    ]
}

fn simulated_refusals() -> Vec<Refusal> {
    let field = "spec.resources[0].discovery.simulated";
    vec![refusal(
        UNHEALTHY,
        json!([0, 2]),
        field,
        &["less than count"],
    )]
}

/// Devices by what the kernel says of them.
fn pci() -> Value {
    let mut config = config();
    config["spec"]["resources"][0]["discovery"] = json!({"pci": [{"vendor": "8086"}]});
    config
}

fn pci_refusals() -> Vec<Refusal> {
    let words: &[&str] = &["at least one of vendor, device, class and driver", "8086"];
    let field = "spec.resources[0].discovery.pci[0]";
    vec![
        refusal(PCI, json!([{}]), field, words),
        refusal(PCI, json!([{"vendor": "", "driver": ""}]), field, words),
        refusal(
            "/spec/resources/0/discovery/usb",
            json!([{"vendor": "0403"}]),
            "spec.resources[0].discovery",
            &["exactly one kind of discovery"],
        ),
    ]
}

fn id_refusals() -> Vec<Refusal> {
    let field = "spec.resources[0]";
    let words: &[&str] = &["idFrom must be Auto", "not Serial", "ids of their own"];
    vec![refusal(ID_FROM, json!("Serial"), field, words)]
}

fn groups() -> Value {
    let mut config = config();
    let groups = json!([{"id": "card0", "paths": ["/dev/a0", "/dev/b0"]}]);
    config["spec"]["resources"][0]["discovery"] = json!({ "groups": groups });
    config
}

fn pool_refusals() -> Vec<Refusal> {
    let long_name: &'static str =
        "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";
    let mut refusals = vec![refusal(
        "/metadata/name",
        json!(long_name),
        "",
        &["metadata.name", "at most 63 characters"],
    )];
    refusals.extend(selector_refusals());
    refusals
}

/// Selectors by pools obey the rules of selectors by nodes.
fn by_pools() -> Value {
    let mut config = config();
    let spec = config["spec"].as_object_mut().expect("a spec is an object");
    spec.remove("nodeSelector");
    spec.insert("machineConfigPoolSelector".to_owned(), json!({}));
    config
}

fn by_pools_refusals() -> Vec<Refusal> {
    vec![refusal(
        "/spec/machineConfigPoolSelector/matchExpressions",
        json!([{"key": "a", "operator": "DoesNotExist", "values": ["b"]}]),
        "spec.machineConfigPoolSelector.matchExpressions[0]",
        &["label \"a\""],
    )]
}

const MAX_UNAVAILABLE: &str = "/spec/rollout/maxUnavailable";
const TOLERATED_LOSS: &str = "/spec/rollout/gate/toleratedDeviceLoss";

fn rollout_refusals() -> Vec<Refusal> {
    let nodes =
        |value, words| refusal(MAX_UNAVAILABLE, value, "spec.rollout.maxUnavailable", words);
    let devices = |value, words| {
        let field = "spec.rollout.gate.toleratedDeviceLoss";
        refusal(TOLERATED_LOSS, value, field, words)
    };
    vec![
        nodes(json!(0), &["\"0\"", "from 1 to 250", "paused: true"]),
        nodes(json!(251), &["\"251\"", "from 1 to 250"]),
        nodes(json!("0%"), &["\"0%\"", "from 1% to 100%"]),
        nodes(json!("101%"), &["\"101%\"", "from 1% to 100%"]),
        nodes(json!("two"), &["\"two\"", "from 1 to 250"]),
        devices(json!(-1), &["\"-1\"", "from 0 to 1000"]),
        devices(json!("1.5%"), &["\"1.5%\"", "from 0% to 100%"]),
    ]
}

fn all() -> Vec<(Value, Vec<Refusal>)> {
    let mut of_config = config_refusals();
    of_config.extend(selector_refusals());
    of_config.extend(resource_refusals());
    of_config.extend(path_refusals());
    of_config.extend(container::refusals());
    of_config.extend(agent_refusals());
    of_config.extend(rollout_refusals());
    vec![
        (config(), of_config),
        (by_pools(), by_pools_refusals()),
        (simulated(), simulated_refusals()),
        (simulated(), id_refusals()),
        (groups(), id_refusals()),
        (pci(), pci_refusals()),
        (hooks::config(), hooks::refusals()),
        (health::checked(), health::refusals()),
        (health::probed(), health::probe_refusals()),
        (health::shared(), health::shared_refusals()),
        (pool(), pool_refusals()),
    ]
}

#[test]
fn refusals_name_field_value_and_what_would_be_right() {
    for (accepted, refusals) in all() {
        let said = complaints(&accepted);
        assert!(said.is_empty(), "the unspoilt object is refused: {said:?}");
        for Refusal {
            pointer,
            value,
            field,
            words,
        } in refusals
        {
            let mut spoilt = accepted.clone();
            put(&mut spoilt, pointer, value.clone());
            let said = complaints(&spoilt);
            let fitting = said.iter().any(|complaint| {
                complaint.field_path == field
                    && words.iter().all(|word| complaint.message.contains(word))
            });
            assert!(
                fitting,
                "{pointer} = {value}: no {words:?} about {field:?} in {said:#?}"
            );
        }
    }
}

#[test]
fn right_values_are_accepted() {
    let longest_domain = format!("{}/c", "a".repeat(244));
    let longest_name = format!("a.b/{}", "c".repeat(63));
    let accepted: &[(&str, Value)] = &[
        ("/metadata/name", json!("n")),
        ("/metadata/name", json!("n".repeat(50))),
        ("/metadata/name", json!("0-a")),
        (MAX_UNAVAILABLE, json!(1)),
        (MAX_UNAVAILABLE, json!("100%")),
        (TOLERATED_LOSS, json!(0)),
        (TOLERATED_LOSS, json!("0%")),
        (NAME, json!("a/b")),
        (NAME, json!("vendor.example/NVMe_x.y-1")),
        (NAME, json!(longest_domain)),
        (NAME, json!(longest_name)),
        // The kubelet looks for `kubernetes.io/`, nothing else.
        (NAME, json!("kubernetes.io.example/a")),
        (NAME, json!("example.com/requests.a")),
        (
            EXPRESSIONS,
            json!([{"key": "a", "operator": "In", "values": ["b"]}]),
        ),
        (
            EXPRESSIONS,
            json!([{"key": "a", "operator": "DoesNotExist"}]),
        ),
        (
            GLOBS,
            json!(["/dev/**", "/dev/{a,b}[0-9]", "/dev/..a", "/dev/a..b"]),
        ),
        (EXCLUDE, json!(["/dev/ttyUSB0"])),
        (
            TOLERATIONS,
            json!([{"operator": "Exists"}, {"key": "a", "value": "b"}]),
        ),
        (IMAGE, json!("registry.example.com:5000/agent@sha256:0123")),
    ];
    for (pointer, value) in accepted.iter().chain(&container::accepted()) {
        let mut object = config();
        put(&mut object, pointer, value.clone());
        let said = complaints(&object);
        assert!(said.is_empty(), "{pointer} = {value}: {said:#?}");
    }
    for object in health::attributes() {
        let said = complaints(&object);
        assert!(said.is_empty(), "{object:#}: {said:#?}");
    }
    let mut without_selector = config();
    without_selector["spec"] = json!({"resources": config()["spec"]["resources"]});
    assert!(complaints(&without_selector).is_empty());
    let mut unhealthy = simulated();
    put(&mut unhealthy, UNHEALTHY, json!([0, 1]));
    assert!(complaints(&unhealthy).is_empty());
    for id_from in ["Auto", "Serial", "BusPath", "DevicePath"] {
        let mut pci = pci();
        put(&mut pci, ID_FROM, json!(id_from));
        assert!(complaints(&pci).is_empty());
    }
    for matcher in [
        json!([{"vendor": "8086"}, {"device": "56c0"}]),
        json!([{"class": "03"}, {"driver": "vfio-pci"}]),
    ] {
        let mut pci = pci();
        put(&mut pci, PCI, matcher);
        assert!(complaints(&pci).is_empty());
    }
    for discovery in [
        json!({"udev": {"subsystem": "tty", "attributes": {"../idVendor": "0403"}}}),
        json!({"usb": [{"vendor": "0403", "serial": "A10K"}]}),
    ] {
        let mut config = config();
        put(&mut config, "/spec/resources/0/discovery", discovery);
        assert!(complaints(&config).is_empty());
    }
    let mut auto = groups();
    put(&mut auto, ID_FROM, json!("Auto"));
    assert!(complaints(&auto).is_empty());
    for (pointer, value) in hooks::accepted() {
        let mut object = hooks::config();
        put(&mut object, pointer, value.clone());
        let said = complaints(&object);
        assert!(said.is_empty(), "{pointer} = {value}: {said:#?}");
    }
    let mut longest = pool();
    longest["metadata"]["name"] = json!("p".repeat(63));
    assert!(complaints(&longest).is_empty());
}

/// A rule's place in the schema, from the place of a complaint: `resources[0].name` is
/// `resources[].name`.
fn place(field: &str) -> String {
    field
        .split('.')
        .map(|segment| match segment.split_once('[') {
            Some((name, _)) => format!("{name}[]"),
            None => segment.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(".")
}

#[test]
fn every_rule_is_shown_to_refuse_something() {
    let mut refused = BTreeSet::new();
    for (accepted, refusals) in all() {
        for Refusal { pointer, value, .. } in refusals {
            let mut spoilt = accepted.clone();
            put(&mut spoilt, pointer, value);
            for complaint in complaints(&spoilt) {
                let kind = spoilt["kind"].as_str().unwrap_or_default().to_owned();
                refused.insert((kind, place(&complaint.field_path), complaint.rule));
            }
        }
    }
    let mut untested = Vec::new();
    let mut count = 0;
    for kind in ["DevicePluginConfig", "DevicePluginPool", "DevicePluginNode"] {
        for (place, rules) in rules(&schema(kind)) {
            for rule in rules {
                count += 1;
                let rule = (kind.to_owned(), place.clone(), rule);
                if !refused.contains(&rule) {
                    untested.push(rule);
                }
            }
        }
    }
    assert!(
        count > 15,
        "only {count} rules were found: the walk over the schema is broken"
    );
    assert!(
        untested.is_empty(),
        "rules that no case here trips: {untested:#?}"
    );
}
