//! The cases about health checks, and about hooks that do not go with a resource.

use serde_json::{Value, json};

use crate::{Refusal, hooks, refusal};

const CHECK: &str = "/spec/resources/0/healthCheck";
const ATTRIBUTE: &str = "/spec/resources/0/healthCheck/attribute";
const PROBE: &str = "/spec/resources/0/healthCheck/command";

/// A config with a health check by an attribute.
pub fn checked() -> Value {
    let mut config = crate::config();
    config["spec"]["resources"][0]["healthCheck"] =
        json!({"type": "SysfsEquals", "attribute": "device/state", "values": ["live"]});
    config
}

/// What is refused of it.
pub fn refusals() -> Vec<Refusal> {
    let field = "spec.resources[0].healthCheck";
    let attribute = "spec.resources[0].healthCheck.attribute";
    let path = |value| {
        refusal(
            ATTRIBUTE,
            json!(value),
            attribute,
            &["such as device/state"],
        )
    };
    let check = |value, words| refusal(CHECK, value, field, words);
    let equals: &[&str] = &["SysfsEquals needs an attribute and values"];
    vec![
        check(json!({"type": "SysfsEquals"}), equals),
        check(json!({"type": "SysfsEquals", "attribute": "a"}), equals),
        check(json!({"type": "SysfsEquals", "values": ["a"]}), equals),
        check(
            json!({"attribute": "a", "values": ["a"]}),
            &["type Exists has neither attribute nor values"],
        ),
        check(
            json!({"type": "Open", "attribute": "a", "values": ["a"]}),
            &["type Open has neither", "only type SysfsEquals"],
        ),
        check(json!({"type": "Exec"}), &["type Exec needs a command"]),
        check(
            json!({"type": "Open", "command": ["/a"]}),
            &["type Open has no command", "only type Exec"],
        ),
        check(json!({"command": ["/a"]}), &["type Exists has no command"]),
        path("/sys/a"),
        path("a/../b"),
        path("a//b"),
        path("./a"),
        path("a/"),
        path(".."),
        path("../"),
        path("../".repeat(17).as_str()),
    ]
}

/// A config with a health check by a program.
pub fn probed() -> Value {
    let mut config = hooks::config();
    config["spec"]["resources"][0]["healthCheck"] =
        json!({"type": "Exec", "command": ["/tools/probe"]});
    config
}

/// What is refused of it.
pub fn probe_refusals() -> Vec<Refusal> {
    let field = "spec.resources[0].healthCheck.command";
    let hooks = json!({"release": {"type": "PciReset"}});
    let words: &[&str] = &["healthCheck of type Exec", "hooks.toolsImage must be given"];
    vec![
        refusal(
            PROBE,
            json!(["probe"]),
            field,
            &["\"probe\"", "absolute path"],
        ),
        refusal("/spec/hooks", hooks, "spec", words),
    ]
}

/// Hooks where a device is shared.
pub fn shared() -> Value {
    let mut config = hooks::config();
    config["spec"]["resources"][0]["replicas"] = json!(1);
    config
}

/// What is refused of it.
pub fn shared_refusals() -> Vec<Refusal> {
    let words: &[&str] = &["hooks.reset", "replicas above 1", "leave one of them out"];
    vec![refusal(
        "/spec/resources/0/replicas",
        json!(2),
        "spec",
        words,
    )]
}

/// Attributes that are accepted.
pub fn attributes() -> Vec<Value> {
    let longest = format!("{}..a/.b/c..", "../".repeat(16));
    let attributes = ["state", "../power/control", "../../a", longest.as_str()];
    let with = |attribute: &str| {
        let mut config = checked();
        config["spec"]["resources"][0]["healthCheck"]["attribute"] = json!(attribute);
        config
    };
    attributes.map(with).into()
}
