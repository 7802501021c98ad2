//! CDI specs: one file for a resource, replaced as a whole.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::fault::Fault;
use super::list::List;
use super::service::Resource;

/// The name by which a runtime finds a device.
pub fn name(resource: &Resource, id: &str) -> String {
    format!("{}={id}", kind(resource))
}

fn kind(resource: &Resource) -> String {
    format!("scripted.example/r{}", resource.hash)
}

/// Writes the spec of a list, if specs are wanted.
pub fn write(resource: &Resource, list: &List) {
    let Some(directory) = resource.settings.cdi_dir.clone() else {
        return;
    };
    let devices = list.iter().map(|(id, known)| {
        let node = json!({ "path": format!("/dev/{id}"), "hostPath": known.path });
        json!({ "name": id, "containerEdits": { "deviceNodes": [node] } })
    });
    let spec = json!({
        "cdiVersion": "0.6.0",
        "kind": kind(resource),
        "devices": devices.collect::<Vec<_>>(),
    });
    let (hash, text) = (resource.hash.clone(), spec.to_string());
    if resource.has(Fault::LateCdi) {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            replace(&directory, &hash, &text);
        });
    } else {
        replace(&directory, &hash, &text);
    }
}

fn replace(directory: &Path, hash: &str, text: &str) {
    let new = directory.join(format!(".{hash}.new"));
    let spec = directory.join(format!("scripted-{hash}.json"));
    let replaced = fs::create_dir_all(directory)
        .and_then(|()| fs::write(&new, text))
        .and_then(|()| fs::rename(&new, &spec));
    if let Err(error) = replaced {
        super::tell(&format!("failed to write {spec:?}: {error}"));
    }
}
