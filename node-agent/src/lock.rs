//! The right to register a resource on a node: a lock on a file that all agents of the node share.
//! The kernel frees it with the process, however that ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use node_agent_core::identity::lock_name;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held while it lives. The file is never removed: whoever waits for it would then hold the lock of
/// a file that nobody else can find.
#[derive(Debug)]
pub struct ResourceLock {
    _file: File,
}

impl ResourceLock {
    /// Takes the lock of a resource if it is free.
    ///
    /// # Errors
    /// When the lock's file cannot be made or looked at.
    pub fn try_take(directory: &Path, resource: &str) -> io::Result<Option<Self>> {
        fs::create_dir_all(directory)?;
        let path = directory.join(lock_name(resource));
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // Somebody may have removed the file between opening and locking it.
            let held = file.metadata()?;
            match fs::metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                    return Ok(Some(Self { _file: file }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder() {
        let directory = tempfile::tempdir().unwrap();
        let take = |resource| ResourceLock::try_take(directory.path(), resource).unwrap();
        let held = take("a.com/x");
        assert!(held.is_some());
        assert!(take("a.com/x").is_none(), "held");
        assert!(take("a.com/y").is_some(), "another resource");
        drop(held);
        assert!(take("a.com/x").is_some(), "free again");
        assert!(
            directory.path().join(lock_name("a.com/x")).exists(),
            "never removed"
        );
    }
}
