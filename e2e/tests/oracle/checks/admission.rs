//! How a kubelet gives devices to pods.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::kubelet::DeviceManager;
use e2e::oracle::{Container, Kind, RealDeviceManager, Topology};
use proto::v1beta1::{AllocateResponse, Device, DevicePluginOptions, NumaNode, TopologyInfo};
use tonic::Status;

use super::{RESOURCE, ask, ids, refused, same, served, taken};
use crate::plugin::{Handle, Script, device, given, healthy};
use crate::wait::{LIMIT, counts_become};

pub async fn call_holds_one_container(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    same!(
        ids(taken(kubelet.admit(&ask("pod", 2)).await?)?),
        ["a", "b"]
    );
    let calls = plugin.allocations().into_iter().map(|call| {
        let containers = call.into_iter();
        containers.map(ids).collect::<Vec<_>>()
    });
    same!(calls.collect::<Vec<_>>(), [[["a", "b"]]]);
    Ok(())
}

pub async fn container_gets_what_the_plugin_said(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let _plugin = served(kubelet, RESOURCE, Script::default()).await?;
    let held = ids(taken(kubelet.admit(&ask("pod", 1)).await?)?);
    let options = taken(kubelet.start_container("pod", "main").await?)?;
    same!(options.envs, [("GIVEN".to_owned(), held.concat())].into());
    let path = format!("/dev/{}", held.concat());
    same!(options.devices, [(path, "/dev/null".to_owned())].into());
    same!(options.mounts, [].into());
    Ok(())
}

pub async fn error_of_the_plugin_is_the_pods_message(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let script = Script {
        allocate: Box::new(|_, _| Err(Status::resource_exhausted("no power left"))),
        ..Script::default()
    };
    let _plugin = served(kubelet, RESOURCE, script).await?;
    let answer = kubelet.admit(&ask("pod", 1)).await?;
    let told = "UnexpectedAdmissionError: Allocate failed due to rpc error: \
                code = ResourceExhausted desc = no power left, which is unexpected";
    refused(answer, &[told])
}

pub async fn devices_of_a_refused_pod_are_free(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let fails = AtomicBool::new(true);
    let script = Script {
        allocate: Box::new(move |_, request| {
            if fails.swap(false, Ordering::Relaxed) {
                return Err(Status::internal("not now"));
            }
            Ok(given(&request))
        }),
        ..Script::default()
    };
    let _plugin = served(kubelet, RESOURCE, script).await?;
    refused(kubelet.admit(&ask("first", 2)).await?, &["not now"])?;
    taken(kubelet.admit(&ask("second", 2)).await?).map(drop)
}

/// They are free again with those of the next pod that ends.
pub async fn answer_without_containers_refuses_the_pod_and_keeps_the_devices(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let is_empty = AtomicBool::new(true);
    let script = Script {
        allocate: Box::new(move |_, request| {
            if is_empty.swap(false, Ordering::Relaxed) {
                return Ok(AllocateResponse::default());
            }
            Ok(given(&request))
        }),
        ..Script::default()
    };
    let _plugin = served(kubelet, RESOURCE, script).await?;
    let answer = kubelet.admit(&ask("first", 1)).await?;
    refused(answer, &["no containers return in allocation response"])?;
    let answer = kubelet.admit(&ask("second", 2)).await?;
    refused(answer, &["Requested: 2, Available: 1"])?;
    taken(kubelet.admit(&ask("third", 1)).await?)?;
    kubelet.remove_pod("third").await?;
    taken(kubelet.admit(&ask("fourth", 2)).await?).map(drop)
}

pub async fn more_than_there_is_free_is_refused(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("first", 1)).await?)?;
    let answer = kubelet.admit(&ask("second", 2)).await?;
    let told = format!(
        "UnexpectedAdmissionError: Allocate failed due to requested number of devices unavailable \
         for {RESOURCE}. Requested: 2, Available: 1, which is unexpected"
    );
    refused(answer, &[&told])?;
    same!(plugin.allocations().len(), 1);
    // What is in use counts as allocatable all the same.
    counts_become(kubelet, RESOURCE, 2, 2).await
}

