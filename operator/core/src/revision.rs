//! The name of what an agent runs: ten hex digits over its content.

use crds::agent_config::AgentConfig;
use crds::config::DevicePluginConfigSpec;
use crds::container::ContainerAccess;
use crds::health::HealthCheck;
use crds::hooks::{Driver, HOOK_TIMEOUT, Hook, Hooks, RESET_TIMEOUT};
use crds::names::short_hash;
use crds::placement::{
    AgentSettings, ComputeResources, ImagePullPolicy, Quantities, Toleration, TolerationOperator,
};
use crds::resource::Resource;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::quantity::milli;

/// How revisions are hashed now. A product default that changes, or another canonical form, needs
/// the next number: a revision is always judged by the schema that it was made under.
pub const HASH_SCHEMA: u32 = 1;

/// Priority class of agents where a config names none.
pub const DEFAULT_PRIORITY_CLASS: &str = "system-node-critical";
/// Memory limit of agents where a config says nothing about resources. An agent needs about a
/// sixth of it; half would leave no room for thousands of devices, double would hide a leak.
pub const DEFAULT_MEMORY_LIMIT: &str = "64Mi";

/// What a ControllerRevision holds: everything its agents are made from, rendered once.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionContent {
    /// The number of [`HASH_SCHEMA`] when it was made.
    pub hash_schema: u32,
    /// The agent image.
    pub agent_image: String,
    /// The text of the agent's configuration.
    pub agent_config: String,
    /// The pod template without the fields that say where it runs.
    pub template: Value,
}

impl RevisionContent {
    /// What makes the devices' driver ready; nothing where that cannot be read.
    pub fn driver(&self) -> Option<Driver> {
        let config: AgentConfig = serde_json::from_str(&self.agent_config).ok()?;
        config.hooks?.driver
    }
}

/// The revision that a spec asks for with a given agent image.
///
/// The hash covers, as JSON with sorted keys and without white space, `agent` (without `image`
/// and `logLevel`), `hooks`, `image` and `resources` sorted by name (their order means nothing). Members
/// equal to their default are left out, so that a later version with more fields gives the same.
pub fn revision(spec: &DevicePluginConfigSpec, image: &str) -> String {
    let mut content = Map::new();
    let agent = canonical_agent(spec.agent.as_ref());
    if !agent.is_empty() {
        content.insert("agent".to_owned(), Value::Object(agent));
    }
    if let Some(hooks) = canonical_hooks(spec) {
        content.insert("hooks".to_owned(), json!(hooks));
    }
    content.insert("image".to_owned(), Value::from(image));
    content.insert("resources".to_owned(), json!(canonical_resources(spec)));
    let mut text = String::new();
    write_canonical(&Value::Object(content), &mut text);
    short_hash(&text)
}

/// The agent image of a config: its own, else that of the stable revision, else the default.
pub fn agent_image(spec: &DevicePluginConfigSpec, stable: Option<&str>, default: &str) -> String {
    let own = spec.agent.as_ref().and_then(|agent| agent.image.as_deref());
    own.or(stable).unwrap_or(default).to_owned()
}

/// The resources sorted by name, without members that say what would be so anyway.
pub fn canonical_resources(spec: &DevicePluginConfigSpec) -> Vec<Resource> {
    let mut resources = spec.resources.clone();
    for resource in &mut resources {
        if resource.container.as_ref() == Some(&ContainerAccess::default()) {
            resource.container = None;
        }
        if resource.health_check.as_ref() == Some(&HealthCheck::default()) {
            resource.health_check = None;
        }
    }
    resources.sort_by(|one, other| one.name.cmp(&other.name));
    resources
}

