//! Section C: what a plugin lists, and when, 29 to 41.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use proto::v1beta1::{AllocateRequest, ContainerAllocateRequest, Device};
use tonic::{Code, Status};

use crate::conformance::driver::{Action, Feature};
use crate::conformance::rig::Rig;
use crate::conformance::verdict::{Verdict, demand, mismatch};

/// Longest id that the protocol speaks of.
const ID_MAX: usize = 63;

/// Fewest milliseconds between two messages, over a while: each costs a kubelet a write to its disk.
const GAP: Duration = Duration::from_millis(500);

/// 29.
pub async fn lists_at_once_even_without_devices(rig: &mut Rig) -> Verdict {
    rig.plug(0).await?;
    rig.kubelet.run()?;
    rig.start().await?;
    let resource = rig.resource();
    let limit = rig.seconds(10);
    let expected = "the kubelet opens a stream";
    rig.until(limit, expected, |known| {
        (known.open_streams(&resource) > 0).then_some(())
    })
    .await?;
    let limit = rig.seconds(1);
    let expected = "a first message, an empty list where there is no device";
    rig.until(limit, expected, |known| {
        known.messages_of(&resource).first().map(drop)
    })
    .await
}

/// Waits until the last list satisfies something, and then for a second in which no other message
/// may come; returns how many came.
async fn one_message(
    rig: &mut Rig,
    expected: &str,
    is: impl Fn(&BTreeMap<String, String>) -> bool,
    before: usize,
) -> Verdict {
    let resource = rig.resource();
    let limit = rig.detection();
    rig.until(limit, expected, |known| {
        is(&known.devices(&resource)).then_some(())
    })
    .await?;
    rig.silence(Duration::from_secs(1)).await;
    let messages = messages(rig) - before;
    demand(
        messages == 1 && is(&rig.kubelet.look(|known| known.devices(&resource))),
        format!("one message with the complete list: {expected}"),
        format!("{messages} messages; {}", rig.seen()),
    )
}

fn messages(rig: &Rig) -> usize {
    let resource = rig.resource();
    rig.kubelet.look(|known| known.messages_of(&resource).len())
}

fn is_healthy(devices: &BTreeMap<String, String>, id: &str) -> bool {
    devices.get(id).is_some_and(|health| health == "Healthy")
}

/// 30.
pub async fn tells_each_change_once(rig: &mut Rig) -> Verdict {
    rig.needs(Action::AddDevice)?;
    let others = rig.serve(2).await?;
    let before = messages(rig);
    let id = rig.learn(2).await?;
    let all = others.len() + 1;
    let expected = "a device that appears is listed Healthy, with all others";
    let complete = |devices: &BTreeMap<String, String>| {
        devices.len() == all && others.iter().all(|id| is_healthy(devices, id))
    };
    one_message(
        rig,
        expected,
        |devices| complete(devices) && is_healthy(devices, &id),
        before,
    )
    .await?;
    for (harm, cure) in [
        (Action::RemoveDevice, Action::AddDevice),
        (Action::FailDevice, Action::RecoverDevice),
    ] {
        if !rig.can(harm) || !rig.can(cure) {
            rig.notes
                .push(format!("without action `{harm}` and action `{cure}`"));
            continue;
        }
        let before = messages(rig);
        rig.act(harm, 2).await?;
        let expected = format!("after `{harm}` the device is Healthy no more, all others are");
        one_message(
            rig,
            &expected,
            |devices| !is_healthy(devices, &id) && others.iter().all(|id| is_healthy(devices, id)),
            before,
        )
        .await?;
        let before = messages(rig);
        rig.act(cure, 2).await?;
        let expected = format!("after `{cure}` the device is Healthy again");
        one_message(
            rig,
            &expected,
            |devices| complete(devices) && is_healthy(devices, &id),
            before,
        )
        .await?;
    }
    Ok(())
}

/// 31.
pub async fn is_silent_while_nothing_changes(rig: &mut Rig) -> Verdict {
    rig.serve(1).await?;
    // What the start brought with it is over.
    rig.silence(Duration::from_secs(2)).await;
    let before = messages(rig);
    let time = Duration::from_secs(60);
    let resource = rig.resource();
    let more = rig
        .kubelet
        .until(time, |known| {
            (known.messages_of(&resource).len() > before).then_some(())
        })
        .await;
    demand(
        more.is_none(),
        format!("no message within {time:?} in which nothing changes"),
        rig.seen(),
    )
}

