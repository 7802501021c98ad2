//! Section F: what a plugin does before a container starts, 59 to 65.

use std::time::{Duration, Instant};

use proto::v1beta1::{AllocateRequest, ContainerAllocateRequest, PreStartContainerRequest};
use tonic::Status;

use crate::conformance::behaviour::Level;
use crate::conformance::driver::{Action, Feature};
use crate::conformance::hook::{COMPLAINT, Mode};
use crate::conformance::process::is_alive;
use crate::conformance::rig::Rig;
use crate::conformance::verdict::{Verdict, demand, demand_at, mismatch};

/// A plugin with a hook and so many devices.
async fn prepared(rig: &mut Rig, devices: usize) -> Verdict<Vec<String>> {
    rig.feature(Feature::PreStart)?;
    let ids = rig.serve(devices).await?;
    let resource = rig.resource();
    let offers = rig.kubelet.look(|known| {
        let known = known.resources.get(&resource);
        known.is_some_and(|known| known.options.pre_start_required)
    });
    demand(
        offers,
        "the option pre_start_required with the feature `pre-start`",
        rig.seen(),
    )?;
    // What it did before it listed the devices is no business of these checks.
    Ok(ids)
}

fn runs(rig: &Rig, id: &str) -> Verdict<usize> {
    Ok(rig.hook()?.runs_for(id).len())
}

async fn allocate(rig: &mut Rig, ids: &[String]) -> Verdict {
    let request = AllocateRequest {
        container_requests: vec![ContainerAllocateRequest {
            devices_ids: ids.to_vec(),
        }],
    };
    let allocated = rig.client().await?.allocate(request).await;
    let expected = format!("Allocate answers for {ids:?}");
    allocated.map_err(|status| mismatch(expected, status))?;
    // From its admission on the pod is listed as holding them.
    let held: Vec<&str> = ids.iter().map(String::as_str).collect();
    rig.hold(&held);
    Ok(())
}

/// Calls as a kubelet does, which gives it 30 s.
async fn pre_start(rig: &mut Rig, ids: &[String]) -> Verdict<Result<(), Status>> {
    let request = PreStartContainerRequest {
        devices_ids: ids.to_vec(),
    };
    let mut client = rig.client().await?;
    let limit = Duration::from_secs(30);
    let call = client.pre_start_container(request);
    match tokio::time::timeout(limit, call).await {
        Ok(answered) => Ok(answered.map(drop)),
        Err(_) => Err(mismatch(
            "PreStartContainer answers before the kubelet's deadline of 30 s",
            rig.seen(),
        )),
    }
}

async fn must_start(rig: &mut Rig, ids: &[String]) -> Verdict {
    let expected = format!("PreStartContainer succeeds for {ids:?}");
    let started = pre_start(rig, ids).await?;
    started.map_err(|status| mismatch(expected, status))
}

/// 59.
pub async fn prepares_each_device_once(rig: &mut Rig) -> Verdict {
    let ids = prepared(rig, 2).await?;
    let ids: Vec<String> = ids.into_iter().take(2).collect();
    allocate(rig, &ids).await?;
    must_start(rig, &ids).await?;
    each_ran(rig, &ids, 1)
}

fn each_ran(rig: &Rig, ids: &[String], times: usize) -> Verdict {
    for id in ids {
        let ran = runs(rig, id)?;
        demand(
            ran == times,
            format!("{times} runs of the hook that were told the id {id:?}"),
            format!("{ran}"),
        )?;
    }
    Ok(())
}

/// 60.
pub async fn prepares_again_for_every_start(rig: &mut Rig) -> Verdict {
    let ids = prepared(rig, 1).await?;
    let ids: Vec<String> = ids.into_iter().take(1).collect();
    allocate(rig, &ids).await?;
    for times in 1..=3 {
        must_start(rig, &ids).await?;
        each_ran(rig, &ids, times)?;
    }
    Ok(())
}

/// 61.
pub async fn a_hook_that_hangs_is_ended(rig: &mut Rig) -> Verdict {
    let ids = prepared(rig, 1).await?;
    let ids: Vec<String> = ids.into_iter().take(1).collect();
    allocate(rig, &ids).await?;
    rig.hook()?.mode(Mode::Hang)?;
    let began = Instant::now();
    let started = pre_start(rig, &ids).await?;
    let took = began.elapsed();
    demand(
        started.is_err() && took <= rig.seconds(25),
        "an error after at most 25 s of a hook that hangs",
        format!("{started:?} after {took:?}"),
    )?;
    let limit = rig.seconds(2);
    let expected = "the hook and the process that it started are gone";
    rig.until_true(limit, expected, |rig| {
        let runs = rig.hook().map(super::super::hook::Hook::runs);
        let mut runs = runs.unwrap_or_default().into_iter();
        runs.all(|run| !is_alive(run.pid) && !run.child.is_some_and(is_alive))
    })
    .await?;
    // The next try works.
    rig.hook()?.mode(Mode::Succeed)?;
    must_start(rig, &ids).await
}

