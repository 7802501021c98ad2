//! Which devices the configs of a node have taken, so that no two of them give out the same one.
//!
//! Each process has a file in the directory of the locks, with the numbers of the devices that its
//! config wants, and holds the file's lock while it lives: a list without a living owner is what is
//! left of a process. All processes read and write under one lock, so whoever comes first has a
//! device, and nobody sees half a list. Processes of one config share what they have.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node_agent_core::discovery::Numbers;

use crate::lock::FileLock;

/// The file whose lock is held while the lists are read and written.
const TABLE_LOCK: &str = "claims.lock";

/// How the names of lists end; before it stand a config's name, which has no dot, and a number.
const LIST: &str = ".claims";

/// Processes of one config on a node: the one that serves, one that stands by, and those that are
/// ending or were started beside them by mistake.
const PROCESSES_MAX: usize = 16;

/// How long a list counts after its process was seen to be gone: its containers may still run, and
/// its agent may come back. The kubelet keeps a plugin's devices as long.
pub const ENDED_GRACE: Duration = Duration::from_secs(300);

/// One process's view on the table.
#[derive(Debug)]
pub struct ClaimTable {
    directory: PathBuf,
    config: String,
    grace: Duration,
    list: Option<FileLock>,
    written: BTreeSet<Numbers>,
    /// What was written last may not be what the file holds.
    is_torn: bool,
    taken: BTreeMap<Numbers, String>,
    ended: BTreeMap<String, Instant>,
}

