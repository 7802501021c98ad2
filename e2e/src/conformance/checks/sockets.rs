//! Section A, the rest: what a plugin leaves in the kubelet's directory, 13 to 16.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::conformance::behaviour::Level;
use crate::conformance::rig::Rig;
use crate::conformance::verdict::{Verdict, demand, demand_at, mismatch};

fn endpoint(rig: &Rig) -> String {
    let resource = rig.resource();
    let endpoint = rig
        .kubelet
        .look(|known| known.endpoint(&resource).map(str::to_owned));
    endpoint.unwrap_or_default()
}

/// Names in the plugin directory.
fn names(rig: &Rig) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(rig.kubelet.directory()).context("failed to list the directory")?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// 13.
pub async fn every_start_has_a_fresh_socket_name(rig: &mut Rig) -> Verdict {
    let mut seen = BTreeSet::new();
    rig.plug(0).await?;
    rig.kubelet.run()?;
    for _ in 0..3 {
        rig.start().await?;
        rig.served(0).await?;
        let name = endpoint(rig);
        demand(
            !seen.contains(&name),
            "a socket name that was never used before, at each start: from 1.37 on kubelets \
             refuse a path that they still hold",
            format!("{name:?} again"),
        )?;
        seen.insert(name);
        rig.end().await?;
        let resource = rig.resource();
        let limit = rig.seconds(5);
        rig.until(limit, "the stream ends with the plugin", |known| {
            (known.open_streams(&resource) == 0).then_some(())
        })
        .await?;
    }
    Ok(())
}

/// 14.
pub async fn cleans_up_after_a_killed_instance(rig: &mut Rig) -> Verdict {
    rig.plug(0).await?;
    rig.kubelet.run()?;
    let foreign = rig.kubelet.directory().join("foreign.sock");
    let dead = rig.kubelet.directory().join("foreign-dead.sock");
    let listener = UnixListener::bind(&foreign).context("failed to bind")?;
    drop(UnixListener::bind(&dead).context("failed to bind")?);
    rig.start().await?;
    rig.served(0).await?;
    let left = endpoint(rig);
    rig.plugin()?.signal(Signal::KILL);
    rig.plugin()?.wait(Duration::from_secs(10)).await;
    let resource = rig.resource();
    let limit = rig.seconds(5);
    rig.until(limit, "the stream ends with the plugin", |known| {
        (known.open_streams(&resource) == 0).then_some(())
    })
    .await?;
    rig.start().await?;
    rig.served(0).await?;
    let path = rig.kubelet.directory().join(&left);
    let is_again = endpoint(rig) == left;
    let limit = rig.seconds(5);
    let expected = format!("the socket {left:?} of the killed instance is removed");
    rig.until_true(limit, &expected, |_| is_again || !path.exists())
        .await?;
    let there = foreign.exists() && dead.exists();
    drop(listener);
    demand(
        there,
        "sockets of other plugins stay, living and dead",
        format!("{:?}", names(rig)?),
    )?;
    // A peer that lives: it may wait for its turn, but must not take the socket away.
    let living = endpoint(rig);
    rig.start().await?;
    rig.silence(Duration::from_secs(2)).await;
    let path = rig.kubelet.directory().join(&living);
    demand(
        UnixStream::connect(&path).is_ok(),
        format!("the socket {living:?} of an instance that runs is left alone by the next one"),
        format!("{:?}", names(rig)?),
    )
}

/// 15.
pub async fn sigterm_leaves_nothing(rig: &mut Rig) -> Verdict {
    let before = {
        rig.plug(0).await?;
        rig.kubelet.run()?;
        names(rig)?
    };
    rig.start().await?;
    rig.served(0).await?;
    rig.plugin()?.signal(Signal::TERM);
    let limit = rig.seconds(10);
    let status = rig.plugin()?.wait(limit).await;
    let status = status.ok_or_else(|| {
        let expected = format!("the plugin ends within {limit:?} of SIGTERM");
        mismatch(expected, rig.seen())
    })?;
    demand(status.success(), "exit code 0 after SIGTERM", rig.seen())?;
    let left: Vec<String> = names(rig)?.difference(&before).cloned().collect();
    demand(left.is_empty(), "no file left behind", format!("{left:?}"))?;
    let resource = rig.resource();
    let limit = rig.seconds(2);
    rig.until(limit, "the stream has ended", |known| {
        (known.open_streams(&resource) == 0).then_some(())
    })
    .await
}

/// Every file below a directory that is no socket: its content, or what it leads to.
fn contents(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut contents = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let (path, kind) = {
            let entry = entry?;
            (entry.path(), entry.file_type()?)
        };
        let name = path.to_string_lossy().into_owned();
        if kind.is_socket() {
            continue;
        } else if kind.is_dir() {
            contents.extend(self::contents(&path)?);
            contents.insert(name, Vec::new());
        } else if kind.is_symlink() {
            contents.insert(
                name,
                fs::read_link(&path)?.into_os_string().into_encoded_bytes(),
            );
        } else {
            contents.insert(name, fs::read(&path)?);
        }
    }
    Ok(contents)
}

/// 16.
pub async fn leaves_the_directory_as_it_is(rig: &mut Rig) -> Verdict {
    rig.plug(0).await?;
    let directory = rig.kubelet.directory().to_owned();
    let fill = || -> Result<BTreeMap<String, Vec<u8>>> {
        fs::create_dir_all(directory.join("some.directory/deeper"))?;
        fs::write(directory.join("some.directory/deeper/file.sock"), "a")?;
        fs::write(directory.join("DEPRECATION"), "moved")?;
        fs::write(directory.join("kubelet_internal_checkpoint"), "{}")?;
        fs::write(directory.join("unknown.sock"), "no socket")?;
        symlink("nowhere", directory.join("dangling.sock"))?;
        contents(&directory)
    };
    let before = fill().context("failed to fill the plugin directory")?;
    rig.kubelet.run()?;
    rig.start().await?;
    rig.served(0).await?;
    unchanged(&before, &contents(&directory)?, "while the plugin runs")?;
    rig.end().await?;
    unchanged(&before, &contents(&directory)?, "after its end")
}

fn unchanged(
    before: &BTreeMap<String, Vec<u8>>,
    after: &BTreeMap<String, Vec<u8>>,
    when: &str,
) -> Verdict {
    let lost = before
        .iter()
        .find(|(name, text)| after.get(*name) != Some(text));
    demand(
        lost.is_none(),
        format!("what else is in the plugin directory is as it was, {when}"),
        format!("{:?} is gone or changed", lost.map(|(name, _)| name)),
    )?;
    let new: Vec<&String> = after
        .keys()
        .filter(|name| !before.contains_key(*name))
        .collect();
    // Kubelets before 1.33 remove such files; what it costs a newer one is small.
    demand_at(
        Level::Must,
        new.is_empty(),
        format!("nothing but sockets of the plugin's in the plugin directory, {when}"),
        format!("{new:?}"),
    )
}
