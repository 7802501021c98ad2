//! What a kubelet checks when a plugin registers.

use anyhow::{Result, ensure};
use e2e::kubelet::DeviceManager;
use proto::v1beta1::DevicePluginOptions;
use tonic::Status;

use super::{RESOURCE, ask, fresh, refused, same, served, settled, taken};
use crate::plugin::{Call, Plugin, Script, register};
use crate::wait::{counts_become, until};

pub async fn another_version_is_refused(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = Plugin::serve(kubelet.plugin_dir(), "p.sock", Script::default())?;
    for version in ["v1alpha1", "v1", ""] {
        let answer = register(kubelet.plugin_dir(), version, RESOURCE, "p.sock").await?;
        let told = format!("requested API version {version:?} is not supported by kubelet");
        refused(answer, &[&told])?;
    }
    same!(plugin.calls(), []);
    same!(kubelet.counts(RESOURCE).await?, None);
    Ok(())
}

pub async fn what_is_no_extended_resource_is_refused(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let plugin = Plugin::serve(kubelet.plugin_dir(), "p.sock", Script::default())?;
    let long_domain = format!("{}.example.com/x", "a".repeat(60).repeat(4));
    let long_name = format!("example.com/{}", "b".repeat(64));
    let names = [
        "",
        "foo",
        "/x",
        "example.com/",
        "kubernetes.io/x",
        "a.kubernetes.io/x",
        "requests.example.com/x",
        "a/b/c",
        "A.example.com/x",
        "example.com/-x",
        "example.com/x y",
        &long_domain,
        &long_name,
    ];
    for name in names {
        let answer = plugin.register(name).await?;
        refused(answer, &[&format!("the ResourceName {name:?} is invalid")])?;
    }
    same!(plugin.calls(), []);
    Ok(())
}

pub async fn unusual_names_are_taken(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let labels = [
        "a".repeat(60),
        "b".repeat(60),
        "c".repeat(60),
        "d".repeat(61),
    ];
    let longest = format!("{}/{}", labels.join("."), "e".repeat(63));
    for name in ["example.com/UPPER_ok.1", "a/b", &longest] {
        served(kubelet, name, Script::default()).await?;
    }
    Ok(())
}

pub async fn options_are_asked_within_the_call(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let plugin = Plugin::serve(kubelet.plugin_dir(), "p.sock", Script::default())?;
    taken(plugin.register(RESOURCE).await?)?;
    let first = plugin.calls().into_iter().next();
    same!(first, Some(Call::Options));
    counts_become(kubelet, RESOURCE, 2, 2).await?;
    same!(plugin.calls(), [Call::Options, Call::ListAndWatch]);
    Ok(())
}

pub async fn failed_options_refuse_the_registration(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let script = Script {
        options: Err(Status::internal("no options today")),
        ..Script::default()
    };
    let plugin = Plugin::serve(kubelet.plugin_dir(), "p.sock", script)?;
    let answer = plugin.register(RESOURCE).await?;
    let told = ["failed to get device plugin options", "no options today"];
    refused(answer, &told)?;
    settled(kubelet).await?;
    same!(plugin.watches(), 0);
    same!(kubelet.counts(RESOURCE).await?, None);
    Ok(())
}

/// The plugins of these checks say within the call that they want everything.
pub async fn options_within_the_call_are_ignored(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let script = Script {
        options: Ok(DevicePluginOptions::default()),
        ..Script::default()
    };
    let plugin = served(kubelet, RESOURCE, script).await?;
    taken(kubelet.admit(&ask("pod", 1)).await?)?;
    taken(kubelet.start_container("pod", "main").await?)?;
    same!(plugin.pre_starts().len(), 0);
    same!(plugin.preferences().len(), 0);
    Ok(())
}

pub async fn socket_without_a_listener_is_refused(kubelet: &mut dyn DeviceManager) -> Result<()> {
    let answer = register(kubelet.plugin_dir(), "v1beta1", RESOURCE, "nobody.sock").await?;
    refused(answer, &["failed to dial device plugin:"])?;
    same!(kubelet.counts(RESOURCE).await?, None);
    Ok(())
}

pub async fn resource_is_unknown_until_its_first_list(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let script = Script {
        is_silent: true,
        ..Script::default()
    };
    let plugin = Plugin::serve(kubelet.plugin_dir(), "p.sock", script)?;
    taken(plugin.register(RESOURCE).await?)?;
    until("the list is asked for", async || Ok(plugin.watches() == 1)).await?;
    same!(kubelet.counts(RESOURCE).await?, None);
    plugin.send(&[]);
    counts_become(kubelet, RESOURCE, 0, 0).await
}

/// An absolute endpoint is no way out of the directory, and `..` is one.
pub async fn endpoint_is_taken_below_the_plugin_directory(
    kubelet: &mut dyn DeviceManager,
) -> Result<()> {
    let directory = kubelet.plugin_dir().to_owned();
    std::fs::create_dir(directory.join("below"))?;
    let outside = directory.parent().unwrap_or(&directory);
    for (place, name, endpoint) in [
        (directory.as_path(), fresh(), "/"),
        (directory.as_path(), fresh(), "below/../"),
        (&directory.join("below"), fresh(), "below/"),
        (outside, fresh(), "../"),
    ] {
        let plugin = Plugin::serve(place, &name, Script::default())?;
        let endpoint = format!("{endpoint}{name}");
        let answer = register(&directory, "v1beta1", RESOURCE, &endpoint).await?;
        ensure!(answer.is_ok(), "{endpoint:?}: {answer:?}");
        counts_become(kubelet, RESOURCE, 2, 2).await?;
        drop(plugin);
        counts_become(kubelet, RESOURCE, 2, 0).await?;
    }
    Ok(())
}
