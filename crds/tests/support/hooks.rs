//! The cases about hooks.

use serde_json::{Value, json};

use crate::{Refusal, refusal};

/// What is refused.
pub fn refusals() -> Vec<Refusal> {
    let mut all = place_refusals();
    all.extend(release_refusals());
    all
}

/// What is accepted, by its place.
pub fn accepted() -> Vec<(&'static str, Value)> {
    vec![
        (HOOKS, json!({})),
        (
            HOOKS,
            json!({"reset": {"type": "PciReset"}, "privileged": false}),
        ),
        ("/spec/hooks/privileged", json!(true)),
        (
            TOOLS,
            json!("registry.example.com:5000/tools/a_b@sha256:01"),
        ),
        (HOOK_PATH, json!("..a/b..")),
        ("/spec/hooks/init/value", json!("")),
        (RESET, json!({"type": "UsbReset"})),
    ]
}

/// A config with a hook of each kind of place.
pub fn config() -> Value {
    let mut config = crate::config();
    config["spec"]["hooks"] = json!({
        "toolsImage": "registry.example.com/tools:1.2",
        "driver": {"image": "registry.example.com/driver@sha256:0123", "command": ["/install"]},
        "init": {"type": "SysfsWrite", "path": "device/power/control", "value": "on"},
        "reset": {"type": "Exec", "command": ["/tools/reset", ""], "timeoutSeconds": 25},
        "release": {"type": "DriverBind", "driver": "vfio-pci", "timeoutSeconds": 600},
    });
    config
}

const HOOKS: &str = "/spec/hooks";
const TOOLS: &str = "/spec/hooks/toolsImage";
const INIT: &str = "/spec/hooks/init";
const RESET: &str = "/spec/hooks/reset";
const HOOK_PATH: &str = "/spec/hooks/init/path";

fn place_refusals() -> Vec<Refusal> {
    let exec = |place: &str| json!({place: {"type": "Exec", "command": ["/tools/a"]}});
    let words: &[&str] = &["type Exec", "toolsImage must be given"];
    let mut refusals = vec![
        refusal(HOOKS, exec("init"), "spec.hooks", words),
        refusal(HOOKS, exec("reset"), "spec.hooks", words),
        refusal(HOOKS, exec("release"), "spec.hooks", words),
        refusal(
            HOOKS,
            json!({"privileged": true}),
            "spec.hooks",
            &["privileged", "toolsImage must be given"],
        ),
        refusal(
            "/spec/hooks/reset/timeoutSeconds",
            json!(26),
            "spec.hooks",
            &["reset.timeoutSeconds", "at most 25"],
        ),
    ];
    for image in ["tools :1", "../tools", "a//b", "/tools"] {
        let words: &[&str] = &["an image reference", "registry.example.com/tools:1.2"];
        refusals.push(refusal(TOOLS, json!(image), "spec.hooks.toolsImage", words));
        let (place, field) = ("/spec/hooks/driver/image", "spec.hooks.driver.image");
        let words: &[&str] = &["an image reference", "registry.example.com/driver:1.2"];
        refusals.push(refusal(place, json!(image), field, words));
    }
    for (pointer, field) in [
        ("/spec/hooks/reset/command", "spec.hooks.reset.command"),
        ("/spec/hooks/driver/command", "spec.hooks.driver.command"),
    ] {
        let words: &[&str] = &["\"reset\"", "absolute path"];
        refusals.push(refusal(pointer, json!(["reset"]), field, words));
    }
    for (pointer, hook, words) in [
        (
            INIT,
            json!({"type": "Exec"}),
            &["type Exec", "needs a command"][..],
        ),
        (
            INIT,
            json!({"type": "PciReset", "command": ["/a"]}),
            &["type PciReset", "has no command", "only type Exec"],
        ),
        (
            INIT,
            json!({"type": "SysfsWrite", "path": "a"}),
            &["type SysfsWrite", "a path and a value"],
        ),
        (
            INIT,
            json!({"type": "UsbReset", "value": "a"}),
            &["type UsbReset", "neither path nor value"],
        ),
        (
            INIT,
            json!({"type": "DriverBind"}),
            &["type DriverBind", "needs a driver"],
        ),
        (
            RESET,
            json!({"type": "PciReset", "driver": "a"}),
            &["type PciReset", "has no driver"],
        ),
    ] {
        let field = if pointer == INIT {
            "spec.hooks.init"
        } else {
            "spec.hooks.reset"
        };
        refusals.push(refusal(pointer, hook, field, words));
    }
    for path in ["/sys/a", "../a", "a/./b", "a//b", "a/"] {
        let words: &[&str] = &["relative to the device's sysfs directory", "power/control"];
        refusals.push(refusal(
            HOOK_PATH,
            json!(path),
            "spec.hooks.init.path",
            words,
        ));
    }
    refusals
}

/// The rules of a hook hold wherever there is one.
fn release_refusals() -> Vec<Refusal> {
    let place = "/spec/hooks/release";
    let field = "spec.hooks.release";
    vec![
        refusal(place, json!({"type": "Exec"}), field, &["needs a command"]),
        refusal(
            place,
            json!({"type": "SysfsWrite"}),
            field,
            &["a path and a value"],
        ),
        refusal(
            place,
            json!({"type": "DriverBind"}),
            field,
            &["needs a driver"],
        ),
        refusal(
            RESET,
            json!({"type": "SysfsWrite"}),
            "spec.hooks.reset",
            &["a path and a value"],
        ),
        refusal(
            RESET,
            json!({"type": "Exec"}),
            "spec.hooks.reset",
            &["needs a command"],
        ),
        refusal(
            place,
            json!({"type": "Exec", "command": ["a"]}),
            "spec.hooks.release.command",
            &["absolute path"],
        ),
        refusal(
            INIT,
            json!({"type": "Exec", "command": ["a"]}),
            "spec.hooks.init.command",
            &["absolute path"],
        ),
        refusal(
            place,
            json!({"type": "SysfsWrite", "path": "/a", "value": ""}),
            "spec.hooks.release.path",
            &["relative to"],
        ),
        refusal(
            RESET,
            json!({"type": "SysfsWrite", "path": "/a", "value": ""}),
            "spec.hooks.reset.path",
            &["relative to"],
        ),
    ]
}