/// 32.
pub async fn damps_a_flapping_device(rig: &mut Rig) -> Verdict {
    rig.needs(Action::FlapDevice)?;
    let ids = rig.serve(2).await?;
    let (before, began) = (messages(rig), Instant::now());
    rig.act_with(Action::FlapDevice, &[("device", "0"), ("seconds", "5")])
        .await?;
    let took = began.elapsed();
    let during = messages(rig) - before;
    let most = 2 + usize::try_from(took.as_millis() / GAP.as_millis()).unwrap_or(0);
    demand(
        during <= most,
        format!("at most two messages a second, {most} in {took:?} of flapping"),
        format!("{during} messages"),
    )?;
    let resource = rig.resource();
    let limit = rig.detection() + Duration::from_secs(1);
    let expected = "when the flapping is over, all devices are Healthy";
    rig.until(limit, expected, |known| {
        let devices = known.devices(&resource);
        ids.iter().all(|id| is_healthy(&devices, id)).then_some(())
    })
    .await
}

/// 33: every message that came, in situations as different as the driver can make them.
pub async fn ids_and_healths_are_wellformed(rig: &mut Rig) -> Verdict {
    rig.serve(2).await?;
    for action in [Action::FailDevice, Action::RecoverDevice] {
        if rig.can(action) {
            rig.act(action, 0).await?;
            let limit = rig.detection();
            rig.silence(limit).await;
        }
    }
    let resource = rig.resource();
    let lists: Vec<Vec<Device>> = rig.kubelet.look(|known| {
        let messages = known.messages_of(&resource).into_iter();
        messages.map(|message| message.devices.clone()).collect()
    });
    let broken = rig.kubelet.look(|known| {
        let mut streams = known.streams.iter();
        streams
            .find_map(|stream| stream.ended.clone())
            .map(|(_, why)| why)
    });
    demand(
        broken.is_none(),
        "messages that can be read: names are UTF-8",
        format!("{broken:?}"),
    )?;
    for devices in &lists {
        let mut seen = BTreeSet::new();
        for device in devices {
            let Device { id, health, .. } = device;
            demand(!id.is_empty(), "no empty id", format!("{devices:?}"))?;
            demand(
                id.len() <= ID_MAX,
                format!("ids of at most {ID_MAX} bytes"),
                format!("{} bytes: {id:?}", id.len()),
            )?;
            demand(
                seen.insert(id),
                "each id once in a message",
                format!("{id:?} twice in {devices:?}"),
            )?;
            demand(
                health == "Healthy" || health == "Unhealthy",
                "the health Healthy or Unhealthy",
                format!("{health:?} of device {id:?}"),
            )?;
        }
    }
    Ok(())
}

/// 34.
pub async fn ids_belong_to_devices(rig: &mut Rig) -> Verdict {
    rig.needs(Action::AddDevice)?;
    rig.needs(Action::RemoveDevice)?;
    rig.serve(0).await?;
    let mut ids = Vec::new();
    for device in 0..3 {
        ids.push(rig.learn(device).await?);
    }
    // As after a reboot that finds the first one gone, and the others in another order.
    rig.end().await?;
    for device in 0..3 {
        rig.act(Action::RemoveDevice, device).await?;
    }
    for device in [2, 1] {
        rig.act(Action::AddDevice, device).await?;
    }
    rig.start().await?;
    let found: BTreeSet<String> = rig.served(2).await?.into_iter().collect();
    let expected: BTreeSet<String> = ids.iter().skip(1).cloned().collect();
    demand(
        found == expected,
        format!(
            "the ids {expected:?} of the second and the third device, now that the first is gone"
        ),
        format!("{found:?} are Healthy"),
    )?;
    let again = rig.learn(0).await?;
    let first = ids.first().cloned().unwrap_or_default();
    demand(
        again == first,
        format!("the first device has its id {first:?} again when it is back"),
        format!("{again:?}"),
    )
}

