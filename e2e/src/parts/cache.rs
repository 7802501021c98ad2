//! The directory outside the repository where built programs are kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::catalogue::{GO_TOOLCHAIN, Part};
use crate::progress::Progress;

/// Our directory below the user's cache directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/device-plugin-operator`, by default below `~/.cache`.
    pub fn of_user() -> Result<Self> {
        let directory = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = directory("XDG_CACHE_HOME")
            .or_else(|| directory("HOME").map(|home| home.join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME names an absolute path")?;
        Ok(Self::at(base.join("device-plugin-operator")))
    }

    /// A cache in a directory of the caller's choice.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where built parts are.
    pub fn parts(&self) -> PathBuf {
        self.root.join("parts")
    }

    /// Where the programs of `part` are, once built.
    pub fn part_directory(&self, part: &Part) -> PathBuf {
        self.parts().join(format!("{}-{}", part.name, key(part)))
    }

    /// Keeps other processes from building parts until the file is dropped.
    pub fn lock(&self, progress: &Progress) -> Result<File> {
        fs::create_dir_all(&self.root)
            .with_context(|| format!("failed to create {:?}", self.root.display()))?;
        let path = self.root.join("lock");
        let file = File::create(&path)
            .with_context(|| format!("failed to create {:?}", path.display()))?;
        if file.try_lock().is_ok() {
            return Ok(file);
        }
        progress.note("waiting for another process that builds parts");
        file.lock()
            .with_context(|| format!("failed to lock {:?}", path.display()))?;
        Ok(file)
    }
}

/// Names what `part` is built from: equal keys mean equal programs.
pub fn key(part: &Part) -> String {
    let flags = part.build_flags();
    let sources = part.sources.iter().flat_map(|(name, text)| [*name, *text]);
    digest(
        [part.go_mod, part.go_sum, GO_TOOLCHAIN]
            .into_iter()
            .chain(flags.iter().map(String::as_str))
            .chain(sources),
    )
}

/// Sixteen hex digits over `fields`. Each goes in with its length: the same bytes cut elsewhere are
/// other fields.
fn digest<'field>(fields: impl Iterator<Item = &'field str>) -> String {
    let mut hash = Sha256::new();
    for field in fields {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field.as_bytes());
    }
    let hash: [u8; 32] = hash.finalize().into();
    hash.iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::parts::catalogue::{DEVICE_MANAGERS, PARTS};

    #[test]
    fn every_part_has_a_key_of_its_own() {
        let keys: BTreeSet<_> = PARTS.iter().chain(&DEVICE_MANAGERS).map(key).collect();
        assert_eq!(keys.len(), PARTS.len() + DEVICE_MANAGERS.len());
        assert!(keys.iter().all(|key| key.len() == 16));
    }

    #[test]
    fn a_key_depends_on_every_field_and_where_it_ends() {
        let keys: BTreeSet<_> = [["a", "b"], ["a", "c"], ["ab", ""], ["", "ab"], ["b", "a"]]
            .into_iter()
            .map(|fields| digest(fields.into_iter()))
            .collect();
        assert_eq!(keys.len(), 5);
        // Pinned: a change of the scheme throws every user's built programs away, and must be
        // meant.
        assert_eq!(digest(["go.mod", "go.sum"].into_iter()), "e54928d8248fe98d");
    }
}
