//! What to do about the Lease: client-go's algorithm as a function. It knows no API server; times
//! are this process's own, because clocks of nodes differ.

use std::time::{Duration, Instant};

/// What a candidate is called.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// Name of its pod; empty where there is none.
    pub pod: String,
    /// This process and no other.
    pub process: String,
}

/// Between the two parts of an identity. No name of a pod has it.
const SEPARATOR: char = '_';

impl Candidate {
    /// What stands in the Lease for it.
    pub fn identity(&self) -> String {
        format!("{}{SEPARATOR}{}", self.pod, self.process)
    }

    /// Whether a holder was an earlier process of this one's pod. The kubelet starts a container
    /// only when the one before has ended, so such a holder is dead for certain.
    fn succeeds(&self, holder: &str) -> bool {
        let pod = holder.rsplit_once(SEPARATOR).map(|(pod, _)| pod);
        !self.pod.is_empty() && pod == Some(self.pod.as_str()) && holder != self.identity()
    }
}

/// How fast leaders follow one another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    /// How long a Lease that nobody renews is respected. Half of it would let a busy API server
    /// depose leaders; after a leader's node died, nodes stay in their phase for so long.
    pub lease: Duration,
    /// How long a leader that cannot renew goes on. It ends well before others may take over: the
    /// difference is what a write may be on its way.
    pub deadline: Duration,
    /// How often a leader renews and a candidate looks. A leader has four tries; twice as many
    /// would only be more writes to etcd.
    pub retry: Duration,
}

impl Default for Timing {
    /// What client-go has as defaults.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// The longest time that is believed of somebody else's Lease: one that was edited by hand must not
/// stop everything for ever. Four times ours leaves room for a later version.
const BELIEVED_MAX: Duration = Duration::from_secs(60);

/// What the Lease says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Who holds it; empty after a release.
    pub holder: String,
    /// How often it has changed hands.
    pub transitions: i32,
    /// How long its holder wants to be respected.
    pub duration: Duration,
    /// When its holder says it acquired and renewed it, as text: only that it changes counts.
    pub renewed: String,
}

/// The Lease as this process has seen it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Observed {
    /// What it says; nothing: there is none.
    pub record: Option<Record>,
    /// When it was first seen to say so.
    pub since: Instant,
}

impl Observed {
    /// What is known after the next look.
    pub fn next(before: Option<Self>, record: Option<Record>, now: Instant) -> Self {
        match before {
            Some(before) if before.record == record => before,
            _ => Self { record, since: now },
        }
    }
}

/// The Lease as this process holds it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Held {
    /// How often it had changed hands when it was acquired.
    pub transitions: i32,
    /// When the renewal was sent that was accepted last.
    pub renewed: Instant,
}

/// The number of a leader: the next one's is higher.
pub fn epoch(transitions: i32) -> u64 {
    u64::try_from(transitions).unwrap_or_default() + 1
}

/// What to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Write the Lease with this process as its holder and this number of transitions.
    Hold {
        /// That number.
        transitions: i32,
    },
    /// Look again after the usual time: somebody else holds it.
    Wait,
    /// The Lease is lost; why, in words. The process must end: what it has begun may no longer be
    /// its to do.
    Lost(String),
}

