//! What only code can see in a spec. Everything else is refused at admission by the schema.

use crds::selector::{LabelSelector, Operator};
use crds::{DevicePluginConfig, DevicePluginPool};
use globset::GlobBuilder;

use crate::selection::selects_pool;

/// The first thing that is wrong with a config, as a sentence that names field, value and what is
/// right; absent where nothing is.
pub fn problem<'a>(
    config: &DevicePluginConfig,
    mut pools: impl Iterator<Item = &'a DevicePluginPool>,
) -> Option<String> {
    let spec = &config.spec;
    for (name, selector) in [
        ("nodeSelector", &spec.node_selector),
        (
            "machineConfigPoolSelector",
            &spec.machine_config_pool_selector,
        ),
    ] {
        if let Some(problem) = selector.as_ref().and_then(selector_problem) {
            return Some(format!("spec.{name}.{problem}"));
        }
    }
    let selector = spec.machine_config_pool_selector.as_ref();
    let pool_problem = pools.find_map(|pool| {
        let selected = selector.is_some_and(|selector| selects_pool(selector, pool));
        let problem = selector_problem(pool.spec.node_selector.as_ref().filter(|_| selected)?)?;
        let name = pool.metadata.name.as_deref().unwrap_or_default();
        Some(format!(
            "DevicePluginPool {name:?}: spec.nodeSelector.{problem}"
        ))
    });
    let mut resources = spec.resources.iter();
    pool_problem
        .or_else(|| resources.find_map(|one| glob_problem(one).or_else(|| udev_problem(one))))
}

fn udev_problem(resource: &crds::Resource) -> Option<String> {
    let udev = resource.discovery.udev.as_ref()?;
    let field = |field: &str| format!("spec.resources[{:?}].discovery.udev.{field}", resource.name);
    let leads_away = |name: &&String| {
        let below = name.strip_prefix("../").unwrap_or(name);
        below
            .split('/')
            .any(|segment| matches!(segment, "" | "." | ".."))
    };
    if let Some(name) = udev.attributes.keys().find(leads_away) {
        return Some(format!(
            "{}: {name:?} is not an attribute; write for example \"idVendor\" or \"../idVendor\", with no other . or ..",
            field("attributes")
        ));
    }
    let properties = udev.properties.iter().map(|one| ("properties", one));
    let attributes = udev.attributes.iter().map(|one| ("attributes", one));
    properties.chain(attributes).find_map(|(member, (name, pattern))| {
        let error = GlobBuilder::new(pattern).build().err()?;
        Some(format!(
            "{}[{name:?}] {pattern:?} is not a pattern: {}; write for example \"60??\", with every [ and {{ closed",
            field(member),
            error.kind(),
        ))
    })
}

fn glob_problem(resource: &crds::Resource) -> Option<String> {
    let paths = resource.discovery.paths.as_ref()?;
    let globs = paths.globs.iter().enumerate().map(|one| ("globs", one));
    let excludes = paths.exclude.iter().enumerate().map(|one| ("exclude", one));
    globs.chain(excludes).find_map(|(field, (index, glob))| {
        let error = GlobBuilder::new(glob).literal_separator(true).build().err()?;
        Some(format!(
            "spec.resources[{:?}].discovery.paths.{field}[{index}] {glob:?} is not a glob: {}; write for example \"/dev/ttyUSB*\", with every [ and {{ closed",
            resource.name,
            error.kind(),
        ))
    })
}

/// What is wrong with a selector: the API server would refuse the DaemonSet that carries it.
fn selector_problem(selector: &LabelSelector) -> Option<String> {
    for (key, value) in &selector.match_labels {
        if let Some(problem) = key_problem(key).or_else(|| value_problem(value)) {
            return Some(format!("matchLabels[{key:?}]: {problem}"));
        }
    }
    for (index, requirement) in selector.match_expressions.iter().enumerate() {
        let values = match requirement.operator {
            Operator::In | Operator::NotIn => requirement.values.as_slice(),
            Operator::Exists | Operator::DoesNotExist => &[],
        };
        let problem = key_problem(&requirement.key)
            .or_else(|| values.iter().find_map(|value| value_problem(value)));
        if let Some(problem) = problem {
            return Some(format!("matchExpressions[{index}]: {problem}"));
        }
    }
    None
}

fn value_problem(value: &str) -> Option<String> {
    let is_right = value.is_empty() || is_label_name(value);
    (!is_right).then(|| {
        format!("{value:?} is not a label value: at most 63 letters, digits, -, _ and ., starting and ending with a letter or digit")
    })
}

