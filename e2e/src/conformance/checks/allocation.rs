//! Section D: what a plugin answers to `Allocate`, 42 to 54.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use proto::v1beta1::{AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse};
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::Status;

use crate::conformance::behaviour::Level;
use crate::conformance::driver::{Action, Feature};
use crate::conformance::rig::Rig;
use crate::conformance::verdict::{Verdict, demand, demand_at, mismatch};
use crate::kubelet::Client;

/// How long any answer may take: longer, and a kubelet admits no pod meanwhile.
const ANSWER: Duration = Duration::from_secs(2);

/// How long to wait before what may be late is asked for again.
const LOOK: Duration = Duration::from_millis(50);

/// How long nearly all answers may take.
const QUICK: Duration = Duration::from_millis(100);

fn request(containers: &[&[&str]]) -> AllocateRequest {
    let containers = containers.iter().map(|ids| ContainerAllocateRequest {
        devices_ids: ids.iter().map(|&id| id.to_owned()).collect(),
    });
    AllocateRequest {
        container_requests: containers.collect(),
    }
}

async fn asked(
    client: &mut Client,
    containers: &[&[&str]],
    slack: Duration,
) -> Result<Vec<ContainerAllocateResponse>, Status> {
    let call = client.allocate(request(containers));
    let answer = tokio::time::timeout(ANSWER + slack, call).await;
    let late = |_| Status::deadline_exceeded(format!("no answer within {ANSWER:?}"));
    Ok(answer.map_err(late)??.into_inner().container_responses)
}

/// The responses to a call that must succeed, one for each container.
async fn answered(
    rig: &mut Rig,
    containers: &[&[&str]],
) -> Verdict<Vec<ContainerAllocateResponse>> {
    let mut client = rig.client().await?;
    let answer = asked(&mut client, containers, rig.slack).await;
    let count = containers.len();
    let expected = format!("Allocate for {containers:?} gives {count} responses");
    let responses = answer.map_err(|status| mismatch(&expected, status))?;
    demand(
        responses.len() == count,
        expected,
        format!("{} responses", responses.len()),
    )?;
    Ok(responses)
}

async fn one_answer(rig: &mut Rig, ids: &[&str]) -> Verdict<ContainerAllocateResponse> {
    let mut responses = answered(rig, &[ids]).await?;
    Ok(responses.pop().unwrap_or_default())
}

/// A response in an order of its own, whatever order the plugin chose; also the parts of values
/// that are lists.
fn normal(mut response: ContainerAllocateResponse) -> ContainerAllocateResponse {
    let sorted = |value: &mut String| {
        let mut parts: Vec<&str> = value.split(',').collect();
        parts.sort_unstable();
        *value = parts.join(",");
    };
    response.envs.values_mut().for_each(sorted);
    response.annotations.values_mut().for_each(sorted);
    let by_paths = |a: &str, b: &str| format!("{a}\n{b}");
    response
        .mounts
        .sort_by_key(|mount| by_paths(&mount.container_path, &mount.host_path));
    response
        .devices
        .sort_by_key(|device| by_paths(&device.container_path, &device.host_path));
    response
        .cdi_devices
        .sort_by_key(|device| device.name.clone());
    response
}

/// What of the host is in a response: device nodes, mounts, CDI names.
fn given(response: &ContainerAllocateResponse) -> BTreeSet<&str> {
    let devices = response
        .devices
        .iter()
        .map(|device| device.host_path.as_str());
    let mounts = response.mounts.iter().map(|mount| mount.host_path.as_str());
    let cdi = response
        .cdi_devices
        .iter()
        .map(|device| device.name.as_str());
    devices.chain(mounts).chain(cdi).collect()
}

/// Two healthy devices, which every check of this section but a few works with.
async fn two(rig: &mut Rig) -> Verdict<(String, String)> {
    let mut ids = rig.serve(2).await?.into_iter();
    let (Some(first), Some(second)) = (ids.next(), ids.next()) else {
        return Err(mismatch("two healthy devices", rig.seen()));
    };
    Ok((first, second))
}

/// 42.
pub async fn answers_for_exactly_these_devices(rig: &mut Rig) -> Verdict {
    let (first, second) = two(rig).await?;
    let of_first = one_answer(rig, &[&first]).await?;
    let of_second = one_answer(rig, &[&second]).await?;
    let of_both = one_answer(rig, &[&first, &second]).await?;
    let empty = ContainerAllocateResponse::default();
    let union: BTreeSet<&str> = given(&of_first)
        .union(&given(&of_second))
        .copied()
        .collect();
    demand(
        given(&of_both) == union,
        format!("for both devices together what each of them gets alone: {union:?}"),
        format!("{:?}", given(&of_both)),
    )?;
    // Some share one device node among many ids on purpose.
    demand_at(
        Level::Should,
        of_first == empty || normal(of_first.clone()) != normal(of_second.clone()),
        "two devices do not get the same response",
        format!("{of_first:?} for both"),
    )
}

