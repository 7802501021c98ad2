//! Who gives out what: keeps the resources of this agent from giving out one device twice, and this
//! agent from giving out another config's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use node_agent_core::claims::Claims;
use node_agent_core::discovery::{Discovered, Numbers};
use tokio::sync::Notify;

use crate::claim_table::ClaimTable;

/// Shared by all resources of an agent.
#[derive(Clone)]
pub struct SharedClaims {
    state: Arc<Mutex<State>>,
}

struct State {
    claims: Claims,
    table: ClaimTable,
    resources: Vec<(String, Arc<Notify>)>,
    /// Why the table cannot be used; empty while it can.
    error: String,
}

/// One resource's part.
#[derive(Clone)]
pub struct OwnClaims {
    shared: SharedClaims,
    place: usize,
}

impl SharedClaims {
    /// No claims yet.
    pub fn new(table: ClaimTable) -> Self {
        let state = State {
            claims: Claims::default(),
            table,
            resources: Vec::new(),
            error: String::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The next resource of the config. `look_again` is told when others gave up what it may want.
    pub fn next(&self, resource: &str, look_again: Arc<Notify>) -> OwnClaims {
        let mut state = self.lock();
        state.resources.push((resource.to_owned(), look_again));
        OwnClaims {
            shared: self.clone(),
            place: state.resources.len() - 1,
        }
    }

    /// Nothing is half done between any two statements that can panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OwnClaims {
    /// What the resource found, without what others give out.
    pub fn settled(
        &self,
        seen: Discovered,
        held: Option<&BTreeSet<String>>,
        now: Timestamp,
    ) -> Discovered {
        let mut state = self.shared.lock();
        let State {
            claims,
            table,
            resources,
            error,
        } = &mut *state;
        let Some((name, look_again)) = resources.get(self.place) else {
            return seen;
        };
        if claims.note(self.place, name, &seen.devices, held) {
            let others = resources.iter().enumerate();
            for (_, (_, other)) in others.filter(|(place, _)| *place != self.place) {
                other.notify_one();
            }
        }
        let wanted = claims.wanted();
        let foreign: BTreeMap<Numbers, String> = match table.take(&wanted) {
            Ok(foreign) => {
                error.clear();
                foreign.clone()
            }
            Err(failed) if failed.kind() == ErrorKind::WouldBlock => {
                // Another agent is at it, for a moment.
                look_again.notify_one();
                let told = "is not claimed on this node yet".to_owned();
                table
                    .not_taken(&wanted)
                    .into_iter()
                    .map(|one| (one, told.clone()))
                    .collect()
            }
            // What could not be claimed may be another config's.
            Err(failed) => {
                let failed = failed.to_string();
                let told = format!("cannot be claimed on this node: {failed}");
                if *error != failed {
                    tracing::warn!(error = failed, "failed to claim devices on this node");
                    *error = failed;
                }
                table
                    .not_taken(&wanted)
                    .into_iter()
                    .map(|one| (one, told.clone()))
                    .collect()
            }
        };
        claims.judged(self.place, seen, &foreign, now)
    }

    /// Notes that devices are given out; refuses if one belongs to another resource.
    ///
    /// # Errors
    /// Who has the device, as a sentence for the pod's user.
    pub fn give(&self, ids: &[String]) -> Result<(), String> {
        self.shared
            .lock()
            .claims
            .give(self.place, ids, Timestamp::now())
    }
}

#[cfg(test)]
mod tests {
    use node_agent_core::discovery::Found;

    use super::*;

    #[test]
    fn what_cannot_be_claimed_is_not_given_out() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("locks");
        std::fs::create_dir(&place).unwrap();
        let grace = std::time::Duration::from_secs(300);
        let table = ClaimTable::new(place.clone(), "one".to_owned(), grace);
        let own = SharedClaims::new(table).next("example.com/x", Arc::default());
        let seen = |minors: &[u32]| Discovered {
            devices: minors
                .iter()
                .map(|minor| {
                    let numbers = vec![(226, *minor)];
                    let found = Found {
                        numbers,
                        ..Found::default()
                    };
                    (minor.to_string(), found)
                })
                .collect(),
            ..Discovered::default()
        };
        let settled = |minors: &[u32]| own.settled(seen(minors), None, Timestamp::UNIX_EPOCH);
        assert_eq!(settled(&[1]).devices.len(), 1);
        // A file where the directory was: nothing can be read or written there.
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::write(&place, "").unwrap();
        let judged = settled(&[1, 2]);
        assert!(judged.devices.contains_key("1"), "it was ours before");
        let reason = &judged.unusable["2"];
        assert!(reason.contains("cannot be claimed"), "{reason}");
    }
}
