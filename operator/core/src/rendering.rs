//! The objects of a revision, rendered once and stored whole: a later operator renders other
//! revisions differently and leaves these as they are.

mod pod;
pub mod runner;

use crds::DevicePluginConfig;
use crds::agent_config::AgentConfig;
use crds::names::{
    AGENT_CONFIG_KEY, CONFIG_LABEL, PROMOTED_ANNOTATION, REVISION_LABEL, agent_env,
    node_revision_label, node_stage_label, revision_object,
};
use crds::selector::Requirement;
use serde_json::{Value, json};

use crate::action::metadata;
use crate::revision::{HASH_SCHEMA, RevisionContent, canonical_hooks, canonical_resources};
use crate::settings::Settings;

/// Name of the agent's container.
pub const AGENT_CONTAINER: &str = "agent";

/// Everything that one revision's agents are made from.
pub fn content(
    config: &DevicePluginConfig,
    revision: &str,
    image: &str,
    settings: &Settings,
) -> RevisionContent {
    let name = config.metadata.name.clone().unwrap_or_default();
    let mut template = pod::template(config, revision, image, settings);
    if let Some(pod) = template.get_mut("spec") {
        runner::add(pod, &config.spec, image);
    }
    let agent_config = AgentConfig {
        config: name.clone(),
        config_uid: config.metadata.uid.clone().unwrap_or_default(),
        revision: revision.to_owned(),
        resources: canonical_resources(&config.spec),
        hooks: canonical_hooks(&config.spec),
    };
    RevisionContent {
        hash_schema: HASH_SCHEMA,
        agent_image: image.to_owned(),
        // Plain data without maps keyed by anything but strings can always be written.
        agent_config: serde_json::to_string(&agent_config).unwrap_or_default(),
        template,
    }
}

/// The ControllerRevision. It has no revision label: with the DaemonSet's selector labels the
/// DaemonSet controller would count it among its own and prune it.
pub fn controller_revision(
    config: &DevicePluginConfig,
    revision: &str,
    content: &RevisionContent,
    number: u64,
    promoted: bool,
    settings: &Settings,
) -> Value {
    let (name, uid) = name_and_uid(config);
    let object = revision_object(name, revision);
    let mut metadata = metadata(&object, Some(&settings.namespace), name, uid);
    if promoted {
        let annotations = json!({ PROMOTED_ANNOTATION: number.to_string() });
        set(&mut metadata, "annotations", annotations);
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata,
        "revision": number,
        "data": content,
    })
}

/// The ConfigMap that agents of the revision read.
pub fn config_map(
    config: &DevicePluginConfig,
    revision: &str,
    content: &RevisionContent,
    settings: &Settings,
) -> Value {
    let (name, uid) = name_and_uid(config);
    let object = revision_object(name, revision);
    let metadata = revision_metadata(&object, settings, name, uid, revision);
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": true,
        "data": { AGENT_CONFIG_KEY: content.agent_config },
    })
}

/// The DaemonSet of a revision.
pub fn daemon_set(
    config: &DevicePluginConfig,
    revision: &str,
    template: &Value,
    settings: &Settings,
) -> Value {
    let (name, uid) = name_and_uid(config);
    let object = revision_object(name, revision);
    let metadata = revision_metadata(&object, settings, name, uid, revision);
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": metadata,
        "spec": {
            "selector": { "matchLabels": { CONFIG_LABEL: name, REVISION_LABEL: revision } },
            "updateStrategy": { "type": "OnDelete" },
            // Our ControllerRevisions are the history; those of the controller tell only affinities.
            "revisionHistoryLimit": 1,
            "template": template,
        },
    })
}

/// Where the agents of a revision run.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// On nodes whose labels name the revision, and on selected nodes whose label names no live one:
    /// new nodes get agents also while the operator is away.
    Stable {
        /// The terms of the selection.
        selection: &'a [Vec<Requirement>],
        /// The live revisions.
        live: &'a [&'a str],
    },
    /// On nodes whose labels name the revision.
    Labelled,
}

/// The template with the fields that say where it runs and what an agent is where nothing else says
/// so. Terms of a node affinity are alternatives; `nodeSelector` would be checked again by a kubelet
/// that restarts.
pub fn placed(template: &Value, config: &str, revision: &str, place: Place<'_>) -> Value {
    let label = node_revision_label(config);
    let mut terms = Vec::new();
    for label in [&label, &node_stage_label(config)] {
        terms.push(json!({ "matchExpressions": [
            { "key": label, "operator": "In", "values": [revision] },
        ]}));
    }
    let role = match place {
        Place::Stable { selection, live } => {
            for term in selection {
                let mut expressions: Vec<Value> = term.iter().map(expression).collect();
                expressions.push(json!({ "key": label, "operator": "NotIn", "values": live }));
                terms.push(json!({ "matchExpressions": expressions }));
            }
            "Active"
        }
        Place::Labelled => "Standby",
    };
    let mut placed = with_role(template, role);
    if let Some(spec) = placed.get_mut("spec").and_then(Value::as_object_mut) {
        let required = json!({ "nodeSelectorTerms": terms });
        let node = json!({ "requiredDuringSchedulingIgnoredDuringExecution": required });
        spec.insert("affinity".to_owned(), json!({ "nodeAffinity": node }));
    }
    placed
}

