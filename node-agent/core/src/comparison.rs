//! Whether the kubelet has the devices that it was sent.
//!
//! The kubelet tells nobody when it takes another list for ours: on 1.25 to 1.36 the end of an older
//! instance's stream makes it empty, and any plugin that registers the resource replaces it. Its own
//! list is the only sign. A difference is answered by registering again; where it comes back, somebody
//! else does the same, and two who fight give pods to both.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::pace::Pace;
use crate::seen::KubeletSeen;

/// When the kubelet's list is read, and what follows from it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Readings after a stream opened: the end of an older stream shows within a second, and who
    /// verifies a new agent waits for the second one.
    pub first: [Duration; 3],
    /// Between two readings after those. With the second look at a difference, nothing wrong stays
    /// for longer than ten seconds; at half of it thousands of kubelets are asked twice as often for
    /// what happens once in a year.
    pub period: Duration,
    /// The second look at a difference.
    pub again: Duration,
    /// How long a message may be on its way into the kubelet's list. It takes milliseconds; a stream
    /// carries two messages a second at most, so that half of that leaves room to read in between.
    pub settling: Duration,
    /// From then on what an older stream's end does to the list has happened.
    pub after_stream: Duration,
    /// So many differences within the window are somebody's doing.
    pub differences: usize,
    /// The window, and how long it must be quiet until nobody is blamed any more.
    pub window: Duration,
    /// How soon to register again meanwhile.
    pub contested: Pace,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            first: [seconds(1), seconds(3), seconds(10)],
            period: seconds(8),
            again: seconds(1),
            settling: Duration::from_millis(250),
            after_stream: seconds(2),
            differences: 3,
            window: seconds(300),
            contested: Pace {
                first: seconds(30),
                limit: seconds(300),
            },
        }
    }
}

/// The comparison of one resource.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Comparison {
    stream: Option<Stream>,
    differences: Vec<Duration>,
    contested: Option<Contest>,
}

/// What was read since a stream opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stream {
    opened: Duration,
    due: Duration,
    /// When a difference was seen first.
    differed: Option<Duration>,
    told: Option<KubeletSeen>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Contest {
    last: Duration,
    answers: u32,
}

/// One reading.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// When it began.
    pub began: Duration,
    /// The kubelet's healthy devices of the resource.
    pub listed: &'a BTreeSet<String>,
    /// The Healthy devices that were sent last, and that nothing replaced until the reading ended.
    pub sent: &'a BTreeSet<String>,
    /// When they were sent.
    pub sent_at: Duration,
    /// The time of day.
    pub time: Timestamp,
}

/// What follows from a reading.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// The kubelet has another list: register again.
    RegisterAgain,
}

impl Comparison {
    /// Follows the stream: when it opened, if there is one. A stream is known by that time.
    pub fn follow(&mut self, opened: Option<Duration>, limits: &Limits) {
        if self.stream.map(|stream| stream.opened) == opened {
            return;
        }
        self.stream = opened.map(|opened| Stream {
            opened,
            due: opened + limits.first.iter().min().copied().unwrap_or_default(),
            differed: None,
            told: None,
        });
    }

    /// When to read next; nothing while there is no stream.
    pub fn due(&self) -> Option<Duration> {
        self.stream.map(|stream| stream.due)
    }

    /// The kubelet's list, as far as it is certain.
    pub fn told(&self) -> Option<KubeletSeen> {
        self.stream.and_then(|stream| stream.told)
    }

    /// Whether somebody takes the resource over again and again.
    pub fn is_contested(&self) -> bool {
        self.contested.is_some()
    }

    /// The list could not be read.
    pub fn unreadable(&mut self, now: Duration, limits: &Limits) {
        if let Some(stream) = &mut self.stream {
            stream.due = now + limits.again;
        }
    }

