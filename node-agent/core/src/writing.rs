//! When a report is written: at once after a quiet time, seldom while things keep changing, never
//! for nothing. Thousands of agents share one API server.

use std::time::Duration;

/// Time between two writes while things keep changing. Half of it doubles what a flapping device
/// costs the API server; twice as much makes users wait for what they watch.
pub const WRITE_GAP: Duration = Duration::from_secs(10);

/// So many writes may follow each other at once after a quiet time: a start, its registration and
/// the first allocation. With one, a node would be told Ready ten seconds after it is; many more
/// would let every restart of a fleet hit the API server several times over.
pub const BURST: u32 = 3;

/// Whether to write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// What is there is what should be there.
    Nothing,
    /// Now.
    Now,
    /// After this time, with what is true then.
    In(Duration),
}

/// What earlier writes leave for the next: a virtual schedule, one [`WRITE_GAP`] for each write,
/// that writes may run ahead of by less than [`BURST`] gaps.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Meter {
    scheduled: Duration,
}

impl Meter {
    /// What is left after one more write.
    pub fn after_write(self, now: Duration, gap: Duration) -> Self {
        Self {
            scheduled: self.scheduled.max(now).saturating_add(gap),
        }
    }

    /// How long the next write has to wait.
    fn wait(self, now: Duration, gap: Duration) -> Duration {
        let ahead = gap.saturating_mul(BURST.saturating_sub(1));
        self.scheduled.saturating_sub(ahead).saturating_sub(now)
    }
}

/// Whether to write what is wanted over what is present.
pub fn decision<T: PartialEq>(
    present: Option<&T>,
    wanted: &T,
    meter: Meter,
    now: Duration,
    gap: Duration,
) -> Decision {
    if present == Some(wanted) {
        return Decision::Nothing;
    }
    match meter.wait(now, gap) {
        Duration::ZERO => Decision::Now,
        wait => Decision::In(wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Writes at these times, then asks.
    fn after(writes: &[u64], now: u64) -> Decision {
        let meter = writes.iter().fold(Meter::default(), |meter, at| {
            meter.after_write(seconds(*at), WRITE_GAP)
        });
        decision(Some(&2), &1, meter, seconds(now), WRITE_GAP)
    }

    #[test]
    fn the_same_is_never_written_again() {
        let decided = decision(Some(&1), &1, Meter::default(), seconds(0), WRITE_GAP);
        assert_eq!(decided, Decision::Nothing);
    }

    #[test]
    fn a_start_is_told_at_once_and_what_keeps_changing_seldom() {
        assert_eq!(after(&[], 0), Decision::Now);
        assert_eq!(after(&[100], 100), Decision::Now);
        assert_eq!(after(&[100, 101], 102), Decision::Now);
        assert_eq!(after(&[100, 101, 102], 103), Decision::In(seconds(7)));
        assert_eq!(after(&[100, 101, 102, 110], 110), Decision::In(seconds(10)));
    }

    #[test]
    fn quiet_time_earns_no_more_than_the_burst() {
        assert_eq!(after(&[0, 1000, 1000], 1000), Decision::Now);
        assert_eq!(
            after(&[0, 1000, 1000, 1000], 1000),
            Decision::In(seconds(10))
        );
    }
}
