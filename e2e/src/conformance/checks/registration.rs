//! Section A: how a plugin registers, 1 to 12. What becomes of its sockets is in `sockets`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::anyhow;

use crate::conformance::behaviour::Level;
use crate::conformance::driver::Feature;
use crate::conformance::rig::Rig;
use crate::conformance::verdict::{Verdict, demand, demand_at, mismatch};
use crate::kubelet::{Call, Script};

/// Longest path of a unix socket, without the byte that ends it.
const SOCKET_PATH_MAX: usize = 107;

/// Longest name of a socket in the kubelet's own plugin directory.
const SOCKET_NAME_MAX: usize = 75;

fn first_call(rig: &Rig) -> Verdict<Call> {
    let resource = rig.resource();
    let call = rig
        .kubelet
        .look(|known| known.calls_of(&resource).first().map(|&call| call.clone()));
    call.ok_or_else(|| mismatch("a Register call", "none"))
}

/// 1.
pub async fn registers_with_a_bare_socket_name(rig: &mut Rig) -> Verdict {
    rig.plug(0).await?;
    rig.kubelet.run()?;
    rig.start().await?;
    let resource = rig.resource();
    let limit = rig.seconds(5);
    rig.until(limit, "a Register call", |known| {
        (!known.calls.is_empty()).then_some(())
    })
    .await?;
    let names = rig.kubelet.look(|known| {
        let names = known.calls.iter();
        let names = names.map(|call| call.request.resource_name.clone());
        names.collect::<Vec<String>>()
    });
    demand(
        names.contains(&resource),
        format!("a Register call for {resource:?}, which the plugin is configured to serve"),
        format!("{names:?}"),
    )?;
    let request = first_call(rig)?.request;
    demand(
        request.version == proto::DEVICE_PLUGIN_VERSION,
        format!("version {:?}", proto::DEVICE_PLUGIN_VERSION),
        format!("{:?}", request.version),
    )?;
    let endpoint = request.endpoint;
    demand(
        !endpoint.is_empty() && !endpoint.contains('/'),
        "an endpoint that is the bare name of a file in the plugin directory",
        format!("{endpoint:?}"),
    )
}

/// 2.
pub async fn serves_before_it_registers(rig: &mut Rig) -> Verdict {
    rig.plug(0).await?;
    rig.kubelet.run()?;
    rig.start().await?;
    let resource = rig.resource();
    let limit = rig.seconds(5);
    let expected = "the plugin answers GetDevicePluginOptions while its Register call waits";
    let answered = rig
        .until(limit, expected, |known| {
            let call = known.calls_of(&resource).into_iter().next()?.clone();
            let failed = matches!(&call.answer, Some((_, Err(_))));
            (failed || !call.options.is_empty()).then_some(call)
        })
        .await?;
    let seen = format!("{:?}, {:?}", answered.options, answered.answer);
    demand(
        matches!(answered.options.first(), Some(Ok(_))),
        expected,
        seen,
    )
}

/// 3.
pub async fn waits_for_a_slow_answer(rig: &mut Rig) -> Verdict {
    rig.kubelet.script([Script::Delay(Duration::from_secs(9))]);
    rig.plug(0).await?;
    rig.kubelet.run()?;
    rig.start().await?;
    let resource = rig.resource();
    let limit = rig.seconds(16);
    let call = rig
        .until(limit, "the delayed Register call is answered", |known| {
            let call = known.calls_of(&resource).into_iter().next()?;
            call.answer.is_some().then(|| call.clone())
        })
        .await?;
    let failures = call.options.iter().filter(|options| options.is_err());
    let asked = call.options.len();
    demand(
        failures.clone().count() == 0,
        format!("all {asked} calls of GetDevicePluginOptions within the Register call answered"),
        format!("{:?}", failures.collect::<Vec<_>>()),
    )?;
    let calls = rig.calls();
    demand(
        calls == 1,
        "no second Register call while the first waits for its answer (9 s)",
        format!("{calls} calls"),
    )?;
    rig.served(0).await.map(drop)
}

/// 4.
pub async fn registers_with_the_options_it_answers(rig: &mut Rig) -> Verdict {
    rig.serve(0).await?;
    let call = first_call(rig)?;
    // What is left out is all false.
    let sent = call.request.options.unwrap_or_default();
    let answered = call.options.first().cloned();
    demand(
        answered == Some(Ok(sent)),
        format!("GetDevicePluginOptions answers what the Register call carried, {sent:?}"),
        format!("{answered:?}"),
    )
}

