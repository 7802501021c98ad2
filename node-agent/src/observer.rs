//! Shows what was seen to those who ask over HTTP: metrics and readiness.

use daemon::{Readiness, Stop};
use node_agent_core::conditions;
use node_agent_core::seen::Seen;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// Keeps metrics and readiness up to date.
pub async fn observe(
    mut seen: watch::Receiver<Seen>,
    metrics: Metrics,
    readiness: Readiness,
    stop: Stop,
) {
    loop {
        {
            let seen = seen.borrow_and_update();
            metrics.show(&seen);
            readiness.set(conditions::readiness(&seen));
        }
        tokio::select! {
            () = stop.requested() => {
                readiness.set(Err("the agent is stopping".to_owned()));
                return;
            }
            Ok(()) = seen.changed() => {}
        }
    }
}
