//! What a status would tell that is not there yet, and how urgent that is.

use crds::conditions::NodeCondition;
use crds::node::{AgentReport, DevicePluginNodeStatus, StandbyReport};

use crate::writing::News;

/// What the slot of the agent that serves, with its conditions, would tell over what is present.
/// `written` is what this process wrote last: where that is still wanted and something else is there,
/// somebody else wrote it. While the node is being changed it is also judged by its healthy devices.
pub fn active_news(
    present: &DevicePluginNodeStatus,
    wanted: &DevicePluginNodeStatus,
    written: Option<&DevicePluginNodeStatus>,
    is_judged: bool,
) -> News {
    if is_same_active(present, wanted) {
        News::None
    } else if written.is_some_and(|written| is_same_active(written, wanted))
        || decisive(present, is_judged) != decisive(wanted, is_judged)
    {
        News::Urgent
    } else {
        News::Ordinary
    }
}

fn is_same_active(one: &DevicePluginNodeStatus, other: &DevicePluginNodeStatus) -> bool {
    (&one.active, &one.conditions) == (&other.active, &other.conditions)
}

/// What the operator decides by; counts of devices come and go.
fn decisive(status: &DevicePluginNodeStatus, is_judged: bool) -> impl PartialEq {
    let agent = status.active.as_ref().map(|report| {
        let AgentReport {
            revision,
            pod_uid,
            boot_id,
            resources,
            agent_version: _,
            summary: _,
            devices: _,
            truncated: _,
            last_hook: _,
        } = report;
        let resources: Vec<_> = resources
            .iter()
            .map(|resource| {
                let list = resource.kubelet.as_ref();
                let list = list.map(|list| (list.matches, list.read_after_stream));
                let (registered, missing) = (resource.registered, resource.missing_allocated);
                let healthy = is_judged.then_some(resource.healthy);
                (resource.name.clone(), registered, list, missing, healthy)
            })
            .collect();
        (
            revision.clone(),
            pod_uid.clone(),
            boot_id.clone(),
            resources,
        )
    });
    let devices_healthy = NodeCondition::DevicesHealthy.as_str();
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .filter(|condition| condition.type_ != devices_healthy)
        .map(|condition| (condition.type_.clone(), condition.status.clone()))
        .collect();
    (agent, conditions)
}

/// What the slot of the agent that stands by would tell over what is present.
pub fn standby_news(present: Option<&StandbyReport>, wanted: Option<&StandbyReport>) -> News {
    let decisive = |report: &StandbyReport| {
        let preflight = report.preflight.ok;
        let counts = report.resources.iter();
        let counts: Vec<_> = counts
            .map(|one| (one.name.clone(), one.healthy, one.missing_allocated))
            .collect();
        let (revision, pod_uid) = (report.revision.clone(), report.pod_uid.clone());
        (revision, pod_uid, preflight, counts)
    };
    if present == wanted {
        News::None
    } else if present.map(decisive) == wanted.map(decisive) {
        News::Ordinary
    } else {
        News::Urgent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::node::{KubeletList, Preflight, ResourceReport, StandbyResource};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn status(change: impl FnOnce(&mut AgentReport)) -> DevicePluginNodeStatus {
        let mut report = AgentReport {
            revision: "a".to_owned(),
            pod_uid: "p".to_owned(),
            resources: vec![ResourceReport {
                name: "a.com/x".to_owned(),
                registered: true,
                ..ResourceReport::default()
            }],
            ..AgentReport::default()
        };
        change(&mut report);
        DevicePluginNodeStatus {
            active: Some(report),
            ..DevicePluginNodeStatus::default()
        }
    }

    fn list(matches: bool) -> Option<KubeletList> {
        Some(KubeletList {
            devices: 1,
            matches,
            since: Time(Timestamp::UNIX_EPOCH),
            read_after_stream: true,
        })
    }

    #[test]
    fn what_is_decided_by_is_urgent() {
        let check = |change: fn(&mut AgentReport), expected| {
            let news = active_news(&status(|_| {}), &status(change), None, false);
            assert_eq!(news, expected, "{:?}", status(change));
        };
        check(|_| {}, News::None);
        check(|report| report.pod_uid = "q".to_owned(), News::Urgent);
        check(|report| report.revision = "b".to_owned(), News::Urgent);
        check(
            |report| report.resources[0].registered = false,
            News::Urgent,
        );
        check(
            |report| report.resources[0].kubelet = list(true),
            News::Urgent,
        );
        check(|report| report.resources[0].healthy = 7, News::Ordinary);
        check(|report| report.summary.allocated = 7, News::Ordinary);
        let nothing = DevicePluginNodeStatus::default();
        assert_eq!(
            active_news(&nothing, &status(|_| {}), None, false),
            News::Urgent
        );
    }

    #[test]
    fn what_somebody_else_wrote_is_replaced_at_once() {
        let wanted = status(|_| {});
        let theirs = status(|report| report.resources[0].healthy = 9);
        assert_eq!(
            active_news(&theirs, &wanted, Some(&wanted), false),
            News::Urgent
        );
        assert_eq!(
            active_news(&theirs, &wanted, Some(&theirs), false),
            News::Ordinary
        );
    }

    #[test]
    fn a_standbys_word_and_its_counts_are_urgent() {
        let report = |ok, healthy| {
            let resource = StandbyResource {
                healthy,
                ..StandbyResource::default()
            };
            Some(StandbyReport {
                preflight: Preflight {
                    ok,
                    reasons: Vec::new(),
                },
                resources: vec![resource],
                ..StandbyReport::default()
            })
        };
        let news = |one: Option<StandbyReport>, other: Option<StandbyReport>| {
            standby_news(one.as_ref(), other.as_ref())
        };
        assert_eq!(news(None, None), News::None);
        assert_eq!(news(None, report(true, 1)), News::Urgent);
        assert_eq!(news(report(true, 1), None), News::Urgent);
        assert_eq!(news(report(true, 1), report(true, 1)), News::None);
        assert_eq!(news(report(true, 1), report(true, 2)), News::Urgent);
        assert_eq!(news(report(true, 1), report(false, 1)), News::Urgent);
    }
}
