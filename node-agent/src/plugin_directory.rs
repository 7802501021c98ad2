//! The kubelet's plugin directory: whether the kubelet's socket is there, and is still the same.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::Stop;
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::board::Board;
use crate::file_events::Subscription;
use crate::tick;

/// Name of the kubelet's socket.
pub const KUBELET_SOCKET: &str = "kubelet.sock";

/// What tells two files of one name apart. An inode number is used again at once, so the time at
/// which the socket was bound belongs to it; not that of the last change, which moves when somebody
/// relabels the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    bound: (i64, i64),
}

impl FileIdentity {
    /// The identity of what is at a path; nothing if nothing is.
    pub fn at(path: &Path) -> Option<Self> {
        let metadata = fs::symlink_metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bound: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    /// Whether it is the same inode; a socket that nobody else can have replaced may have been
    /// relabelled.
    pub fn is_same_inode(self, other: Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// What a look at the directory showed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct View {
    /// The kubelet's socket, if it is there.
    pub kubelet: Option<FileIdentity>,
    /// How many looks there were: whoever has a socket in the directory looks at it each time.
    pub looks: u64,
}

/// Why the directory cannot be watched any further.
#[derive(Debug, thiserror::Error)]
#[error(
    "the plugin directory {directory:?} was replaced by another one, which this container does not \
     see: ending, so that the restart mounts it"
)]
pub struct Replaced {
    /// The directory.
    pub directory: PathBuf,
}

/// Events of other plugins, and the kubelet's checkpoint, are no concern of ours.
pub fn is_interesting(name: &OsStr) -> bool {
    name == KUBELET_SOCKET
        || name
            .to_str()
            .is_some_and(|name| name.starts_with(OUR_PREFIX))
}

/// Looks at the directory whenever it changes, and from time to time.
///
/// # Errors
/// When the directory was replaced.
pub async fn watch(
    directory: PathBuf,
    events: Subscription,
    poll: Duration,
    view: watch::Sender<View>,
    board: Board,
    stop: Stop,
) -> Result<(), Replaced> {
    let mut opened = None;
    loop {
        if opened.is_none() {
            opened = File::open(&directory).ok();
        }
        if let Some(held) = &opened
            && is_replaced(held, &directory)
        {
            return Err(Replaced { directory });
        }
        events.watch(&directory);
        look(&directory, &view, &board);
        tokio::select! {
            () = stop.requested() => return Ok(()),
            () = events.changed() => {}
            () = tick::round(poll) => {}
        }
    }
}

/// Looks at the directory once.
pub fn look(directory: &Path, view: &watch::Sender<View>, board: &Board) {
    let kubelet = FileIdentity::at(&directory.join(KUBELET_SOCKET));
    board.kubelet_socket(kubelet.is_some());
    view.send_modify(|view| {
        if view.kubelet != kubelet {
            tracing::info!(there = kubelet.is_some(), "the kubelet's socket changed");
        }
        *view = View {
            kubelet,
            looks: view.looks.wrapping_add(1),
        };
    });
}

/// A mount holds on to the old directory, so its path leads to it for ever: only its number of links
/// tells that it is gone from the host.
fn is_replaced(held: &File, directory: &Path) -> bool {
    let Ok(held) = held.metadata() else {
        return false;
    };
    let there = fs::metadata(directory);
    let moved = there.is_ok_and(|there| (there.dev(), there.ino()) != (held.dev(), held.ino()));
    held.nlink() == 0 || moved
}

/// Start of the names of all sockets of ours.
const OUR_PREFIX: &str = "dpo-";

/// Names of the sockets that are neither the kubelet's nor of this operator's agents, sorted; none
/// where the directory cannot be read.
pub fn other_sockets(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    let names = sockets.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut others: Vec<String> = names
        .filter(|name| name != KUBELET_SOCKET && !name.starts_with(OUR_PREFIX))
        .collect();
    others.sort();
    others
}

/// Whether a plugin answers in the directory that may serve a resource: one of somebody else, whose
/// resource nobody can tell, or one of ours with the resource's prefix.
pub async fn somebody_may_serve(directory: &Path, prefix: &str) -> bool {
    let ours = fs::read_dir(directory).into_iter().flatten().flatten();
    let ours = ours.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours: Vec<String> = ours.filter(|name| name.starts_with(prefix)).collect();
    for name in other_sockets(directory).iter().chain(&ours) {
        if UnixStream::connect(directory.join(name)).await.is_ok() {
            return true;
        }
    }
    false
}

/// Removes sockets that an earlier process of ours left behind: those of the prefix at which nobody
/// listens. Call it while holding the resource's lock, when no other process makes new ones.
///
/// # Errors
/// When the directory cannot be listed.
pub async fn remove_stale_sockets(directory: &Path, prefix: &str) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = |name: &str| name.starts_with(prefix) && name.ends_with(".sock");
        // Whatever else has such a name is not ours: connecting to it is refused too.
        if name.to_str().is_some_and(is_ours) && entry.file_type()?.is_socket() {
            names.push(name);
        }
    }
    for name in names {
        let path = directory.join(name);
        let refused = UnixStream::connect(&path).await;
        if refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            match fs::remove_file(&path) {
                Ok(()) => tracing::info!(?path, "removed a stale socket of ours"),
                Err(error) => tracing::warn!(?path, %error, "failed to remove a stale socket"),
            }
        }
    }
    Ok(())
}