/// The hooks without members that say what would be so anyway; nothing where nothing is left.
pub fn canonical_hooks(spec: &DevicePluginConfigSpec) -> Option<Hooks> {
    let mut hooks = spec.hooks.clone()?;
    let Hooks {
        tools_image: _,
        privileged: _,
        driver: _,
        init,
        reset,
        release,
    } = &mut hooks;
    for (hook, default) in [
        (init, HOOK_TIMEOUT),
        (reset, RESET_TIMEOUT),
        (release, HOOK_TIMEOUT),
    ] {
        if let Some(Hook {
            timeout_seconds, ..
        }) = hook
        {
            *timeout_seconds = timeout_seconds.filter(|seconds| *seconds != default);
        }
    }
    (hooks != Hooks::default()).then_some(hooks)
}

/// Amounts in effect: requests default to zero, limits to none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Amounts {
    /// Requested processor time.
    pub request_cpu: String,
    /// Requested memory.
    pub request_memory: String,
    /// Limit of processor time.
    pub limit_cpu: Option<String>,
    /// Limit of memory.
    pub limit_memory: Option<String>,
}

/// The amounts of a config, defaults resolved.
pub fn amounts(resources: Option<&ComputeResources>) -> Amounts {
    let Some(ComputeResources { requests, limits }) = resources else {
        return Amounts {
            request_cpu: "0".to_owned(),
            request_memory: "0".to_owned(),
            limit_cpu: None,
            limit_memory: Some(DEFAULT_MEMORY_LIMIT.to_owned()),
        };
    };
    let of = |amounts: &Option<Quantities>| amounts.clone().unwrap_or_default();
    let (requests, limits) = (of(requests), of(limits));
    Amounts {
        request_cpu: requests.cpu.unwrap_or_else(|| "0".to_owned()),
        request_memory: requests.memory.unwrap_or_else(|| "0".to_owned()),
        limit_cpu: limits.cpu,
        limit_memory: limits.memory,
    }
}

fn canonical_agent(agent: Option<&AgentSettings>) -> Map<String, Value> {
    let mut members = Map::new();
    let Some(AgentSettings {
        image: _,
        image_pull_policy,
        image_pull_secrets,
        resources,
        tolerations,
        priority_class_name,
        log_level: _,
    }) = agent
    else {
        return members;
    };
    if let Some(policy) = image_pull_policy.filter(|one| *one != ImagePullPolicy::IfNotPresent) {
        members.insert("imagePullPolicy".to_owned(), json!(policy));
    }
    if !image_pull_secrets.is_empty() {
        members.insert("imagePullSecrets".to_owned(), json!(image_pull_secrets));
    }
    let amounts_here = canonical_amounts(&amounts(resources.as_ref()));
    if amounts_here != canonical_amounts(&amounts(None)) {
        members.insert("resources".to_owned(), amounts_here);
    }
    if !tolerations.is_empty() {
        let tolerations: Vec<_> = tolerations.iter().map(canonical_toleration).collect();
        members.insert("tolerations".to_owned(), json!(tolerations));
    }
    if let Some(class) = priority_class_name
        .as_deref()
        .filter(|one| *one != DEFAULT_PRIORITY_CLASS)
    {
        members.insert("priorityClassName".to_owned(), json!(class));
    }
    members
}

/// A toleration without members that say what would be so anyway.
fn canonical_toleration(toleration: &Toleration) -> Toleration {
    let mut canonical = toleration.clone();
    canonical.key = canonical.key.filter(|key| !key.is_empty());
    canonical.value = canonical.value.filter(|value| !value.is_empty());
    canonical.operator = canonical
        .operator
        .filter(|operator| *operator != TolerationOperator::Equal);
    canonical
}

/// Amounts by value, so that `0.5` and `500m` are the same revision.
fn canonical_amounts(amounts: &Amounts) -> Value {
    let value =
        |text: &String| milli(text).map_or_else(|| text.clone(), |milli| format!("{milli}m"));
    json!({
        "requests": { "cpu": value(&amounts.request_cpu), "memory": value(&amounts.request_memory) },
        "limits": { "cpu": amounts.limit_cpu.as_ref().map(value), "memory": amounts.limit_memory.as_ref().map(value) },
    })
}