/// 35.
pub async fn ids_differ_between_resources(rig: &mut Rig) -> Verdict {
    rig.feature(Feature::TwoResources)?;
    let first: BTreeSet<String> = rig.serve(2).await?.into_iter().collect();
    let second = rig.second();
    let limit = rig.seconds(5);
    let expected = format!("{second} is served with a device");
    let second = rig
        .until(limit, &expected, |known| {
            let devices = known.devices(&second);
            (!devices.is_empty()).then_some(devices)
        })
        .await?;
    let both: Vec<&String> = second.keys().filter(|id| first.contains(*id)).collect();
    demand(
        both.is_empty(),
        "no id in both resources: to 1.36 kubelets tell a pod's health by the id alone",
        format!("{both:?}"),
    )
}

/// Sees to it that a device of the resource is held by a container; returns its id.
async fn allocated_device(rig: &mut Rig) -> Verdict<String> {
    rig.needs(Action::RemoveDevice)?;
    rig.needs(Action::AddDevice)?;
    rig.serve(1).await?;
    let id = rig.learn(1).await?;
    let allocated = rig.client().await?.allocate(request(&id)).await;
    allocated.map_err(|status| mismatch("Allocate answers for a healthy device", status))?;
    rig.hold(&[&id]);
    Ok(id)
}

fn request(id: &str) -> AllocateRequest {
    AllocateRequest {
        container_requests: vec![ContainerAllocateRequest {
            devices_ids: vec![id.to_owned()],
        }],
    }
}

/// Waits until a device is listed Unhealthy, and fails if it is left out, then or later.
async fn is_buried_with_a_stone(rig: &mut Rig, id: &str) -> Verdict {
    let resource = rig.resource();
    let limit = rig.detection();
    let expected = format!("{id:?}, which a container holds, stays listed as Unhealthy");
    let health = |known: &crate::kubelet::Knowledge| known.devices(&resource).remove(id);
    let found = rig
        .until(limit, &expected, |known| {
            let health = health(known);
            (health.as_deref() != Some("Healthy")).then_some(health)
        })
        .await?;
    demand(found.as_deref() == Some("Unhealthy"), &expected, rig.seen())?;
    rig.silence(Duration::from_secs(5)).await;
    let found = rig.kubelet.look(health);
    demand(found.as_deref() == Some("Unhealthy"), expected, rig.seen())
}

/// 36.
pub async fn keeps_a_held_device_that_vanished(rig: &mut Rig) -> Verdict {
    let id = allocated_device(rig).await?;
    // The plugin learns who holds what from time to time.
    rig.silence(Duration::from_secs(3)).await;
    rig.act(Action::RemoveDevice, 1).await?;
    is_buried_with_a_stone(rig, &id).await
}

/// 37.
pub async fn a_device_may_vanish_during_allocate(rig: &mut Rig) -> Verdict {
    let id = allocated_device(rig).await?;
    let client = rig.client().await?;
    let limit = rig.seconds(2);
    let asked = id.clone();
    let asking = tokio::spawn(async move {
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            let mut client = client.clone();
            let answer = tokio::time::timeout(limit, client.allocate(request(&asked))).await;
            match answer {
                Err(_) => return Some(format!("no answer within {limit:?}")),
                Ok(Err(status)) if is_broken(&status) => return Some(status.to_string()),
                Ok(_) => {}
            }
        }
        None
    });
    rig.act(Action::RemoveDevice, 1).await?;
    let trouble = asking.await.map_err(|error| anyhow!(error))?;
    demand(
        trouble.is_none(),
        "every Allocate for a device that vanishes is answered, or fails with a clear error",
        trouble.unwrap_or_default(),
    )?;
    rig.stream_goes_on("although a device vanishes while it is allocated")?;
    is_buried_with_a_stone(rig, &id).await
}

/// Whether a call did not fail, but was lost.
fn is_broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled)
        || status.message().contains("h2 protocol error")
}

