//! What the agent remembers on the host: which revision has served which resources here. With it a
//! restart needs nobody's word to serve them again. All agents of a config share one file, which only
//! the holder of the role lock writes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crds::AgentConfig;
use serde::{Deserialize, Serialize};

use crate::error_chain::chained;

/// The file of one config.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    config_uid: String,
    revision: String,
    /// Resources that are configured: what a config gave up is approached anew when it comes back.
    configured: BTreeSet<String>,
    /// Held while the file is written: its resources register each for itself.
    writing: Mutex<()>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    /// A config that was made again under its old name starts anew.
    config_uid: String,
    /// The revision that served last.
    revision: String,
    /// Resources that were served.
    resources: BTreeSet<String>,
}

impl StateFile {
    /// The file of a config. One that cannot be understood is as good as absent: the resources are
    /// then approached as if for the first time.
    pub fn open(directory: &Path, config: &AgentConfig) -> Self {
        let file = Self {
            path: directory.join(&config.config),
            config_uid: config.config_uid.clone(),
            revision: config.revision.clone(),
            configured: config.resources.iter().map(|r| r.name.clone()).collect(),
            writing: Mutex::new(()),
        };
        if let Err(error) = read(&file.path) {
            let error = chained(error.as_ref());
            let path = &file.path;
            tracing::warn!(
                ?path,
                error,
                "failed to read the state file: starting without"
            );
        }
        file
    }

    /// What is remembered of this very config. Another agent may have written it a moment ago, so it
    /// is read each time.
    fn state(&self) -> Option<State> {
        let state = read(&self.path).ok().flatten();
        state.filter(|state| state.config_uid == self.config_uid)
    }

    /// The revision that served here last.
    pub fn revision(&self) -> Option<String> {
        self.state().map(|state| state.revision)
    }

    /// Whether this config has served a resource here, in whatever revision.
    pub fn has_served(&self, resource: &str) -> bool {
        self.state()
            .is_some_and(|state| state.resources.contains(resource))
    }

    /// Remembers that this revision serves a resource.
    ///
    /// # Errors
    /// When the file cannot be written: the next start then approaches the resource as if for the
    /// first time.
    pub fn remember(&self, resource: &str) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut resources = self
            .state()
            .map_or_else(BTreeSet::new, |state| state.resources);
        resources.retain(|name| self.configured.contains(name));
        resources.insert(resource.to_owned());
        let state = State {
            config_uid: self.config_uid.clone(),
            revision: self.revision.clone(),
            resources,
        };
        write(&self.path, &state)
    }
}

fn read(path: &Path) -> anyhow::Result<Option<State>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Replaces the file as a whole: a crash leaves the old or the new one.
fn write(path: &Path, state: &State) -> io::Result<()> {
    let text = serde_json::to_vec(state)?;
    // A file that holds this already is left alone: an fsync takes milliseconds.
    if fs::read(path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // A config's name has no dot: no other config's file has this name.
    // Agents of other revisions write their own.
    let fresh = path.with_extension(format!("{}.new", state.revision));
    let mut file = File::create(&fresh)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(uid: &str, resources: &[&str]) -> AgentConfig {
        let resource = |name: &&str| serde_json::json!({ "name": name, "discovery": {} });
        serde_json::from_value(serde_json::json!({
            "config": "fuse",
            "configUid": uid,
            "revision": "0123456789",
            "resources": resources.iter().map(resource).collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    #[test]
    fn what_was_served_is_remembered_for_this_config_only() {
        let directory = tempfile::tempdir().unwrap();
        let open = |config: &AgentConfig| StateFile::open(directory.path(), config);
        let state = open(&config("u1", &["a.com/x", "a.com/y"]));
        assert!(!state.has_served("a.com/x"));
        state.remember("a.com/x").unwrap();
        state.remember("a.com/y").unwrap();
        assert_eq!(state.revision().as_deref(), Some("0123456789"));
        let again = open(&config("u1", &["a.com/x"]));
        assert!(again.has_served("a.com/x"));
        again.remember("a.com/x").unwrap();
        assert!(!state.has_served("a.com/y"), "no longer configured");
        assert_eq!(open(&config("u2", &["a.com/x"])).revision(), None);
        assert!(
            !open(&config("u2", &["a.com/x"])).has_served("a.com/x"),
            "another config"
        );
    }

    #[test]
    fn garbage_is_as_good_as_absent_and_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let config = config("u1", &["a.com/x"]);
        for garbage in ["", "{", "[]", r#"{"configUid":"u1"}"#] {
            fs::write(directory.path().join("fuse"), garbage).unwrap();
            let state = StateFile::open(directory.path(), &config);
            assert!(!state.has_served("a.com/x"), "{garbage:?}");
            state.remember("a.com/x").unwrap();
            assert!(StateFile::open(directory.path(), &config).has_served("a.com/x"));
        }
    }
}
