//! Keeps a resource's CDI specification on the host, as `cdi` of the core makes it. Only the agent
//! that serves the resource writes: it writes before it answers.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crds::container::{Cdi, ContainerAccess};
use crds::resource::Resource;
use node_agent_core::cdi::{Specification, file_name, is_same, specification};
use node_agent_core::inventory::Inventory;

use crate::board::Board;
use crate::error_chain::chained;

/// Why the runtime would not find a device.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the CDI specification {path:?}")]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// The specification of one resource.
#[derive(Debug)]
pub struct CdiFile {
    path: PathBuf,
    resource: String,
    access: ContainerAccess,
    board: Board,
    written: Mutex<Option<Written>>,
}

/// What was written, and which file that is.
#[derive(Debug)]
struct Written {
    inventory: Arc<Inventory>,
    file: (u64, u64),
}

impl CdiFile {
    /// The file of a resource, if it has one.
    pub fn new(directory: &Path, resource: &Resource, board: Board) -> Option<Self> {
        let access = resource.container_access();
        match access.cdi {
            Cdi::Disabled => None,
            Cdi::Enabled => Some(Self {
                path: directory.join(file_name(&resource.name)),
                resource: resource.name.clone(),
                access,
                board,
                written: Mutex::default(),
            }),
        }
    }