/// 5.
pub async fn waits_for_a_kubelet(rig: &mut Rig) -> Verdict {
    rig.plug(0).await?;
    // There is not even a directory at first.
    let directory = rig.kubelet.directory().to_owned();
    std::fs::remove_dir(&directory).map_err(|error| anyhow!(error))?;
    rig.start().await?;
    rig.silence(Duration::from_secs(3)).await;
    stays_alive(rig, "without a plugin directory")?;
    rig.kubelet.make_directory()?;
    rig.silence(Duration::from_secs(3)).await;
    stays_alive(rig, "without a kubelet.sock")?;
    rig.kubelet.run()?;
    let limit = rig.seconds(2);
    rig.registered(0, limit).await
}

fn stays_alive(rig: &mut Rig, situation: &str) -> Verdict {
    let plugin = rig.plugin()?;
    let ended = plugin.ended().is_some();
    let shown = plugin.shown();
    demand(!ended, format!("the plugin runs on {situation}"), shown)
}

/// 6: what can be seen of its tries at a socket that nobody serves is the work that they are.
pub async fn retries_at_a_dead_socket_without_haste(rig: &mut Rig) -> Verdict {
    rig.plug(0).await?;
    rig.kubelet.bind_only()?;
    rig.start().await?;
    rig.silence(Duration::from_secs(2)).await;
    let before = rig.plugin()?.worked();
    let (time, looks) = (Duration::from_secs(5), 100);
    let mut wants = 0;
    for _ in 0..looks {
        rig.silence(time / looks).await;
        wants += u32::from(rig.plugin()?.wants_processor());
    }
    stays_alive(rig, "while the kubelet's socket refuses")?;
    let worked = rig.plugin()?.worked().saturating_sub(before);
    // On a busy machine a loop gets little work done, but wants to all the time.
    demand(
        worked < time / 10 && wants < looks * 4 / 5,
        "less than a tenth of a processor while the kubelet's socket refuses",
        format!("{worked:?} of work in {time:?}, and {wants} of {looks} times it wanted to work"),
    )?;
    rig.kubelet.listen()?;
    let limit = rig.seconds(6);
    rig.registered(0, limit).await
}

/// 7.
pub async fn survives_the_gap_between_bind_and_listen(rig: &mut Rig) -> Verdict {
    rig.plug(0).await?;
    rig.start().await?;
    // Only a plugin that has begun to wait meets the gap.
    rig.silence(Duration::from_secs(1)).await;
    rig.kubelet.bind_only()?;
    rig.silence(Duration::from_millis(500)).await;
    rig.kubelet.listen()?;
    let limit = rig.seconds(3);
    rig.registered(0, limit).await
}

/// 8.
pub async fn tries_again_after_a_refusal(rig: &mut Rig) -> Verdict {
    let other = if rig.feature(Feature::TwoResources).is_ok() {
        Some(rig.second())
    } else {
        rig.notes
            .push("without a second resource: feature `two-resources`".to_owned());
        None
    };
    let resource = rig.resource();
    let told = "the-conformance-kubelet-refuses";
    let refusals = std::iter::repeat_n(Script::Refuse(told.to_owned()), 3);
    rig.kubelet.script_for(&resource, refusals);
    rig.plug(0).await?;
    rig.kubelet.run()?;
    rig.start().await?;
    let limit = rig.seconds(60);
    rig.registered(3, limit).await?;
    stays_alive(rig, "after three refusals")?;
    rig.served(0).await?;
    if let Some(other) = other {
        let expected = format!("{other} is served, registered once");
        let limit = rig.seconds(5);
        rig.until(limit, &expected, |known| {
            let once = known.calls_of(&other).len() == 1;
            (once && known.is_served(&other)).then_some(())
        })
        .await?;
    }
    let printed = rig.plugin()?.printed();
    demand_at(
        Level::Should,
        printed.contains(told),
        format!("the plugin's output tells why it was refused, {told:?}"),
        rig.seen(),
    )
}

/// 9.
pub async fn gives_up_a_call_that_hangs(rig: &mut Rig) -> Verdict {
    rig.kubelet.script([Script::Hang]);
    rig.plug(0).await?;
    rig.kubelet.run()?;
    rig.start().await?;
    let limit = rig.seconds(10);
    rig.registered(0, limit).await?;
    let limit = rig.seconds(31);
    rig.registered(1, limit).await?;
    let resource = rig.resource();
    let apart = rig.kubelet.look(|known| {
        let calls = known.calls_of(&resource);
        let mut times = calls.iter().map(|call| call.at);
        Some(times.next()?).zip(times.next()).map(|(a, b)| b - a)
    });
    let apart = apart.unwrap_or_default();
    // The kubelet itself may take 10 s to dial back.
    demand(
        apart >= Duration::from_secs(14),
        "a Register call that hangs is given at least 15 s",
        format!("the next came after {apart:?}"),
    )
}