pub async fn resource_without_healthy_devices_is_refused(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let script = Script {
        devices: vec![device("a", "Unhealthy")],
        ..Script::default()
    };
    let plugin = served(kubelet, RESOURCE, script).await?;
    let told = format!(
        "UnexpectedAdmissionError: Allocate failed due to no healthy devices present; cannot \
         allocate unhealthy devices {RESOURCE}, which is unexpected"
    );
    refused(kubelet.admit(&ask("first", 1)).await?, &[&told])?;
    plugin.send(&[]);
    counts_become(kubelet, RESOURCE, 0, 0).await?;
    refused(kubelet.admit(&ask("second", 1)).await?, &[&told])?;
    same!(plugin.allocations().len(), 0);
    Ok(())
}

pub async fn unhealthy_devices_are_not_given(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let script = Script {
        devices: vec![
            device("a", "Unhealthy"),
            device("b", "Healthy"),
            device("c", "Unhealthy"),
        ],
        ..Script::default()
    };
    let _plugin = served(kubelet, RESOURCE, script).await?;
    same!(ids(taken(kubelet.admit(&ask("first", 1)).await?)?), ["b"]);
    let answer = kubelet.admit(&ask("second", 1)).await?;
    refused(answer, &["Requested: 1, Available: 0"])
}

pub async fn ended_pods_devices_are_free(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("first", 2)).await?)?;
    refused(kubelet.admit(&ask("second", 1)).await?, &["Available: 0"])?;
    kubelet.remove_pod("first").await?;
    taken(kubelet.admit(&ask("third", 2)).await?)?;
    same!(plugin.allocations().len(), 2);
    Ok(())
}

/// A plugin of four devices that is asked what it prefers.
fn choosy(prefer: impl Fn() -> Result<Vec<String>, Status> + Send + Sync + 'static) -> Script {
    Script {
        options: Ok(DevicePluginOptions {
            get_preferred_allocation_available: true,
            ..DevicePluginOptions::default()
        }),
        devices: healthy(&["a", "b", "c", "d"]),
        prefer: Box::new(move |_, _| prefer()),
        ..Script::default()
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

pub async fn preference_is_asked_for_and_followed(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let script = choosy(|| Ok(words(&["d", "b"])));
    let plugin = served(kubelet, RESOURCE, script).await?;
    same!(
        ids(taken(kubelet.admit(&ask("pod", 2)).await?)?),
        ["b", "d"]
    );
    let asked = plugin.preferences();
    same!(asked.len(), 1);
    let containers = asked.into_iter().flat_map(|one| one.container_requests);
    let containers: Vec<_> = containers.collect();
    same!(containers.len(), 1);
    for container in containers {
        same!(ids(container.available_device_i_ds), ["a", "b", "c", "d"]);
        same!(ids(container.must_include_device_i_ds), [""; 0]);
        same!(container.allocation_size, 2);
    }
    Ok(())
}

pub async fn preference_is_asked_for_without_a_choice(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, choosy(|| Ok(Vec::new()))).await?;
    taken(kubelet.admit(&ask("pod", 4)).await?)?;
    same!(plugin.preferences().len(), 1);
    Ok(())
}

pub async fn wrong_preferences_do_no_harm(kubelet: &mut dyn DeviceManager) -> Result<()> {
    for (number, wrong) in [
        &[][..],
        &["c"],
        &["c", "c"],
        &["nobody", "knows"],
        &["a", "b", "c", "d"],
    ]
    .into_iter()
    .enumerate()
    {
        let resource = format!("oracle.example.com/choosy-{number}");
        let _plugin = served(kubelet, &resource, choosy(|| Ok(words(wrong)))).await?;
        let mut ask = ask(&format!("pod-{number}"), 2);
        ask.resource = resource;
        let held = ids(taken(kubelet.admit(&ask).await?)?);
        ensure!(held.len() == 2, "{wrong:?} gives {held:?}");
        let is_followed =
            !wrong.contains(&"c") || wrong.len() > 2 || held.contains(&"c".to_owned());
        ensure!(is_followed, "{wrong:?} gives {held:?}");
    }
    Ok(())
}

pub async fn failed_preference_refuses_the_pod(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let script = choosy(|| Err(Status::internal("no taste")));
    let plugin = served(kubelet, RESOURCE, script).await?;
    let answer = kubelet.admit(&ask("pod", 1)).await?;
    let told = "UnexpectedAdmissionError: Allocate failed due to device plugin \
                GetPreferredAllocation rpc failed with err: rpc error: code = Internal desc = no \
                taste, which is unexpected";
    refused(answer, &[told])?;
    same!(plugin.allocations().len(), 0);
    Ok(())
}

fn container(name: &str, kind: Kind, count: usize) -> Container {
    Container::new(name, kind, RESOURCE, count)
}

async fn held(kubelet: &RealDeviceManager, pod: &str, container: &str) -> Result<Vec<String>> {
    let mut held = kubelet.held(pod, container).await?;
    Ok(ids(held.remove(RESOURCE).unwrap_or_default()))
}

pub async fn later_containers_use_the_devices_of_init_containers(
    kubelet: &mut RealDeviceManager,
) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, choosy(|| Ok(Vec::new()))).await?;
    let pod = vec![
        container("prepare", Kind::Init, 1),
        container("main", Kind::App, 2),
    ];
    taken(kubelet.admit_pod("pod", pod).await?)?;
    let first = held(kubelet, "pod", "prepare").await?;
    let last = held(kubelet, "pod", "main").await?;
    ensure!(last.contains(&first.concat()), "{first:?}, {last:?}");
    let calls = plugin.allocations().into_iter().flatten().map(ids);
    same!(calls.collect::<Vec<_>>(), [first.clone(), last]);
    let asked = plugin.preferences().pop().context("not asked")?;
    let asked = asked.container_requests.into_iter().next();
    let asked = asked.context("asked for nothing")?;
    same!(asked.must_include_device_i_ds, first);
    same!(asked.allocation_size, 2);
    same!(ids(asked.available_device_i_ds), ["a", "b", "c", "d"]);
    Ok(())
}