    /// What follows from a reading.
    pub fn read(&mut self, reading: &Reading<'_>, jitter: f64, limits: &Limits) -> Verdict {
        let Some(stream) = &mut self.stream else {
            return Verdict::Fine;
        };
        let now = reading.began;
        if now < reading.sent_at + limits.settling {
            stream.due = reading.sent_at + limits.settling;
            return Verdict::Fine;
        }
        let matches = reading.listed == reading.sent;
        let first = stream.differed.filter(|_| !matches);
        let is_certain = matches || first.is_some_and(|first| now >= first + limits.again);
        stream.differed = (!matches).then(|| first.unwrap_or(now));
        if is_certain {
            stream.tell(reading, matches, limits);
        }
        stream.schedule(now, is_certain, limits);
        if matches {
            self.calm_down(now, limits);
            return Verdict::Fine;
        }
        if is_certain {
            self.answer(now, jitter, limits)
        } else {
            Verdict::Fine
        }
    }

    fn calm_down(&mut self, now: Duration, limits: &Limits) {
        let is_quiet = |contest: Contest| now.saturating_sub(contest.last) >= limits.window;
        if self.contested.is_some_and(is_quiet) {
            self.contested = None;
            self.differences.clear();
        }
    }

    /// A difference that is certain: register again, unless that was tried often enough.
    fn answer(&mut self, now: Duration, jitter: f64, limits: &Limits) -> Verdict {
        if let Some(contest) = &mut self.contested {
            if now < contest.last + limits.contested.wait(contest.answers, jitter) {
                return Verdict::Fine;
            }
            contest.last = now;
            contest.answers = contest.answers.saturating_add(1);
            return Verdict::RegisterAgain;
        }
        self.differences
            .retain(|at| now.saturating_sub(*at) < limits.window);
        self.differences.push(now);
        if self.differences.len() >= limits.differences {
            self.contested = Some(Contest {
                last: now,
                answers: 1,
            });
            return Verdict::Fine;
        }
        Verdict::RegisterAgain
    }
}

impl Stream {
    fn tell(&mut self, reading: &Reading<'_>, matches: bool, limits: &Limits) {
        let same = self.told.filter(|told| told.matches == matches);
        let whole = Timestamp::from_second(reading.time.as_second()).unwrap_or(reading.time);
        self.told = Some(KubeletSeen {
            devices: reading.listed.len(),
            matches,
            since: same.map_or(whole, |told| told.since),
            read_after_stream: reading.began >= self.opened + limits.after_stream,
        });
    }

