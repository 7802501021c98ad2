//! What a cluster was started with, for those who attach to it later.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use crate::parts::Binaries;

/// Written when everything is up: a cluster without it was interrupted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) nodes: u8,
    pub(super) binaries: Binaries,
}

/// Writes the record of a complete cluster.
pub(super) fn write(layout: &Layout, record: &Record) -> Result<()> {
    let path = layout.record();
    let draft = path.with_extension("draft");
    fs::write(&draft, serde_json::to_vec_pretty(record)?)
        .and_then(|()| fs::rename(&draft, &path))
        .with_context(|| format!("failed to write {:?}", path.display()))
}

/// The record of the cluster, if there is one that this version understands.
pub(super) fn read(layout: &Layout) -> Result<Option<Record>> {
    let path = layout.record();
    match fs::read(&path) {
        // Another version's cluster is removed like a broken one.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to read {:?}", path.display())),
    }
}
