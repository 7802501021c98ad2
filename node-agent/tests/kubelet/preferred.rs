//! Section E, and what devices that are shared look like.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest,
    PreferredAllocationRequest,
};
use serde_json::{Value, json};

use crate::fake_kubelet::Model;
use crate::rig::{Rig, Running, TTY, config, until};

/// An agent that serves two devices in a given way, and their ids.
async fn served(rig: &Rig, how: Value) -> (Running, Vec<String>) {
    rig.plug("tty0");
    rig.plug("tty1");
    let mut resource = json!({
        "name": TTY,
        "discovery": { "paths": { "globs": ["/dev/tty*"] } },
    });
    for (name, value) in how.as_object().unwrap() {
        resource[name] = value.clone();
    }
    let replicas = resource["replicas"].as_u64().unwrap_or(1);
    let agent = rig.start_with(config(&[resource]));
    let healthy = vec!["Healthy"; usize::try_from(2 * replicas).unwrap()];
    let known = rig.kubelet.until_healths(TTY, &healthy).await;
    let ids = known.resources[TTY].devices.keys().cloned().collect();
    (agent, ids)
}

async fn prefer(rig: &Rig, available: &[String], must: &[String], size: i32) -> Vec<String> {
    let request = ContainerPreferredAllocationRequest {
        available_device_i_ds: available.to_vec(),
        must_include_device_i_ds: must.to_vec(),
        allocation_size: size,
    };
    let request = PreferredAllocationRequest {
        container_requests: vec![request],
    };
    let plugin = rig.kubelet.plugin(TTY).await;
    let answer = plugin
        .max_encoding_message_size(64 << 20)
        .max_decoding_message_size(64 << 20)
        .get_preferred_allocation(request)
        .await;
    let answers = answer.unwrap().into_inner().container_responses;
    assert_eq!(answers.len(), 1);
    answers[0].device_i_ds.clone()
}

/// 4: the kubelet asks only whom it was told to ask, in whichever of the two ways.
#[tokio::test]
async fn a_preference_is_offered_where_there_is_one() {
    for (how, expected) in [
        (json!({}), false),
        (json!({ "preferredAllocation": "Packed" }), true),
        (json!({ "replicas": 2 }), true),
        (
            json!({ "replicas": 2, "allowMultipleReplicasPerContainer": true }),
            false,
        ),
    ] {
        let rig = Rig::new(Model::V1_37);
        let (agent, _) = served(&rig, how.clone()).await;
        let call = rig.kubelet.known().calls[0].clone();
        let in_register = call.request.options.unwrap();
        assert_eq!(in_register, call.options, "{how}");
        assert_eq!(
            in_register.get_preferred_allocation_available, expected,
            "{how}"
        );
        agent.stop().await.unwrap();
    }
}

/// 56 and 57.
#[tokio::test]
async fn whatever_the_kubelet_asks_it_gets_an_answer() {
    let rig = Rig::new(Model::V1_37);
    let how = json!({ "replicas": 4, "preferredAllocation": "Spread" });
    let (agent, ids) = served(&rig, how).await;
    let answer = prefer(&rig, &ids, &ids[..1], 2).await;
    assert_eq!(answer.len(), 2);
    assert_eq!(answer[0], ids[0]);
    let device = |id: &String| id.rsplit_once('.').unwrap().0.to_owned();
    assert_ne!(device(&answer[0]), device(&answer[1]));
    assert_eq!(prefer(&rig, &ids, &ids[..1], 2).await, answer);
    let nobody = ["nobody".to_owned()];
    assert_eq!(prefer(&rig, &ids, &nobody, 3).await.len(), 3);
    assert_eq!(prefer(&rig, &nobody, &[], 1).await, nobody);
    assert_eq!(prefer(&rig, &ids, &[], i32::MAX).await.len(), ids.len());
    for size in [0, -1, i32::MIN] {
        assert!(prefer(&rig, &ids, &ids, size).await.is_empty());
    }
    assert!(prefer(&rig, &[], &[], 1).await.is_empty());
    agent.stop().await.unwrap();
}