/// A template without the fields that say where it runs.
pub fn unplaced(template: &Value) -> Value {
    let mut unplaced = template.clone();
    if let Some(spec) = unplaced.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("affinity");
    }
    if let Some(env) = agent_env_of(&mut unplaced) {
        env.retain(|one| one.get("name").and_then(Value::as_str) != Some(agent_env::INITIAL_ROLE));
    }
    unplaced
}

/// The template with the agent's role on nodes where nothing else says it.
pub fn with_role(template: &Value, role: &str) -> Value {
    let mut template = unplaced(template);
    if let Some(env) = agent_env_of(&mut template) {
        env.push(json!({ "name": agent_env::INITIAL_ROLE, "value": role }));
    }
    template
}

fn agent_env_of(template: &mut Value) -> Option<&mut Vec<Value>> {
    agent_container_of(template)?.get_mut("env")?.as_array_mut()
}

fn agent_container_of(template: &mut Value) -> Option<&mut Value> {
    let containers = template.pointer_mut("/spec/containers")?.as_array_mut()?;
    containers
        .iter_mut()
        .find(|one| one.get("name").and_then(Value::as_str) == Some(AGENT_CONTAINER))
}

/// Whether an object holds everything that is wanted: the API server adds its defaults, and writes
/// quantities in its own form.
pub fn holds(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            let absent = &Value::Null;
            holds(present.get(key).unwrap_or(absent), wanted)
        }),
        (Value::Array(present), Value::Array(wanted)) => {
            let pairs = present.iter().zip(wanted);
            present.len() == wanted.len() && pairs.into_iter().all(|(one, other)| holds(one, other))
        }
        (Value::String(present), Value::String(wanted)) => {
            let value = crate::quantity::milli;
            present == wanted || value(present).is_some_and(|one| value(wanted) == Some(one))
        }
        // Empty members are left out by the API server.
        (Value::Null, Value::Object(wanted)) => wanted.is_empty(),
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (Value::Null, Value::Bool(wanted)) => !wanted,
        (Value::Null, Value::String(wanted)) => wanted.is_empty(),
        _ => present == wanted,
    }
}

fn expression(requirement: &Requirement) -> Value {
    let mut expression = json!({
        "key": requirement.key,
        "operator": requirement.operator.as_str(),
    });
    if !requirement.values.is_empty() {
        set(&mut expression, "values", json!(requirement.values));
    }
    expression
}

/// Sets a member of an object.
fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert(key.to_owned(), value);
    }
}

/// The metadata of an object that the DaemonSet's selector may find.
fn revision_metadata(
    object: &str,
    settings: &Settings,
    name: &str,
    uid: &str,
    revision: &str,
) -> Value {
    let mut metadata = metadata(object, Some(&settings.namespace), name, uid);
    if let Some(labels) = metadata.get_mut("labels") {
        set(labels, REVISION_LABEL, json!(revision));
    }
    metadata
}

