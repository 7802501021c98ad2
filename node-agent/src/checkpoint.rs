//! The file in which the kubelet notes who holds what. It is the kubelet's own, so nothing depends on
//! finding it: it only keeps hooks away from devices that a kubelet which has just started, and does
//! not know its pods yet, forgets to tell of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Deserialize;

const FILE: &str = "kubelet_internal_checkpoint";

/// A larger file is not one of the kubelet's: 10,000 devices with all that containers got for them
/// take a quarter of it.
const LENGTH_MAX: u64 = 64 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Checkpoint {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    #[serde(default)]
    pod_device_entries: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    resource_name: String,
    /// Ids by NUMA node.
    #[serde(rename = "DeviceIDs", default)]
    device_ids: BTreeMap<String, Vec<String>>,
}

/// Ids of a resource that the kubelet has noted as held; none where it cannot be read.
pub fn noted(plugin_dir: &Path, resource: &str) -> BTreeSet<String> {
    let path = plugin_dir.join(FILE);
    let is_usual = |length: u64| length <= LENGTH_MAX;
    if !fs::metadata(&path).is_ok_and(|file| file.is_file() && is_usual(file.len())) {
        return BTreeSet::new();
    }
    let text = fs::read(&path).unwrap_or_default();
    match serde_json::from_slice::<Checkpoint>(&text) {
        Ok(checkpoint) => {
            let entries = checkpoint.data.pod_device_entries.unwrap_or_default();
            let ours = entries.into_iter().filter(|e| e.resource_name == resource);
            ours.flat_map(|entry| entry.device_ids.into_values().flatten())
                .collect()
        }
        Err(error) => {
            tracing::debug!(?path, %error, "the kubelet's notes are not as expected");
            BTreeSet::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_ids_are_read_and_anything_else_is_as_good_as_nothing() {
        let home = tempfile::tempdir().unwrap();
        let check = |text: &str, expected: &[&str]| {
            fs::write(home.path().join(FILE), text).unwrap();
            let found = noted(home.path(), "a.com/x");
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{text}");
        };
        check(
            r#"{"Data":{"PodDeviceEntries":[
                {"PodUID":"p","ContainerName":"c","ResourceName":"a.com/x","DeviceIDs":{"-1":["b"],"0":["a"]},"AllocResp":"AA=="},
                {"PodUID":"p","ContainerName":"c","ResourceName":"a.com/y","DeviceIDs":{"-1":["z"]},"AllocResp":""}
            ],"RegisteredDevices":{"a.com/x":["a","b","c"]}},"Checksum":1}"#,
            &["a", "b"],
        );
        check(r#"{"Data":{"PodDeviceEntries":null},"Checksum":1}"#, &[]);
        check("", &[]);
        check(r#"{"Data":{"PodDeviceEntries":[{"ResourceName":7}]}}"#, &[]);
        assert!(noted(&home.path().join("absent"), "a.com/x").is_empty());
    }
}
