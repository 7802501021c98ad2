//! What configs may ask for beyond devices: what the cluster's administrator has put on a list.

use anyhow::{Context, Result, ensure};
use e2e::product::{NAMESPACE, RELEASE};
use serde_json::{Value, json};

use crate::api::{path, wait_until};
use crate::scene::{PATIENCE, Scene};

const NAME: &str = "fenced";

/// A config that no node matches: what is accepted runs nowhere.
fn config(spoil: impl FnOnce(&mut Value)) -> String {
    let mut config = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": NAME},
        "spec": {
            "nodeSelector": {"matchLabels": {"story/nowhere": "yes"}},
            "resources": [{
                "name": "example.com/fenced",
                "discovery": {"simulated": {"count": 1}},
            }],
        },
    });
    spoil(&mut config);
    config.to_string()
}

fn hooks(hooks: Value) -> String {
    config(|config| config["spec"]["hooks"] = hooks)
}

fn tools(image: &str, privileged: bool) -> String {
    hooks(json!({
        "toolsImage": image, "privileged": privileged,
        "reset": {"type": "Exec", "command": ["/bin/true"]},
    }))
}

fn mount(host_path: &str, read_only: bool) -> String {
    config(|config| {
        config["spec"]["resources"][0]["container"] = json!({"mounts": [{
            "hostPath": host_path, "containerPath": "/mnt", "readOnly": read_only,
        }]});
    })
}

fn list() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{RELEASE}-allowlist")
}

fn put_on_the_list(scene: &Scene, data: Value) -> Result<()> {
    scene.api.patch(&list(), &json!({ "data": data }))
}

/// The words of the policy, once the API server goes by what the list says now.
fn refusal(scene: &Scene, manifest: &str, words: &[&str]) -> Result<()> {
    wait_until(&format!("a refusal with {words:?}"), PATIENCE, || {
        let said = scene.refusal(manifest);
        if said.is_err() {
            scene.delete_config(NAME)?;
        }
        let said = said?;
        let missing = words.iter().find(|word| !said.contains(**word));
        ensure!(missing.is_none(), "no {missing:?} in: {said}");
        Ok(Some(()))
    })
}

fn acceptance(scene: &Scene, manifest: &str) -> Result<()> {
    wait_until(&format!("{manifest} accepted"), PATIENCE, || {
        scene.apply(manifest).map(Some)
    })?;
    scene.delete_config(NAME)
}

pub fn configs_ask_only_for_what_the_allowlist_has(scene: &Scene) -> Result<()> {
    let kept: Value = scene.api.get(&list())?;
    let told = nothing_by_default(scene)
        .and_then(|()| only_what_is_listed(scene))
        .and_then(|()| what_was_allowed_can_be_changed_and_deleted(scene))
        .and_then(|()| nothing_without_the_list(scene));
    // Back, whatever came of it: later stories count on it.
    let again = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": kept["data"],
        "metadata": {
            "name": kept["metadata"]["name"], "namespace": NAMESPACE,
            "labels": kept["metadata"]["labels"], "annotations": kept["metadata"]["annotations"],
        },
    });
    scene.apply(&again.to_string())?;
    told
}

fn nothing_by_default(scene: &Scene) -> Result<()> {
    let map = format!("ConfigMap {NAMESPACE}/{RELEASE}-allowlist has no line");
    let cases = [
        (
            tools("registry.example.com/tools:1", false),
            "such as registry.example.com/tools:1",
        ),
        (
            hooks(json!({"driver": {"image": "driver", "command": ["/install"]}})),
            "image driver may not run",
        ),
        (
            hooks(json!({"reset": {"type": "PciReset"}})),
            "PciReset in \"actions\"",
        ),
        (mount("/run/cards", true), "such as /run/cards read-only"),
        (
            config(|config| config["spec"]["agent"] = json!({"image": "agent"})),
            "such as agent privileged",
        ),
    ];
    for (manifest, words) in cases {
        refusal(scene, &manifest, &[&map, words])?;
    }
    // A config that asks for devices only is nobody's business.
    acceptance(scene, &config(|_| ()))
}

fn only_what_is_listed(scene: &Scene) -> Result<()> {
    put_on_the_list(
        scene,
        json!({
            "images": "agent\nregistry.example.com/tools/*\nregistry.example.com/reset privileged",
            "actions": "PciReset",
            "hostPaths": "/run/cards/* read-only\n/run/one",
        }),
    )?;
    let reset = json!({"reset": {"type": "PciReset"}});
    for allowed in [
        tools("registry.example.com/tools/a:1", false),
        tools("registry.example.com/reset@sha256:0123", true),
        hooks(reset),
        mount("/run/cards/a", true),
        mount("/run/one", false),
    ] {
        acceptance(scene, &allowed)?;
    }
    for (refused, words) in [
        (
            tools("registry.example.com/toolsmith/a", false),
            "toolsmith",
        ),
        (tools("registry.example.com/resetter", false), "resetter"),
        (
            tools("registry.example.com:5000/tools/a", false),
            "com:5000/tools/a",
        ),
        (
            tools("registry.example.com/tools/a", true),
            "such as registry.example.com/tools/a privileged",
        ),
        (
            hooks(json!({"reset": {"type": "UsbReset"}})),
            "no line UsbReset",
        ),
        (mount("/run/cards/a", false), "host path /run/cards/a"),
        (mount("/run/onemore", true), "host path /run/onemore"),
        (
            config(|config| config["spec"]["agent"] = json!({"image": "agent"})),
            "image agent may not run privileged or as an agent",
        ),
    ] {
        refusal(scene, &refused, &[words])?;
    }
    Ok(())
}

fn what_was_allowed_can_be_changed_and_deleted(scene: &Scene) -> Result<()> {
    scene.apply(&hooks(json!({"reset": {"type": "PciReset"}})))?;
    put_on_the_list(scene, json!({"images": "", "actions": "", "hostPaths": ""}))?;
    refused_change(scene, NAME, "PciReset")?;
    let own = format!("{}/{NAME}", path::CONFIGS);
    scene
        .api
        .patch(&own, &json!({"spec": {"rollout": {"paused": true}}}))?;
    scene.delete_config(NAME)
}

/// Nothing can be judged then, and nothing is made or changed.
fn nothing_without_the_list(scene: &Scene) -> Result<()> {
    scene.api.delete(&list())?;
    refused_change(scene, "fuse", "no params found")
}

/// A change of hooks that is refused, and would not be kept if it were not.
fn refused_change(scene: &Scene, name: &str, word: &str) -> Result<()> {
    let path = format!("{}/{name}?dryRun=All", path::CONFIGS);
    let hooks = json!({"spec": {"hooks": {"reset": {"type": "PciReset", "timeoutSeconds": 7}}}});
    wait_until(&format!("a refusal with {word:?}"), PATIENCE, || {
        let accepted = scene.api.patch(&path, &hooks).err();
        let said = format!("{:#}", accepted.context("it was accepted")?);
        ensure!(said.contains(word), "no {word:?} in: {said}");
        Ok(Some(()))
    })
}
