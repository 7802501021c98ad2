//! Section E: which devices a plugin would rather give, 55 to 58.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::v1beta1::{ContainerPreferredAllocationRequest, PreferredAllocationRequest};
use tonic::{Code, Status};

use crate::conformance::driver::Feature;
use crate::conformance::rig::Rig;
use crate::conformance::verdict::{Verdict, demand, mismatch};

/// How long an answer may take: a kubelet waits for it while no other pod is admitted.
const ANSWER: Duration = Duration::from_secs(1);

fn ask(available: &[String], must: &[String], size: i32) -> PreferredAllocationRequest {
    PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_i_ds: available.to_vec(),
            must_include_device_i_ds: must.to_vec(),
            allocation_size: size,
        }],
    }
}

async fn answer(
    rig: &mut Rig,
    request: PreferredAllocationRequest,
) -> Verdict<Result<Vec<String>, Status>> {
    let mut client = rig.client().await?;
    let limit = ANSWER + rig.slack;
    let call = client.get_preferred_allocation(request);
    let Ok(answered) = tokio::time::timeout(limit, call).await else {
        let expected = format!("GetPreferredAllocation answers within {limit:?}");
        return Err(mismatch(expected, rig.seen()));
    };
    Ok(answered.map(|answered| {
        let first = answered.into_inner().container_responses.into_iter().next();
        first.map(|one| one.device_i_ds).unwrap_or_default()
    }))
}

fn offers(rig: &Rig) -> bool {
    let resource = rig.resource();
    rig.kubelet.look(|known| {
        let known = known.resources.get(&resource);
        known.is_some_and(|known| known.options.get_preferred_allocation_available)
    })
}

/// The plugin with so many devices, offering preferences.
async fn preferring(rig: &mut Rig, devices: usize) -> Verdict<Vec<String>> {
    // A plugin that always offers them needs no feature.
    let known = rig.feature(Feature::Preferred);
    let ids = rig.serve(devices).await?;
    match (offers(rig), known) {
        (true, _) => Ok(ids),
        (false, Err(missing)) => Err(missing),
        (false, Ok(())) => Err(mismatch(
            "the option get_preferred_allocation_available with the feature `preferred`",
            rig.seen(),
        )),
    }
}

/// 55.
pub async fn an_unwanted_question_does_no_harm(rig: &mut Rig) -> Verdict {
    let ids = rig.serve(1).await?;
    if offers(rig) {
        rig.notes
            .push("it offers preferred allocation, so the question is wanted".to_owned());
        return Ok(());
    }
    let answered = answer(rig, ask(&ids, &[], 1)).await?;
    let harmless = match &answered {
        Ok(preferred) => preferred.is_empty(),
        Err(status) => status.code() == Code::Unimplemented,
    };
    demand(
        harmless,
        "an empty response or UNIMPLEMENTED where preferred allocation is not offered",
        format!("{answered:?}"),
    )?;
    rig.stream_goes_on("after a question that nobody invited")
}

/// 56.
pub async fn prefers_as_many_as_were_asked_for(rig: &mut Rig) -> Verdict {
    let ids = preferring(rig, 8).await?;
    let available: Vec<String> = ids.into_iter().take(8).collect();
    let must: Vec<String> = available.iter().skip(5).take(1).cloned().collect();
    let request = ask(&available, &must, 4);
    let expected = format!("four different ids of {available:?}, {must:?} among them");
    let first = answer(rig, request.clone()).await?;
    let Ok(preferred) = &first else {
        return Err(mismatch(expected, format!("{first:?}")));
    };
    let distinct: BTreeSet<&String> = preferred.iter().collect();
    let good = preferred.len() == 4
        && distinct.len() == 4
        && must.iter().all(|id| distinct.contains(id))
        && distinct.iter().all(|id| available.contains(id));
    demand(good, expected, format!("{preferred:?}"))?;
    let mut turned = request;
    for one in &mut turned.container_requests {
        one.available_device_i_ds.reverse();
    }
    let again = answer(rig, turned).await?.unwrap_or_default();
    let again: BTreeSet<&String> = again.iter().collect();
    demand(
        again == distinct,
        format!("the same ids whatever the order of the question: {distinct:?}"),
        format!("{again:?}"),
    )
}

/// 57.
pub async fn a_preference_is_never_an_error(rig: &mut Rig) -> Verdict {
    let ids = preferring(rig, 4).await?;
    let unknown = ["conformance-a", "conformance-b"].map(str::to_owned);
    let few: Vec<String> = ids.iter().take(2).cloned().collect();
    let other: Vec<String> = ids.iter().skip(2).take(1).cloned().collect();
    for (what, request) in [
        ("more than are available", ask(&few, &[], 5)),
        ("one that is not available", ask(&few, &other, 1)),
        ("more than the size", ask(&ids, &ids, 1)),
        ("unknown ids", ask(&unknown, &unknown[..1], 1)),
        ("none", ask(&ids, &[], 0)),
        ("fewer than none", ask(&ids, &[], -3)),
        ("out of nothing", ask(&[], &[], 2)),
        ("nobody", PreferredAllocationRequest::default()),
    ] {
        let answered = answer(rig, request).await?;
        let told = format!("{answered:?}");
        demand(
            answered.is_ok(),
            format!("no error to a question for {what}: an error costs the pod"),
            told,
        )?;
    }
    Ok(())
}

/// 58.
pub async fn large_questions_are_read(rig: &mut Rig) -> Verdict {
    let ids = preferring(rig, 1).await?;
    let many = (0..100_000).map(|number| format!("conformance-{number:0>48}"));
    let available: Vec<String> = ids.into_iter().chain(many).collect();
    let answered = answer(rig, ask(&available, &[], 4)).await?;
    demand(
        answered.is_ok(),
        "an answer to a question of 6 MB: kubelets send whatever they have",
        format!("{answered:?}"),
    )
}