/// Decides. `floor` is the highest epoch that the ledger has been seen to have: a Lease that was
/// deleted starts to count anew, the ledger does not.
pub fn decide(
    me: &Candidate,
    held: Option<Held>,
    observed: &Observed,
    floor: u64,
    timing: Timing,
    now: Instant,
) -> Decision {
    // The epoch is one more than the transitions: so it is higher than the floor.
    let above_floor = i32::try_from(floor).unwrap_or(i32::MAX);
    let record = observed.record.as_ref();
    if let Some(held) = held {
        let unrenewed = now.saturating_duration_since(held.renewed);
        if unrenewed >= timing.deadline {
            let seconds = unrenewed.as_secs_f64();
            return Decision::Lost(format!("it could not be renewed for {seconds:.1} s"));
        }
        return match record {
            Some(record) if record.holder != me.identity() => {
                Decision::Lost(format!("its holder is {:?}", record.holder))
            }
            // Also one that somebody deleted, or whose count somebody changed.
            Some(_) | None if floor > epoch(held.transitions) => Decision::Hold {
                transitions: above_floor,
            },
            Some(_) | None => Decision::Hold {
                transitions: held.transitions,
            },
        };
    }
    let Some(record) = record else {
        return Decision::Hold {
            transitions: above_floor,
        };
    };
    if record.holder == me.identity() {
        // Acquired by a write whose answer was lost.
        return Decision::Hold {
            transitions: record.transitions.max(above_floor),
        };
    }
    let believed = record.duration.max(timing.lease).min(BELIEVED_MAX);
    let is_over = now.saturating_duration_since(observed.since) >= believed;
    if record.holder.is_empty() || me.succeeds(&record.holder) || is_over {
        return Decision::Hold {
            transitions: record.transitions.max(0).saturating_add(1).max(above_floor),
        };
    }
    Decision::Wait
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Candidate {
        Candidate {
            pod: "operator-a".to_owned(),
            process: "2".to_owned(),
        }
    }

    fn record(holder: &str, transitions: i32) -> Record {
        Record {
            holder: holder.to_owned(),
            transitions,
            duration: Duration::from_secs(15),
            renewed: "v".to_owned(),
        }
    }

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn hold(transitions: i32) -> Decision {
        Decision::Hold { transitions }
    }

    #[test]
    fn a_candidate_waits_until_the_lease_is_free_by_its_own_clock() {
        let start = Instant::now();
        let longer = Record {
            duration: seconds(30),
            ..record("operator-b_1", 4)
        };
        let for_ever = Record {
            duration: seconds(1_000_000),
            ..record("operator-b_1", 4)
        };
        for (what, record, floor, after, expected) in [
            ("none, no ledger", None, 0, 0, hold(0)),
            ("none, a ledger", None, 7, 0, hold(7)),
            (
                "another's",
                Some(record("operator-b_1", 4)),
                0,
                14,
                Decision::Wait,
            ),
            (
                "another's, over",
                Some(record("operator-b_1", 4)),
                0,
                15,
                hold(5),
            ),
            ("longer", Some(longer.clone()), 0, 29, Decision::Wait),
            ("longer, over", Some(longer), 0, 30, hold(5)),
            ("for ever", Some(for_ever.clone()), 0, 59, Decision::Wait),
            ("for ever, over", Some(for_ever), 0, 60, hold(5)),
            ("released", Some(record("", 4)), 0, 0, hold(5)),
            ("released, later ledger", Some(record("", 4)), 9, 0, hold(9)),
            ("released, usual ledger", Some(record("", 4)), 5, 0, hold(5)),
            (
                "same pod before",
                Some(record("operator-a_1", 4)),
                0,
                0,
                hold(5),
            ),
            (
                "similar pod",
                Some(record("operator-a2_1", 4)),
                0,
                0,
                Decision::Wait,
            ),
            (
                "a pod and no process",
                Some(record("operator-a", 4)),
                0,
                0,
                Decision::Wait,
            ),
            (
                "mine, answer lost",
                Some(record("operator-a_2", 4)),
                4,
                0,
                hold(4),
            ),
            ("spoiled count", Some(record("", -9)), 0, 0, hold(1)),
            (
                "full count",
                Some(record("", i32::MAX)),
                0,
                0,
                hold(i32::MAX),
            ),
        ] {
            let observed = Observed {
                record,
                since: start,
            };
            let timing = Timing::default();
            let now = start + seconds(after);
            let decision = decide(&me(), None, &observed, floor, timing, now);
            assert_eq!(decision, expected, "{what}");
        }
    }

    #[test]
    fn a_leader_renews_what_is_its_own_and_ends_otherwise() {
        let start = Instant::now();
        let held = Held {
            transitions: 4,
            renewed: start,
        };
        for (what, record, floor, after, expected) in [
            ("mine", Some(record("operator-a_2", 4)), 5, 9, Ok(4)),
            (
                "mine, later ledger",
                Some(record("operator-a_2", 4)),
                8,
                2,
                Ok(8),
            ),
            (
                "mine, count changed",
                Some(record("operator-a_2", 0)),
                5,
                2,
                Ok(4),
            ),
            ("deleted", None, 5, 2, Ok(4)),
            (
                "too late",
                Some(record("operator-a_2", 4)),
                5,
                10,
                Err("10.0 s"),
            ),
            (
                "another's",
                Some(record("operator-b_1", 5)),
                5,
                2,
                Err("operator-b_1"),
            ),
            ("released by hand", Some(record("", 4)), 5, 2, Err("\"\"")),
        ] {
            let observed = Observed {
                record,
                since: start,
            };
            let timing = Timing::default();
            let now = start + seconds(after);
            let decision = decide(&me(), Some(held), &observed, floor, timing, now);
            match (decision, expected) {
                (Decision::Hold { transitions }, Ok(expected)) => {
                    assert_eq!(transitions, expected, "{what}");
                }
                (Decision::Lost(why), Err(word)) => assert!(why.contains(word), "{what}: {why}"),
                (decision, _) => panic!("{what}: {decision:?}"),
            }
        }
    }

    #[test]
    fn a_process_without_a_pod_succeeds_nobody() {
        let nobody = Candidate {
            pod: String::new(),
            process: "2".to_owned(),
        };
        let observed = Observed {
            record: Some(record("_1", 4)),
            since: Instant::now(),
        };
        let timing = Timing::default();
        let decision = decide(&nobody, None, &observed, 0, timing, Instant::now());
        assert_eq!(decision, Decision::Wait);
    }

    #[test]
    fn a_record_is_observed_from_when_it_was_first_seen() {
        let start = Instant::now();
        let one = Observed::next(None, Some(record("a", 1)), start);
        let same = Observed::next(Some(one), Some(record("a", 1)), start + seconds(9));
        assert_eq!(same.since, start);
        let renewed = Record {
            renewed: "w".to_owned(),
            ..record("a", 1)
        };
        let renewed = Observed::next(Some(same), Some(renewed), start + seconds(9));
        assert_eq!(renewed.since, start + seconds(9));
    }

    #[test]
    fn no_two_leaders_have_one_epoch() {
        // Each holder of a Lease that changes hands, is released, and is deleted, whose ledger is
        // written by each of them.
        let start = Instant::now();
        let (mut lease, mut ledger, mut epochs) = (None, 0, Vec::new());
        for number in 0..12 {
            let candidate = Candidate {
                pod: "operator-a".to_owned(),
                process: number.to_string(),
            };
            let observed = Observed::next(None, lease.take(), start);
            let timing = Timing::default();
            let later = start + seconds(20);
            let decision = decide(&candidate, None, &observed, ledger, timing, later);
            let Decision::Hold { transitions } = decision else {
                panic!("{decision:?}");
            };
            epochs.push(epoch(transitions));
            ledger = epoch(transitions);
            lease = match number % 3 {
                0 => Some(record(&candidate.identity(), transitions)),
                1 => Some(record("", transitions)),
                _ => None,
            };
        }
        assert!(epochs.is_sorted_by(|one, next| one < next), "{epochs:?}");
    }
}