/// 58: larger than the usual limit of 4 MiB.
#[tokio::test]
async fn a_hundred_thousand_ids_are_answered() {
    let rig = Rig::new(Model::V1_37);
    let (agent, ids) = served(&rig, json!({ "preferredAllocation": "NumaAligned" })).await;
    let many: Vec<String> = (0..100_000).map(|id| format!("{id:063}")).collect();
    let many = [many, ids.clone()].concat();
    let answer = prefer(&rig, &many, &[], 100_000).await;
    let distinct: BTreeSet<&String> = answer.iter().collect();
    assert_eq!((answer.len(), distinct.len()), (100_000, 100_000));
    assert_eq!(prefer(&rig, &many, &[], 2).await, ids, "those that exist");
    agent.stop().await.unwrap();
}

/// Ids are told of, given out, held and counted one by one; there is one device behind several.
#[tokio::test]
async fn a_device_is_shared() {
    let mut rig = Rig::new(Model::V1_36);
    rig.settings.timing.between_messages = Duration::ZERO;
    rig.settings.timing.allocations_poll = Duration::from_millis(10);
    let limits = &mut rig.settings.timing.comparison;
    limits.first = [Duration::from_millis(10); 3];
    limits.period = Duration::from_millis(20);
    limits.again = Duration::from_millis(10);
    limits.settling = Duration::from_millis(5);
    let (agent, ids) = served(&rig, json!({ "replicas": 3 })).await;
    assert!(
        ids.iter()
            .zip(0..)
            .all(|(id, n)| id.ends_with(&format!(".{}", n % 3))),
        "{ids:?}"
    );
    let allocate = async |ids: &[&String]| {
        let request = ContainerAllocateRequest {
            devices_ids: ids.iter().map(|id| (*id).clone()).collect(),
        };
        let request = AllocateRequest {
            container_requests: vec![request],
        };
        let mut plugin = rig.kubelet.plugin(TTY).await;
        plugin.allocate(request).await
    };
    let answer = allocate(&[&ids[1], &ids[5]]).await.unwrap().into_inner();
    let paths: Vec<&str> = answer.container_responses[0]
        .devices
        .iter()
        .map(|device| device.host_path.as_str())
        .collect();
    assert_eq!(paths, ["/dev/tty0", "/dev/tty1"]);
    let error = allocate(&[&ids[0], &ids[1]]).await.unwrap_err();
    assert!(error.message().contains("are one device"), "{error:?}");

    let devices = |health: &str| {
        let labels = format!("resource=\"{TTY}\",health=\"{health}\"");
        agent.metric(&format!("devices{{{labels}}}"))
    };
    until("counted", || devices("Healthy") == Some(6.0)).await;
    // One container holds one id, and another one an id of a time when there were more.
    let stray = ids[3].replace(".0", ".9");
    rig.pod_resources.answer(|answers| {
        let held = vec![ids[0].clone(), stray.clone()];
        answers.held.insert(TTY.to_owned(), held);
    });
    let known = rig
        .kubelet
        .until("told", |known| known.healths(TTY).len() == 7)
        .await;
    assert_eq!(known.resources[TTY].devices[&stray], "Unhealthy");
    rig.unplug("tty0");
    rig.kubelet
        .until("told", |known| {
            let healthy = known
                .healths(TTY)
                .iter()
                .filter(|one| **one == "Healthy")
                .count();
            (known.healths(TTY).len(), healthy) == (7, 3)
        })
        .await;
    until("counted", || devices("Unhealthy") == Some(4.0)).await;
    // What the kubelet lists is what it was sent.
    let readings = rig.pod_resources.now().readings;
    rig.pod_resources
        .until(|answers| answers.readings > readings + 3)
        .await;
    assert_eq!(rig.kubelet.known().calls.len(), 1);
    agent.stop().await.unwrap();
}
