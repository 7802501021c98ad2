//! Section B: kubelets that restart, streams that end and files that vanish, 17 to 28 and 81.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proto::v1beta1::{Empty, ListAndWatchResponse};

use crate::conformance::driver::{Action, Feature};
use crate::conformance::rig::Rig;
use crate::conformance::verdict::{Failed, Verdict, demand, mismatch};
use crate::kubelet::{Cleanup, Model, Script, dial};

/// 17.
pub async fn registers_again_when_a_stream_ends(rig: &mut Rig) -> Verdict {
    rig.serve(0).await?;
    let calls = rig.calls();
    rig.kubelet.end_streams(&rig.resource());
    let limit = rig.seconds(2);
    rig.registered(calls, limit).await?;
    rig.served(0).await.map(drop)
}

/// 18.
pub async fn registers_again_when_the_connection_closes(rig: &mut Rig) -> Verdict {
    rig.serve(0).await?;
    let calls = rig.calls();
    rig.kubelet.end_connections();
    let limit = rig.seconds(2);
    rig.registered(calls, limit).await?;
    rig.served(0).await.map(drop)
}

/// 19: both kinds of clean-up, and every resource.
pub async fn registers_at_a_restarted_kubelet(rig: &mut Rig) -> Verdict {
    let mut resources = vec![rig.resource()];
    if rig.feature(Feature::TwoResources).is_ok() {
        resources = vec![rig.resource(), rig.second()];
    }
    rig.serve(0).await?;
    for cleanup in [Cleanup::Sockets, Cleanup::Everything] {
        rig.kubelet.cleanup = cleanup;
        rig.kubelet.halt();
        // A kubelet is away for a moment when it restarts.
        rig.silence(Duration::from_millis(300)).await;
        rig.kubelet.run()?;
        let limit = rig.seconds(2);
        for resource in &resources {
            let expected = format!("{resource} is served by the new kubelet");
            rig.until(limit, &expected, |known| {
                known.is_served(resource).then_some(())
            })
            .await?;
        }
    }
    Ok(())
}

/// 20.
pub async fn notices_that_its_socket_is_gone(rig: &mut Rig) -> Verdict {
    rig.serve(0).await?;
    let calls = rig.calls();
    remove_its_socket(rig)?;
    let limit = rig.seconds(6);
    rig.registered(calls, limit).await?;
    is_reachable(rig).await
}

/// Removes the socket of the last registration.
fn remove_its_socket(rig: &Rig) -> Result<()> {
    let resource = rig.resource();
    let endpoint = rig.kubelet.look(|known| {
        let call = known.calls_of(&resource).last().map(|&call| call.clone());
        call.map(|call| call.request.endpoint)
    });
    let path = rig.kubelet.directory().join(endpoint.unwrap_or_default());
    fs::remove_file(&path).with_context(|| format!("failed to remove {path:?}"))
}

async fn is_reachable(rig: &mut Rig) -> Verdict {
    rig.served(0).await?;
    rig.client().await.map(drop)
}

/// 21.
pub async fn a_storm_of_kubelets_leaves_one_registration(rig: &mut Rig) -> Verdict {
    rig.serve(0).await?;
    let process = rig.plugin()?;
    let (descriptors, threads) = (process.descriptors(), process.threads());
    let resident = process.resident_kilobytes();
    let restarts = rig.restarts;
    let pause = Duration::from_secs(10) / restarts.max(1);
    for _ in 0..restarts {
        rig.kubelet.halt();
        rig.kubelet.run()?;
        rig.silence(pause).await;
    }
    rig.served(0).await?;
    // Let it come to rest: what it still had to do after the last one is over.
    rig.silence(Duration::from_secs(2)).await;
    let resource = rig.resource();
    let streams = rig.kubelet.look(|known| known.open_streams(&resource));
    demand(
        streams == 1,
        format!("one registration and one stream after {restarts} kubelet restarts"),
        format!("{streams} streams"),
    )?;
    is_reachable(rig).await?;
    let limit = rig.seconds(5);
    let expected = format!(
        "no more than {descriptors} descriptors and {threads} threads, as before, and a few"
    );
    rig.until_true(limit, &expected, |rig| {
        let Ok(process) = rig.plugin() else {
            return false;
        };
        process.descriptors() <= descriptors + 3 && process.threads() <= threads + 3
    })
    .await?;
    let grown = rig.plugin()?.resident_kilobytes().saturating_sub(resident);
    demand(
        grown < 20_000,
        format!("less than 20 MB more memory after {restarts} kubelet restarts"),
        format!("{grown} kB more"),
    )
}

