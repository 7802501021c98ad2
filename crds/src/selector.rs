//! A label selector whose operators are checked by the API server.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A label selector: all of `matchLabels` and all of `matchExpressions` must hold. Empty matches
/// nothing, as in a KubeletConfig.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there with exactly these values. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements that must all hold. At most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<Requirement>,
}

impl LabelSelector {
    /// Whether nothing is asked, which selects nothing.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

/// One requirement on one label.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)")
        .message(Message::Expression("'requirement on label \"' + self.key + '\": values must be given for In and NotIn, and must be left out for Exists and DoesNotExist'".into()))
)]
pub struct Requirement {
    /// The label key, for example `feature.node.kubernetes.io/pci-1d0f.present`.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// `In`: the label has one of the values. `NotIn`: it has none of them, or is absent.
    /// `Exists`: it is there. `DoesNotExist`: it is absent.
    pub operator: Operator,
    /// The values for `In` and `NotIn`, at most 64; left out otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a requirement relates a label to its values.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is absent.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl Operator {
    /// The word on the wire, the same in label selectors and in node affinity.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }
}