/// 43.
pub async fn answers_containers_in_order(rig: &mut Rig) -> Verdict {
    let (first, second) = two(rig).await?;
    let containers: [&[&str]; 3] = [&[&first], &[&second], &[&first, &second]];
    let together = answered(rig, &containers).await?;
    for (ids, response) in containers.iter().zip(together) {
        let alone = one_answer(rig, ids).await?;
        demand(
            normal(response.clone()) == normal(alone.clone()),
            format!("the response for {ids:?} in its place: {alone:?}"),
            format!("{response:?}"),
        )?;
    }
    Ok(())
}

/// 44.
pub async fn empty_requests_have_empty_answers(rig: &mut Rig) -> Verdict {
    let (first, _) = two(rig).await?;
    answered(rig, &[]).await?;
    let response = one_answer(rig, &[]).await?;
    demand(
        given(&response).is_empty(),
        "nothing of the host for a container without devices",
        format!("{response:?}"),
    )?;
    // It still answers.
    one_answer(rig, &[&first]).await?;
    rig.stream_goes_on("after empty requests")
}

/// 45.
pub async fn an_unknown_device_is_refused(rig: &mut Rig) -> Verdict {
    two(rig).await?;
    let resource = rig.resource();
    let before = rig.kubelet.look(|known| known.devices(&resource));
    let unknown = "conformance-unknown-id";
    let mut client = rig.client().await?;
    let answer = asked(&mut client, &[&[unknown]], rig.slack).await;
    let Err(status) = answer else {
        return Err(mismatch(
            "an error for an id that was never listed",
            format!("{answer:?}"),
        ));
    };
    demand(
        status.message().contains(unknown),
        format!("an error that names the id {unknown:?}"),
        &status,
    )?;
    rig.silence(Duration::from_secs(1)).await;
    let after = rig.kubelet.look(|known| known.devices(&resource));
    demand(before == after, "the list stays as it was", rig.seen())?;
    rig.stream_goes_on("after an id that nobody knows")
}

/// 46.
pub async fn an_unhealthy_device_is_refused(rig: &mut Rig) -> Verdict {
    let harm = if rig.can(Action::FailDevice) {
        Action::FailDevice
    } else {
        rig.needs(Action::RemoveDevice)?;
        Action::RemoveDevice
    };
    rig.needs(Action::AddDevice)?;
    rig.serve(1).await?;
    let id = rig.learn(1).await?;
    rig.act(harm, 1).await?;
    let resource = rig.resource();
    let limit = rig.detection();
    let expected = format!("a message in which {id:?} is Healthy no more");
    rig.until(limit, &expected, |known| {
        let health = known.devices(&resource).remove(&id);
        (health.as_deref() != Some("Healthy")).then_some(())
    })
    .await?;
    let mut client = rig.client().await?;
    let answer = asked(&mut client, &[&[&id]], rig.slack).await;
    demand(
        answer.is_err(),
        format!("an error for {id:?}, which is Unhealthy"),
        format!("{answer:?}"),
    )
}

/// 47.
pub async fn a_device_may_be_asked_for_again(rig: &mut Rig) -> Verdict {
    let (first, _) = two(rig).await?;
    let once = one_answer(rig, &[&first]).await?;
    let expected = format!("the same response when {first:?} is allocated again: {once:?}");
    let again = one_answer(rig, &[&first]).await?;
    demand(
        normal(once) == normal(again.clone()),
        expected,
        format!("{again:?}"),
    )
}

/// 48.
pub async fn answers_are_deterministic(rig: &mut Rig) -> Verdict {
    let (first, second) = two(rig).await?;
    let one = one_answer(rig, &[&first, &second]).await?;
    let expected = format!("the same response whatever the order of the ids: {one:?}");
    let one = normal(one);
    let orders: [&[&str]; 2] = [&[&first, &second], &[&second, &first]];
    for ids in orders {
        for _ in 0..3 {
            let other = one_answer(rig, ids).await?;
            let shown = format!("{other:?}");
            demand(normal(other) == one, &expected, shown)?;
        }
    }
    Ok(())
}

/// 49.
pub async fn answers_in_time(rig: &mut Rig) -> Verdict {
    let (first, second) = two(rig).await?;
    let mut client = rig.client().await?;
    let mut slow = Vec::new();
    // What is slow now and then because the machine is busy is quick once in five rounds.
    for _ in 0..5 {
        slow.clear();
        for _ in 0..200 {
            let began = Instant::now();
            let answer = asked(&mut client, &[&[&first, &second]], rig.slack).await;
            answer.map_err(|status| mismatch("Allocate answers within 2 s", status))?;
            slow.extend(Some(began.elapsed()).filter(|took| *took >= QUICK));
            if slow.len() > 2 {
                break;
            }
        }
        if slow.len() <= 2 {
            return Ok(());
        }
    }
    Err(mismatch(
        format!("99 of 100 calls answered within {QUICK:?}: pods are admitted one after another"),
        format!("some took {slow:?}"),
    ))
}

