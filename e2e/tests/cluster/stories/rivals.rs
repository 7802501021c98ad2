//! Others who register the resource that we serve.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::product;
use serde_json::json;

use crate::api::{holds_for, measured, wait_until};
use crate::on_node::{self, Running, allocatable_devices};
use crate::scene::{PATIENCE, Scene};
use crate::stories::handover::{CONFIG, NODES, RESOURCE};

/// The promise: allocatable is back so soon after another instance's end took it away.
const BACK_AFTER_RIVAL: Duration = Duration::from_secs(5);

/// How many devices each of the two agents has.
const PAIR: usize = 3;

/// An agent without a pod or an API server, with directories of its own for locks and state.
fn lone_agent(scene: &Scene, node: &str, name: &str) -> Result<Running> {
    let directory: PathBuf = scene.cluster.logs_path().join(format!("{node}-{name}"));
    let state = directory.join("state");
    fs::create_dir_all(&state)?;
    let resource = "example.com/pair";
    let config = json!({
        "config": "pair", "configUid": "u", "revision": "0123456789",
        "resources": [{"name": resource, "discovery": {"simulated": {"count": PAIR}}}],
    });
    let config_file = directory.join("agent.json");
    fs::write(&config_file, config.to_string())?;
    // It has served the resource before, so it asks nobody whether it may.
    let remembered = json!({"configUid": "u", "revision": "0123456789", "resources": [resource]});
    fs::write(state.join("pair"), remembered.to_string())?;
    let text = |path: &PathBuf| path.display().to_string();
    let port = if name == "older" { 18_081 } else { 18_082 };
    let program = text(&product::agent_program()?);
    let flags = [
        "--config=pair".to_owned(),
        "--revision=0123456789".to_owned(),
        format!("--node-name={node}"),
        format!("--pod-uid={name}"),
        format!("--config-file={}", text(&config_file)),
        format!("--lock-dir={}", text(&directory.join("locks"))),
        format!("--state-dir={}", text(&state)),
        "--host-dev-dir=/dev".to_owned(),
        format!("--listen-address=127.0.0.1:{port}"),
    ];
    let mut words = vec![program.as_str()];
    words.extend(flags.iter().map(String::as_str));
    let log = directory.join("log");
    on_node::start(scene.node(node)?, &words, &log)
}

/// Two agents of one resource that share no lock, as after an installation gone wrong: the end of
/// the older one must not take the devices of the newer one away.
pub fn end_of_an_older_instance_takes_nothing_away(scene: &Scene) -> Result<()> {
    let resource = "example.com/pair";
    for name in NODES {
        let node = scene.node(name)?;
        let older = lone_agent(scene, name, "older")?;
        wait_until("the older instance's devices", PATIENCE, || {
            Ok((allocatable_devices(node, resource)?.len() == PAIR).then_some(()))
        })?;
        let newer = lone_agent(scene, name, "newer")?;
        let log = scene.cluster.logs_path().join(format!("{name}-newer/log"));
        wait_until("the newer instance's stream", PATIENCE, || {
            let text = fs::read_to_string(&log)?;
            Ok(text.contains("the kubelet reads the devices").then_some(()))
        })?;
        older.stop()?;
        let ended = Instant::now();
        let mut dips = 0;
        // From the first look on which all is there and stays for the whole promise.
        let back = wait_until("devices that stay", PATIENCE, || {
            let begun = ended.elapsed();
            let stays = holds_for("all devices", Duration::from_secs(4), || {
                let listed = allocatable_devices(node, resource)?.len();
                ensure!(listed == PAIR, "{listed} are listed");
                Ok(())
            });
            dips += usize::from(stays.is_err());
            Ok(stays.is_ok().then_some(begun))
        });
        newer.stop()?;
        let back = back?;
        measured(
            &format!("{name}: back after the older instance's end"),
            back,
        );
        ensure!(
            back <= BACK_AFTER_RIVAL,
            "back on {name} only after {back:?}"
        );
        if name == "n1" {
            ensure!(dips == 0, "kubelet 1.37 lost the devices {dips} times");
        }
    }
    Ok(())
}

