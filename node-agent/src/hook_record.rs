//! What the agent remembers on the host of what hooks did to devices. All agents of a config share
//! the files, one for each resource; only the holder of the role lock writes them.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crds::AgentConfig;
use crds::names::short_hash;
use node_agent_core::hooks::Record;
use serde::{Deserialize, Serialize};

/// The file of one resource.
#[derive(Clone, Debug)]
pub struct HookRecord {
    path: PathBuf,
    config_uid: String,
    revision: String,
    /// Which record was written last: writes may overtake each other.
    written: Arc<Mutex<u64>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    /// A config that was made again under its old name starts anew.
    config_uid: String,
    resource: String,
    #[serde(flatten)]
    record: Record,
}

impl HookRecord {
    /// The file of a resource, which need not be there.
    pub fn new(directory: &Path, config: &AgentConfig, resource: &str) -> Self {
        // A config's name has no dot: no other file has this name.
        let name = format!("{}.{}.hooks", config.config, short_hash(resource));
        Self {
            path: directory.join(name),
            config_uid: config.config_uid.clone(),
            revision: config.revision.clone(),
            written: Arc::default(),
        }
    }

    /// What is remembered of this very config. What cannot be understood is as good as absent.
    pub fn read(&self) -> Record {
        let path = &self.path;
        let content: Content = match fs::read(path).map(|text| serde_json::from_slice(&text)) {
            Ok(Ok(content)) => content,
            Err(error) if error.kind() == ErrorKind::NotFound => return Record::default(),
            Ok(Err(error)) => {
                tracing::warn!(?path, %error, "failed to understand what hooks did: starting anew");
                return Record::default();
            }
            Err(error) => {
                tracing::warn!(?path, %error, "failed to read what hooks did: starting anew");
                return Record::default();
            }
        };
        if content.config_uid == self.config_uid {
            content.record
        } else {
            Record::default()
        }
    }

    /// Replaces the file as a whole, unless a later record was written already: a crash leaves the
    /// old or the new one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, number: u64, resource: &str, record: Record) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written >= number {
            return Ok(());
        }
        let content = Content {
            config_uid: self.config_uid.clone(),
            resource: resource.to_owned(),
            record,
        };
        let text = serde_json::to_vec(&content)?;
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        // Agents of other revisions write their own.
        let fresh = self.path.with_extension(format!("{}.new", self.revision));
        let mut file = File::create(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        *written = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(directory: &Path, uid: &str) -> HookRecord {
        let config = serde_json::from_value(serde_json::json!({
            "config": "gpu", "configUid": uid, "revision": "0123456789", "resources": [],
        }));
        HookRecord::new(directory, &config.unwrap(), "a.com/x")
    }

    #[test]
    fn what_was_done_is_remembered_for_this_config_only() {
        let home = tempfile::tempdir().unwrap();
        let file = record(home.path(), "u1");
        assert_eq!(file.read(), Record::default());
        let mut done = Record::default();
        done.initialised("a", "boot-1", "h");
        done.used.insert("b".to_owned());
        done.reset.insert("c".to_owned());
        file.write(2, "a.com/x", done.clone()).unwrap();
        file.write(1, "a.com/x", Record::default()).unwrap();
        assert_eq!(record(home.path(), "u1").read(), done, "the later one wins");
        assert_eq!(record(home.path(), "u2").read(), Record::default());
        let name = format!("gpu.{}.hooks", short_hash("a.com/x"));
        let files = fs::read_dir(home.path()).unwrap();
        let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        assert_eq!(names, [name.as_str()], "no half-written file stays");
        for garbage in ["", "{", "[]", r#"{"configUid":"u1"}"#, r#"{"used":7}"#] {
            fs::write(home.path().join(&name), garbage).unwrap();
            assert_eq!(record(home.path(), "u1").read(), Record::default());
        }
    }
}
