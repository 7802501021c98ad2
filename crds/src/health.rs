//! How the health of a device is judged.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the health of a device is judged. Whatever the type, a device whose node vanishes is
/// Unhealthy at once, and one whose node appears is Healthy until a probe says otherwise.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.type) && self.type == 'SysfsEquals') == has(self.attribute) && has(self.attribute) == has(self.values)")
        .message(Message::Expression("'type ' + (has(self.type) ? self.type : 'Exists') + (has(self.type) && self.type == 'SysfsEquals' ? ' needs an attribute and values' : ' has neither attribute nor values: only type SysfsEquals has them')".into())),
    validation = Rule::new("(has(self.type) && self.type == 'Exec') == has(self.command)")
        .message(Message::Expression("'type ' + (has(self.type) ? self.type : 'Exists') + (has(self.command) ? ' has no command: only type Exec has one' : ' needs a command')".into()))
)]
pub struct HealthCheck {
    /// `Exists`: a device is Healthy while its device node exists as a device of the same kind.
    /// `SysfsEquals`: also, an attribute of it has one of the given values. `Open`: also, its device
    /// nodes can be opened; that is never tried while a container holds the device. `Exec`: also, a
    /// program of the tools image ends with exit code 0. Default `Exists`.
    #[serde(
        default,
        rename = "type",
        skip_serializing_if = "is_default_health_check"
    )]
    pub type_: HealthCheckType,
    /// How often devices are looked at and probed, in seconds, beside the events of `/dev` that are
    /// acted on at once. 1 to 3600, default 5.
    #[serde(default = "default_period", skip_serializing_if = "is_default_period")]
    #[schemars(range(min = 1, max = 3600))]
    pub period_seconds: i32,
    /// How long one probe may take, in seconds; then it has failed. A device is never probed twice
    /// at the same time. 1 to 60, default 2.
    #[serde(default = "two", skip_serializing_if = "is_two")]
    #[schemars(range(min = 1, max = 60))]
    pub timeout_seconds: i32,
    /// So many probes in a row must fail before a Healthy device is Unhealthy. 1 to 100, default 2.
    #[serde(default = "two", skip_serializing_if = "is_two")]
    #[schemars(range(min = 1, max = 100))]
    pub failure_threshold: i32,
    /// So many probes in a row must succeed before a device that failed its probes is Healthy again.
    /// 1 to 100, default 2.
    #[serde(default = "two", skip_serializing_if = "is_two")]
    #[schemars(range(min = 1, max = 100))]
    pub success_threshold: i32,
    /// The file to read, with type `SysfsEquals` only: a path relative to the device's directory in
    /// sysfs, such as `device/state`, at most 256 characters. It may begin with `../`, once for each
    /// parent, and must lead to a file below `/sys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new("self.matches('^([.][.]/){0,16}([^/.][^/]*|[.][^/.][^/]*|[.][.][^/]+)(/([^/.][^/]*|[.][^/.][^/]*|[.][.][^/]+))*$')")
            .message(Message::Expression("'attribute \"' + self + '\" must be a file relative to the device\\'s directory in sysfs, such as device/state or ../power/control, with .. at its beginning only'".into()))
    )]
    pub attribute: Option<String>,
    /// What the file may hold, white space around it left out, with type `SysfsEquals` only: 1 to
    /// 16, each at most 256 characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(max = 256)))]
    pub values: Vec<String>,
    /// The program and its arguments, with type `Exec` only: 1 to 32, each at most 1024 characters,
    /// the program with its absolute path in `hooks.toolsImage`. There is no shell. Its environment
    /// is that of a hook; what it prints is the reason why the device is Unhealthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), inner(length(max = 1024)))]
    #[x_kube(
        validation = Rule::new("self[0].matches('^/.')")
            .message(Message::Expression("'the program \"' + self[0] + '\" must be an absolute path in the tools image, such as /tools/probe'".into()))
    )]
    pub command: Vec<String>,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            type_: HealthCheckType::default(),
            period_seconds: default_period(),
            timeout_seconds: two(),
            failure_threshold: two(),
            success_threshold: two(),
            attribute: None,
            values: Vec::new(),
            command: Vec::new(),
        }
    }
}

/// The kinds of health check.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum HealthCheckType {
    /// Healthy while the device node exists.
    #[default]
    Exists,
    /// Healthy while an attribute has one of some values.
    SysfsEquals,
    /// Healthy while the device nodes can be opened.
    Open,
    /// Healthy while a program says so.
    Exec,
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

/// The default of a probe's time and of both thresholds.
fn two() -> i32 {
    2
}

fn is_two(number: &i32) -> bool {
    *number == two()
}
