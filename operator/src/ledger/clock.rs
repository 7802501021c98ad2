//! For how long the operator has watched the cluster since a version of the ledger.

use std::time::{Duration, Instant};

use operator_core::seen::Identity;

/// Adds up the time in which the operator led and saw what happens. An operator that was away, or
/// an API server that was down, is never charged to a revision.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// The version of the ledger that the time is counted from.
    version: Option<Identity>,
    /// The time until `at`.
    watched: Duration,
    /// When it was added up last, and for how long the caches had been blind until then.
    at: Option<(Instant, Duration)>,
    /// What the last look was told.
    told: Duration,
}

impl Clock {
    /// The ledger was read, in this version: the time since it was first read or written.
    pub fn read(&mut self, version: Option<&Identity>, now: Instant, blind: Duration) -> Duration {
        if let Some((then, blind_then)) = self.at {
            let passed = now.saturating_duration_since(then);
            self.watched += passed.saturating_sub(blind.saturating_sub(blind_then));
        }
        self.at = Some((now, blind));
        if self.version.as_ref() != version {
            self.version = version.cloned();
            self.watched = Duration::ZERO;
        }
        self.told = match version {
            Some(_) => self.watched,
            None => Duration::ZERO,
        };
        self.told
    }

    /// The ledger was written in this version, by a plan that was told the time last: what was told
    /// is in it, what has passed since is not.
    pub fn wrote(&mut self, version: Identity) {
        self.version = Some(version);
        self.watched = self.watched.saturating_sub(self.told);
        self.told = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(version: &str) -> Identity {
        Identity {
            name: "l".to_owned(),
            uid: "u".to_owned(),
            version: version.to_owned(),
        }
    }

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Reads the same version at these seconds, each with the blind time until then.
    fn watched(looks: &[(u64, u64)]) -> Vec<u64> {
        let start = Instant::now();
        let mut clock = Clock::default();
        let looks = looks.iter().map(|(at, blind)| {
            let watched = clock.read(Some(&ledger("1")), start + seconds(*at), seconds(*blind));
            watched.as_secs()
        });
        looks.collect()
    }

    #[test]
    fn only_time_that_was_seen_counts() {
        assert_eq!(watched(&[(100, 7), (101, 7), (110, 7)]), [0, 1, 10]);
        assert_eq!(watched(&[(0, 0), (60, 45), (70, 45)]), [0, 15, 25]);
        // Three watches that are blind at once count three times, but never backwards.
        assert_eq!(
            watched(&[(0, 0), (10, 0), (60, 135), (61, 135)]),
            [0, 10, 10, 11]
        );
    }

    #[test]
    fn another_version_of_the_ledger_starts_anew() {
        let start = Instant::now();
        let mut clock = Clock::default();
        let mut read = |version: Option<&str>, at| {
            let version = version.map(ledger);
            clock.read(version.as_ref(), start + seconds(at), Duration::ZERO)
        };
        assert_eq!(read(Some("1"), 0), seconds(0));
        assert_eq!(read(Some("1"), 5), seconds(5));
        assert_eq!(read(Some("2"), 9), seconds(0));
        assert_eq!(read(Some("2"), 10), seconds(1));
        assert_eq!(read(None, 20), seconds(0));
        assert_eq!(read(None, 30), seconds(0), "nothing has a clock");
    }

    #[test]
    fn what_passes_between_the_look_and_the_write_is_not_lost() {
        let start = Instant::now();
        let mut clock = Clock::default();
        clock.read(Some(&ledger("1")), start, Duration::ZERO);
        let told = clock.read(Some(&ledger("1")), start + seconds(10), Duration::ZERO);
        assert_eq!(told, seconds(10));
        // The write takes three seconds.
        clock.wrote(ledger("2"));
        let told = clock.read(Some(&ledger("2")), start + seconds(13), Duration::ZERO);
        assert_eq!(told, seconds(3));
    }
}
