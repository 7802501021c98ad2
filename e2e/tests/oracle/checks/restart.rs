//! What a kubelet forgets and keeps when it restarts.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result};
use e2e::kubelet::DeviceManager;
use e2e::oracle::{Container, Kind, RealDeviceManager};

use super::starting::announced;
use super::{RESOURCE, ask, refused, same, served, taken};
use crate::plugin::Script;
use crate::wait::counts_become;

async fn restarted(kubelet: &mut dyn DeviceManager) -> Result<()> {
    kubelet.stop().await?;
    kubelet.start().await
}

pub async fn sockets_go_and_everything_else_stays(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let directory = kubelet.plugin_dir().to_owned();
    let place = |name: &str| directory.join(name);
    kubelet.stop().await?;
    std::fs::create_dir(place("directory"))?;
    let _inner = UnixListener::bind(place("directory/inner.sock"))?;
    for file in ["DEPRECATION", "file", "file.sock"] {
        std::fs::write(place(file), "")?;
    }
    let _live = UnixListener::bind(place("live.sock"))?;
    drop(UnixListener::bind(place("stale.sock"))?);
    symlink(place("file"), place("link-to-file"))?;
    symlink(place("directory/inner.sock"), place("link-to-socket"))?;
    symlink(place("nothing"), place("link-to-nothing"))?;
    kubelet.start().await?;
    let mut left = Vec::new();
    for entry in std::fs::read_dir(&directory)? {
        left.push(entry?.file_name().to_string_lossy().into_owned());
    }
    left.retain(|name| name != "kubelet_internal_checkpoint");
    left.sort();
    let wanted = [
        "DEPRECATION",
        "directory",
        "file",
        "file.sock",
        "kubelet.sock",
        "link-to-file",
        "link-to-nothing",
    ];
    same!(left, wanted);
    same!(place("directory/inner.sock").exists(), true);
    Ok(())
}

pub async fn old_socket_refuses_until_the_kubelet_is_back(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let socket = kubelet.plugin_dir().join("kubelet.sock");
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    // Held open, so that the next one cannot have the same number.
    let old = rustix::fs::open(
        &socket,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW,
        rustix::fs::Mode::empty(),
    )?;
    kubelet.stop().await?;
    plugin.streams_ended().await?;
    let error = UnixStream::connect(&socket).err().context("it answers")?;
    same!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    kubelet.start().await?;
    UnixStream::connect(&socket).context("it does not answer")?;
    let is_new = rustix::fs::fstat(&old)?.st_ino != std::fs::metadata(&socket)?.ino();
    same!(is_new, true);
    Ok(())
}

pub async fn resource_is_empty_until_its_plugin_is_back(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    restarted(kubelet).await?;
    counts_become(kubelet, RESOURCE, 0, 0).await?;
    same!(kubelet.healthy(RESOURCE).await?.len(), 0);
    // Nobody tells it, and nobody asks for its list.
    same!(plugin.watches(), 1);
    served(kubelet, RESOURCE, Script::default()).await.map(drop)
}

pub async fn containers_keep_their_devices(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let _plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    let first = taken(kubelet.start_container("pod", "main").await?)?;
    restarted(kubelet).await?;
    let plugin = served(kubelet, RESOURCE, Script::default()).await?;
    let answer = kubelet.admit(&ask("other", 2)).await?;
    refused(answer, &["Requested: 2, Available: 1"])?;
    same!(taken(kubelet.start_container("pod", "main").await?)?, first);
    same!(plugin.allocations().len(), 0);
    taken(kubelet.admit(&ask("third", 1)).await?).map(drop)
}

/// A device is handed over without its reset.
pub async fn start_is_not_announced_until_the_plugin_is_back(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let plugin = served(kubelet, RESOURCE, announced()).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    taken(kubelet.start_container("pod", "main").await?)?;
    restarted(kubelet).await?;
    taken(kubelet.start_container("pod", "main").await?)?;
    same!(plugin.pre_starts().len(), 1);
    let plugin = served(kubelet, RESOURCE, announced()).await?;
    taken(kubelet.start_container("pod", "main").await?)?;
    same!(plugin.pre_starts().len(), 1);
    Ok(())
}

pub async fn pods_that_run_are_admitted_without_their_plugin(
    kubelet: &mut RealDeviceManager,
) -> Result<()> {
    let _plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    taken(kubelet.start_container("pod", "main").await?)?;
    restarted(kubelet).await?;
    let all = BTreeMap::from([("pod".to_owned(), Ok(()))]);
    same!(*kubelet.readmitted(), all);
    Ok(())
}

pub async fn pods_of_a_rebooted_machine_need_their_plugin(
    kubelet: &mut RealDeviceManager,
) -> Result<()> {
    let _plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    taken(kubelet.start_container("pod", "main").await?)?;
    kubelet.reboot();
    restarted(kubelet).await?;
    refuses_again(kubelet)
}

/// An init container that has ended does not run: its pod is taken for one of a rebooted machine.
pub async fn init_container_is_not_running(kubelet: &mut RealDeviceManager) -> Result<()> {
    let _plugin = served(kubelet, RESOURCE, Script::default()).await?;
    let pod = vec![
        Container::new("prepare", Kind::Init, RESOURCE, 1),
        Container::new("main", Kind::App, RESOURCE, 1),
    ];
    taken(kubelet.admit_pod("pod", pod).await?)?;
    taken(kubelet.start_container("pod", "main").await?)?;
    restarted(kubelet).await?;
    refuses_again(kubelet)
}

fn refuses_again(kubelet: &RealDeviceManager) -> Result<()> {
    let answer = kubelet.readmitted().get("pod").cloned();
    let told = "UnexpectedAdmissionError: Allocate failed due to no healthy devices present";
    refused(answer.context("the pod was not admitted again")?, &[told])
}

pub async fn broken_checkpoint_gives_devices_twice(kubelet: &mut RealDeviceManager) -> Result<()> {
    let checkpoint = kubelet.plugin_dir().join("kubelet_internal_checkpoint");
    let _plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("pod", 2)).await?)?;
    taken(kubelet.start_container("pod", "main").await?)?;
    kubelet.stop().await?;
    let text = std::fs::read_to_string(&checkpoint)?;
    std::fs::write(&checkpoint, text.replace("\"Checksum\":", "\"Checksum\":1"))?;
    kubelet.start().await?;
    let _plugin = served(kubelet, RESOURCE, Script::default()).await?;
    taken(kubelet.admit(&ask("other", 2)).await?).map(drop)
}