/// 22.
pub async fn notices_that_a_dying_kubelet_took_its_socket(rig: &mut Rig) -> Verdict {
    rig.kubelet.script([Script::ForgetToWatch]);
    rig.plug(0).await?;
    rig.kubelet.run()?;
    rig.start().await?;
    let resource = rig.resource();
    let limit = rig.seconds(10);
    rig.until(limit, "a Register call is accepted", |known| {
        let call = known.calls_of(&resource).into_iter().next()?;
        call.accepted().then_some(())
    })
    .await?;
    remove_its_socket(rig)?;
    let limit = rig.seconds(7);
    rig.registered(1, limit).await?;
    is_reachable(rig).await
}

/// 23.
pub async fn registers_again_when_nobody_reads_its_list(rig: &mut Rig) -> Verdict {
    rig.kubelet.script([Script::ForgetToWatch]);
    rig.plug(0).await?;
    rig.kubelet.run()?;
    rig.start().await?;
    let limit = rig.seconds(10);
    rig.registered(0, limit).await?;
    let limit = rig.seconds(32);
    rig.registered(1, limit).await?;
    rig.served(0).await.map(drop)
}

/// 24: in a user namespace of its own, in which nobody may make an inotify instance.
pub async fn does_without_inotify(rig: &mut Rig) -> Verdict {
    let script = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\"";
    let wrapper = [
        "unshare",
        "--user",
        "--map-root-user",
        "/bin/sh",
        "-c",
        script,
        "sh",
    ];
    let tried = std::process::Command::new("unshare")
        .args(wrapper.iter().skip(1))
        .arg("true")
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        let told = "a machine on which `unshare --user --map-root-user` works";
        return Err(Failed::Missing(told.to_owned()));
    }
    rig.wrap(&wrapper);
    rig.serve(0).await?;
    rig.kubelet.halt();
    rig.silence(Duration::from_millis(300)).await;
    rig.kubelet.run()?;
    // Polling may take 5 s.
    let limit = rig.seconds(7);
    let resource = rig.resource();
    let expected = "the new kubelet serves it, although nothing tells the plugin of new files";
    rig.until(limit, expected, |known| {
        known.is_served(&resource).then_some(())
    })
    .await
}

