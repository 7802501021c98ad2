//! Which nodes a config selects.

use std::collections::BTreeMap;

use crds::placement::{TaintEffect, Toleration, TolerationOperator};
use crds::selector::{LabelSelector, Operator, Requirement};
use crds::{DevicePluginConfig, DevicePluginPool};

use crate::seen::{SeenNode, Taint};

/// What a config's selectors come to. A term is a list of requirements that must all hold; a node
/// is selected if one term holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Selection {
    /// No selector, or an empty one.
    NoSelector,
    /// A pool selector that matches no pool.
    NoPools,
    /// The terms. A pool that selects nothing adds none.
    Terms(Vec<Vec<Requirement>>),
}

impl Selection {
    /// The terms, none where nothing is selected.
    pub fn terms(&self) -> &[Vec<Requirement>] {
        match self {
            Self::NoSelector | Self::NoPools => &[],
            Self::Terms(terms) => terms,
        }
    }

    /// Whether a node's labels match.
    pub fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        self.terms()
            .iter()
            .any(|term| term.iter().all(|requirement| holds(requirement, labels)))
    }
}

/// The selection of a config.
pub fn selection<'a>(
    config: &DevicePluginConfig,
    pools: impl Iterator<Item = &'a DevicePluginPool>,
) -> Selection {
    let spec = &config.spec;
    if let Some(selector) = spec.node_selector.as_ref().filter(|one| !one.is_empty()) {
        return Selection::Terms(vec![requirements(selector)]);
    }
    let Some(selector) = spec
        .machine_config_pool_selector
        .as_ref()
        .filter(|one| !one.is_empty())
    else {
        return Selection::NoSelector;
    };
    let pools: Vec<_> = pools.filter(|pool| selects_pool(selector, pool)).collect();
    if pools.is_empty() {
        return Selection::NoPools;
    }
    let selectors = pools
        .iter()
        .filter_map(|pool| pool.spec.node_selector.as_ref());
    Selection::Terms(
        selectors
            .filter(|selector| !selector.is_empty())
            .map(requirements)
            .collect(),
    )
}

/// Whether a pool selector matches the labels of a pool. An empty one matches nothing.
pub fn selects_pool(selector: &LabelSelector, pool: &DevicePluginPool) -> bool {
    let none = BTreeMap::new();
    let labels = pool.metadata.labels.as_ref().unwrap_or(&none);
    matches(selector, labels)
}

/// Whether a selector matches labels. An empty one matches nothing.
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty()
        && requirements(selector)
            .iter()
            .all(|requirement| holds(requirement, labels))
}

/// A selector as a list of requirements, `matchLabels` first.
fn requirements(selector: &LabelSelector) -> Vec<Requirement> {
    let labels = selector
        .match_labels
        .iter()
        .map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.clone()],
        });
    labels
        .chain(selector.match_expressions.iter().cloned())
        .collect()
}

fn holds(requirement: &Requirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    match requirement.operator {
        Operator::In => value.is_some_and(|value| requirement.values.contains(value)),
        Operator::NotIn => value.is_none_or(|value| !requirement.values.contains(value)),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
    }
}

/// Taints that an agent tolerates without being told: those that every DaemonSet pod tolerates,
/// and not-ready and unreachable with every effect, because an agent is wanted on a node that just
/// comes back. The list is part of every rendered template.
pub const OWN_TOLERATIONS: &[(&str, Option<&str>)] = &[
    ("node.kubernetes.io/not-ready", None),
    ("node.kubernetes.io/unreachable", None),
    ("node.kubernetes.io/unschedulable", Some("NoSchedule")),
    ("node.kubernetes.io/disk-pressure", Some("NoSchedule")),
    ("node.kubernetes.io/memory-pressure", Some("NoSchedule")),
    ("node.kubernetes.io/pid-pressure", Some("NoSchedule")),
];

