//! One config with everything in the snapshot that belongs to it.

use std::collections::{BTreeMap, BTreeSet};

use crds::config::DEFAULT_LABEL_LOSS_GRACE_SECONDS;
use crds::names::{node_object, node_revision_label, node_stage_label, revision_object};
use crds::placement::Toleration;
use crds::{DevicePluginConfig, DevicePluginNode};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::ledger::Claim;
use crate::lineage::{self, Stable};
use crate::revision::{agent_image, revision};
use crate::seen::{SeenDaemonSet, SeenNode, SeenPod, SeenRevision, controller_uid};
use crate::selection::{Selection, selection, tolerates};
use crate::snapshot::Snapshot;
use crate::validation::problem;

/// Objects by config and node, made once for all configs.
pub struct Index<'a> {
    pods: BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a SeenPod>>>,
    objects: BTreeMap<&'a str, Vec<&'a DevicePluginNode>>,
}

impl<'a> Index<'a> {
    /// Sorts the snapshot's objects.
    pub fn of(seen: &'a Snapshot) -> Self {
        let mut pods: BTreeMap<_, BTreeMap<_, Vec<_>>> = BTreeMap::new();
        for pod in seen.pods.values().filter(|pod| pod.of_daemon_set) {
            let of_config = pods.entry(pod.config.as_str()).or_default();
            of_config.entry(pod.node.as_str()).or_default().push(&**pod);
        }
        let mut objects: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for object in seen.node_objects.values() {
            let config = object.spec.config_name.as_str();
            objects.entry(config).or_default().push(&**object);
        }
        Self { pods, objects }
    }
}

/// What the spec asks for.
pub struct Target {
    /// The revision.
    pub revision: String,
    /// The agent image that it resolves to.
    pub image: String,
}

/// One config.
pub struct Scope<'a> {
    /// Everything.
    pub seen: &'a Snapshot,
    /// The config.
    pub config: &'a DevicePluginConfig,
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// The key of the node label that names the proven revision.
    pub label: String,
    /// The key of the node label that stages a revision.
    pub stage_label: String,
    /// What is wrong with its spec.
    pub problem: Option<String>,
    /// Which nodes it selects.
    pub selection: Selection,
    /// The revision that nodes run.
    pub stable: Stable<'a>,
    /// The revision that the spec asks for; absent while something is wrong with it.
    pub target: Option<Target>,
    /// The revisions that can run.
    pub revisions: BTreeMap<&'a str, &'a SeenRevision>,
    /// The claims on its nodes, by node: those of the ledger until the rollout is decided on, then
    /// those that the plan leaves.
    pub claims: BTreeMap<String, Claim>,
    /// Nodes that are selected or have something of the config, by name.
    pub members: BTreeMap<&'a str, Member<'a>>,
    /// Objects of the config whose node is gone, or is another one.
    pub stale_objects: Vec<&'a DevicePluginNode>,
    /// All pods of the config's agents, by node.
    pub pods: BTreeMap<&'a str, Vec<&'a SeenPod>>,
}

/// One node and what it has of a config.
pub struct Member<'a> {
    /// The node.
    pub node: &'a SeenNode,
    /// The config's object for it.
    pub object: Option<&'a DevicePluginNode>,
    /// The agents' pods on it.
    pub pods: Vec<&'a SeenPod>,
    /// The value of the node label that names the proven revision.
    pub pinned: Option<&'a str>,
    /// The value of the node label that stages a revision.
    pub staged: Option<&'a str>,
    /// How it belongs to the config.
    pub membership: Membership,
}

/// How a node belongs to a config.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Membership {
    /// It is selected.
    Selected,
    /// It is no longer selected and keeps its agent until then.
    Grace {
        /// When the grace ends.
        until: Timestamp,
    },
    /// It is no longer selected.
    Leaving,
    /// It is being deleted.
    Vanishing,
}

