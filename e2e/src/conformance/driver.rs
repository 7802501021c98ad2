//! How the suite works a plugin: its command line, and what makes its devices come and go. It is a
//! file of the plugin's vendor; `docs/conformance.md` describes it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Something that the suite has done to a plugin's world, by a shell command of the caller's.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Device number `{device}` appears, healthy.
    AddDevice,
    /// It vanishes.
    RemoveDevice,
    /// It stays, and turns unhealthy.
    FailDevice,
    /// It is healthy again.
    RecoverDevice,
    /// It changes about a thousand times a second for `{seconds}` s, and is healthy at the end.
    FlapDevice,
    /// Looking for devices fails from now on, while the devices are still there.
    BreakDiscovery,
    /// Looking for devices works again.
    MendDiscovery,
    /// Succeeds if the plugin has reported that a container started with device id `{id}` without
    /// its reset.
    Reported,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddDevice => "add-device",
            Self::RemoveDevice => "remove-device",
            Self::FailDevice => "fail-device",
            Self::RecoverDevice => "recover-device",
            Self::FlapDevice => "flap-device",
            Self::BreakDiscovery => "break-discovery",
            Self::MendDiscovery => "mend-discovery",
            Self::Reported => "reported",
        })
    }
}

/// A way to start the plugin that some behaviours need.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// It serves a second resource, whose devices are there from the start.
    TwoResources,
    /// It serves the resource whose name is `{resource}`, right or wrong.
    Named,
    /// It has `{count}` devices from the start.
    Many,
    /// Of its devices, the first has NUMA node -1, the second an unknown one, the third node 0, the
    /// fourth nodes 0 and 1.
    Numa,
    /// It offers preferred allocation.
    Preferred,
    /// It runs the program `{hook}` for each device before a container starts, and offers
    /// `PreStartContainer`.
    PreStart,
    /// It answers with CDI names, and writes its specs into `{cdi_dir}`.
    Cdi,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TwoResources => "two-resources",
            Self::Named => "named",
            Self::Many => "many",
            Self::Numa => "numa",
            Self::Preferred => "preferred",
            Self::PreStart => "pre-start",
            Self::Cdi => "cdi",
        })
    }
}

/// What a feature changes in how a plugin is started and worked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Variation {
    /// In place of the driver's own.
    pub resource: Option<String>,
    /// Name of the second resource.
    pub second: Option<String>,
    /// In place of the driver's own.
    pub command: Option<Vec<String>>,
    /// Beside the driver's own, or in place of those of the same name.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// In place of the driver's own.
    pub setup: Option<String>,
    /// In place of the driver's own of the same name.
    #[serde(default)]
    pub actions: BTreeMap<Action, String>,
}

/// How a plugin is started and worked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Driver {
    /// The resource that the plugin serves.
    #[serde(default)]
    pub resource: String,
    /// Its command line.
    #[serde(default)]
    pub command: Vec<String>,
    /// Its environment, beside the suite's own. The commands below get it too.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Run by a shell in `{home}` before the first start.
    #[serde(default)]
    pub setup: String,
    /// How many devices it has without any action.
    #[serde(default)]
    pub devices: usize,
    /// How many seconds it may take to see that a device changed.
    #[serde(default = "one_second")]
    pub detection_seconds: u64,
    /// What a container may do with a device node, where the vendor promises that.
    pub permissions: Option<String>,
    /// Beginnings of the host paths that it answers with, and where those are here.
    #[serde(default)]
    pub host_paths: BTreeMap<String, String>,
    /// What can be done to its world.
    #[serde(default)]
    pub actions: BTreeMap<Action, String>,
    /// Ways to start it.
    #[serde(default)]
    pub features: BTreeMap<Feature, Variation>,
    /// Placeholders of the caller's.
    #[serde(skip)]
    pub places: BTreeMap<String, String>,
}

fn one_second() -> u64 {
    1
}

impl Driver {
    /// Reads a driver file.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("failed to read {path:?}"))?;
        Self::parse(&text).with_context(|| format!("failed to understand {path:?}"))
    }

    /// Understands the text of a driver file.
    ///
    /// # Errors
    /// When it is not YAML of this form.
    pub fn parse(text: &str) -> Result<Self> {
        serde_yaml::from_str(text).context("not a driver")
    }

    /// The driver as a feature changes it; nothing if it does not have the feature.
    pub fn with(&self, feature: Feature) -> Option<Self> {
        let variation = self.features.get(&feature)?.clone();
        let mut changed = self.clone();
        if let Some(resource) = variation.resource {
            changed.resource = resource;
        }
        if let Some(second) = variation.second {
            changed.places.insert("second".to_owned(), second);
        }
        if let Some(command) = variation.command {
            changed.command = command;
        }
        if let Some(setup) = variation.setup {
            changed.setup = setup;
        }
        changed.environment.extend(variation.environment);
        changed.actions.extend(variation.actions);
        Some(changed)
    }

    /// A text with its placeholders filled in. What is no placeholder stays as it is.
    pub fn filled(&self, text: &str, places: &BTreeMap<String, String>) -> String {
        let mut filled = text.to_owned();
        // The caller's own come first: they are in place of the suite's.
        for (name, value) in self.places.iter().chain(places) {
            filled = filled.replace(&format!("{{{name}}}"), value);
        }
        filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_changes_what_it_names_and_nothing_else() {
        let text = "
            resource: a/b
            command: [plugin, --dir, '{plugin_dir}']
            environment: {A: '1', B: '2'}
            actions: {add-device: touch x, remove-device: rm x}
            features:
              two-resources: {second: a/c, environment: {B: '3'}, actions: {add-device: touch y}}
        ";
        let driver = Driver::parse(text).unwrap();
        assert!(driver.with(Feature::Cdi).is_none());
        let changed = driver.with(Feature::TwoResources).unwrap();
        assert_eq!(changed.resource, "a/b");
        assert_eq!(changed.environment["A"], "1");
        assert_eq!(changed.environment["B"], "3");
        assert_eq!(changed.actions[&Action::AddDevice], "touch y");
        assert_eq!(changed.actions[&Action::RemoveDevice], "rm x");
        let places = BTreeMap::from([("plugin_dir".to_owned(), "/p".to_owned())]);
        assert_eq!(
            changed.filled("{plugin_dir} {second} {\"a\": {}}", &places),
            "/p a/c {\"a\": {}}"
        );
    }

    #[test]
    fn what_no_driver_has_is_refused_by_name() {
        let error = Driver::parse("resource: a/b\nactions: {explode: now}").unwrap_err();
        assert!(format!("{error:#}").contains("explode"), "{error:#}");
        let error = Driver::parse("resources: [a/b]").unwrap_err();
        assert!(format!("{error:#}").contains("resources"), "{error:#}");
    }
}
