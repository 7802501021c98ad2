//! What a kubelet does with several instances of a plugin: where the two models of registration
//! differ.

use anyhow::Result;
use e2e::kubelet::DeviceManager;
use tonic::Status;

use super::{RESOURCE, ask, fresh, minor, refused, same, served, settled, taken};

use crate::plugin::{Call, Plugin, Script, healthy};
use crate::wait::{counts_become, until};

/// The last version of the older model.
const OLDER_MODEL: u32 = 36;

pub async fn devices_stay_until_the_newer_instance_sends_its_own(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let _older = served(kubelet, RESOURCE, Script::default()).await?;
    let script = Script {
        is_silent: true,
        ..Script::default()
    };
    let newer = Plugin::serve(kubelet.plugin_dir(), &fresh(), script)?;
    taken(newer.register(RESOURCE).await?)?;
    until("the list is asked for", async || Ok(newer.watches() == 1)).await?;
    counts_become(kubelet, RESOURCE, 2, 2).await?;
    newer.send(&healthy(&["a", "b", "c"]));
    counts_become(kubelet, RESOURCE, 3, 3).await
}

pub async fn newest_registration_allocates(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let older = served(kubelet, RESOURCE, Script::default()).await?;
    let newer = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    same!(older.allocations().len(), 0);
    same!(newer.allocations().len(), 1);
    Ok(())
}

pub async fn last_message_wins_whoever_sent_it(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let older = served(kubelet, RESOURCE, Script::default()).await?;
    let newer = served(kubelet, RESOURCE, Script::default()).await?;
    older.send(&healthy(&["c"]));
    counts_become(kubelet, RESOURCE, 1, 1).await?;
    newer.send(&healthy(&["d", "e", "f"]));
    counts_become(kubelet, RESOURCE, 3, 3).await?;
    older.send(&[]);
    counts_become(kubelet, RESOURCE, 0, 0).await
}

pub async fn end_of_the_older_instance(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let older = served(kubelet, RESOURCE, Script::default()).await?;
    let newer = served(kubelet, RESOURCE, Script::default()).await?;
    older.kill();
    if minor(kubelet)? <= OLDER_MODEL {
        counts_become(kubelet, RESOURCE, 2, 0).await?;
        newer.streams_ended().await?;
        same!(newer.watches(), 1);
        return back(kubelet, &newer).await;
    }
    settled(kubelet).await?;
    counts_become(kubelet, RESOURCE, 2, 2).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    same!(newer.allocations().len(), 1);
    Ok(())
}

/// Registers again until that lasts: what is left of the last registration may end the new one, even
/// within the call.
async fn back(kubelet: &mut dyn DeviceManager, plugin: &Plugin) -> Result<()> {
    until("the plugin is back", async || {
        if plugin.is_alone() {
            let _refused_or_not = plugin.register(RESOURCE).await?;
        }
        let counts = kubelet.counts(RESOURCE).await?;
        Ok(counts.is_some_and(|counts| counts.allocatable == 2))
    })
    .await
}

pub async fn end_of_the_newer_instance(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let older = served(kubelet, RESOURCE, Script::default()).await?;
    let three = Script {
        devices: healthy(&["a", "b", "c"]),
        ..Script::default()
    };
    let newer = served(kubelet, RESOURCE, three).await?;
    newer.kill();
    if minor(kubelet)? <= OLDER_MODEL {
        return counts_become(kubelet, RESOURCE, 3, 0).await;
    }
    // The older one gives from now on, and the newer one's list stays.
    until("the older one gives", async || {
        let _until_then = kubelet.admit(&ask("pod", 1)).await?;
        Ok(older.allocations().len() == 1)
    })
    .await?;
    counts_become(kubelet, RESOURCE, 3, 3).await
}

/// In the older model, the end of the newer instance leaves a stream of the older one behind, of which
/// the kubelet takes lists, but which gives nothing.
pub async fn stream_of_the_forgotten_keeps_feeding(kubelet: &mut dyn DeviceManager) -> Result<()> {
    if minor(kubelet)? > OLDER_MODEL {
        return Ok(());
    }
    let older = served(kubelet, RESOURCE, Script::default()).await?;
    let newer = served(kubelet, RESOURCE, Script::default()).await?;
    newer.kill();
    counts_become(kubelet, RESOURCE, 2, 0).await?;
    older.send(&healthy(&["a", "b", "c"]));
    counts_become(kubelet, RESOURCE, 3, 3).await?;
    let answer = kubelet.admit(&ask("pod", 1)).await?;
    refused(answer, &["endpoint", "has been stopped"])
}