impl<'a> Scope<'a> {
    /// Everything about one config.
    pub fn of(seen: &'a Snapshot, index: &Index<'a>, config: &'a DevicePluginConfig) -> Self {
        let name = config.metadata.name.as_deref().unwrap_or_default();
        let uid = config.metadata.uid.as_deref().unwrap_or_default();
        let pools = || seen.pools.values().map(|pool| &**pool);
        let problem = problem(config, pools());
        let selection = selection(config, pools());
        let (objects, stale_objects) = own_objects(seen, index, name, uid);
        let stable = lineage::stable(seen, config, objects.values().copied());
        let image = agent_image(&config.spec, stable.image(), &seen.settings.agent_image);
        let target = problem.is_none().then(|| Target {
            revision: revision(&config.spec, &image),
            image,
        });
        let mut scope = Self {
            seen,
            config,
            name,
            uid,
            label: node_revision_label(name),
            stage_label: node_stage_label(name),
            problem,
            selection,
            stable,
            target,
            revisions: lineage::usable(seen, name, uid)
                .map(|one| (one.revision.as_str(), one))
                .collect(),
            claims: BTreeMap::new(),
            members: BTreeMap::new(),
            stale_objects,
            pods: index.pods.get(name).cloned().unwrap_or_default(),
        };
        scope.members = scope.members(&objects);
        scope
    }

    /// Whether the config is being deleted.
    pub fn is_deleting(&self) -> bool {
        self.config.metadata.deletion_timestamp.is_some()
    }

