//! Bad input: told where it is wrong, and nothing else stops.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::api::{holds_for, wait_until};
use crate::on_node;
use crate::scene::{PATIENCE, Scene};

/// A config that is right; each case spoils one thing.
fn config(name: &str, spoil: impl FnOnce(&mut Value)) -> String {
    let mut config = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
            "resources": [{
                "name": "example.com/spoiled",
                "discovery": {"paths": {"globs": ["/dev/dpo-test/spoiled*"]}},
            }],
        },
    });
    spoil(&mut config);
    config.to_string()
}

fn named(resource: &str) -> String {
    config("spoiled", |c| {
        c["spec"]["resources"][0]["name"] = json!(resource);
    })
}

pub fn malformed_configs_are_refused_by_field_and_value(scene: &Scene) -> Result<()> {
    let long_domain = format!("{}.example/fpga", "a.".repeat(120).trim_end_matches('.'));
    let long_name = format!("example.com/{}", "n".repeat(64));
    // Each case: what is applied, and the words that its refusal must hold.
    let cases: Vec<(String, Vec<&str>)> = vec![
        (
            named("fpga"),
            vec!["spec.resources[0].name", "\"fpga\"", "example.com/fpga"],
        ),
        (
            named("kubernetes.io/fpga"),
            vec![
                "spec.resources[0].name",
                "\"kubernetes.io/fpga\"",
                "reserves",
            ],
        ),
        (
            named("a.kubernetes.io/fpga"),
            vec!["\"a.kubernetes.io/fpga\"", "reserves"],
        ),
        (
            named("requests.example.com/fpga"),
            vec!["\"requests.example.com/fpga\"", "must not start"],
        ),
        (named("a/b/c"), vec!["\"a/b/c\"", "one slash"]),
        (
            named("A.b/c"),
            vec!["\"A.b/c\"", "lower-case DNS subdomain"],
        ),
        (named(&long_domain), vec!["at most 244"]),
        (named(&long_name), vec!["1 to 63"]),
        (
            config("spoiled", |c| {
                let one = c["spec"]["resources"][0].clone();
                c["spec"]["resources"] = json!([one.clone(), one]);
            }),
            vec![
                "spec.resources[1]",
                "Duplicate value",
                "example.com/spoiled",
            ],
        ),
        (
            config("spoiled", |c| {
                c["spec"]["resources"][0]["discovery"]["paths"]["globs"] = json!(["/etc/*"]);
            }),
            vec!["spec.resources[0].discovery.paths.globs", "/etc/*", "/dev/"],
        ),
        (
            config("spoiled", |c| {
                c["spec"]["resources"][0]["discovery"]["paths"]["globs"] = json!(["/dev/../etc/*"]);
            }),
            vec!["spec.resources[0].discovery.paths.globs", "/dev/../etc/*"],
        ),
        (
            config(&"n".repeat(51), |_| ()),
            vec!["metadata.name", "at most 50"],
        ),
        (
            config("with.dot", |_| ()),
            vec!["metadata.name", "\"with.dot\"", "DNS label"],
        ),
        (
            config("spoiled", |c| c["spec"]["nodeselector"] = json!({})),
            vec!["unknown field \"spec.nodeselector\""],
        ),
        (
            config("spoiled", |c| {
                c["spec"]["resources"][0]["copies"] = json!(4);
            }),
            vec!["unknown field \"spec.resources[0].copies\""],
        ),
        (
            config("spoiled", |c| {
                c["spec"]["machineConfigPoolSelector"] = json!({"matchLabels": {"a": "b"}});
            }),
            vec!["at most one of nodeSelector and machineConfigPoolSelector"],
        ),
        (
            config("spoiled", |c| {
                c["spec"]["resources"][0]["discovery"]["simulated"] = json!({"count": 1});
            }),
            vec!["spec.resources[0].discovery", "exactly one kind"],
        ),
        (
            config("spoiled", |c| c["spec"]["resources"] = json!([])),
            vec!["spec.resources", "at least 1"],
        ),
        (
            config("spoiled", |c| {
                c["spec"]["resources"][0]["container"] = json!({"permissions": "wr"});
            }),
            vec!["permissions", "\"wr\"", "such as rw"],
        ),
    ];
    for (manifest, words) in &cases {
        let refusal = scene
            .refusal(manifest)
            .with_context(|| format!("for {words:?}"))?;
        for word in words {
            ensure!(refusal.contains(word), "no {word:?} in: {refusal}");
        }
    }
    ensure!(
        scene
            .api
            .find::<Value>(&format!("{}/spoiled", crate::api::path::CONFIGS))?
            .is_none(),
        "nothing was stored"
    );
    Ok(())
}

