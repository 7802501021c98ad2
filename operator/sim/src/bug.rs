//! Faults that are put in on purpose: a simulation that does not find them finds nothing.

use clap::ValueEnum;
use crds::names::node_revision_label;
use operator_core::action::{Action, Write};
use operator_core::plan::Plan;
use operator_core::snapshot::Snapshot;

/// A fault of the operator or of the agents.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Bug {
    /// The operator acts before it has written the ledger.
    ClaimAfterAct,
    /// Agents register without holding a lock.
    NoLock,
    /// Whoever gets the lock is the active agent.
    RoleByLock,
    /// The node's label moves with the switch instead of after the proof.
    LabelFirst,
}

/// Moves the node's label in the pass that switches its roles.
pub fn move_labels_first(seen: &Snapshot, plan: &mut Plan) {
    let mut labels = Vec::new();
    for action in &plan.actions {
        let Write::PatchNodeObject { on, spec } = &action.write else {
            continue;
        };
        let before = seen.node_objects.get(&on.name);
        let is_switch = before.is_some_and(|before| before.spec.active != spec.active);
        let Some(node) = seen.nodes.get(&spec.node_name).filter(|_| is_switch) else {
            continue;
        };
        let key = node_revision_label(&spec.config_name);
        labels.push(Action {
            config: action.config.clone(),
            write: Write::LabelNode {
                on: node.id.clone(),
                labels: [(key, Some(spec.active.clone()))].into(),
            },
        });
    }
    plan.actions.extend(labels);
}