/// A vendor's plugin is started beside our agent for the resource that our agent serves.
pub fn plugin_that_takes_a_resource_over_is_healed_or_named(scene: &Scene) -> Result<()> {
    for name in NODES {
        let node = scene.node(name)?;
        let program = env!("CARGO_BIN_EXE_naive-plugin");
        let log = scene.cluster.logs_path().join(format!("{name}-taker.log"));
        let taker = on_node::start(
            node,
            &[program, "--resource", RESOURCE, "--devices", "1"],
            &log,
        )?;
        let taken = wait_until("the other plugin's list at the kubelet", PATIENCE, || {
            Ok((!is_ours(scene, name)?).then(Instant::now))
        });
        let healed = taken.and_then(|taken| {
            wait_until("our list at the kubelet again", PATIENCE, || {
                Ok(is_ours(scene, name)?.then(|| taken.elapsed()))
            })
        });
        taker.stop()?;
        measured(&format!("{name}: healed after a takeover"), healed?);
        wait_until("our list after its end", PATIENCE, || {
            Ok(is_ours(scene, name)?.then_some(()))
        })?;
        let log = scene
            .cluster
            .logs_path()
            .join(format!("{name}-fighter.log"));
        let words = [
            program,
            "--resource",
            RESOURCE,
            "--devices",
            "1",
            "--again-every-millis",
            "1500",
        ];
        let fighter = on_node::start(node, &words, &log)?;
        let named = wait_until("the contest told", Duration::from_secs(120), || {
            let status = scene.node_object(CONFIG, name)?.status.unwrap_or_default();
            let contested = status
                .conditions
                .into_iter()
                .find(|one| one.type_ == "Contested" && one.status == "True");
            Ok(contested.map(|one| one.message))
        });
        fighter.stop()?;
        let message = named?;
        ensure!(
            message.contains(RESOURCE) && message.contains("naive-"),
            "the message names resource and socket: {message}"
        );
        scene.wait_for_condition(CONFIG, "Degraded", "True", "Contested")?;
        wait_until("peace", Duration::from_secs(360), || {
            Ok(is_ours(scene, name)?.then_some(()))
        })?;
    }
    scene
        .wait_for_condition(CONFIG, "Ready", "True", "Complete")
        .map(|_| ())
}

/// Whether the kubelet lists our four devices and nobody else's.
fn is_ours(scene: &Scene, node: &str) -> Result<bool> {
    let listed = allocatable_devices(scene.node(node)?, RESOURCE)?;
    Ok(listed.len() == 4 && listed.iter().all(|id| !id.starts_with("naive")))
}

/// What a plugin with a fixed socket name leaves behind on kubelet 1.37 when two of its instances
/// overlap: devices that nobody serves.
pub fn phantom_is_served_over_and_named(scene: &Scene) -> Result<()> {
    let resource = "example.com/phantom";
    let node = scene.node("n1")?;
    let program = env!("CARGO_BIN_EXE_naive-plugin");
    let words = [program, "--resource", resource, "--devices", "2"];
    let log = |name: &str| {
        scene
            .cluster
            .logs_path()
            .join(format!("n1-phantom-{name}.log"))
    };
    let first = on_node::start(node, &words, &log("first"))?;
    wait_until("the first instance's devices", PATIENCE, || {
        Ok((allocatable_devices(node, resource)?.len() == 2).then_some(()))
    })?;
    let _second = on_node::start(node, &words, &log("second"))?;
    wait_until("the second instance's refusal", PATIENCE, || {
        let text = fs::read_to_string(log("second"))?;
        Ok(text.contains("failed to register").then_some(()))
    })?;
    first.stop()?;
    holds_for("devices that nobody serves", Duration::from_secs(3), || {
        let listed = allocatable_devices(node, resource)?;
        ensure!(listed.len() == 2, "{listed:?} are listed");
        Ok(())
    })
    .context("the phantom of kubelet 1.37 is not reproduced")?;
    let config = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
        "metadata": {"name": "phantom"},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n1"}},
            "resources": [{"name": resource, "discovery": {"simulated": {"count": 3}}}],
        },
    });
    scene.apply(&config.to_string())?;
    scene.wait_for_allocatable("n1", resource, 3)?;
    let message = scene.wait_for_condition("phantom", "Degraded", "True", "PhantomResource")?;
    ensure!(
        message.contains(resource) && message.contains("restart"),
        "{message}"
    );
    scene.start_pod("phantom-user", "n1", resource, "sleep 100000")?;
    scene.wait_for_running_pod("phantom-user")?;
    scene.delete_pod("phantom-user")?;
    // A kubelet that is restarted has forgotten it.
    node.restart_kubelet()?;
    scene.wait_for_allocatable("n1", resource, 3)?;
    scene.delete_config("phantom")
}