/// 50.
pub async fn many_may_ask_at_once(rig: &mut Rig) -> Verdict {
    let (first, second) = two(rig).await?;
    let client = rig.client().await?;
    let slack = rig.slack;
    let mut calls = JoinSet::new();
    for _ in 0..64 {
        let (mut client, id) = (client.clone(), first.clone());
        calls.spawn(async move { asked(&mut client, &[&[&id]], slack + ANSWER).await });
    }
    if rig.can(Action::FailDevice) && rig.can(Action::RecoverDevice) {
        rig.act(Action::FailDevice, 1).await?;
        rig.act(Action::RecoverDevice, 1).await?;
    } else {
        rig.notes.push(format!(
            "without a change of health meanwhile: action `{}`",
            Action::FailDevice
        ));
    }
    while let Some(answer) = calls.join_next().await {
        let answer = answer.map_err(|error| anyhow!(error))?;
        let late = matches!(&answer, Err(status) if status.code() == tonic::Code::DeadlineExceeded);
        demand(
            !late,
            "64 calls at once are answered, each within a few seconds",
            format!("{answer:?}"),
        )?;
    }
    let resource = rig.resource();
    let limit = rig.detection() + Duration::from_secs(2);
    let expected = "both devices are Healthy afterwards";
    let end = Instant::now() + limit;
    loop {
        rig.until(limit, expected, |known| {
            let healthy = known.resources.get(&resource)?.healthy.clone();
            (healthy.contains(&first) && healthy.contains(&second)).then_some(())
        })
        .await?;
        // The plugin may have seen the failure, and not yet told of it.
        match one_answer(rig, &[&first, &second]).await {
            Err(_) if Instant::now() < end => tokio::time::sleep(LOOK).await,
            answer => return answer.map(drop),
        }
    }
}

/// 51.
pub async fn container_paths_and_permissions_are_sound(rig: &mut Rig) -> Verdict {
    let (first, second) = two(rig).await?;
    let response = one_answer(rig, &[&first, &second]).await?;
    let allowed = rig.driver().permissions.clone();
    let allowed = allowed.as_deref().unwrap_or("rwm");
    let mut paths = BTreeSet::new();
    for device in &response.devices {
        let permissions = &device.permissions;
        let each_once = {
            let letters: BTreeSet<char> = permissions.chars().collect();
            letters.len() == permissions.len() && !letters.is_empty()
        };
        demand(
            each_once && permissions.chars().all(|letter| allowed.contains(letter)),
            format!("permissions out of {allowed:?}, each letter once"),
            format!("{permissions:?} for {:?}", device.container_path),
        )?;
    }
    let of_devices = response.devices.iter().map(|device| &device.container_path);
    let of_mounts = response.mounts.iter().map(|mount| &mount.container_path);
    for path in of_devices.chain(of_mounts) {
        demand(
            path.starts_with('/') && !path.split('/').any(|part| part == ".."),
            "absolute container paths",
            format!("{path:?}"),
        )?;
        demand(
            paths.insert(path),
            "each container path once",
            format!("{path:?} twice in {response:?}"),
        )?;
    }
    Ok(())
}

/// 52: kubelets give the same answer to a container that restarts weeks later.
pub async fn host_paths_exist_and_stay(rig: &mut Rig) -> Verdict {
    let (first, _) = two(rig).await?;
    let response = one_answer(rig, &[&first]).await?;
    exist(rig, &response)?;
    rig.end().await?;
    if rig.can(Action::AddDevice) && rig.can(Action::RemoveDevice) {
        // The same devices, found in another order.
        for device in [0, 1] {
            rig.act(Action::RemoveDevice, device).await?;
        }
        for device in [2, 1, 0] {
            rig.act(Action::AddDevice, device).await?;
        }
    }
    rig.start().await?;
    rig.served(2).await?;
    exist(rig, &response)?;
    let again = one_answer(rig, &[&first]).await?;
    demand(
        normal(response.clone()) == normal(again.clone()),
        format!("for the device {first:?} what it had before the restart: {response:?}"),
        format!("{again:?}"),
    )
}