/// In the older model, a registration that fails makes the kubelet forget who serves the resource: its
/// end goes unnoticed until the next registration.
pub async fn failed_registration_beside_a_plugin(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    let script = Script {
        options: Err(Status::internal("no options today")),
        ..Script::default()
    };
    let other = Plugin::serve(kubelet.plugin_dir(), &fresh(), script)?;
    refused(other.register(RESOURCE).await?, &["no options today"])?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    same!(plugin.allocations().len(), 1);
    plugin.kill();
    if minor(kubelet)? <= OLDER_MODEL {
        settled(kubelet).await?;
        counts_become(kubelet, RESOURCE, 2, 2).await?;
        served(kubelet, RESOURCE, Script::default()).await?.kill();
    }
    counts_become(kubelet, RESOURCE, 2, 0).await
}

pub async fn path_that_is_held(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = Plugin::serve(kubelet.plugin_dir(), "fixed.sock", Script::default())?;
    taken(plugin.register(RESOURCE).await?)?;
    counts_become(kubelet, RESOURCE, 2, 2).await?;
    taken(plugin.register("oracle.example.com/other").await?)?;
    counts_become(kubelet, "oracle.example.com/other", 2, 2).await?;
    let answer = plugin.register(RESOURCE).await?;
    if minor(kubelet)? <= OLDER_MODEL {
        taken(answer)?;
        until("it is watched anew", async || Ok(plugin.watches() == 3)).await?;
    } else {
        let path = kubelet.plugin_dir().join("fixed.sock");
        let told = format!("device plugin already connected: {}", path.display());
        refused(answer, &[&told])?;
        // It is asked before it is refused.
        let calls = plugin.calls().into_iter();
        same!(calls.filter(|call| *call == Call::Options).count(), 3);
    }
    counts_become(kubelet, RESOURCE, 2, 2).await
}

pub async fn refused_path_is_a_phantom_until_the_kubelet_restarts(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    if minor(kubelet)? <= OLDER_MODEL {
        return Ok(());
    }
    let refusal = ["device plugin already connected"];
    let serve = |kubelet: &dyn DeviceManager| {
        Plugin::serve(kubelet.plugin_dir(), "fixed.sock", Script::default())
    };
    let plugin = serve(kubelet)?;
    taken(plugin.register(RESOURCE).await?)?;
    counts_become(kubelet, RESOURCE, 2, 2).await?;
    refused(plugin.register(RESOURCE).await?, &refusal)?;
    plugin.kill();
    settled(kubelet).await?;
    counts_become(kubelet, RESOURCE, 2, 2).await?;
    let plugin = serve(kubelet)?;
    refused(plugin.register(RESOURCE).await?, &refusal)?;
    // A fresh path is served, and its end leaves its devices to the phantom.
    let three = Script {
        devices: healthy(&["a", "b", "c"]),
        ..Script::default()
    };
    let other = served(kubelet, RESOURCE, three).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    same!(other.allocations().len(), 1);
    other.kill();
    settled(kubelet).await?;
    counts_become(kubelet, RESOURCE, 3, 3).await?;
    kubelet.stop().await?;
    kubelet.start().await?;
    let plugin = serve(kubelet)?;
    taken(plugin.register(RESOURCE).await?)?;
    counts_become(kubelet, RESOURCE, 2, 2).await
}

pub async fn killed_plugin_comes_back_at_its_path(kubelet: &mut dyn DeviceManager) -> Result<()> {
    for _ in 0..2 {
        let plugin = Plugin::serve(kubelet.plugin_dir(), "fixed.sock", Script::default())?;
        taken(plugin.register(RESOURCE).await?)?;
        counts_become(kubelet, RESOURCE, 2, 2).await?;
        plugin.kill();
        counts_become(kubelet, RESOURCE, 2, 0).await?;
    }
    Ok(())
}
