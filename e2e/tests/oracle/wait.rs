//! Waiting for what a kubelet will show.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::kubelet::{Counts, DeviceManager};

/// Longest wait for anything: a kubelet tries for 10 s to connect, and the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(50);

/// How often is looked.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while !is_so().await? {
        if Instant::now() > end {
            bail!("{what}: not within {LIMIT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Waits until the node's status says this of a resource.
pub async fn counts_become(
    kubelet: &mut dyn DeviceManager,
    resource: &str,
    capacity: usize,
    allocatable: usize,
) -> Result<()> {
    let wanted = Counts {
        capacity,
        allocatable,
    };
    let mut seen = None;
    let waited = until("the counts become", async || {
        seen = kubelet.counts(resource).await?;
        Ok(seen == Some(wanted))
    })
    .await;
    waited.with_context(|| format!("{resource}: wanted {wanted:?}, saw {seen:?}"))
}