/// Starts a second instance beside the first, and ends the first once the second had its time.
/// Returns how long the kubelet had no healthy device.
async fn surge(rig: &mut Rig) -> Verdict {
    let ids = rig.serve(1).await?;
    let resource = rig.resource();
    let calls = rig.calls();
    rig.start().await?;
    // It registers beside the first, or waits for its end: both are ways to do it.
    let limit = rig.seconds(4);
    let registered = rig.kubelet.until(limit, |known| {
        let is_new = known.calls_of(&resource).len() > calls;
        (is_new && known.is_served_by_newest(&resource)).then_some(())
    });
    if registered.await.is_none() {
        rig.notes
            .push("the second instance waits for the first".to_owned());
    }
    let first = rig.instance(0)?;
    first.signal(rustix::process::Signal::TERM);
    first.wait(Duration::from_secs(30)).await;
    let limit = rig.seconds(3);
    let expected = "after the first instance has ended, the second serves all devices";
    // What the kubelet has may go away once more, when it has seen the first one's end.
    let end = Instant::now() + limit;
    let mut since: Option<Instant> = None;
    while since.is_none_or(|since| since.elapsed() < Duration::from_secs(1)) {
        let good = rig.kubelet.look(|known| {
            let healthy = known
                .resources
                .get(&resource)
                .map(|known| known.healthy.clone());
            let reads = known.open_streams(&resource) > 0;
            reads && known.is_served(&resource) && healthy.is_some_and(|h| h.len() >= ids.len())
        });
        since = good.then(|| since.unwrap_or_else(Instant::now));
        if since.is_none() && Instant::now() > end {
            return Err(mismatch(
                format!("{expected}, within {limit:?}"),
                rig.seen(),
            ));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    is_reachable(rig).await
}

/// 25 on kubelets to 1.36, 26 and 81 on later ones.
pub async fn a_surge_loses_nothing(rig: &mut Rig) -> Verdict {
    surge(rig).await
}

/// 26.
pub async fn a_surge_is_never_refused(rig: &mut Rig) -> Verdict {
    let surged = surge(rig).await;
    refused_as_held(rig)?;
    surged
}

fn refused_as_held(rig: &Rig) -> Verdict {
    let refused = rig.kubelet.look(|known| {
        let mut calls = known.calls.iter();
        let refused = calls.find(
            |call| matches!(&call.answer, Some((_, Err(why))) if why.contains("already connected")),
        );
        refused.map(|call| call.request.endpoint.clone())
    });
    demand(
        refused.is_none(),
        "the second instance registers at a socket path of its own",
        format!("it registered {refused:?}, which the kubelet still holds"),
    )
}

/// 81.
pub async fn two_instances_leave_no_phantom(rig: &mut Rig) -> Verdict {
    demand(
        rig.kubelet.model() == Model::V1_37,
        "a kubelet of 1.37",
        rig.kubelet.model(),
    )?;
    let surged = surge(rig).await;
    refused_as_held(rig)?;
    surged?;
    rig.end().await?;
    let resource = rig.resource();
    let limit = rig.seconds(3);
    let expected = "the kubelet has no healthy device when both instances have ended";
    rig.until(limit, expected, |known| {
        let known = known.resources.get(&resource)?;
        known.healthy.is_empty().then_some(())
    })
    .await
}

/// 27.
pub async fn serves_two_streams_at_once(rig: &mut Rig) -> Verdict {
    let ids = rig.serve(1).await?;
    let mut client = rig.client().await?;
    let opened = client.list_and_watch(Empty {}).await;
    let mut second = opened
        .context("failed to open a second stream")?
        .into_inner();
    let limit = rig.seconds(2);
    let read = tokio::time::timeout(limit, second.message()).await;
    let list = read.ok().and_then(Result::ok).flatten();
    let listed = |list: &ListAndWatchResponse| {
        let mut ids: Vec<String> = list.devices.iter().map(|d| d.id.clone()).collect();
        ids.sort();
        ids
    };
    demand(
        list.as_ref().map(listed) == Some(ids.clone()),
        format!("the second stream begins with the full list {ids:?}"),
        format!("{:?}", list.as_ref().map(listed)),
    )?;
    rig.silence(Duration::from_secs(1)).await;
    rig.stream_goes_on("beside the second")?;
    if !rig.can(Action::AddDevice) {
        rig.notes
            .push("without later updates: action `add-device`".to_owned());
        return Ok(());
    }
    let new = rig.learn(1).await?;
    let limit = rig.detection();
    let read = async {
        while let Ok(Some(list)) = second.message().await {
            if listed(&list).contains(&new) {
                return true;
            }
        }
        false
    };
    let told = tokio::time::timeout(limit, read).await.unwrap_or(false);
    demand(
        told,
        format!("the second stream tells of the new device {new:?} as well"),
        "it does not",
    )
}

/// 28: whoever ends is started again, as a kubelet does with a container.
pub async fn follows_a_replaced_directory(rig: &mut Rig) -> Verdict {
    rig.serve(0).await?;
    let directory = rig.kubelet.directory().to_owned();
    let old = directory.with_extension("old");
    let calls = rig.calls();
    rig.kubelet.halt();
    fs::rename(&directory, &old).context("failed to replace the plugin directory")?;
    rig.kubelet.run()?;
    let resource = rig.resource();
    let end = Instant::now() + rig.seconds(10);
    let mut restarted = false;
    while !rig.kubelet.look(|known| known.is_served(&resource)) {
        if Instant::now() > end {
            let expected = "a registration in the new directory, or an end that leads to a restart";
            return Err(mismatch(expected, rig.seen()));
        }
        if !restarted && rig.plugin()?.ended().is_some() {
            restarted = true;
            rig.start().await?;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    demand(rig.calls() > calls, "another Register call", rig.seen())?;
    let endpoint = rig
        .kubelet
        .look(|known| known.endpoint(&resource).map(str::to_owned));
    let path = directory.join(endpoint.unwrap_or_default());
    let dialled = dial(&path).await.map(drop);
    dialled.map_err(|error| mismatch(format!("{path:?} answers"), error))
}