pub fn configs_that_can_do_nothing_say_so(scene: &Scene) -> Result<()> {
    scene.apply(&config("empty-selector", |c| {
        c["spec"]["nodeSelector"] = json!({});
    }))?;
    let message = scene.wait_for_condition("empty-selector", "Accepted", "False", "NoSelector")?;
    ensure!(message.contains("nodeSelector"), "{message}");

    scene.apply(&config("no-nodes", |c| {
        c["spec"]["nodeSelector"] = json!({"matchLabels": {"no": "where"}});
    }))?;
    scene.wait_for_condition("no-nodes", "Accepted", "True", "NoMatchingNodes")?;
    scene.wait_for_condition("no-nodes", "Ready", "True", "NoMatchingNodes")?;

    scene.apply(&config("no-devices", |_| ()))?;
    let message = scene.wait_for_condition("no-devices", "Degraded", "True", "NoDevices")?;
    ensure!(
        message.contains("example.com/spoiled") && message.contains("/dev/dpo-test/spoiled*"),
        "{message}"
    );
    scene.wait_for_allocatable("n1", "example.com/spoiled", 0)?;

    scene.apply(&config("bad-glob", |c| {
        c["spec"]["resources"][0]["discovery"]["paths"]["globs"] = json!(["/dev/ok*", "/dev/[a"]);
    }))?;
    let message = scene.wait_for_condition("bad-glob", "Accepted", "False", "InvalidSpec")?;
    ensure!(
        message.contains("spec.resources[\"example.com/spoiled\"].discovery.paths.globs[1]")
            && message.contains("/dev/[a"),
        "{message}"
    );

    scene
        .wait_for_condition("fuse", "Ready", "True", "Complete")
        .context("another config stopped working")?;
    for name in ["empty-selector", "no-nodes", "no-devices", "bad-glob"] {
        scene.delete_config(name)?;
    }
    Ok(())
}

pub fn foreign_plugin_keeps_its_resource(scene: &Scene) -> Result<()> {
    let resource = "example.com/vendor";
    for node in ["n1", "n2"] {
        let log = scene
            .cluster
            .logs_path()
            .join(format!("{node}-naive-plugin.log"));
        // The test's own stand-in for a vendor's plugin.
        let program = env!("CARGO_BIN_EXE_naive-plugin");
        let words = [program, "--resource", resource, "--devices", "2"];
        let vendor = on_node::start(scene.node(node)?, &words, &log)?;
        let told = foreign_plugin_is_left_alone(scene, node, resource);
        vendor.stop()?;
        told.with_context(|| format!("on {node}"))?;
        // The vendor's plugin is gone: the resource is ours to serve.
        scene.wait_for_condition("vendor", "Ready", "True", "Complete")?;
        scene.wait_for_allocatable(node, resource, 3)?;
        scene.delete_config("vendor")?;
    }
    Ok(())
}

fn foreign_plugin_is_left_alone(scene: &Scene, node: &str, resource: &str) -> Result<()> {
    scene.wait_for_allocatable(node, resource, 2)?;
    let manifest = config("vendor", |c| {
        c["spec"]["nodeSelector"] = json!({"matchLabels": {"kubernetes.io/hostname": node}});
        c["spec"]["resources"][0] =
            json!({"name": resource, "discovery": {"simulated": {"count": 3}}});
    });
    scene.apply(&manifest)?;
    let message = scene.wait_for_condition("vendor", "Degraded", "True", "ForeignPlugin")?;
    ensure!(
        message.contains(resource) && message.contains(node),
        "{message}"
    );
    let skipped = wait_until("the node counted as skipped", PATIENCE, || {
        let status = scene.config("vendor")?.status.unwrap_or_default();
        Ok((status.nodes.skipped == 1).then_some(status.nodes))
    })?;
    ensure!(skipped.desired == 1 && skipped.updated == 0, "{skipped:?}");
    let condition = scene
        .config("vendor")?
        .status
        .and_then(|s| s.conditions.into_iter().find(|c| c.type_ == "Ready"));
    match condition {
        Some(ready) if ready.status == "False" => {}
        other => bail!("Ready is {other:?}"),
    }
    holds_for("the vendor's two devices", Duration::from_secs(5), || {
        let seen = scene.api.allocatable(node, resource)?;
        ensure!(seen == Some(2), "allocatable is {seen:?}");
        Ok(())
    })
}

pub fn second_config_of_a_resource_waits_and_says_so(scene: &Scene) -> Result<()> {
    let manifest = config("rival", |c| {
        c["spec"]["resources"][0] = json!({
            "name": "example.com/fuse", "discovery": {"simulated": {"count": 5}},
        });
    });
    scene.apply(&manifest)?;
    let message = scene.wait_for_condition("rival", "Degraded", "True", "ForeignPlugin")?;
    ensure!(message.contains("example.com/fuse"), "{message}");
    holds_for("the first config's device", Duration::from_secs(3), || {
        for node in ["n1", "n2"] {
            let seen = scene.api.allocatable(node, "example.com/fuse")?;
            ensure!(seen == Some(1), "allocatable on {node} is {seen:?}");
        }
        Ok(())
    })?;
    scene.wait_for_condition("fuse", "Ready", "True", "Complete")?;
    scene.delete_config("rival")
}
