//! What a kubelet makes of the lists that a plugin sends.

use anyhow::{Context, Result};
use e2e::kubelet::DeviceManager;
use e2e::oracle::RealDeviceManager;
use proto::v1beta1::Device;
use tonic::Status;

use super::{RESOURCE, ask, ids, refused, same, served, settled, taken};
use crate::plugin::{Script, device, healthy};
use crate::wait::{counts_become, until};

pub async fn each_message_replaces_the_list(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    plugin.send(&healthy(&["c"]));
    counts_become(kubelet, RESOURCE, 1, 1).await?;
    same!(ids(kubelet.healthy(RESOURCE).await?), ["c"]);
    plugin.send(&healthy(&["a", "b", "d"]));
    counts_become(kubelet, RESOURCE, 3, 3).await?;
    same!(ids(kubelet.healthy(RESOURCE).await?), ["a", "b", "d"]);
    Ok(())
}

pub async fn whatever_is_not_healthy_is_unhealthy(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    plugin.send(&[
        device("a", "Healthy"),
        device("b", "Unhealthy"),
        device("c", ""),
        device("d", "healthy"),
        device("e", "Unknown"),
    ]);
    counts_become(kubelet, RESOURCE, 5, 1).await?;
    same!(ids(kubelet.healthy(RESOURCE).await?), ["a"]);
    plugin.send(&healthy(&["a", "b", "c", "d", "e"]));
    counts_become(kubelet, RESOURCE, 5, 5).await
}

pub async fn empty_list_is_nothing_of_nothing(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let script = Script {
        devices: Vec::new(),
        ..Script::default()
    };
    let plugin = served(kubelet, RESOURCE, script).await?;
    plugin.send(&healthy(&["a"]));
    counts_become(kubelet, RESOURCE, 1, 1).await?;
    plugin.send(&[]);
    counts_become(kubelet, RESOURCE, 0, 0).await
}

pub async fn equal_devices_are_one(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    plugin.send(&healthy(&["a", "a", "a"]));
    counts_become(kubelet, RESOURCE, 1, 1).await
}

/// Nobody complains, and it is given to containers.
pub async fn device_of_two_minds_counts_twice(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    plugin.send(&[device("a", "Healthy"), device("a", "Unhealthy")]);
    counts_become(kubelet, RESOURCE, 2, 1).await?;
    same!(ids(taken(kubelet.admit(&ask("pod", 1)).await?)?), ["a"]);
    Ok(())
}

pub async fn empty_id_is_a_device(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    plugin.send(&[device("", "Healthy")]);
    counts_become(kubelet, RESOURCE, 1, 1).await?;
    same!(ids(taken(kubelet.admit(&ask("pod", 1)).await?)?), [""]);
    same!(plugin.allocations(), [[[""]]]);
    Ok(())
}

/// A list of so many bytes: 64 for each device.
fn list_of(bytes: usize) -> Vec<Device> {
    // Two bytes before each device, two before each of its two members, and "Healthy".
    let id = 64 - 2 - 2 - 2 - 7;
    (0..bytes / 64)
        .map(|number| device(&format!("{number:0id$}"), "Healthy"))
        .collect()
}

pub async fn message_above_four_mebibytes_ends_the_stream(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    let largest = list_of(4 << 20);
    let count = largest.len();
    plugin.send(&largest);
    counts_become(kubelet, RESOURCE, count, count).await?;
    plugin.send(&list_of((4 << 20) + 64));
    counts_become(kubelet, RESOURCE, count, 0).await?;
    plugin.streams_ended().await
}

pub async fn ended_stream_takes_the_devices_and_is_not_asked_for_again(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    ended(kubelet, None).await
}

pub async fn broken_stream_takes_the_devices_and_is_not_asked_for_again(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    ended(kubelet, Some(Status::internal("lost my way"))).await
}

async fn ended(kubelet: &mut dyn DeviceManager, how: Option<Status>) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    plugin.end_streams(how);
    counts_become(kubelet, RESOURCE, 2, 0).await?;
    settled(kubelet).await?;
    same!(plugin.watches(), 1);
    counts_become(kubelet, RESOURCE, 2, 0).await?;
    let answer = kubelet.admit(&ask("pod", 1)).await?;
    refused(answer, &["no healthy devices present"])
}

pub async fn plugin_gone_for_five_minutes_is_forgotten(
    kubelet: &mut RealDeviceManager,
) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    plugin.kill();
    counts_become(kubelet, RESOURCE, 2, 0).await?;
    kubelet.age(RESOURCE, 299).await?;
    counts_become(kubelet, RESOURCE, 2, 0).await?;
    kubelet.age(RESOURCE, 301).await?;
    same!(kubelet.counts(RESOURCE).await?, None);
    served(kubelet, RESOURCE, Script::default()).await.map(drop)
}

pub async fn vanished_device_is_healthy_in_the_pods_status(
    kubelet: &mut RealDeviceManager,
) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    let held = taken(kubelet.admit(&ask("pod", 1)).await?)?;
    let id = held.first().context("nothing was given")?;
    for (list, told) in [
        (vec![device(id, "Unhealthy")], "Unhealthy"),
        (vec![device(id, "Healthy")], "Healthy"),
        (vec![device(id, "Unhealthy")], "Unhealthy"),
        (Vec::new(), "Healthy"),
    ] {
        plugin.send(&list);
        until(told, async || {
            let health = kubelet.health("pod", "main").await?;
            Ok(health.get(id).map(String::as_str) == Some(told))
        })
        .await?;
    }
    Ok(())
}
