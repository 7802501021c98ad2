//! What is kept of an agent's pod.

use crds::names::{CONFIG_LABEL, REVISION_LABEL};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;

use super::{Identity, controller_uid, label};

/// A pod of an agent.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SeenPod {
    /// Which one.
    pub id: Identity,
    /// Name of the config.
    pub config: String,
    /// The revision that it runs.
    pub revision: String,
    /// Whether a DaemonSet made it; a pod that somebody made by hand is none of ours.
    pub of_daemon_set: bool,
    /// The node it runs on, or is meant for while it is not scheduled.
    pub node: String,
    /// Its phase.
    pub phase: String,
    /// Whether it is Ready.
    pub ready: bool,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// How often its agent has restarted.
    pub restarts: i32,
    /// Why it does not get on.
    pub trouble: Option<Trouble>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// Why a pod does not get on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trouble {
    /// The kubelet's or scheduler's word for it.
    pub reason: String,
    /// Their sentence.
    pub message: String,
    /// Whether it is a failure; otherwise the pod just waits.
    pub fatal: bool,
}

impl SeenPod {
    /// Whether nothing but the resource version differs.
    pub fn is_same_but_version(&self, other: &Self) -> bool {
        let mut same = other.clone();
        same.id.version.clone_from(&self.id.version);
        *self == same
    }
}

impl From<Pod> for SeenPod {
    fn from(pod: Pod) -> Self {
        let status = pod.status.unwrap_or_default();
        let spec = pod.spec.unwrap_or_default();
        let node = spec.node_name.or_else(|| {
            // The DaemonSet controller names the node in a required affinity on metadata.name.
            let affinity = spec.affinity?.node_affinity?;
            let required = affinity.required_during_scheduling_ignored_during_execution?;
            let fields = required
                .node_selector_terms
                .into_iter()
                .next()?
                .match_fields?;
            fields.into_iter().next()?.values?.into_iter().next()
        });
        Self {
            id: Identity::of(&pod.metadata),
            config: label(&pod.metadata, CONFIG_LABEL),
            revision: label(&pod.metadata, REVISION_LABEL),
            of_daemon_set: !controller_uid(&pod.metadata, "DaemonSet").is_empty(),
            node: node.unwrap_or_default(),
            ready: is_true(&status, "Ready"),
            restarts: restarts(&status),
            trouble: trouble(&status),
            phase: status.phase.unwrap_or_default(),
            created: pod.metadata.creation_timestamp.map(|time| time.0),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        }
    }
}

fn restarts(status: &PodStatus) -> i32 {
    let containers = status.container_statuses.iter().flatten();
    containers
        .map(|one| one.restart_count)
        .fold(0, i32::saturating_add)
}

fn is_true(status: &PodStatus, condition: &str) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|one| one.type_ == condition && one.status == "True")
}

fn trouble(status: &PodStatus) -> Option<Trouble> {
    if status.phase.as_deref() == Some("Failed") {
        return Some(Trouble {
            reason: status.reason.clone().unwrap_or_else(|| "Failed".to_owned()),
            message: status.message.clone().unwrap_or_default(),
            fatal: true,
        });
    }
    let containers = || {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    };
    containers().find_map(container_failure).or_else(|| {
        let unscheduled = status
            .conditions
            .iter()
            .flatten()
            .find(|one| one.type_ == "PodScheduled" && one.status == "False");
        let waiting = containers().find_map(|one| one.state.as_ref()?.waiting.as_ref());
        unscheduled
            .map(|one| (one.reason.clone(), one.message.clone()))
            .or_else(|| waiting.map(|one| (one.reason.clone(), one.message.clone())))
            .map(|(reason, message)| Trouble {
                reason: reason.unwrap_or_default(),
                message: message.unwrap_or_default(),
                fatal: false,
            })
    })
}

/// The reason of a container that waits because it ended too often.
const CRASH_LOOP: &str = "CrashLoopBackOff";

/// Reasons of a waiting container that end only when somebody changes something, or that say it
/// failed before.
const FAILURES: &[&str] = &[
    CRASH_LOOP,
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "CreateContainerError",
    "CreateContainerConfigError",
    "RunContainerError",
    "StartError",
];