    /// The DaemonSet of a revision, unless it is being deleted.
    pub fn daemon_set(&self, revision: &str) -> Option<&'a SeenDaemonSet> {
        self.seen
            .daemon_sets
            .get(&revision_object(self.name, revision))
            .map(|daemon_set| &**daemon_set)
            .filter(|daemon_set| daemon_set.owner_uid == self.uid && !daemon_set.deleting)
    }

    /// Revisions that something names: none of their objects may go.
    pub fn live(&self) -> BTreeSet<&str> {
        let mut named: Vec<&str> = self.stable.revision().into_iter().collect();
        named.extend(self.target.as_ref().map(|target| target.revision.as_str()));
        for claim in self.claims.values() {
            named.extend([claim.from.as_str(), claim.to.as_str()]);
        }
        for member in self.members.values() {
            named.extend(member.pinned);
            named.extend(member.staged);
        }
        // Objects of nodes that are gone still name what they ran, until they are gone themselves.
        let objects = self.members.values().filter_map(|member| member.object);
        for object in objects.chain(self.stale_objects.iter().copied()) {
            let spec = &object.spec;
            named.push(&spec.active);
            named.extend(spec.standby.as_deref());
            let baseline = spec.baseline.as_ref();
            named.extend(baseline.map(|baseline| baseline.revision.as_str()));
        }
        let can_run = |revision: &&str| self.revisions.contains_key(revision);
        named.into_iter().filter(can_run).collect()
    }

    /// The revision that is proven on a node: the one its label names, else the stable one. A label
    /// that names nothing that can run counts as none, as it does for the DaemonSets.
    pub fn proven<'b>(&'b self, member: &Member<'b>) -> Option<&'b str> {
        let pinned = member.pinned.filter(|one| self.revisions.contains_key(one));
        pinned.or_else(|| self.stable.revision())
    }

    /// The resources that a revision's agents serve.
    pub fn resources_of(&self, revision: &str) -> &'a [String] {
        let revision = self.revisions.get(revision);
        revision.map_or(&[], |revision| revision.resources.as_slice())
    }

    /// How long a node that no longer matches keeps its agent.
    pub fn grace(&self) -> SignedDuration {
        let seconds = self.config.spec.label_loss_grace_seconds;
        SignedDuration::from_secs(seconds.unwrap_or(DEFAULT_LABEL_LOSS_GRACE_SECONDS).into())
    }

    /// The taints that agents tolerate: those of the revision that runs, not of one that waits.
    fn tolerations(&self) -> &[Toleration] {
        let agent = self.config.spec.agent.as_ref();
        match &self.stable {
            Stable::Stands(revision) => &revision.tolerations,
            Stable::None | Stable::Rebuild { .. } | Stable::Lost(_) => {
                agent.map_or(&[], |agent| agent.tolerations.as_slice())
            }
        }
    }

    fn members(
        &self,
        objects: &BTreeMap<&'a str, &'a DevicePluginNode>,
    ) -> BTreeMap<&'a str, Member<'a>> {
        let nodes = self.seen.nodes.values().map(|node| &**node);
        nodes
            .filter_map(|node| {
                let object = objects.get(node.id.name.as_str()).copied();
                let pinned = node.labels.get(&self.label).map(String::as_str);
                let staged = node.labels.get(&self.stage_label).map(String::as_str);
                let pods = self.pods.get(node.id.name.as_str());
                let pods = pods.cloned().unwrap_or_default();
                let matches = self.selection.has(&node.labels);
                let is_labelled = pinned.is_some() || staged.is_some();
                if !matches && object.is_none() && !is_labelled {
                    return None;
                }
                let mut member = Member {
                    node,
                    object,
                    pods,
                    pinned,
                    staged,
                    membership: Membership::Selected,
                };
                member.membership = self.membership(&member, matches);
                let is_member =
                    member.object.is_some() || is_labelled || member.is_served_or_waits();
                is_member.then_some((node.id.name.as_str(), member))
            })
            .collect()
    }

    fn membership(&self, member: &Member<'a>, matches: bool) -> Membership {
        let revision = self.stable.revision();
        let is_pinned =
            member.pinned.is_some() && (member.object.is_some() || member.pinned == revision);
        if member.node.deleting {
            return Membership::Vanishing;
        }
        // Something is wrong with the spec: what runs keeps running, and nothing new starts.
        if self.problem.is_some() && (is_pinned || member.object.is_some()) {
            return Membership::Selected;
        }
        let has_agent = member.pods.iter().any(|pod| !pod.deleting);
        if matches
            && self.problem.is_none()
            && tolerates(self.tolerations(), member.node, has_agent)
        {
            return Membership::Selected;
        }
        if !is_pinned {
            return Membership::Leaving;
        }
        let since = member
            .object
            .and_then(|object| object.spec.unmatched_since.as_ref());
        let now = self.seen.now;
        let since = since.map_or(now, |since| since.0);
        let until = since.saturating_add(self.grace()).unwrap_or(now);
        let is_marked = member
            .object
            .is_some_and(|one| one.spec.unmatched_since.is_some());
        if is_marked && until <= now {
            return Membership::Leaving;
        }
        Membership::Grace { until }
    }
}

impl Member<'_> {
    /// Whether it counts as a node of the config.
    pub fn is_served_or_waits(&self) -> bool {
        match self.membership {
            Membership::Selected | Membership::Grace { .. } => true,
            Membership::Leaving | Membership::Vanishing => false,
        }
    }
}

type Objects<'a> = (
    BTreeMap<&'a str, &'a DevicePluginNode>,
    Vec<&'a DevicePluginNode>,
);

/// The config's objects by node, and those whose node is gone or was made anew.
fn own_objects<'a>(seen: &'a Snapshot, index: &Index<'a>, name: &str, uid: &str) -> Objects<'a> {
    let mut own = BTreeMap::new();
    let mut stale = Vec::new();
    for object in index.objects.get(name).into_iter().flatten().copied() {
        let node = object.spec.node_name.as_str();
        let is_ours = controller_uid(&object.metadata, "DevicePluginConfig") == uid
            && object.metadata.name.as_deref() == Some(node_object(name, node).as_str());
        if !is_ours || object.metadata.deletion_timestamp.is_some() {
            continue;
        }
        match seen.nodes.get(node) {
            Some(present) if present.id.uid == object.spec.node_uid => {
                own.insert(node, object);
            }
            Some(_) | None => stale.push(object),
        }
    }
    (own, stale)
}
