//! When a report is written: at once after a quiet time, seldom while things keep changing, never
//! for nothing. Thousands of agents share one API server.

use std::time::Duration;

/// How often may be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// Time between two writes while things keep changing.
    pub gap: Duration,
    /// So many writes may follow each other at once after a quiet time.
    pub burst: u32,
}

/// For what people look at. Half of the gap doubles what a flapping device costs the API server;
/// twice as much makes users wait for what they watch. The burst is a start, its registration and the
/// first allocation: with one, a node would be told Ready ten seconds after it is; many more would
/// let every restart of a fleet hit the API server several times over.
pub const ORDINARY: Rate = Rate {
    gap: Duration::from_secs(10),
    burst: 3,
};

/// For what the operator decides by: a change of a node waits for it, and so do all nodes after it.
/// It changes a handful of times in a hand-over; the limit is for an agent that the kubelet throws
/// out again and again.
pub const URGENT: Rate = Rate {
    gap: Duration::from_secs(1),
    burst: 8,
};

/// What a write would change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum News {
    /// Nothing.
    None,
    /// Something that people look at.
    Ordinary,
    /// Something that is decided by.
    Urgent,
}

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

/// The limits of an agent's writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rates {
    /// For ordinary news.
    pub ordinary: Rate,
    /// For urgent news.
    pub urgent: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            ordinary: ORDINARY,
            urgent: URGENT,
        }
    }
}

/// What earlier writes leave for the next: for each rate a virtual schedule, one gap for each write,
/// that writes may run ahead of by less than its burst of gaps.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Meter {
    ordinary: Duration,
    urgent: Duration,
}

impl Meter {
    /// What is left after one more write.
    pub fn after_write(self, now: Duration, rates: &Rates) -> Self {
        let after = |scheduled: Duration, rate: Rate| {
            // Whatever was written, nothing waits for longer than one gap.
            let latest = now.saturating_add(rate.gap.saturating_mul(rate.burst));
            scheduled.max(now).saturating_add(rate.gap).min(latest)
        };
        Self {
            ordinary: after(self.ordinary, rates.ordinary),
            urgent: after(self.urgent, rates.urgent),
        }
    }

    /// Whether to write the news now.
    pub fn decision(self, news: News, now: Duration, rates: &Rates) -> Decision {
        let (scheduled, rate) = match news {
            News::None => return Decision::Nothing,
            News::Ordinary => (self.ordinary, rates.ordinary),
            News::Urgent => (self.urgent, rates.urgent),
        };
        let ahead = rate.gap.saturating_mul(rate.burst.saturating_sub(1));
        match scheduled.saturating_sub(ahead).saturating_sub(now) {
            Duration::ZERO => Decision::Now,
            wait => Decision::In(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Writes at these times, then asks.
    fn after(writes: &[u64], now: u64, news: News) -> Decision {
        let rates = Rates::default();
        let meter = writes.iter().fold(Meter::default(), |meter, at| {
            meter.after_write(seconds(*at), &rates)
        });
        meter.decision(news, seconds(now), &rates)
    }

    #[test]
    fn urgent_news_holds_ordinary_news_up_for_one_gap_at_most() {
        let storm: Vec<u64> = (0..100).collect();
        let Decision::In(wait) = after(&storm, 100, News::Ordinary) else {
            panic!("not at once");
        };
        assert!(wait <= ORDINARY.gap, "{wait:?}");
    }

    #[test]
    fn the_same_is_never_written_again() {
        assert_eq!(after(&[], 0, News::None), Decision::Nothing);
    }

    #[test]
    fn a_start_is_told_at_once_and_what_keeps_changing_seldom() {
        let after = |writes, now| after(writes, now, News::Ordinary);
        assert_eq!(after(&[], 0), Decision::Now);
        assert_eq!(after(&[100], 100), Decision::Now);
        assert_eq!(after(&[100, 101], 102), Decision::Now);
        assert_eq!(after(&[100, 101, 102], 103), Decision::In(seconds(7)));
        assert_eq!(after(&[100, 101, 102, 110], 110), Decision::In(seconds(10)));
    }

    #[test]
    fn quiet_time_earns_no_more_than_the_burst() {
        let after = |writes, now| after(writes, now, News::Ordinary);
        assert_eq!(after(&[0, 1000, 1000], 1000), Decision::Now);
        assert_eq!(
            after(&[0, 1000, 1000, 1000], 1000),
            Decision::In(seconds(10))
        );
    }

    #[test]
    fn what_is_decided_by_waits_for_nothing_but_a_storm() {
        let after = |writes, now| after(writes, now, News::Urgent);
        assert_eq!(after(&[100; 7], 100), Decision::Now);
        assert_eq!(after(&[100; 8], 100), Decision::In(seconds(1)));
        assert_eq!(after(&[100; 8], 101), Decision::Now);
    }
}