impl ClaimTable {
    /// The table in the directory of the locks, as a process of a config sees it.
    pub fn new(directory: PathBuf, config: String, grace: Duration) -> Self {
        Self {
            directory,
            config,
            grace,
            list: None,
            written: BTreeSet::new(),
            is_torn: false,
            taken: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    /// Takes devices, and gives up those that are no longer wanted. Tells which of them other configs
    /// have, as a clause. Costs nothing while everything is as it was.
    ///
    /// # Errors
    /// When the table cannot be read or written; with [`ErrorKind::WouldBlock`] while another process
    /// does. Nothing more is taken then.
    pub fn take(&mut self, wanted: &BTreeSet<Numbers>) -> io::Result<&BTreeMap<Numbers, String>> {
        if self.taken.is_empty() && *wanted == self.written && !self.is_torn {
            return Ok(&self.taken);
        }
        let Some(_alone) = FileLock::try_take(&self.directory, TABLE_LOCK)? else {
            return Err(ErrorKind::WouldBlock.into());
        };
        let others = self.others()?;
        let own: BTreeSet<Numbers> = wanted
            .iter()
            .filter(|one| !others.contains_key(one))
            .copied()
            .collect();
        if own != self.written || self.is_torn {
            self.is_torn = true;
            // Until it is written, only what was ours before and stays so.
            self.written.retain(|numbers| own.contains(numbers));
            self.write(&own)?;
            self.written = own;
            self.is_torn = false;
        }
        self.taken = others;
        self.taken.retain(|numbers, _| wanted.contains(numbers));
        Ok(&self.taken)
    }

    /// Devices that were not taken yet.
    pub fn not_taken(&self, wanted: &BTreeSet<Numbers>) -> BTreeSet<Numbers> {
        wanted.difference(&self.written).copied().collect()
    }

    fn write(&mut self, own: &BTreeSet<Numbers>) -> io::Result<()> {
        if self.list.is_none() {
            self.list = self.free_list()?;
        }
        let list = self.list.as_ref().ok_or(ErrorKind::WouldBlock)?;
        let text: String = own
            .iter()
            .map(|(major, minor)| format!("{major}:{minor}\n"))
            .collect();
        let mut file = list.file();
        // Over what is there: a file system that is full has room for that.
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.set_len(u64::try_from(text.len()).unwrap_or(u64::MAX))
    }

    fn free_list(&self) -> io::Result<Option<FileLock>> {
        for number in 0..PROCESSES_MAX {
            let name = format!("{}.{number}{LIST}", self.config);
            if let Some(list) = FileLock::try_take(&self.directory, &name)? {
                return Ok(Some(list));
            }
        }
        Ok(None)
    }

    /// What other configs have.
    fn others(&mut self) -> io::Result<BTreeMap<Numbers, String>> {
        let mut others = BTreeMap::new();
        let mut ended = BTreeMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let Ok(name) = entry?.file_name().into_string() else {
                continue;
            };
            let config = name
                .strip_suffix(LIST)
                .and_then(|name| name.split_once('.'));
            let Some((config, _)) = config.filter(|(config, _)| *config != self.config) else {
                continue;
            };
            let reason = if FileLock::is_held(&self.directory, &name)? {
                format!("is claimed by config {config:?} on this node, which came first")
            } else {
                let since = *self.ended.get(&name).unwrap_or(&Instant::now());
                ended.insert(name.clone(), since);
                if since.elapsed() >= self.grace {
                    fs::remove_file(self.directory.join(&name))?;
                    continue;
                }
                format!(
                    "is claimed by config {config:?} on this node, whose agent has ended: it is \
                     free {} seconds after that, unless it comes back",
                    self.grace.as_secs()
                )
            };
            let list = listed(&self.directory.join(&name))?;
            others.extend(list.into_iter().map(|numbers| (numbers, reason.clone())));
        }
        self.ended = ended;
        Ok(others)
    }
}

/// The numbers in a list; what is not one is left out.
fn listed(path: &Path) -> io::Result<Vec<Numbers>> {
    let text = fs::read(path)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let numbers = text.lines().filter_map(|line| {
        let (major, minor) = line.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    Ok(numbers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn table(home: &Path, config: &str, grace: Duration) -> ClaimTable {
        ClaimTable::new(home.to_owned(), config.to_owned(), grace)
    }

    fn set(minors: &[u32]) -> BTreeSet<Numbers> {
        minors.iter().map(|minor| (226, *minor)).collect()
    }

    fn taken(table: &mut ClaimTable, minors: &[u32]) -> Vec<u32> {
        let taken = table.take(&set(minors)).unwrap();
        taken.keys().map(|(_, minor)| *minor).collect()
    }

    #[test]
    fn whoever_comes_first_has_a_device() {
        let home = tempfile::tempdir().unwrap();
        let mut one = table(home.path(), "one", HOUR);
        let mut other = table(home.path(), "other", HOUR);
        assert!(taken(&mut one, &[1, 2]).is_empty());
        assert_eq!(taken(&mut other, &[2, 3]), [2]);
        assert_eq!(taken(&mut one, &[1, 2, 3]), [3]);
        let reason = other.take(&set(&[2, 3])).unwrap()[&(226, 2)].clone();
        assert_eq!(
            reason,
            r#"is claimed by config "one" on this node, which came first"#
        );
        assert_eq!(taken(&mut one, &[1]), [0; 0], "given up");
        assert!(taken(&mut other, &[2, 3]).is_empty());
    }

    #[test]
    fn processes_of_one_config_share() {
        let home = tempfile::tempdir().unwrap();
        let mut active = table(home.path(), "one", HOUR);
        let mut standby = table(home.path(), "one", HOUR);
        assert!(taken(&mut active, &[1]).is_empty() && taken(&mut standby, &[1, 2]).is_empty());
        drop(active);
        let mut other = table(home.path(), "other", Duration::ZERO);
        assert_eq!(taken(&mut other, &[1, 2, 3]), [1, 2], "one of them lives");
        drop(standby);
        assert!(taken(&mut other, &[1, 2, 3]).is_empty());
    }

    #[test]
    fn what_a_process_left_counts_for_the_grace() {
        let home = tempfile::tempdir().unwrap();
        let mut one = table(home.path(), "one", HOUR);
        taken(&mut one, &[1]);
        drop(one);
        let mut patient = table(home.path(), "other", HOUR);
        assert_eq!(taken(&mut patient, &[1]), [1]);
        assert!(patient.take(&set(&[1])).unwrap()[&(226, 1)].contains("has ended"));
        let mut back = table(home.path(), "one", HOUR);
        assert!(taken(&mut back, &[1]).is_empty());
        drop(back);
        let mut hasty = table(home.path(), "third", Duration::ZERO);
        assert!(taken(&mut hasty, &[1]).is_empty());
        assert_eq!(taken(&mut patient, &[1]), [1], "the third has it");
    }

    #[test]
    fn a_broken_list_and_a_busy_table_do_no_harm() {
        let home = tempfile::tempdir().unwrap();
        fs::write(
            home.path().join("x.0.claims"),
            b"\xff\n1:2:3\n:\n226:1\n226:",
        )
        .unwrap();
        fs::write(home.path().join(".claims"), "226:2").unwrap();
        let mut one = table(home.path(), "one", HOUR);
        assert_eq!(taken(&mut one, &[1, 2]), [1]);
        let busy = FileLock::try_take(home.path(), TABLE_LOCK).unwrap();
        let error = one.take(&set(&[7])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        drop(busy);
        assert!(taken(&mut one, &[7]).is_empty());
    }
}
