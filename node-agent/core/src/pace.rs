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

#[cfg(test)]
mod tests {
    use super::*;

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
