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
            trouble: trouble(&status),
            phase: status.phase.unwrap_or_default(),
            created: pod.metadata.creation_timestamp.map(|time| time.0),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        }
    }
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

/// Reasons of a waiting container that end only when somebody changes something, or that say it
/// failed before.
const FAILURES: &[&str] = &[
    "CrashLoopBackOff",
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
/// not become ready since (a crash loop runs for a moment between its crashes).
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
    if let Some(ended) = ended {
        let text = ended.message.as_deref().unwrap_or_default().trim();
        let word = ended.reason.as_deref().unwrap_or("Error");
        return Some(Trouble {
            reason: "CrashLoopBackOff".to_owned(),
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