/// How a container fails: it waits for one of the reasons above, or it ended with an error and has
/// not become ready since (a crash loop runs for a moment between its crashes). What keeps an ended
/// one from being started again is said rather than how it ended.
fn container_failure(container: &ContainerStatus) -> Option<Trouble> {
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref().filter(|one| {
        one.reason
            .as_deref()
            .is_some_and(|reason| FAILURES.contains(&reason))
    });
    let last = container
        .last_state
        .as_ref()
        .and_then(|last| last.terminated.as_ref());
    let ended = state
        .terminated
        .as_ref()
        .or(last)
        .filter(|ended| ended.exit_code != 0 && !container.ready);
    let is_kept_away = waiting.is_some_and(|one| one.reason.as_deref() != Some(CRASH_LOOP));
    if let Some(ended) = ended.filter(|_| !is_kept_away) {
        let text = ended.message.as_deref().unwrap_or_default().trim();
        let word = ended.reason.as_deref().unwrap_or("Error");
        return Some(Trouble {
            reason: CRASH_LOOP.to_owned(),
            message: format!("exit code {} ({word}) {text}", ended.exit_code)
                .trim_end()
                .to_owned(),
            fatal: true,
        });
    }
    waiting.map(|waiting| Trouble {
        reason: waiting.reason.clone().unwrap_or_default(),
        message: waiting.message.clone().unwrap_or_default(),
        fatal: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> SeenPod {
        let pod: Pod = serde_yaml::from_str(text).unwrap();
        pod.into()
    }

    fn status(text: &str) -> Option<Trouble> {
        seen(&format!("status: {text}")).trouble
    }

    #[test]
    fn a_pod_is_read_with_its_owner_and_its_node() {
        let pod = seen(
            "metadata:
  name: fuse-0123456789-x
  uid: u
  resourceVersion: '7'
  labels: {deviceplugins.dev/config: fuse, deviceplugins.dev/revision: '0123456789'}
  ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: d, uid: d, controller: true}]
spec:
  containers: []
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [n1]}]}]}}}
status: {phase: Pending}",
        );
        assert_eq!(
            (pod.config.as_str(), pod.revision.as_str()),
            ("fuse", "0123456789")
        );
        assert_eq!(
            (pod.node.as_str(), pod.of_daemon_set, pod.ready),
            ("n1", true, false)
        );
        let running = seen(
            "spec: {nodeName: n2, containers: []}\nstatus: {phase: Running, conditions: [{type: Ready, status: 'True'}]}",
        );
        assert_eq!(
            (running.node.as_str(), running.of_daemon_set, running.ready),
            ("n2", false, true)
        );
        assert_eq!(running.trouble, None);
    }

    #[test]
    fn a_container_that_cannot_start_is_a_failure_in_the_kubelets_words() {
        for reason in [
            "ImagePullBackOff",
            "CreateContainerConfigError",
            "ErrImageNeverPull",
        ] {
            let trouble = status(&format!(
                "{{phase: Pending, containerStatuses: [{{name: agent, image: i, imageID: '', ready: false, restartCount: 0, state: {{waiting: {{reason: {reason}, message: the words}}}}}}]}}"
            ));
            let wanted = Trouble {
                reason: reason.to_owned(),
                message: "the words".to_owned(),
                fatal: true,
            };
            assert_eq!(trouble, Some(wanted));
        }
    }

    #[test]
    fn a_crash_loop_is_one_failure_in_all_its_phases() {
        let ended = "terminated: {exitCode: 3, reason: Error, message: \"last words\\n\"}";
        let wanted = Trouble {
            reason: "CrashLoopBackOff".to_owned(),
            message: "exit code 3 (Error) last words".to_owned(),
            fatal: true,
        };
        for states in [
            format!("state: {{{ended}}}"),
            format!(
                "state: {{waiting: {{reason: CrashLoopBackOff, message: back-off}}}}, lastState: {{{ended}}}"
            ),
            format!("state: {{running: {{}}}}, lastState: {{{ended}}}"),
        ] {
            let trouble = status(&format!(
                "{{phase: Running, containerStatuses: [{{name: agent, image: i, imageID: '', ready: false, restartCount: 4, {states}}}]}}"
            ));
            assert_eq!(trouble.as_ref(), Some(&wanted), "{states}");
        }
        let recovered = status(&format!(
            "{{phase: Running, containerStatuses: [{{name: agent, image: i, imageID: '', ready: true, restartCount: 4, state: {{running: {{}}}}, lastState: {{{ended}}}}}]}}"
        ));
        assert_eq!(recovered, None);
    }

    #[test]
    fn what_keeps_a_crashed_container_from_starting_is_said_first() {
        let trouble = status(
            "{phase: Running, containerStatuses: [{name: agent, image: i, imageID: '', ready: false, restartCount: 1, state: {waiting: {reason: ErrImageNeverPull, message: the image is gone}}, lastState: {terminated: {exitCode: 137, reason: Error, message: last words}}}]}",
        );
        let wanted = Trouble {
            reason: "ErrImageNeverPull".to_owned(),
            message: "the image is gone".to_owned(),
            fatal: true,
        };
        assert_eq!(trouble, Some(wanted));
    }

    #[test]
    fn a_pod_that_only_waits_is_no_failure() {
        let unscheduled = status(
            "{phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, message: too many pods}]}",
        );
        let wanted = Trouble {
            reason: "Unschedulable".to_owned(),
            message: "too many pods".to_owned(),
            fatal: false,
        };
        assert_eq!(unscheduled, Some(wanted));
        let creating = status(
            "{phase: Pending, containerStatuses: [{name: agent, image: i, imageID: '', ready: false, restartCount: 0, state: {waiting: {reason: ContainerCreating}}}]}",
        );
        assert!(creating.is_some_and(|one| !one.fatal && one.reason == "ContainerCreating"));
    }

    #[test]
    fn a_failed_pod_is_a_failure_whatever_its_containers_say() {
        let trouble =
            status("{phase: Failed, reason: Evicted, message: The node was low on memory}");
        let wanted = Trouble {
            reason: "Evicted".to_owned(),
            message: "The node was low on memory".to_owned(),
            fatal: true,
        };
        assert_eq!(trouble, Some(wanted));
    }
}