/// 38.
pub async fn more_devices_than_fit_break_no_stream(rig: &mut Rig) -> Verdict {
    rig.feature(Feature::Many)?;
    rig.place("count", "200000");
    rig.set_up().await?;
    rig.kubelet.run()?;
    rig.start().await?;
    let resource = rig.resource();
    let limit = rig.seconds(60);
    let expected = "a list that a kubelet can read (4 MiB), or an error at the start";
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = rig.plugin()?.ended() {
            return demand(!status.success(), expected, rig.seen());
        }
        let (is_listed, broken) = rig.kubelet.look(|known| {
            let streams = known.streams.iter();
            let broken = streams.filter_map(|stream| stream.ended.clone()).next();
            (!known.messages_of(&resource).is_empty(), broken)
        });
        demand(broken.is_none(), expected, rig.seen())?;
        if is_listed {
            break;
        }
        if Instant::now() > end {
            return Err(mismatch(expected, rig.seen()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nothing bigger comes after it.
    rig.silence(Duration::from_secs(5)).await;
    rig.stream_goes_on("with more devices than fit into a message")
}

/// 39: with a flow control window of a few bytes, so that the plugin meets the reader's silence.
pub async fn a_slow_reader_costs_nothing(rig: &mut Rig) -> Verdict {
    rig.needs(Action::FlapDevice)?;
    rig.kubelet.narrow_window(64);
    let ids = rig.serve(2).await?;
    let resource = rig.resource();
    let before = rig.plugin()?.resident_kilobytes();
    rig.kubelet.read_streams(false);
    let seconds = [("device", "0"), ("seconds", "30")];
    rig.act_with(Action::FlapDevice, &seconds).await?;
    let grown = rig.plugin()?.resident_kilobytes().saturating_sub(before);
    demand(
        grown < 20_000,
        "less than 20 MB more memory after 30 s in which the kubelet does not read",
        format!("{grown} kB more"),
    )?;
    let listed = messages(rig);
    rig.kubelet.read_streams(true);
    let limit = rig.detection() + Duration::from_secs(2);
    let expected = "the latest list, in which all devices are Healthy";
    rig.until(limit, expected, |known| {
        let devices = known.devices(&resource);
        let new = known.messages_of(&resource).len() > listed;
        (new && ids.iter().all(|id| is_healthy(&devices, id))).then_some(())
    })
    .await?;
    rig.silence(Duration::from_secs(1)).await;
    let came = messages(rig) - listed;
    demand(
        came <= 10,
        "the latest list and at most a few that were under way",
        format!("{came} messages"),
    )
}

/// 40.
pub async fn topology_is_told_as_kubelets_take_it(rig: &mut Rig) -> Verdict {
    rig.feature(Feature::Numa)?;
    rig.needs(Action::AddDevice)?;
    rig.serve(0).await?;
    let expected: [(&str, Option<Vec<i64>>); 4] = [
        ("NUMA node -1", None),
        ("an unknown NUMA node", None),
        ("NUMA node 0", Some(vec![0])),
        ("NUMA nodes 0 and 1", Some(vec![0, 1])),
    ];
    for (device, (of, nodes)) in expected.into_iter().enumerate() {
        let id = rig.learn(device).await?;
        let resource = rig.resource();
        let told = rig.kubelet.look(|known| {
            let last = known.messages_of(&resource).pop()?;
            let device = last.devices.iter().find(|device| device.id == id)?;
            device.topology.clone()
        });
        let told = told.map(|topology| {
            let mut nodes: Vec<i64> = topology.nodes.iter().map(|node| node.id).collect();
            nodes.sort_unstable();
            nodes
        });
        demand(
            told == nodes,
            format!("for a device of {of} the topology {nodes:?}"),
            format!("{told:?}"),
        )?;
    }
    Ok(())
}

/// 41.
pub async fn a_failing_discovery_ends_no_stream(rig: &mut Rig) -> Verdict {
    rig.needs(Action::BreakDiscovery)?;
    let ids = rig.serve(2).await?;
    let resource = rig.resource();
    rig.act(Action::BreakDiscovery, 0).await?;
    let limit = rig.detection() + Duration::from_secs(2);
    rig.silence(limit).await;
    rig.stream_goes_on("while looking for devices fails")?;
    let devices = rig.kubelet.look(|known| known.devices(&resource));
    demand(
        ids.iter().all(|id| devices.contains_key(id)),
        "the last good list, or its devices as Unhealthy, while looking for devices fails",
        rig.seen(),
    )?;
    if !rig.can(Action::MendDiscovery) {
        return Ok(());
    }
    rig.act(Action::MendDiscovery, 0).await?;
    let limit = rig.detection() + Duration::from_secs(2);
    let expected = "all devices are Healthy when looking for them works again";
    rig.until(limit, expected, |known| {
        let devices = known.devices(&resource);
        ids.iter().all(|id| is_healthy(&devices, id)).then_some(())
    })
    .await
}
