//! How fast to try again.

use std::time::Duration;

/// Waits that double from a first one up to a limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pace {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub limit: Duration,
}

impl Pace {
    /// The wait after so many failures in a row (1 is the first). `jitter`, from 0 to 1, takes away
    /// up to half, so that the agents of a fleet do not try in step.
    pub fn wait(&self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let whole = self.first.saturating_mul(1 << doublings).min(self.limit);
        whole.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// When the next round of a period is, both counted from a common start: at a multiple of the period,
/// half of it away at least. Rounds of periods that are multiples of each other meet.
pub fn next_round(now: Duration, period: Duration) -> Duration {
    let nanos = period.as_nanos().max(1);
    let rounds = now.saturating_add(period / 2).as_nanos() / nanos + 1;
    let next = u64::try_from(rounds.saturating_mul(nanos)).unwrap_or(u64::MAX);
    Duration::from_nanos(next)
}

/// When to do what is due at a time, counted from the same start: with the last round before, unless
/// that is over.
pub fn with_round(due: Duration, now: Duration, period: Duration) -> Duration {
    let nanos = period.as_nanos().max(1);
    let round = due.as_nanos() / nanos * nanos;
    let round = Duration::from_nanos(u64::try_from(round).unwrap_or(u64::MAX));
    if round > now { round } else { due }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_soon_after_a_round_is_done_with_it() {
        let when = |due: u64, now: u64| {
            let millis = Duration::from_millis;
            with_round(millis(due), millis(now), millis(5_000)).as_millis()
        };
        assert_eq!(
            [when(20_003, 10_003), when(24_999, 10_003)],
            [20_000, 20_000]
        );
        assert_eq!(
            [when(11_000, 10_003), when(20_003, 20_000)],
            [11_000, 20_003]
        );
    }

    #[test]
    fn rounds_are_half_a_period_away_at_least_and_meet() {
        let next = |now: u64, period: u64| {
            next_round(Duration::from_millis(now), Duration::from_millis(period)).as_millis()
        };
        assert_eq!([next(0, 5_000), next(2_499, 5_000)], [5_000, 5_000]);
        assert_eq!([next(2_500, 5_000), next(5_000, 5_000)], [10_000, 10_000]);
        assert_eq!([next(7_499, 5_000), next(1, 10_000)], [10_000, 10_000]);
        assert_eq!(
            next_round(Duration::MAX, Duration::ZERO),
            Duration::from_nanos(u64::MAX)
        );
    }

    #[test]
    fn waits_double_up_to_the_limit() {
        let pace = Pace {
            first: Duration::from_millis(2),
            limit: Duration::from_secs(5),
        };
        let millis = |failures, jitter| pace.wait(failures, jitter).as_millis();
        assert_eq!(
            [
                millis(0, 0.0),
                millis(1, 0.0),
                millis(2, 0.0),
                millis(5, 0.0)
            ],
            [2, 2, 4, 32]
        );
        assert_eq!(
            [millis(12, 0.0), millis(13, 0.0), millis(u32::MAX, 0.0)],
            [4096, 5000, 5000]
        );
        assert_eq!(
            [millis(5, 1.0), millis(5, 0.5), millis(5, 7.0)],
            [16, 24, 16]
        );
    }
}
