//! When a report is written: at once after a quiet time, seldom while things change, never for
//! nothing. Thousands of agents share one API server.

use std::time::Duration;

/// Shortest time between two writes. Half of it doubles what a flapping device costs the API server;
/// twice as much makes users wait for what they watch.
pub const WRITE_GAP: Duration = Duration::from_secs(10);

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

/// Whether to write what is wanted over what is present.
pub fn decision<T: PartialEq>(
    present: Option<&T>,
    wanted: &T,
    last_write: Option<Duration>,
    now: Duration,
    gap: Duration,
) -> Decision {
    if present == Some(wanted) {
        return Decision::Nothing;
    }
    let since = last_write.map(|last| now.saturating_sub(last));
    match since.and_then(|since| gap.checked_sub(since)) {
        None | Some(Duration::ZERO) => Decision::Now,
        Some(left) => Decision::In(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_at_once_and_then_seldom() {
        let seconds = Duration::from_secs;
        let check = |present: Option<i32>, last: Option<u64>, expected| {
            let got = decision(
                present.as_ref(),
                &1,
                last.map(seconds),
                seconds(100),
                WRITE_GAP,
            );
            assert_eq!(got, expected, "present {present:?}, last write {last:?}");
        };
        check(Some(1), None, Decision::Nothing);
        check(Some(1), Some(99), Decision::Nothing);
        check(None, None, Decision::Now);
        check(Some(2), None, Decision::Now);
        check(Some(2), Some(90), Decision::Now);
        check(Some(2), Some(99), Decision::In(seconds(9)));
        check(None, Some(100), Decision::In(seconds(10)));
    }
}
