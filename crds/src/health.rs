//! How the health of a device is judged.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the health of a device is judged.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// `Exists`: a device is Healthy while its device node exists as a device of the same kind.
    /// Default `Exists`.
    #[serde(
        default,
        rename = "type",
        skip_serializing_if = "is_default_health_check"
    )]
    pub type_: HealthCheckType,
    /// How often devices are looked at, in seconds, beside the events of `/dev` that are acted on
    /// at once. 1 to 3600, default 5.
    #[serde(default = "default_period", skip_serializing_if = "is_default_period")]
    #[schemars(range(min = 1, max = 3600))]
    pub period_seconds: i32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            type_: HealthCheckType::default(),
            period_seconds: default_period(),
        }
    }
}

/// The kinds of health check.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum HealthCheckType {
    /// Healthy while the device node exists.
    #[default]
    Exists,
}

fn is_default_health_check(kind: &HealthCheckType) -> bool {
    *kind == HealthCheckType::default()
}

fn default_period() -> i32 {
    5
}

fn is_default_period(period: &i32) -> bool {
    *period == default_period()
}