fn exist(rig: &Rig, response: &ContainerAllocateResponse) -> Verdict {
    let devices = response.devices.iter().map(|device| &device.host_path);
    let mounts = response.mounts.iter().map(|mount| &mount.host_path);
    for path in devices.chain(mounts) {
        let here = rig.here(path);
        demand(
            path.starts_with('/') && here.exists(),
            "host paths that exist",
            format!("{path:?} does not (looked for at {here:?})"),
        )?;
    }
    Ok(())
}

/// 53.
pub async fn resources_of_one_container_do_not_clash(rig: &mut Rig) -> Verdict {
    rig.feature(Feature::TwoResources)?;
    let first = rig.serve(1).await?.into_iter().next().unwrap_or_default();
    let (resource, second) = (rig.resource(), rig.second());
    let limit = rig.seconds(5);
    let expected = format!("{second} is served with a healthy device");
    let other = rig
        .until(limit, &expected, |known| {
            let healthy = known.resources.get(&second)?.healthy.clone();
            healthy
                .into_iter()
                .next()
                .filter(|_| known.is_served(&second))
        })
        .await?;
    let one = one_answer(rig, &[&first]).await?;
    let plugin = rig.kubelet.plugin(&second).await;
    let mut client = plugin.context("the second resource's plugin")?;
    let answer = asked(&mut client, &[&[&other]], rig.slack).await;
    let expected = format!("Allocate for {other:?} of {second} answers");
    let two = answer.map_err(|status| mismatch(expected, status))?;
    let two = two.into_iter().next().unwrap_or_default();
    for (what, one, two) in [
        ("variable", &one.envs, &two.envs),
        ("annotation", &one.annotations, &two.annotations),
        ("device", &devices(&one), &devices(&two)),
        ("mount", &mounts(&one), &mounts(&two)),
    ] {
        let clash = one.iter().find(|(name, value)| {
            let other = two.get(*name);
            other.is_some_and(|other| other != *value)
        });
        demand(
            clash.is_none(),
            format!("no {what} of {resource} and of {second} by one name: the first one wins"),
            format!("{clash:?} and {two:?}"),
        )?;
    }
    Ok(())
}

fn devices(response: &ContainerAllocateResponse) -> HashMap<String, String> {
    let devices = response.devices.iter();
    devices
        .map(|device| (device.container_path.clone(), device.host_path.clone()))
        .collect()
}

fn mounts(response: &ContainerAllocateResponse) -> HashMap<String, String> {
    let mounts = response.mounts.iter();
    mounts
        .map(|mount| (mount.container_path.clone(), mount.host_path.clone()))
        .collect()
}

/// 54.
pub async fn cdi_specs_are_there_and_stay(rig: &mut Rig) -> Verdict {
    rig.feature(Feature::Cdi)?;
    let directory = rig.home().join("c");
    fs::create_dir_all(&directory).context("failed to make the directory of CDI specs")?;
    let (first, _) = two(rig).await?;
    let response = one_answer(rig, &[&first]).await?;
    // At this moment a runtime may read them.
    let specs = specs(&directory)?;
    let names = response.cdi_devices.iter();
    let names: Vec<String> = names.map(|device| device.name.clone()).collect();
    demand(!names.is_empty(), "a CDI name", format!("{response:?}"))?;
    for name in &names {
        demand(
            specs.contains_key(name),
            format!("a spec that defines {name:?} when Allocate has answered"),
            format!("{:?}", specs.keys()),
        )?;
    }
    rig.end().await?;
    let after = self::specs(&directory)?;
    for name in &names {
        demand(
            after.get(name) == specs.get(name),
            format!("the spec of {name:?} stays when the plugin ends"),
            format!("{:?}", after.get(name)),
        )?;
    }
    rig.start().await?;
    rig.served(2).await?;
    let after = self::specs(&directory)?;
    let again = one_answer(rig, &[&first]).await?;
    demand(
        names.iter().all(|name| after.get(name) == specs.get(name))
            && given(&again) == given(&response),
        "the same names and specs after the next start",
        format!("{again:?}; {:?}", after.keys()),
    )
}

/// What the specs of a directory define, by fully qualified name. Every spec must be readable at
/// any time.
fn specs(directory: &Path) -> Verdict<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).context("failed to list the CDI specs")? {
        let path = entry.context("failed to list the CDI specs")?.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        if !matches!(kind, Some("json" | "yaml")) {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path:?}"))?;
        // JSON is YAML.
        let spec: Value = serde_yaml::from_str(&text)
            .map_err(|error| mismatch(format!("{path:?} is a whole CDI spec"), error))?;
        let kind = spec.get("kind").and_then(Value::as_str).unwrap_or_default();
        let devices = spec.get("devices").and_then(Value::as_array);
        for device in devices.into_iter().flatten() {
            let name = device.get("name").and_then(Value::as_str);
            let name = format!("{kind}={}", name.unwrap_or_default());
            found.insert(name, device.clone());
        }
    }
    Ok(found)
}