pub async fn sidecars_keep_the_devices_of_init_containers(
    kubelet: &mut RealDeviceManager,
) -> Result<()> {
    let _plugin = served(kubelet, RESOURCE, choosy(|| Ok(Vec::new()))).await?;
    let pod = vec![
        container("prepare", Kind::Init, 1),
        container("beside", Kind::Sidecar, 1),
        container("main", Kind::App, 2),
    ];
    taken(kubelet.admit_pod("pod", pod).await?)?;
    let beside = held(kubelet, "pod", "beside").await?;
    same!(held(kubelet, "pod", "prepare").await?, beside);
    let last = held(kubelet, "pod", "main").await?;
    ensure!(!last.contains(&beside.concat()), "{beside:?}, {last:?}");
    Ok(())
}

fn on_node(id: &str, node: i64) -> Device {
    Device {
        topology: Some(TopologyInfo {
            nodes: vec![NumaNode { id: node }],
        }),
        ..device(id, "Healthy")
    }
}

pub async fn devices_are_aligned_with_numa_nodes(kubelet: &mut RealDeviceManager) -> Result<()> {
    kubelet.stop().await?;
    kubelet.topology = Topology {
        nodes: 2,
        policy: "single-numa-node",
    };
    kubelet.start().await?;
    let script = Script {
        devices: vec![on_node("a", 0), on_node("b", 1), on_node("c", 1)],
        ..choosy(|| Ok(Vec::new()))
    };
    let _plugin = served(kubelet, RESOURCE, script).await?;
    same!(
        ids(taken(kubelet.admit(&ask("first", 2)).await?)?),
        ["b", "c"]
    );
    kubelet.remove_pod("first").await?;
    let answer = kubelet.admit(&ask("second", 3)).await?;
    refused(answer, &["TopologyAffinityError"])?;
    same!(
        ids(taken(kubelet.admit(&ask("third", 2)).await?)?),
        ["b", "c"]
    );
    Ok(())
}

/// Waits until the kubelet has taken in a list without `id`: it writes each down.
fn forgotten(checkpoint: &std::path::Path, id: &str) -> bool {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        let text = std::fs::read_to_string(checkpoint).unwrap_or_default();
        if !text.is_empty() && !text.contains(id) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// The kubelet panics: it looks for the topology of a device that it does not have.
pub async fn device_that_vanishes_within_the_call(kubelet: &mut RealDeviceManager) -> Result<()> {
    let checkpoint = kubelet.plugin_dir().join("kubelet_internal_checkpoint");
    let script = Script {
        devices: healthy(&["vanishing"]),
        allocate: Box::new(move |plugin: &Handle, request| {
            plugin.send(&healthy(&["other"]));
            if !forgotten(&checkpoint, "vanishing") {
                return Err(Status::internal("the kubelet does not forget it"));
            }
            Ok(given(&request))
        }),
        ..Script::default()
    };
    let _plugin = served(kubelet, RESOURCE, script).await?;
    let told = match kubelet.admit(&ask("pod", 1)).await {
        Ok(answer) => bail!("the kubelet lives, and says {answer:?}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(told.contains("invalid memory address"), "{told}");
    Ok(())
}
