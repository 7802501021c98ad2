//! How fast writes may follow each other.

use std::time::{Duration, Instant};

/// A token bucket that holds one second's worth, and is full at first.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_second: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second: f64::from(per_second),
            tokens: f64::from(per_second),
            filled: now,
        }
    }

    /// How long to wait for the next token; nothing when there is one.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.tokens = (self.tokens + passed * self.per_second).min(self.per_second);
        // Sums of fractions miss a whole token by a hair.
        let missing = 1.0 - self.tokens - 1e-9;
        (missing > 0.0).then(|| Duration::from_secs_f64(missing / self.per_second))
    }

    /// Takes a token, after [`Self::wait`] said that there is one.
    pub fn take(&mut self) {
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_as_many_writes_as_were_agreed() {
        let start = Instant::now();
        let mut bucket = Bucket::new(5, start);
        for write in 0..5 {
            assert_eq!(bucket.wait(start), None, "write {write}");
            bucket.take();
        }
        assert_eq!(bucket.wait(start), Some(Duration::from_millis(200)));
        let later = start + Duration::from_millis(200);
        assert_eq!(bucket.wait(later), None);
        bucket.take();
        let much_later = start + Duration::from_secs(60);
        for write in 0..5 {
            assert_eq!(bucket.wait(much_later), None, "write {write}");
            bucket.take();
        }
        assert!(
            bucket.wait(much_later).is_some(),
            "a minute's rest is not saved up"
        );
    }
}
