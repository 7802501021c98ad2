//! Files that are generated and kept in the tree, so that a reader and `helm` need no tool of ours.

mod definitions;
mod reference;
pub mod values;

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::workspace::root;

/// A file of the tree: its path from the root, and its text.
pub type File = (PathBuf, String);

fn files() -> anyhow::Result<Vec<File>> {
    let mut files = definitions::files()?;
    files.push(reference::file());
    files.push(values::file()?);
    Ok(files)
}

/// Writes them.
pub fn write() -> anyhow::Result<()> {
    for (path, text) in files()? {
        let place = root().join(&path);
        if let Some(directory) = place.parent() {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("failed to make {directory:?}"))?;
        }
        std::fs::write(place, text).with_context(|| format!("failed to write {path:?}"))?;
    }
    Ok(())
}

/// Fails and names each that is not, byte for byte, as it would be written.
pub fn compare() -> anyhow::Result<()> {
    let stale: Vec<String> = files()?
        .into_iter()
        .filter(|(path, text)| {
            std::fs::read_to_string(root().join(path)).ok().as_deref() != Some(text)
        })
        .map(|(path, _)| path.display().to_string())
        .collect();
    if !stale.is_empty() {
        bail!(
            "not as generated: {}; `cargo xtask gen` writes them",
            stale.join(", ")
        );
    }
    Ok(())
}
