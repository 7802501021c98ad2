//! One process at a time starts or removes the machine's cluster.

use std::fs::File;

use anyhow::{Context, Result};

use super::layout::Layout;
use crate::progress::Progress;

/// Waits until nobody else starts or removes a cluster. The lock ends with the returned file.
///
/// The directory around the state is locked, not a file in it: the state comes and goes, and a lock
/// file elsewhere would be left behind.
pub(super) fn take(layout: &Layout, progress: &Progress) -> Result<File> {
    let directory = layout
        .root()
        .parent()
        .context("the state directory has no parent")?;
    let file = File::open(directory)
        .with_context(|| format!("failed to open {:?}", directory.display()))?;
    if file.try_lock().is_err() {
        progress.note("waiting for another process that starts or removes a cluster");
        file.lock()
            .with_context(|| format!("failed to lock {:?}", directory.display()))?;
    }
    Ok(file)
}