    /// Makes the file hold every device of the inventory. Where nothing changed, and nobody took the
    /// file away, that is one look at it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, inventory: &Arc<Inventory>) -> Result<(), WriteError> {
        let kept = self.try_keep(inventory);
        let error = kept
            .as_ref()
            .err()
            .map(|error| chained(error))
            .unwrap_or_default();
        let is_news = self.board.post(&self.resource, |seen| {
            let changed = seen.cdi_error != error;
            seen.cdi_error.clone_from(&error);
            changed
        });
        if is_news && !error.is_empty() {
            tracing::error!(
                resource = self.resource,
                error,
                "no device can be given out"
            );
        }
        kept
    }

    fn try_keep(&self, inventory: &Arc<Inventory>) -> Result<(), WriteError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(written) = &mut *written
            && identity(&self.path) == Some(written.file)
            && (Arc::ptr_eq(&written.inventory, inventory)
                || is_same(&written.inventory, inventory))
        {
            written.inventory = inventory.clone();
            return Ok(());
        }
        let failed = |source| WriteError {
            path: self.path.clone(),
            source,
        };
        // What is there tells also of devices that another agent specified.
        let present = fs::read(&self.path).ok();
        let before = present.as_deref().and_then(|text| self.parsed(text));
        let next = specification(&self.resource, &self.access, inventory, before);
        let text = serde_json::to_vec(&next).map_err(|error| failed(error.into()))?;
        if present.as_ref() != Some(&text) {
            replace(&self.path, &text).map_err(failed)?;
            tracing::info!(path = ?self.path, "wrote a CDI specification");
        }
        let file = identity(&self.path).ok_or_else(|| failed(ErrorKind::NotFound.into()))?;
        *written = Some(Written {
            inventory: inventory.clone(),
            file,
        });
        Ok(())
    }

    fn parsed(&self, text: &[u8]) -> Option<Specification> {
        match serde_json::from_slice(text) {
            Ok(specification) => Some(specification),
            Err(error) => {
                tracing::warn!(path = ?self.path, %error, "what the file held is no CDI specification of ours");
                None
            }
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Replaces a file as a whole: runtimes read it at any moment, and a crash leaves the old or the new
/// one.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    // Runtimes read files whose names end in .json and .yaml only.
    let fresh = path.with_extension("json.new");
    let mut file = File::create(&fresh)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_agent_core::discovery::{Discovered, Found, Hardware};
    use serde_json::{Value, json};

    fn resource(cdi: &str) -> Resource {
        serde_json::from_value(json!({
            "name": "example.com/fpga",
            "discovery": { "paths": { "globs": ["/dev/fpga*"] } },
            "container": { "cdi": cdi },
        }))
        .unwrap()
    }

    fn file_in(directory: &Path, cdi: &str) -> Option<CdiFile> {
        let board = Board::new(std::iter::once("example.com/fpga".to_owned()));
        CdiFile::new(directory, &resource(cdi), board)
    }

    fn inventory(devices: &[&str]) -> Arc<Inventory> {
        let found = |id: &&str| {
            let hardware = Hardware {
                nodes: vec![format!("/dev/{id}")],
                ..Hardware::default()
            };
            let found = Found {
                paths: vec![format!("/dev/{id}")],
                hardware,
                ..Found::default()
            };
            ((*id).to_owned(), found)
        };
        let discovered = Discovered {
            devices: devices.iter().map(found).collect(),
            ..Discovered::default()
        };
        let now = jiff::Timestamp::UNIX_EPOCH;
        Arc::new(Inventory::default().next(discovered, Some(&Default::default()), now))
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_file_is_what_runtimes_read() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("cdi");
        assert!(file_in(&directory, "Disabled").is_none());
        let file = file_in(&directory, "Enabled").unwrap();
        file.keep(&inventory(&["fpga0"])).unwrap();
        assert_eq!(names(&directory), [file_name("example.com/fpga")]);
        let text = fs::read(&file.path).unwrap();
        let node = json!({ "path": "/dev/fpga0", "hostPath": "/dev/fpga0", "permissions": "rw" });
        assert_eq!(
            serde_json::from_slice::<Value>(&text).unwrap(),
            json!({
                "cdiVersion": "0.6.0",
                "kind": "example.com/fpga",
                "devices": [{ "name": "fpga0", "containerEdits": { "deviceNodes": [node] } }],
            })
        );
    }

    #[test]
    fn a_file_is_written_when_it_has_to_change_only() {
        let home = tempfile::tempdir().unwrap();
        let file = file_in(home.path(), "Enabled").unwrap();
        file.keep(&inventory(&["fpga0"])).unwrap();
        let first = identity(&file.path).unwrap();
        file.keep(&inventory(&["fpga0"])).unwrap();
        // The next agent, after a restart or a hand-over.
        let again = file_in(home.path(), "Enabled").unwrap();
        again.keep(&inventory(&["fpga0"])).unwrap();
        assert_eq!(identity(&file.path), Some(first));
        again.keep(&inventory(&["fpga0", "fpga1"])).unwrap();
        assert_ne!(identity(&file.path), Some(first));
    }

    #[test]
    fn a_file_that_is_taken_away_or_spoilt_is_written_again() {
        let home = tempfile::tempdir().unwrap();
        let file = file_in(home.path(), "Enabled").unwrap();
        let devices = inventory(&["fpga0"]);
        file.keep(&devices).unwrap();
        let text = fs::read(&file.path).unwrap();
        fs::remove_file(&file.path).unwrap();
        file.keep(&devices).unwrap();
        assert_eq!(fs::read(&file.path).unwrap(), text);
        for garbage in ["", "{", "[]", r#"{"devices":[{"name":1}]}"#] {
            fs::write(&file.path, garbage).unwrap();
            let again = file_in(home.path(), "Enabled").unwrap();
            again.keep(&devices).unwrap();
            assert_eq!(fs::read(&file.path).unwrap(), text, "{garbage:?}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("cdi");
        fs::write(&place, "a file").unwrap();
        let file = file_in(&place, "Enabled").unwrap();
        let error = file.keep(&inventory(&["fpga0"])).unwrap_err().to_string();
        assert!(
            error.contains("CDI specification") && error.contains("cdi/"),
            "{error}"
        );
        let posted = file.board.subscribe().borrow().clone();
        let posted = &posted.resources["example.com/fpga"].cdi_error;
        assert!(
            posted.starts_with(&error) && posted.len() > error.len(),
            "{posted}"
        );
        fs::remove_file(&place).unwrap();
        file.keep(&inventory(&["fpga0"])).unwrap();
        let posted = file.board.subscribe().borrow().clone();
        assert_eq!(posted.resources["example.com/fpga"].cdi_error, "");
    }
}
