//! The host's `/dev`, seen at another place.
//!
//! Links are resolved here and not by the kernel: an absolute link means the host's path, and would
//! lead into our own container; a link out of `/dev` must not be followed at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use node_agent_core::discovery::{Candidate, Kind, Target};
use node_agent_core::rule::Rule;
use rustix::fs::{major, minor};

/// Most links on the way to a device: the kernel's own limit.
const LINKS_MAX: usize = 40;

/// The host's `/dev`.
#[derive(Clone, Debug)]
pub struct HostDev {
    root: PathBuf,
}

/// What one look found.
#[derive(Debug, Default)]
pub struct Look {
    /// Paths that the rule matches.
    pub candidates: Vec<Candidate>,
    /// Directories that could not be listed, and why.
    pub unreadable: BTreeMap<String, String>,
    /// Directories, at their place here, in which a change can change the result.
    pub directories: BTreeSet<PathBuf>,
}

/// Whether every process of the node may make links and files in a directory, as in `/dev/shm`: what
/// is found there is no device that the administrator put there.
fn is_open_to_everybody(place: &Path) -> bool {
    const WRITABLE_BY_OTHERS: u32 = 0o002;
    fs::metadata(place).is_ok_and(|metadata| metadata.mode() & WRITABLE_BY_OTHERS != 0)
}

enum Resolved {
    Node(Vec<String>, Metadata),
    Missing,
    Outside(String),
    Unreadable(String),
}

impl HostDev {
    /// The host's `/dev`, mounted at `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Looks for what a rule matches. `entering` is called with each directory before it is listed,
    /// so that whoever watches it misses nothing in between.
    pub fn look(&self, rule: &Rule, entering: impl Fn(&Path)) -> Look {
        let mut look = Look::default();
        let mut open = vec!["/dev".to_owned()];
        while let Some(directory) = open.pop() {
            if !rule.may_hold_matches(&directory) {
                continue;
            }
            let place = self.place(&directory);
            if is_open_to_everybody(&place) {
                continue;
            }
            entering(&place);
            if let Err(error) = self.list(&directory, &place, rule, &mut open, &mut look) {
                // A directory may vanish while we look, except the first one.
                if error.kind() != ErrorKind::NotFound || directory == "/dev" {
                    look.unreadable.insert(directory, error.to_string());
                }
            }
            look.directories.insert(place);
        }
        self.enter_targets(&mut look, entering);
        look
    }

    /// A link's device may come and go in another directory than the link.
    fn enter_targets(&self, look: &mut Look, entering: impl Fn(&Path)) {
        let parent = |candidate: &Candidate| match &candidate.target {
            Target::Device { path, .. } => self.place(path).parent().map(Path::to_owned),
            Target::Other(_) | Target::Outside(_) | Target::Unreadable(_) => None,
        };
        let parents: BTreeSet<PathBuf> = look.candidates.iter().filter_map(parent).collect();
        let entered: BTreeSet<PathBuf> = parents.difference(&look.directories).cloned().collect();
        for directory in &entered {
            entering(directory);
        }
        // What happened in a directory before it was watched is told by nobody: look once more.
        look.candidates.retain_mut(|candidate| {
            if parent(candidate).is_none_or(|parent| !entered.contains(&parent)) {
                return true;
            }
            let target = self.target(&candidate.path);
            target.map(|target| candidate.target = target).is_some()
        });
        look.directories.extend(entered);
    }

    /// What a path of the host leads to; nothing if there is nothing.
    pub fn target(&self, path: &str) -> Option<Target> {
        match self.resolved(path) {
            Resolved::Missing => None,
            Resolved::Outside(place) => Some(Target::Outside(place)),
            Resolved::Unreadable(error) => Some(Target::Unreadable(error)),
            Resolved::Node(names, metadata) => Some(target(&names, &metadata)),
        }
    }

    /// The directory, at its place here, that a path of the host is in.
    pub fn parent(&self, path: &str) -> Option<PathBuf> {
        self.place(path).parent().map(Path::to_owned)
    }

    fn list(
        &self,
        directory: &str,
        place: &Path,
        rule: &Rule,
        open: &mut Vec<String>,
        look: &mut Look,
    ) -> io::Result<()> {
        for entry in fs::read_dir(place)? {
            let entry = entry?;
            // A name that is not UTF-8 cannot be told to the kubelet.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = format!("{directory}/{name}");
            if rule.matches(&path)
                && let Some(target) = self.target(&path)
            {
                look.candidates.push(Candidate {
                    path: path.clone(),
                    target,
                });
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            }
        }
        Ok(())
    }

    /// Where a path of the host is here.
    fn place(&self, path: &str) -> PathBuf {
        self.root
            .join(path.trim_start_matches("/dev").trim_start_matches('/'))
    }