/// JSON with sorted keys and without white space, whatever order the map type keeps.
fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| key.as_str());
            text.push('{');
            for (index, (key, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(item, text);
            }
            text.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "registry.example.com/agent:1";

    fn of(text: &str) -> String {
        revision(&serde_yaml::from_str(text).unwrap(), IMAGE)
    }

    const PLAIN: &str = "resources: [{name: example.com/a, discovery: {paths: {globs: [/dev/a]}}}]";

    /// These are in clusters: a change here would show every config there as changed.
    #[test]
    fn revisions_of_schema_1_are_for_ever() {
        assert_eq!(HASH_SCHEMA, 1);
        for (spec, revision) in [
            (PLAIN, "fe234bb031"),
            (include_str!("rendering/config.yaml"), "14a230c666"),
        ] {
            assert_eq!(of(spec), revision, "{spec}");
        }
    }

    #[test]
    fn what_means_the_same_is_the_same_revision() {
        let resource = |more: &str| {
            format!(
                "resources: [{{name: example.com/a, discovery: {{paths: {{globs: [/dev/a]}}}}{more}}}]"
            )
        };
        for same in [
            resource(", container: {}"),
            resource(", container: {permissions: rw, path: '', env: []}"),
            resource(", container: {mounts: [], annotations: {}, cdi: Disabled}"),
            resource(
                ", replicas: 1, allowMultipleReplicasPerContainer: false, preferredAllocation: None",
            ),
            resource(", healthCheck: {}"),
            resource(", idFrom: Auto, topology: Auto"),
            resource(", healthCheck: {type: Exists, periodSeconds: 5}"),
            format!("{PLAIN}\nnodeSelector: {{matchLabels: {{a: b}}}}"),
            format!("{PLAIN}\nlabelLossGraceSeconds: 7"),
            format!("{PLAIN}\nhooks: {{}}"),
            format!("{PLAIN}\nhooks: {{privileged: false}}"),
            format!("{PLAIN}\nagent: {{}}"),
            format!("{PLAIN}\nagent: {{logLevel: trace}}"),
            format!("{PLAIN}\nagent: {{image: {IMAGE}}}"),
            format!(
                "{PLAIN}\nagent: {{imagePullPolicy: IfNotPresent, priorityClassName: system-node-critical}}"
            ),
            format!(
                "{PLAIN}\nagent: {{resources: {{requests: {{cpu: '0'}}, limits: {{memory: 65536Ki}}}}}}"
            ),
        ] {
            assert_eq!(of(&same), of(PLAIN), "{same}");
        }
        let (one, other) = (
            "{name: a/a, discovery: {simulated: {count: 1}}}",
            "{name: a/b, discovery: {simulated: {count: 2, prefix: sim}}}",
        );
        let order = |first: &str, second: &str| of(&format!("resources: [{first}, {second}]"));
        assert_eq!(order(one, other), order(other, one));
        let hooks = |one: &str| of(&format!("{PLAIN}\nhooks: {{{one}}}"));
        assert_eq!(
            hooks("init: {type: PciReset}, reset: {type: PciReset}, release: {type: PciReset}"),
            hooks(
                "init: {type: PciReset, timeoutSeconds: 60}, reset: {type: PciReset, \
                 timeoutSeconds: 20}, release: {type: PciReset, timeoutSeconds: 60}"
            )
        );
        let driver = "driver: {image: i, command: [/c]";
        assert_eq!(
            hooks(&format!("{driver}}}")),
            hooks(&format!(
                "{driver}, timeoutSeconds: 600, privileged: false}}"
            ))
        );
        let tolerations = |one: &str| of(&format!("{PLAIN}\nagent: {{tolerations: [{one}]}}"));
        assert_eq!(
            tolerations("{key: a}"),
            tolerations("{key: a, operator: Equal, value: ''}")
        );
    }

    #[test]
    fn what_agents_run_differently_is_another_revision() {
        let mut seen = std::collections::BTreeSet::from([of(PLAIN)]);
        for other in [
            PLAIN.replace("/dev/a", "/dev/b"),
            PLAIN.replace("example.com/a", "example.com/b"),
            PLAIN.replace("globs: [/dev/a]", "globs: [/dev/a], exclude: [/dev/a1]"),
            PLAIN.replace("}}}]", "}}, container: {permissions: r}}]"),
            PLAIN.replace("}}}]", "}}, container: {cdi: Enabled}}]"),
            PLAIN.replace("}}}]", "}}, container: {annotations: {a: b}}}]"),
            PLAIN.replace(
                "}}}]",
                "}}, container: {mounts: [{hostPath: /a, containerPath: /b}]}}]",
            ),
            PLAIN.replace("}}}]", "}}, replicas: 2}]"),
            PLAIN.replace("}}}]", "}}, allowMultipleReplicasPerContainer: true}]"),
            PLAIN.replace("}}}]", "}}, preferredAllocation: Packed}]"),
            PLAIN.replace("}}}]", "}}, healthCheck: {periodSeconds: 6}}]"),
            PLAIN.replace("paths: {globs: [/dev/a]}", "simulated: {count: 1}"),
            PLAIN.replace("paths: {globs: [/dev/a]}", "pci: [{vendor: '8086'}]"),
            PLAIN.replace("paths: {globs: [/dev/a]}", "usb: [{vendor: '8086'}]"),
            PLAIN.replace("}}}]", "}}, idFrom: Serial}]"),
            PLAIN.replace("}}}]", "}}, topology: None}]"),
            format!("{PLAIN}\nhooks: {{toolsImage: a}}"),
            format!("{PLAIN}\nhooks: {{toolsImage: b}}"),
            format!("{PLAIN}\nhooks: {{toolsImage: b, privileged: true}}"),
            format!("{PLAIN}\nhooks: {{init: {{type: PciReset}}}}"),
            format!("{PLAIN}\nhooks: {{reset: {{type: PciReset}}}}"),
            format!("{PLAIN}\nhooks: {{reset: {{type: PciReset, timeoutSeconds: 21}}}}"),
            format!("{PLAIN}\nhooks: {{release: {{type: PciReset}}}}"),
            format!("{PLAIN}\nhooks: {{driver: {{image: a, command: [/c]}}}}"),
            format!("{PLAIN}\nagent: {{imagePullPolicy: Always}}"),
            format!("{PLAIN}\nagent: {{imagePullSecrets: [{{name: s}}]}}"),
            format!("{PLAIN}\nagent: {{priorityClassName: p}}"),
            format!("{PLAIN}\nagent: {{tolerations: [{{operator: Exists}}]}}"),
            format!("{PLAIN}\nagent: {{resources: {{}}}}"),
            format!(
                "{PLAIN}\nagent: {{resources: {{requests: {{memory: 1Mi}}, limits: {{memory: 64Mi}}}}}}"
            ),
        ] {
            assert!(seen.insert(of(&other)), "{other}");
        }
        let spec = serde_yaml::from_str(PLAIN).unwrap();
        assert!(seen.insert(revision(&spec, "registry.example.com/agent:2")));
    }

    #[test]
    fn canonical_json_sorts_keys_at_every_depth() {
        let mut text = String::new();
        let value = json!({ "b": [{ "d": null, "c": "\"" }], "a": { "z": 1, "y": true } });
        write_canonical(&value, &mut text);
        assert_eq!(text, r#"{"a":{"y":true,"z":1},"b":[{"c":"\"","d":null}]}"#);
    }

    #[test]
    fn an_image_is_the_specs_own_else_the_stable_one_else_the_default() {
        let mut spec: DevicePluginConfigSpec = serde_yaml::from_str(PLAIN).unwrap();
        assert_eq!(agent_image(&spec, None, "default"), "default");
        assert_eq!(agent_image(&spec, Some("stable"), "default"), "stable");
        spec.agent = Some(AgentSettings {
            image: Some("own".to_owned()),
            ..AgentSettings::default()
        });
        assert_eq!(agent_image(&spec, Some("stable"), "default"), "own");
    }
}