/// Whether an agent may run on a node. A node that has one already keeps it under a taint that
/// only keeps new pods away, as the DaemonSet controller does.
pub fn tolerates(tolerations: &[Toleration], node: &SeenNode, has_agent: bool) -> bool {
    node.taints
        .iter()
        .filter(|taint| match taint.effect.as_str() {
            "NoExecute" => true,
            "NoSchedule" => !has_agent,
            _ => false,
        })
        .all(|taint| {
            OWN_TOLERATIONS.iter().any(|(key, effect)| {
                taint.key == *key && effect.is_none_or(|effect| taint.effect == effect)
            }) || tolerations.iter().any(|one| covers(one, taint))
        })
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let value = toleration.value.as_deref().unwrap_or_default();
    let effect = toleration.effect.map(TaintEffect::as_str);
    let any_value = match toleration.operator {
        Some(TolerationOperator::Exists) => true,
        Some(TolerationOperator::Equal) | None => false,
    };
    effect.is_none_or(|effect| effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && (any_value || (!key.is_empty() && value == taint.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn a_selector_matches_as_in_kubernetes() {
        for (selector, node, wanted) in [
            ("{}", "{a: b}", false),
            ("matchLabels: {a: b}", "{a: b, c: d}", true),
            ("matchLabels: {a: b}", "{a: c}", false),
            ("matchLabels: {a: b, c: d}", "{a: b}", false),
            (
                "matchExpressions: [{key: a, operator: In, values: [x, b]}]",
                "{a: b}",
                true,
            ),
            (
                "matchExpressions: [{key: a, operator: In, values: [x]}]",
                "{}",
                false,
            ),
            (
                "matchExpressions: [{key: a, operator: NotIn, values: [x]}]",
                "{}",
                true,
            ),
            (
                "matchExpressions: [{key: a, operator: NotIn, values: [b]}]",
                "{a: b}",
                false,
            ),
            (
                "matchExpressions: [{key: a, operator: Exists}]",
                "{a: ''}",
                true,
            ),
            (
                "matchExpressions: [{key: a, operator: Exists}]",
                "{b: ''}",
                false,
            ),
            (
                "matchExpressions: [{key: a, operator: DoesNotExist}]",
                "{b: ''}",
                true,
            ),
            (
                "matchExpressions: [{key: a, operator: DoesNotExist}]",
                "{a: b}",
                false,
            ),
            (
                "{matchLabels: {a: b}, matchExpressions: [{key: c, operator: Exists}]}",
                "{a: b}",
                false,
            ),
        ] {
            let selector = serde_yaml::from_str(selector).unwrap();
            assert_eq!(
                matches(&selector, &labels(node)),
                wanted,
                "{selector:?} on {node}"
            );
        }
    }

    #[test]
    fn a_toleration_covers_as_in_kubernetes() {
        let taint = |key: &str, value: &str, effect: &str| Taint {
            key: key.to_owned(),
            value: value.to_owned(),
            effect: effect.to_owned(),
        };
        for (toleration, taint, wanted) in [
            ("{operator: Exists}", taint("a", "b", "NoExecute"), true),
            (
                "{key: a, operator: Exists}",
                taint("a", "b", "NoSchedule"),
                true,
            ),
            (
                "{key: a, operator: Exists, effect: NoSchedule}",
                taint("a", "", "NoExecute"),
                false,
            ),
            ("{key: a, value: b}", taint("a", "b", "NoSchedule"), true),
            ("{key: a, value: b}", taint("a", "c", "NoSchedule"), false),
            ("{key: a}", taint("a", "", "NoSchedule"), true),
            ("{key: b}", taint("a", "", "NoSchedule"), false),
            (
                "{key: a, operator: Equal, value: ''}",
                taint("a", "x", "NoSchedule"),
                false,
            ),
        ] {
            let toleration = serde_yaml::from_str(toleration).unwrap();
            assert_eq!(
                covers(&toleration, &taint),
                wanted,
                "{toleration:?} and {taint:?}"
            );
        }
    }

    #[test]
    fn agents_run_where_every_daemon_set_pod_does() {
        let mut node = SeenNode::default();
        let add = |node: &mut SeenNode, key: &str, effect: &str| {
            node.taints.push(Taint {
                key: key.to_owned(),
                value: String::new(),
                effect: effect.to_owned(),
            });
        };
        for (key, effect) in [
            ("node.kubernetes.io/not-ready", "NoExecute"),
            ("node.kubernetes.io/not-ready", "NoSchedule"),
            ("node.kubernetes.io/unreachable", "NoExecute"),
            ("node.kubernetes.io/unschedulable", "NoSchedule"),
            ("node.kubernetes.io/disk-pressure", "NoSchedule"),
            ("anything", "PreferNoSchedule"),
        ] {
            add(&mut node, key, effect);
        }
        assert!(tolerates(&[], &node, false));
        add(
            &mut node,
            "node.kubernetes.io/network-unavailable",
            "NoSchedule",
        );
        assert!(
            !tolerates(&[], &node, false),
            "an agent has a network of its own"
        );
        assert!(tolerates(&[], &node, true));
    }
}
