//! How changes of a config spread over its nodes. None of it is part of a revision.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How a changed config reaches its nodes. Every field left out means the product's default.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutSettings {
    /// Whether no further node is changed. Nodes that are being changed finish or are rolled back,
    /// and new nodes get the stable revision. Left out: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// How many nodes may run an unproven revision, or be without their devices because of a
    /// change, at the same time: a number from 1 to 250, or a percentage of the selected nodes,
    /// rounded down and never below 1. Left out: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<NodeLimit>,
    /// What a node must show before its change counts as done. Left out: the defaults of its
    /// members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// What a node must show before its change counts as done.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// How long the new agent must serve without a fault, in seconds, while the old one stands by.
    /// 0 to 3600. Left out: 30; never shorter than two reports of the kubelet to the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub soak_seconds: Option<i32>,
    /// How often the new agent may restart meanwhile. 0 to 100. Left out: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_restarts: Option<i32>,
    /// How many devices of a resource the new agent may find fewer than the node had healthy before
    /// the change: a number from 0 to 1000, or a percentage of them, rounded down. Left out: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerated_device_loss: Option<DeviceLimit>,
    /// How long the kubelet's own list of a resource may differ from what the agent sent before
    /// that counts against the agent, in seconds. 0 to 300. Left out: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 300))]
    pub kubelet_sync_timeout_seconds: Option<i32>,
}

/// Nodes that may be unavailable at once where `maxUnavailable` is left out: the smallest number
/// that lets a rollout move. More would let the first fault of a revision meet several nodes.
pub const DEFAULT_MAX_UNAVAILABLE: i32 = 1;
/// Soak where `soakSeconds` is left out: three reports of a kubelet with its usual 10 s. A third
/// could miss what only the next report shows; ten times as much is an hour for twelve nodes.
pub const DEFAULT_SOAK_SECONDS: i32 = 30;
/// Patience with the kubelet's list where `kubeletSyncTimeoutSeconds` is left out: the agent reads
/// it every 10 s and heals what differs, which must have had its chance.
pub const DEFAULT_KUBELET_SYNC_TIMEOUT_SECONDS: i32 = 30;
/// Most nodes of one config in a change at once: a claim each, and the ledger holds 250 in all.
pub const MAX_UNAVAILABLE_MAX: i32 = 250;

/// A number, or a percentage.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum IntOrPercent {
    /// A number.
    Int(i32),
    /// A percentage, such as `10%`.
    Percent(String),
}

impl IntOrPercent {
    /// The number that it comes to, of this many, rounded down. A number in quotes is a number; a
    /// text that is neither, which the schema refuses, is 0.
    pub fn of(&self, whole: i32) -> i32 {
        let text = match self {
            Self::Int(number) => return *number,
            Self::Percent(text) => text,
        };
        let Some(percent) = text.strip_suffix('%') else {
            return text.parse().unwrap_or(0);
        };
        let share = i64::from(whole) * percent.parse().unwrap_or(0_i64) / 100;
        i32::try_from(share).unwrap_or(i32::MAX)
    }
}

macro_rules! int_or_percent {
    ($(#[$doc:meta])* $name:ident, $rule:literal, $message:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub IntOrPercent);

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "x-kubernetes-int-or-string": true,
                    // Bounds what the API server reckons the rule to cost.
                    "maxLength": 16,
                    "x-kubernetes-validations": [{
                        "rule": $rule,
                        "messageExpression": concat!("'\"' + string(self) + '\" ", $message, "'"),
                    }],
                })
            }
        }
    };
}

int_or_percent!(
    /// How many nodes: 1 to 250, or 1% to 100%.
    NodeLimit,
    "string(self).matches('^([1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|250|([1-9][0-9]?|100)%)$')",
    "must be a number from 1 to 250 or a percentage from 1% to 100%, such as 2 or \"10%\"; to change no node at all set paused: true"
);
int_or_percent!(
    /// How many devices: 0 to 1000, or 0% to 100%.
    DeviceLimit,
    "string(self).matches('^([0-9]|[1-9][0-9]{1,2}|1000|([0-9]|[1-9][0-9]|100)%)$')",
    "must be a number from 0 to 1000 or a percentage from 0% to 100%, such as 1 or \"10%\""
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_down_and_numbers_are_themselves() {
        for (limit, whole, wanted) in [
            ("3", 100, 3),
            ("'10%'", 3, 0),
            ("'10%'", 39, 3),
            ("'100%'", 7, 7),
            ("'2'", 7, 2),
            ("'x'", 7, 0),
        ] {
            let limit: IntOrPercent = serde_yaml::from_str(limit).unwrap();
            assert_eq!(limit.of(whole), wanted, "{limit:?} of {whole}");
        }
    }
}