fn key_problem(key: &str) -> Option<String> {
    let (prefix, name) = key
        .rsplit_once('/')
        .map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_right = is_label_name(name) && prefix.is_none_or(is_subdomain);
    (!is_right).then(|| {
        format!("{key:?} is not a label key: a name of at most 63 letters, digits, -, _ and ., with an optional DNS subdomain and / before it, such as example.com/board")
    })
}

/// A label's name part, or its value: letters, digits, `-`, `_` and `.`, 1 to 63.
fn is_label_name(text: &str) -> bool {
    let inner = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    inner && text.len() <= 63 && has_alphanumeric_ends(text)
}

fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        part.bytes().all(inner) && has_alphanumeric_ends(part)
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

fn has_alphanumeric_ends(text: &str) -> bool {
    let starts = text
        .as_bytes()
        .first()
        .is_some_and(u8::is_ascii_alphanumeric);
    starts
        && text
            .as_bytes()
            .last()
            .is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str) -> Option<String> {
        let config = DevicePluginConfig::new("c", serde_yaml::from_str(spec).unwrap());
        problem(&config, std::iter::empty())
    }

    #[test]
    fn what_the_schema_lets_through_is_refused_with_field_and_value() {
        let resource = "resources: [{name: a.b/c, discovery: {paths: {globs: [/dev/a]}}}]";
        for (spec, wanted) in [
            (
                "resources: [{name: a.b/c, discovery: {paths: {globs: [/dev/a, '/dev/[b']}}}]".to_owned(),
                "spec.resources[\"a.b/c\"].discovery.paths.globs[1] \"/dev/[b\" is not a glob",
            ),
            (
                "resources: [{name: a.b/c, discovery: {paths: {globs: [/dev/a], exclude: ['/dev/{b']}}}]".to_owned(),
                "spec.resources[\"a.b/c\"].discovery.paths.exclude[0] \"/dev/{b\" is not a glob",
            ),
            (
                "resources: [{name: a.b/c, discovery: {udev: {subsystem: tty, attributes: {../../x: a}}}}]".to_owned(),
                "spec.resources[\"a.b/c\"].discovery.udev.attributes: \"../../x\" is not an attribute",
            ),
            (
                "resources: [{name: a.b/c, discovery: {udev: {subsystem: tty, properties: {A: '[b'}}}}]".to_owned(),
                "spec.resources[\"a.b/c\"].discovery.udev.properties[\"A\"] \"[b\" is not a pattern",
            ),
            (
                format!("{resource}\nnodeSelector: {{matchLabels: {{a: b c}}}}"),
                "spec.nodeSelector.matchLabels[\"a\"]: \"b c\" is not a label value",
            ),
            (
                format!("{resource}\nnodeSelector: {{matchLabels: {{-a: b}}}}"),
                "spec.nodeSelector.matchLabels[\"-a\"]: \"-a\" is not a label key",
            ),
            (
                format!("{resource}\nnodeSelector: {{matchExpressions: [{{key: A_b.c/d/e, operator: Exists}}]}}"),
                "spec.nodeSelector.matchExpressions[0]: \"A_b.c/d/e\" is not a label key",
            ),
            (
                format!("{resource}\nmachineConfigPoolSelector: {{matchExpressions: [{{key: a, operator: In, values: [ok, 'not ok']}}]}}"),
                "spec.machineConfigPoolSelector.matchExpressions[0]: \"not ok\" is not a label value",
            ),
        ] {
            let problem = of(&spec).unwrap_or_default();
            assert!(problem.starts_with(wanted), "{spec}: {problem}");
        }
    }

    #[test]
    fn ordinary_specs_pass() {
        for globs in [
            "[/dev/ttyUSB*]",
            "['/dev/serial/**']",
            "['/dev/tty{USB,ACM}[0-9]']",
            "[/dev/a?]",
        ] {
            let resource =
                format!("resources: [{{name: a.b/c, discovery: {{paths: {{globs: {globs}}}}}}}]");
            assert_eq!(of(&resource), None, "{globs}");
        }
        for key in [
            "a",
            "example.com/board",
            "feature.node.kubernetes.io/usb-ff_0403_6001.present",
        ] {
            let spec = format!(
                "resources: [{{name: a.b/c, discovery: {{simulated: {{count: 1}}}}}}]\nnodeSelector: {{matchLabels: {{{key}: ''}}}}"
            );
            assert_eq!(of(&spec), None, "{key}");
        }
    }
}