/// Names that no kubelet takes.
fn wrong_names() -> Vec<String> {
    let mut names = [
        "foo",
        "kubernetes.io/x",
        "a.kubernetes.io/x",
        "requests.a/x",
        "a/b/c",
        "A.b/c",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push(format!("{}/x", "d".repeat(245)));
    names.push(format!("example.com/{}", "n".repeat(64)));
    names
}

/// 10.
pub async fn checks_the_resource_name(rig: &mut Rig) -> Verdict {
    rig.feature(Feature::Named)?;
    rig.kubelet.run()?;
    for name in wrong_names() {
        rig.rename(&name);
        rig.start().await?;
        // Either it ends, or it runs and does not register.
        let limit = Duration::from_secs(3);
        let ended = rig.plugin()?.wait(limit).await;
        let calls = rig.kubelet.look(|known| known.calls.len());
        demand(
            calls == 0,
            format!("the plugin does not register {name:?}, which no kubelet takes"),
            rig.seen(),
        )?;
        let printed = rig.plugin()?.printed();
        let tells = !printed.is_empty() && ended.is_none_or(|status| !status.success());
        demand(
            tells,
            format!("an error about the resource name {name:?}"),
            rig.seen(),
        )?;
        rig.end().await?;
    }
    let good = "ex.com/UPPER_ok.1";
    rig.rename(good);
    rig.start().await?;
    let limit = rig.seconds(5);
    rig.until(limit, &format!("{good} is registered"), |known| {
        known.is_served(good).then_some(())
    })
    .await
}

/// 11.
pub async fn resources_register_independently(rig: &mut Rig) -> Verdict {
    rig.feature(Feature::TwoResources)?;
    rig.serve(0).await?;
    let (first, second) = (rig.resource(), rig.second());
    let limit = rig.seconds(5);
    let (of_first, of_second) = rig
        .until(limit, "both resources are served", |known| {
            known.is_served(&second).then_some(())?;
            let endpoint = |resource| known.endpoint(resource).map(str::to_owned);
            endpoint(&first).zip(endpoint(&second))
        })
        .await?;
    demand(
        of_first != of_second,
        "a socket for each resource",
        format!("{of_first:?} for both"),
    )?;
    let calls = rig.calls();
    rig.kubelet.end_streams(&first);
    let limit = rig.seconds(3);
    rig.registered(calls, limit).await?;
    rig.served(0).await?;
    let streams = rig.kubelet.look(|known| {
        let streams = known.streams.iter();
        streams.filter(|stream| stream.resource == second).count()
    });
    let calls = rig.kubelet.look(|known| known.calls_of(&second).len());
    demand(
        streams == 1 && calls == 1,
        format!("the end of a stream of {first} leaves {second} alone"),
        format!("{calls} Register calls and {streams} streams of {second}"),
    )
}

/// 12.
pub async fn socket_paths_are_short(rig: &mut Rig) -> Verdict {
    rig.feature(Feature::Named)?;
    rig.kubelet.run()?;
    let domain = "d".repeat(63);
    let domain = format!("{domain}.{domain}.{domain}.{}", "d".repeat(52));
    let long = "n".repeat(62);
    let names = [format!("{domain}/{long}a"), format!("{domain}/{long}b")];
    let mut sockets = BTreeSet::new();
    for name in &names {
        rig.rename(name);
        rig.start().await?;
        let limit = rig.seconds(10);
        let expected = format!("the resource {name:?} is served");
        let socket = rig
            .until(limit, &expected, |known| {
                known.endpoint(name).map(str::to_owned)
            })
            .await?;
        let bytes = socket.len();
        demand(
            bytes <= SOCKET_NAME_MAX,
            format!(
                "a socket name of at most {SOCKET_NAME_MAX} bytes, or its path in the kubelet's \
                 directory is longer than {SOCKET_PATH_MAX}"
            ),
            format!("{bytes} bytes: {socket:?}"),
        )?;
        sockets.insert(socket);
    }
    demand(
        sockets.len() == names.len(),
        "resources whose names differ in the last character have sockets of their own",
        format!("{sockets:?}"),
    )
}
