//! The examples in the tree: each says only what the API knows, and passes its rules.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets the unexpected fails"
)]

#[path = "support/validation.rs"]
mod validation;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::PathBuf;

use crds::{DevicePluginConfig, DevicePluginPool};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::validation::{complaints, rules, schema};

/// Objects of every example by its file name.
type Examples = BTreeMap<String, Vec<Value>>;

fn examples() -> Result<Examples, Box<dyn Error>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut examples = Examples::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&path)?;
        let objects = serde_yaml::Deserializer::from_str(&text)
            .map(Value::deserialize)
            .collect::<Result<_, _>>()?;
        examples.insert(name, objects);
    }
    Ok(examples)
}

/// The spec as our types understand it: what they do not know is lost.
fn understood<Kind>(object: &Value) -> Result<Value, serde_json::Error>
where
    Kind: DeserializeOwned + serde::Serialize,
{
    let typed: Kind = serde_json::from_value(object.clone())?;
    Ok(serde_json::to_value(typed)?["spec"].clone())
}

#[test]
fn every_example_is_what_the_api_understands() -> Result<(), Box<dyn Error>> {
    let mut kinds = BTreeSet::new();
    for (file, objects) in examples()? {
        for object in objects {
            let kind = object["kind"].as_str().unwrap_or_default();
            let spec = match kind {
                "DevicePluginConfig" => understood::<DevicePluginConfig>(&object)?,
                "DevicePluginPool" => understood::<DevicePluginPool>(&object)?,
                "Pod" => continue,
                other => panic!("{file}: kind {other:?} is none of ours"),
            };
            assert_eq!(
                spec, object["spec"],
                "{file}: something in it is not known, or a default"
            );
            let said = complaints(&object);
            assert!(said.is_empty(), "{file}: {said:#?}");
            assert!(!rules(&schema(kind)).is_empty());
            kinds.insert(kind.to_owned());
        }
    }
    assert_eq!(kinds.len(), 2, "examples of both kinds that users write");
    Ok(())
}

#[test]
fn every_pod_asks_for_a_resource_of_an_example() -> Result<(), Box<dyn Error>> {
    let objects: Vec<Value> = examples()?.into_values().flatten().collect();
    let served: BTreeSet<&str> = objects
        .iter()
        .filter_map(|object| object["spec"]["resources"].as_array())
        .flatten()
        .filter_map(|resource| resource["name"].as_str())
        .collect();
    let mut pods = 0;
    for pod in objects.iter().filter(|object| object["kind"] == "Pod") {
        pods += 1;
        let limits = pod["spec"]["containers"][0]["resources"]["limits"].as_object();
        for resource in limits.into_iter().flat_map(|limits| limits.keys()) {
            assert!(
                served.contains(resource.as_str()),
                "no example serves {resource:?}"
            );
        }
    }
    assert!(pods > 0, "no example shows a pod");
    Ok(())
}