    fn schedule(&mut self, now: Duration, is_certain: bool, limits: &Limits) {
        if !is_certain {
            self.due = now + limits.again;
            return;
        }
        let is_ahead = |after: &&Duration| self.opened + **after > now;
        self.due = match limits.first.iter().find(is_ahead) {
            Some(after) => self.opened + *after,
            None => now + limits.period,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: fn() -> Limits = Limits::default;

    fn ids(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A stream that opened at zero and sent `a` at once.
    struct Run {
        comparison: Comparison,
        sent_at: Duration,
    }

    impl Run {
        fn new() -> Self {
            let mut comparison = Comparison::default();
            comparison.follow(Some(Duration::ZERO), &LIMITS());
            Self {
                comparison,
                sent_at: Duration::ZERO,
            }
        }

        /// Reads when it is due, and tells when that was.
        fn read(&mut self, listed: &[&str]) -> (u64, Verdict) {
            let due = self.comparison.due().unwrap();
            let reading = Reading {
                began: due,
                listed: &ids(listed),
                sent: &ids(&["a"]),
                sent_at: self.sent_at,
                time: Timestamp::from_second(i64::try_from(due.as_secs()).unwrap()).unwrap(),
            };
            let verdict = self.comparison.read(&reading, 0.0, &LIMITS());
            (u64::try_from(due.as_millis()).unwrap(), verdict)
        }

        /// The stream ended and another one opened.
        fn reopen(&mut self, at: u64) {
            self.comparison.follow(None, &LIMITS());
            assert_eq!(self.comparison.due(), None);
            self.comparison.follow(Some(millis(at)), &LIMITS());
            self.sent_at = millis(at);
        }
    }

    #[test]
    fn a_list_that_matches_is_read_less_and_less() {
        let mut run = Run::new();
        let times: Vec<u64> = (0..5).map(|_| run.read(&["a"]).0).collect();
        assert_eq!(times, [1_000, 3_000, 10_000, 18_000, 26_000]);
        let told = run.comparison.told().unwrap();
        assert_eq!(
            (told.devices, told.matches, told.since.as_second()),
            (1, true, 1)
        );
    }

    #[test]
    fn what_was_read_too_early_proves_nothing() {
        let mut run = Run::new();
        run.read(&["a"]);
        assert!(!run.comparison.told().unwrap().read_after_stream);
        run.read(&["a"]);
        assert!(run.comparison.told().unwrap().read_after_stream);
    }

    #[test]
    fn a_difference_is_looked_at_twice_and_answered() {
        let mut run = Run::new();
        assert_eq!(run.read(&[]), (1_000, Verdict::Fine));
        assert_eq!(run.comparison.told(), None, "not certain");
        assert_eq!(run.read(&[]), (2_000, Verdict::RegisterAgain));
        let told = run.comparison.told().unwrap();
        assert_eq!((told.devices, told.matches), (0, false));
        run.reopen(2_010);
        assert_eq!(run.comparison.told(), None, "of another stream");
        assert_eq!(run.read(&["a"]), (3_010, Verdict::Fine));
    }

    #[test]
    fn a_difference_that_passes_is_none() {
        let mut run = Run::new();
        run.read(&["a"]);
        assert_eq!(run.read(&["b"]), (3_000, Verdict::Fine));
        assert_eq!(run.read(&["a"]), (4_000, Verdict::Fine));
        assert!(run.comparison.told().unwrap().matches);
    }

    /// However late it comes, it is answered within ten seconds.
    #[test]
    fn nothing_wrong_stays_for_long() {
        let limits = LIMITS();
        assert!(limits.period + limits.again < Duration::from_secs(10));
        let last = limits.first[2] - limits.first[1];
        assert!(last + limits.again < Duration::from_secs(10));
    }

    #[test]
    fn a_message_on_its_way_is_waited_for() {
        let mut run = Run::new();
        run.sent_at = millis(900);
        assert_eq!(run.read(&[]), (1_000, Verdict::Fine));
        assert_eq!(
            run.read(&[]),
            (1_150, Verdict::Fine),
            "the first that counts"
        );
        assert_eq!(run.read(&["a"]), (2_150, Verdict::Fine));
    }

    #[test]
    fn the_third_time_in_five_minutes_is_somebodys_doing() {
        let mut run = Run::new();
        let mut at = 0;
        for _ in 0..2 {
            run.read(&["b"]);
            let (now, verdict) = run.read(&["b"]);
            assert_eq!(verdict, Verdict::RegisterAgain);
            assert!(!run.comparison.is_contested());
            at = now + 10;
            run.reopen(at);
        }
        run.read(&["b"]);
        let (third, verdict) = run.read(&["b"]);
        assert_eq!((third, verdict), (at + 2_000, Verdict::Fine));
        assert!(run.comparison.is_contested());
        // More and more slowly.
        let mut answered = vec![third];
        while answered.len() < 4 {
            let (now, verdict) = run.read(&["b"]);
            if verdict == Verdict::RegisterAgain {
                answered.push(now);
                run.reopen(now + 10);
            }
        }
        let waits: Vec<u64> = answered.windows(2).map(|w| w[1] - w[0]).collect();
        for (wait, least) in waits.iter().zip([30_000, 60_000, 120_000]) {
            assert!(*wait >= least && *wait < least + 10_000, "{waits:?}");
        }
        // It ends when it was quiet for long enough.
        let quiet_from = answered.last().copied().unwrap();
        loop {
            let (now, _) = run.read(&["a"]);
            let is_over = now >= quiet_from + 300_000;
            assert_eq!(run.comparison.is_contested(), !is_over, "{now}");
            if is_over {
                break;
            }
        }
    }

    #[test]
    fn differences_that_are_far_apart_are_accidents() {
        let mut run = Run::new();
        for round in 0..5_u64 {
            run.reopen(round * 301_000);
            run.read(&[]);
            assert_eq!(run.read(&[]).1, Verdict::RegisterAgain);
            assert!(!run.comparison.is_contested());
        }
    }

    #[test]
    fn a_list_that_cannot_be_read_is_tried_again() {
        let mut run = Run::new();
        run.comparison.unreadable(millis(1_000), &LIMITS());
        assert_eq!(run.comparison.due(), Some(millis(2_000)));
    }
}