/// 62: the client gives up sooner than a kubelet, which changes nothing for the plugin.
pub async fn a_retry_overlaps_no_earlier_run(rig: &mut Rig) -> Verdict {
    let ids = prepared(rig, 1).await?;
    let ids: Vec<String> = ids.into_iter().take(1).collect();
    allocate(rig, &ids).await?;
    rig.hook()?.mode(Mode::Slow)?;
    let request = PreStartContainerRequest {
        devices_ids: ids.clone(),
    };
    let mut client = rig.client().await?;
    let given_up = Duration::from_secs(1);
    let call = client.pre_start_container(request);
    let early = tokio::time::timeout(given_up, call).await;
    demand(
        early.is_err(),
        "PreStartContainer takes as long as its hook, 3 s",
        format!("{early:?}"),
    )?;
    // A kubelet tries again after a while; at once is the harder case.
    let mut retried = pre_start(rig, &ids).await?;
    if retried.is_err() {
        rig.hook()?.mode(Mode::Succeed)?;
        rig.silence(Duration::from_secs(4)).await;
        retried = pre_start(rig, &ids).await?;
    }
    demand(
        retried.is_ok(),
        "a retry succeeds once the hook does",
        format!("{retried:?}"),
    )?;
    let runs = rig.hook()?.runs();
    for pair in runs.windows(2) {
        let [first, second] = pair else {
            continue;
        };
        // A run that was ended early leaves no time; it must be gone, at the latest by now.
        let apart = match first.ended {
            Some(ended) => ended <= second.began,
            None => !is_alive(first.pid),
        };
        demand(
            apart,
            "no two runs of the hook for one device at once",
            format!("{first:?} and {second:?}"),
        )?;
    }
    Ok(())
}

/// 63.
pub async fn a_hook_that_fails_is_told(rig: &mut Rig) -> Verdict {
    let ids = prepared(rig, 1).await?;
    let ids: Vec<String> = ids.into_iter().take(1).collect();
    let id = ids.first().cloned().unwrap_or_default();
    allocate(rig, &ids).await?;
    rig.hook()?.mode(Mode::Fail)?;
    let started = pre_start(rig, &ids).await?;
    let Err(status) = started else {
        return Err(mismatch(
            "an error when the hook fails: the device was not prepared",
            "success",
        ));
    };
    demand(
        status.message().contains(&id),
        format!("an error that names the device {id:?}"),
        &status,
    )?;
    demand_at(
        Level::Ours,
        status.message().contains(COMPLAINT),
        format!("an error that says what the hook said, {COMPLAINT:?}"),
        &status,
    )
}

/// 64.
pub async fn prepares_what_it_never_allocated(rig: &mut Rig) -> Verdict {
    let ids = prepared(rig, 1).await?;
    let ids: Vec<String> = ids.into_iter().take(1).collect();
    allocate(rig, &ids).await?;
    rig.end().await?;
    rig.start().await?;
    rig.served(1).await?;
    let id = ids.first().cloned().unwrap_or_default();
    let before = runs(rig, &id)?;
    // A kubelet answers a restarted container's Allocate from its checkpoint.
    must_start(rig, &ids).await?;
    each_ran(rig, &ids, before + 1)
}

/// 65.
pub async fn a_start_without_preparation_is_reported(rig: &mut Rig) -> Verdict {
    rig.needs(Action::Reported)?;
    let ids = prepared(rig, 1).await?;
    let ids: Vec<String> = ids.into_iter().take(1).collect();
    let id = ids.first().cloned().unwrap_or_default();
    allocate(rig, &ids).await?;
    // A kubelet that has restarted starts containers before the plugin has registered, and does not
    // ask for what it knows no plugin of.
    rig.kubelet.halt();
    rig.kubelet.run()?;
    rig.served(1).await?;
    // It may wait until the container must have asked, and read once in a while who holds what.
    let end = Instant::now() + rig.seconds(100);
    loop {
        let reported = rig.act_with(Action::Reported, &[("id", &id)]).await;
        if reported.is_ok() {
            return Ok(());
        }
        if Instant::now() > end {
            let expected =
                format!("a report that a container started with {id:?} without its reset");
            return Err(mismatch(expected, rig.seen()));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