    fn resolved(&self, path: &str) -> Resolved {
        let Some(below) = path.strip_prefix("/dev/") else {
            return Resolved::Outside(path.to_owned());
        };
        let mut ahead: VecDeque<String> = below.split('/').map(str::to_owned).collect();
        let mut behind: Vec<String> = Vec::new();
        let mut last = None;
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    if behind.pop().is_none() {
                        return Resolved::Outside(format!("{path} (above /dev)"));
                    }
                    last = None;
                    continue;
                }
                _ => behind.push(name),
            }
            let place = self.root.join(behind.join("/"));
            let metadata = match fs::symlink_metadata(&place) {
                Ok(metadata) => metadata,
                Err(error) => return missing_or(error),
            };
            if !metadata.is_symlink() {
                last = Some(metadata);
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Resolved::Unreadable("too many levels of links".to_owned());
            }
            behind.pop();
            let to = match fs::read_link(&place) {
                Ok(to) => to.to_string_lossy().into_owned(),
                Err(error) => return missing_or(error),
            };
            let names = match to.strip_prefix('/') {
                None => to.as_str(),
                Some(absolute) => match absolute.strip_prefix("dev/") {
                    Some(below) => {
                        behind.clear();
                        below
                    }
                    None => return Resolved::Outside(to),
                },
            };
            for name in names.split('/').rev() {
                ahead.push_front(name.to_owned());
            }
        }
        match last {
            Some(metadata) => Resolved::Node(behind, metadata),
            None => match fs::symlink_metadata(self.root.join(behind.join("/"))) {
                Ok(metadata) => Resolved::Node(behind, metadata),
                Err(error) => missing_or(error),
            },
        }
    }
}

fn missing_or(error: io::Error) -> Resolved {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Resolved::Missing,
        _ => Resolved::Unreadable(error.to_string()),
    }
}

fn target(names: &[String], metadata: &Metadata) -> Target {
    let kind = metadata.file_type();
    let device = |kind| Target::Device {
        path: format!("/dev/{}", names.join("/")),
        kind,
        major: major(metadata.rdev()),
        minor: minor(metadata.rdev()),
    };
    if kind.is_char_device() {
        device(Kind::Character)
    } else if kind.is_block_device() {
        device(Kind::Block)
    } else if kind.is_dir() {
        Target::Other("a directory")
    } else if kind.is_socket() {
        Target::Other("a socket")
    } else if kind.is_fifo() {
        Target::Other("a pipe")
    } else {
        Target::Other("a regular file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_node_behind_the_link() {
        let dev = HostDev::new(PathBuf::from("/dev"));
        let null = dev.target("/dev/null");
        let path = "/dev/null".to_owned();
        let kind = Kind::Character;
        assert_eq!(
            null,
            Some(Target::Device {
                path,
                kind,
                major: 1,
                minor: 3
            })
        );
        assert_eq!(dev.target("/dev/no-such-device"), None);
        assert_eq!(
            dev.target("/etc/passwd"),
            Some(Target::Outside("/etc/passwd".to_owned()))
        );
    }

    #[test]
    fn directories_that_everybody_may_write_are_not_looked_into() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("shm");
        fs::create_dir(&place).unwrap();
        for (mode, open) in [(0o755, false), (0o1777, true)] {
            fs::set_permissions(&place, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_open_to_everybody(&place), open, "{mode:o}");
        }
    }

    #[test]
    fn links_never_lead_out() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("dev");
        fs::create_dir_all(root.join("deep/er")).unwrap();
        fs::write(root.join("file"), "x").unwrap();
        fs::write(home.path().join("secret"), "x").unwrap();
        let dev = HostDev::new(root.clone());
        let check = |to: &str, expected: Option<Target>| {
            let link = root.join("deep/link");
            std::os::unix::fs::symlink(to, &link).unwrap();
            assert_eq!(dev.target("/dev/deep/link"), expected, "{to:?}");
            fs::remove_file(link).unwrap();
        };
        let file = || Some(Target::Other("a regular file"));
        let outside = |place: &str| Some(Target::Outside(place.to_owned()));
        check("../file", file());
        check("/dev/file", file());
        check("/dev/deep/er/../../file", file());
        check("er/..", Some(Target::Other("a directory")));
        check("../../secret", outside("/dev/deep/link (above /dev)"));
        check("/dev/../secret", outside("/dev/deep/link (above /dev)"));
        check(
            "/dev/deep/../../secret",
            outside("/dev/deep/link (above /dev)"),
        );
        check("/secret", outside("/secret"));
        check("/devil/file", outside("/devil/file"));
        check("../nothing", None);
        check(
            "link",
            Some(Target::Unreadable("too many levels of links".to_owned())),
        );
    }
}
