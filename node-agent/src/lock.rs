//! Rights that the processes of a node share out among themselves: locks on files of one directory.
//! The kernel frees a lock with its process, however that ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held while it lives. The file is never removed: whoever waits for it would then hold the lock of
/// a file that nobody else can find.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

impl FileLock {
    /// Takes the lock of a file if it is free.
    ///
    /// # Errors
    /// When the file cannot be made or looked at.
    pub fn try_take(directory: &Path, name: &str) -> io::Result<Option<Self>> {
        fs::create_dir_all(directory)?;
        let path = directory.join(name);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            if !locked(&file, FlockOperation::NonBlockingLockExclusive)? {
                return Ok(None);
            }
            // Somebody may have removed the file between opening and locking it.
            let held = file.metadata()?;
            match fs::metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                    return Ok(Some(Self { file }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether another process holds the lock of a file. The file is not made for it. Whoever asks
    /// shares the lock for a moment: others who ask are not misled, and who wants it tries again.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn is_held(directory: &Path, name: &str) -> io::Result<bool> {
        match File::open(directory.join(name)) {
            Ok(file) => Ok(!locked(&file, FlockOperation::NonBlockingLockShared)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn locked(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder() {
        let directory = tempfile::tempdir().unwrap();
        let take = |name| FileLock::try_take(directory.path(), name).unwrap();
        let held = take("x.lock");
        assert!(held.is_some());
        assert!(take("x.lock").is_none(), "held");
        assert!(take("y.lock").is_some(), "another one");
        drop(held);
        assert!(take("x.lock").is_some(), "free again");
        assert!(directory.path().join("x.lock").exists(), "never removed");
    }

    #[test]
    fn asking_who_holds_a_lock_makes_and_takes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let is_held = || FileLock::is_held(directory.path(), "x.lock").unwrap();
        assert!(!is_held());
        assert!(!directory.path().join("x.lock").exists());
        let held = FileLock::try_take(directory.path(), "x.lock").unwrap();
        assert!(is_held() && is_held());
        drop(held);
        assert!(!is_held());
        assert!(
            FileLock::try_take(directory.path(), "x.lock")
                .unwrap()
                .is_some()
        );
    }

    /// Somebody who cleans up /run must not make two holders.
    #[test]
    fn a_lock_is_on_the_file_that_others_find() {
        let directory = tempfile::tempdir().unwrap();
        let first = FileLock::try_take(directory.path(), "x.lock").unwrap();
        fs::remove_file(directory.path().join("x.lock")).unwrap();
        let second = FileLock::try_take(directory.path(), "x.lock").unwrap();
        assert!(first.is_some() && second.is_some());
        assert!(
            FileLock::try_take(directory.path(), "x.lock")
                .unwrap()
                .is_none()
        );
    }
}
