//! The ledger: every claim of every config in one object, written by compare-and-swap.
//!
//! Whatever takes a node's devices into an unproven state is claimed here before it is done, so that
//! budgets hold with stale caches, crashes and two leaders: whoever writes the ledger second has
//! lost.

use std::collections::BTreeMap;

use crds::names::{LEDGER, LEDGER_KEY};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::seen::Identity;

/// Most claims in the ledger, of all configs together: with the longest names it stays below half
/// of the 1 MiB that an object may have, and usually at 60 kB.
pub const CLAIMS_MAX: usize = 250;

/// The ledger's content.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ledger {
    /// Which leader has written it. Each leader has a higher number than the one before.
    pub epoch: u64,
    /// The claims, by config and node.
    pub claims: Vec<Claim>,
}

/// The right to change one node, and how far that is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// Name of the config.
    pub config: String,
    /// Name of the node.
    pub node: String,
    /// UID of the node.
    #[serde(rename = "nodeUID")]
    pub node_uid: String,
    /// The revision that the node served before.
    pub from: String,
    /// The revision that it is to serve.
    pub to: String,
    /// How far it is.
    pub phase: Phase,
    /// Milliseconds in this phase that the operator has seen. In `Soaking`, those since the node
    /// was last seen to be all right, or 0 while it is.
    pub elapsed: u64,
    /// In `Soaking`, milliseconds for which the node was seen to be all right without a break. In
    /// `Staged`, those that `Staging` has taken.
    pub verified: u64,
    /// How often the new agent had restarted when the node was switched.
    pub restarts: i32,
    /// Whether the node was not serving anything before: what happens to it says nothing about the
    /// revision.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outside: bool,
    /// Whether the revision is to blame for the end that the claim takes: it is marked as failed
    /// before the claim goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blames: bool,
    /// Why it is being brought back or given up, in one word; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How far the change of a node is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Phase {
    /// The new agent is started beside the old one.
    Staging,
    /// It stands by and could serve.
    Staged,
    /// The two swap their roles.
    Switching,
    /// The new agent serves and is being judged.
    Verifying,
    /// It has been found to be all right and must stay so for a while.
    Soaking,
    /// It is proven: the old agent goes.
    Committing,
    /// The old agent is to serve again.
    RollingBack,
    /// The old agent does not serve again either.
    Quarantined,
    /// The new agent goes without ever having served.
    Releasing,
}

impl Claim {
    /// Whether the change has taken, or may take, the node's devices away. A node that served nothing
    /// before is not made unavailable by it.
    pub fn disrupts(&self) -> bool {
        self.phase.is_disruptive() && !self.outside
    }
}

impl Phase {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staging => "Staging",
            Self::Staged => "Staged",
            Self::Switching => "Switching",
            Self::Verifying => "Verifying",
            Self::Soaking => "Soaking",
            Self::Committing => "Committing",
            Self::RollingBack => "RollingBack",
            Self::Quarantined => "Quarantined",
            Self::Releasing => "Releasing",
        }
    }

    /// Whether the node runs something unproven, or nothing.
    pub fn is_disruptive(self) -> bool {
        match self {
            Self::Staging | Self::Staged | Self::Releasing => false,
            Self::Switching
            | Self::Verifying
            | Self::Soaking
            | Self::Committing
            | Self::RollingBack
            | Self::Quarantined => true,
        }
    }
}

/// The ledger as it was read: live, and after everything else that a plan is made on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum SeenLedger {
    /// There is none.
    #[default]
    Absent,
    /// There is one.
    Present {
        /// The object.
        on: Identity,
        /// What it says, or why that cannot be read.
        content: Result<Ledger, String>,
    },
}

impl SeenLedger {
    /// The ledger in the data of a ConfigMap.
    pub fn read(on: Identity, data: Option<&BTreeMap<String, String>>) -> Self {
        let text = data.and_then(|data| data.get(LEDGER_KEY));
        let content = match text {
            None => Err(format!("it has no key {LEDGER_KEY:?}")),
            Some(text) => serde_json::from_str(text).map_err(|error| error.to_string()),
        };
        Self::Present { on, content }
    }

    /// What it says; an absent one and one that cannot be read say nothing.
    pub fn ledger(&self) -> Option<&Ledger> {
        match self {
            Self::Absent => None,
            Self::Present { content, .. } => content.as_ref().ok(),
        }
    }
}

/// A write of the whole ledger.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LedgerWrite {
    /// The object that it replaces; absent: it is made.
    pub on: Option<Identity>,
    /// What it says then.
    pub ledger: Ledger,
}

impl LedgerWrite {
    /// The whole ConfigMap.
    pub fn object(&self, namespace: &str) -> Value {
        // Plain data can always be written.
        let text = serde_json::to_string(&self.ledger).unwrap_or_default();
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": LEDGER,
                "namespace": namespace,
                "labels": {
                    "app.kubernetes.io/managed-by": crds::names::OPERATOR_FIELD_MANAGER,
                },
            },
            "data": { LEDGER_KEY: text },
        });
        if let (Some(on), Some(metadata)) = (
            &self.on,
            object.get_mut("metadata").and_then(Value::as_object_mut),
        ) {
            metadata.insert("uid".to_owned(), json!(on.uid));
            metadata.insert("resourceVersion".to_owned(), json!(on.version));
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        Claim {
            config: "c".repeat(50),
            node: "n".repeat(63),
            node_uid: "5fc188ab-05a8-4cb9-b332-65595a7c0c4b".to_owned(),
            from: "0123456789".to_owned(),
            to: "9876543210".to_owned(),
            phase: Phase::Verifying,
            elapsed: 123_456,
            verified: 123_456,
            restarts: 0,
            outside: false,
            blames: false,
            reason: String::new(),
            message: String::new(),
        }
    }

    #[test]
    fn a_full_ledger_fits_an_object() {
        let claims = vec![
            Claim {
                message: "m".repeat(1024),
                node: "n".repeat(253),
                ..claim()
            };
            CLAIMS_MAX
        ];
        let write = LedgerWrite {
            on: None,
            ledger: Ledger { epoch: 1, claims },
        };
        assert!(write.object("n").to_string().len() < 512 << 10);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let on = Identity {
            name: LEDGER.to_owned(),
            uid: "u".to_owned(),
            version: "7".to_owned(),
        };
        let write = LedgerWrite {
            on: Some(on.clone()),
            ledger: Ledger {
                epoch: 3,
                claims: vec![claim()],
            },
        };
        let object = write.object("ns");
        assert_eq!(object["metadata"]["resourceVersion"], "7");
        let data = serde_json::from_value(object["data"].clone()).unwrap();
        let seen = SeenLedger::read(on, Some(&data));
        assert_eq!(seen.ledger(), Some(&write.ledger));
    }

    #[test]
    fn garbage_is_told_as_such() {
        for text in [
            "",
            "{",
            "[]",
            r#"{"epoch":1}"#,
            r#"{"epoch":1,"claims":[],"more":1}"#,
        ] {
            let data = [(LEDGER_KEY.to_owned(), text.to_owned())].into();
            let seen = SeenLedger::read(Identity::default(), Some(&data));
            assert_eq!(seen.ledger(), None, "{text:?}");
            assert_ne!(seen, SeenLedger::Absent);
        }
        assert_eq!(SeenLedger::read(Identity::default(), None).ledger(), None);
    }
}