fn name_and_uid(config: &DevicePluginConfig) -> (&str, &str) {
    let name = config.metadata.name.as_deref().unwrap_or_default();
    (name, config.metadata.uid.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use crds::container::Cdi;
    use crds::names::paths;

    use super::*;
    use crate::revision::revision;
    use crate::selection::selection;

    const SPEC: &str = include_str!("rendering/config.yaml");

    pub(super) fn settings() -> Settings {
        Settings {
            namespace: "device-plugin-system".to_owned(),
            agent_image: "registry.example.com/agent:1".to_owned(),
            agent_service_account: "device-plugin-agent".to_owned(),
            device_plugin_dir: "/var/lib/kubelet/device-plugins".to_owned(),
            kubelet_root_dir: "/data/kubelet/".to_owned(),
            node_status_period: std::time::Duration::from_secs(10),
        }
    }

    fn config() -> DevicePluginConfig {
        let mut config = DevicePluginConfig::new("serial", serde_yaml::from_str(SPEC).unwrap());
        config.metadata.uid = Some("5fc188ab-05a8-4cb9-b332-65595a7c0c4b".to_owned());
        config
    }

    /// Existing revisions are never rendered again, so a change here is felt by new ones only; it
    /// is still a change of what runs on nodes, and wants a reason.
    #[test]
    fn the_objects_of_a_revision_are_these() {
        let (config, settings) = (config(), settings());
        let image = "registry.example.com/agent:1";
        let revision = revision(&config.spec, image);
        let content = content(&config, &revision, image, &settings);
        let terms = selection(&config, std::iter::empty());
        let template = placed(
            &content.template,
            "serial",
            &revision,
            Place::Stable {
                selection: terms.terms(),
                live: &[&revision],
            },
        );
        let objects = [
            controller_revision(&config, &revision, &content, 1, true, &settings),
            config_map(&config, &revision, &content, &settings),
            daemon_set(&config, &revision, &template, &settings),
        ];
        let texts: Vec<_> = objects
            .iter()
            .map(|one| serde_yaml::to_string(one).unwrap())
            .collect();
        let text = texts.join("---\n");
        let golden = include_str!("rendering/objects.yaml");
        assert!(
            text == golden,
            "src/rendering/objects.yaml should be:\n{text}"
        );
    }

    #[test]
    fn a_controller_revision_is_not_found_by_the_selector_of_its_daemon_set() {
        let config = config();
        let content = content(&config, "0123456789", "i", &settings());
        let revision = controller_revision(&config, "0123456789", &content, 1, false, &settings());
        let set = daemon_set(&config, "0123456789", &content.template, &settings());
        let selector = set
            .pointer("/spec/selector/matchLabels")
            .unwrap()
            .as_object()
            .unwrap();
        let labels = revision.pointer("/metadata/labels").unwrap();
        assert!(
            selector
                .iter()
                .any(|(key, value)| labels.get(key) != Some(value))
        );
        let labels = set.pointer("/spec/template/metadata/labels").unwrap();
        assert!(
            selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        );
    }

    #[test]
    fn an_agent_container_asks_for_no_privilege() {
        let content = content(&config(), "0123456789", "i", &settings());
        let spec = content.template.get("spec").unwrap();
        for absent in [
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "nodeSelector",
            "affinity",
        ] {
            assert_eq!(spec.get(absent), None, "{absent}");
        }
        let containers = spec.get("containers").unwrap().as_array().unwrap();
        assert_eq!(containers.len(), 1);
        let container = &containers[0];
        let security = &container["securityContext"];
        assert_eq!(security["privileged"], false);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
        for port in container["ports"].as_array().unwrap() {
            assert_eq!(port.get("hostPort"), None);
        }
        let mounts = container["volumeMounts"].as_array().unwrap();
        let writable: Vec<_> = mounts
            .iter()
            .filter(|mount| mount["readOnly"] != true)
            .map(|mount| mount["mountPath"].as_str().unwrap())
            .collect();
        assert_eq!(
            writable,
            [paths::DEVICE_PLUGIN_DIR, paths::LOCK_DIR, paths::STATE_DIR]
        );
    }

    #[test]
    fn only_a_config_that_asks_udev_sees_its_database() {
        let check = |discovery: &str, expected: bool| {
            let spec = format!("resources: [{{name: example.com/a, discovery: {{{discovery}}}}}]");
            let spec = serde_yaml::from_str(&spec).unwrap();
            let config = DevicePluginConfig::new("serial", spec);
            let content = content(&config, "0123456789", "i", &settings());
            let names = |place: &str| {
                let list = content.template.pointer(place).unwrap().as_array().unwrap();
                list.iter().any(|one| one["name"] == "udev")
            };
            assert_eq!(names("/spec/volumes"), expected, "{discovery}");
            assert_eq!(names("/spec/containers/0/volumeMounts"), expected);
            let text = content.template.to_string();
            assert!(!text.contains(r#""/sys""#), "every container has it");
        };
        check("udev: {subsystem: tty, properties: {ID_MODEL: a}}", true);
        check(
            "udev: {subsystem: tty, attributes: {../idVendor: '0403'}}",
            false,
        );
        check("usb: [{vendor: '0403'}]", false);
    }

    #[test]
    fn only_who_writes_cdi_specifications_sees_their_directory() {
        let mut config = config();
        let names = |config: &DevicePluginConfig| {
            let spec = content(config, "0123456789", "i", &settings()).template;
            let list = |pointer: &str| spec.pointer(pointer).unwrap().as_array().unwrap().clone();
            let mounts = list("/spec/containers/0/volumeMounts");
            let mounts = mounts
                .iter()
                .filter(|one| one["mountPath"] == "/var/run/cdi");
            let volumes = list("/spec/volumes");
            let volumes = volumes
                .iter()
                .filter(|one| one["hostPath"]["path"] == "/var/run/cdi");
            (mounts.count(), volumes.count())
        };
        assert_eq!(names(&config), (0, 0));
        let access = config.spec.resources[0].container.get_or_insert_default();
        access.cdi = Cdi::Enabled;
        assert_eq!(names(&config), (1, 1));
    }

    #[test]
    fn what_the_api_server_adds_is_no_difference_and_what_it_lacks_is() {
        let wanted = json!({ "a": [{ "b": "64Mi" }], "c": {}, "d": false, "e": "" });
        for (present, same) in [
            (json!({ "a": [{ "b": "65536Ki", "x": 1 }], "y": 2 }), true),
            (json!({ "a": [{ "b": "64Mi" }, {}] }), false),
            (json!({ "a": [{ "b": "65Mi" }] }), false),
            (json!({ "a": [{ "b": "64Mi" }], "d": true }), false),
            (json!({ "a": [{}] }), false),
            (json!({}), false),
        ] {
            assert_eq!(holds(&present, &wanted), same, "{present}");
        }
    }
}
