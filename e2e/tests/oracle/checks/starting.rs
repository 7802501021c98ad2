//! What happens before a container starts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use e2e::kubelet::DeviceManager;
use e2e::oracle::RealDeviceManager;
use proto::v1beta1::DevicePluginOptions;
use tonic::Status;

use super::{RESOURCE, ask, ids, refused, same, served, taken};
use crate::plugin::{Act, Script};
use crate::wait::counts_become;

/// A plugin that is asked before each start.
pub(super) fn announced() -> Script {
    Script {
        options: Ok(DevicePluginOptions {
            pre_start_required: true,
            ..DevicePluginOptions::default()
        }),
        ..Script::default()
    }
}

pub async fn start_is_announced_before_every_start(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, announced()).await?;
    let held = ids(taken(kubelet.admit(&ask("pod", 2)).await?)?);
    for count in 1..=3 {
        taken(kubelet.start_container("pod", "main").await?)?;
        let starts = plugin.pre_starts();
        same!(starts.len(), count);
        for start in starts {
            same!(ids(start), held);
        }
    }
    Ok(())
}

pub async fn error_keeps_the_container_from_starting(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let fails = AtomicBool::new(true);
    let pre_start: Act<_, _> = Box::new(move |_, _| {
        if fails.swap(false, Ordering::Relaxed) {
            return Err(Status::internal("reset failed"));
        }
        Ok(())
    });
    let script = Script {
        pre_start,
        ..announced()
    };
    let plugin = served(kubelet, RESOURCE, script).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    let told = "device plugin PreStartContainer rpc failed with err: rpc error: code = Internal \
                desc = reset failed";
    refused(kubelet.start_container("pod", "main").await?, &[told])?;
    taken(kubelet.start_container("pod", "main").await?)?;
    same!(plugin.pre_starts().len(), 2);
    same!(plugin.allocations().len(), 1);
    Ok(())
}

pub async fn announcement_has_thirty_seconds(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let script = Script {
        pre_start_takes: Duration::from_secs(600),
        ..announced()
    };
    let plugin = served(kubelet, RESOURCE, script).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    // The plugin's library knows the deadline too, and may be the first to say so.
    let told = "device plugin PreStartContainer rpc failed with err: rpc error: code = ";
    refused(kubelet.start_container("pod", "main").await?, &[told])?;
    // The plugin sees that nobody waits any more.
    plugin.idle().await
}

pub async fn restarted_container_is_not_allocated_again(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    let first = taken(kubelet.start_container("pod", "main").await?)?;
    let second = taken(kubelet.start_container("pod", "main").await?)?;
    same!(first, second);
    same!(plugin.allocations().len(), 1);
    same!(plugin.pre_starts().len(), 0);
    Ok(())
}

pub async fn without_the_plugin_the_cached_answer_is_used(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    let first = taken(kubelet.start_container("pod", "main").await?)?;
    plugin.kill();
    counts_become(kubelet, RESOURCE, 2, 0).await?;
    same!(taken(kubelet.start_container("pod", "main").await?)?, first);
    Ok(())
}

pub async fn without_the_plugin_no_announced_start(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, announced()).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    taken(kubelet.start_container("pod", "main").await?)?;
    plugin.kill();
    counts_become(kubelet, RESOURCE, 2, 0).await?;
    let answer = kubelet.start_container("pod", "main").await?;
    refused(answer, &["has been stopped"])?;
    let _plugin = served(kubelet, RESOURCE, announced()).await?;
    taken(kubelet.start_container("pod", "main").await?).map(drop)
}

/// The cliff: a container that only crashed does not come back, whatever options its plugin had.
pub async fn after_five_minutes_no_container_starts(kubelet: &mut RealDeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    taken(kubelet.start_container("pod", "main").await?)?;
    plugin.kill();
    counts_become(kubelet, RESOURCE, 2, 0).await?;
    kubelet.age(RESOURCE, 301).await?;
    same!(kubelet.counts(RESOURCE).await?, None);
    let told = format!("endpoint not found in cache for a registered resource: {RESOURCE}");
    refused(kubelet.start_container("pod", "main").await?, &[&told])?;
    let _plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.start_container("pod", "main").await?).map(drop)
}
