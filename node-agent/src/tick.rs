//! Work that comes round again and again, at the same moments for all who do such work: a process at
//! rest is woken once for everything, not once for each.

use std::sync::LazyLock;
use std::time::Duration;

use node_agent_core::pace::{next_round, with_round};
use tokio::time::{Instant, sleep_until};

/// What rounds are counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The next round of a period: half a period from now at least, one and a half at most.
pub fn next(period: Duration) -> Instant {
    let start = *START;
    start + next_round(start.elapsed(), period)
}

/// Waits for the next round of a period.
pub async fn round(period: Duration) {
    sleep_until(next(period)).await;
}

/// The period of most rounds.
const USUAL: Duration = Duration::from_secs(5);

/// Waits for a time, or for the last usual round before it if that is still ahead.
pub async fn until(due: Instant) {
    let start = *START;
    let due = due.saturating_duration_since(start);
    sleep_until(start + with_round(due, start.elapsed(), USUAL)).await;
}
