//! Single files, links and directories of sysfs.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use node_agent_core::discovery::Numbers;
use node_agent_core::udev;
use rustix::io::Errno;

/// Most bytes of a file: the kernel gives an attribute one page, and udev's entries are smaller.
const FILE_MAX: u64 = 64 << 10;

/// Most entries of a directory. Real machines have some hundred devices of a kind; a wrong mount must
/// not keep the agent busy.
const ENTRIES_MAX: usize = 65_536;

/// Why a device could not be looked at; nothing where it is just gone.
pub type Seen<T> = Result<T, Option<String>>;

/// Whether a directory has no files, only directories.
pub fn groups_devices(place: &Path) -> bool {
    let Ok(entries) = fs::read_dir(place) else {
        return false;
    };
    let is_directory = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    };
    entries.into_iter().all(is_directory)
}

/// Names in a directory, in order.
pub fn names(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.take(ENTRIES_MAX);
    let names = entries.map(|entry| Ok(entry?.file_name().into()));
    let mut names: Vec<PathBuf> = names.collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

/// The numbers of a device's node; nothing if it has none.
pub fn numbers(place: &Path) -> Seen<Option<Numbers>> {
    let text = attribute(place, "dev")?;
    Ok(text.and_then(|text| udev::numbers(&text)))
}

/// An attribute without white space around it; nothing if there is none, or it is empty.
pub fn attribute(place: &Path, name: &str) -> Seen<Option<String>> {
    let text = read(&place.join(name))?;
    let text = text.map(|text| {
        text.trim_matches(|c: char| c.is_whitespace() || c == '\0')
            .to_owned()
    });
    Ok(text.filter(|text| !text.is_empty()))
}

/// The last name of where a link leads; nothing if there is no link.
pub fn link_name(link: &Path) -> Seen<Option<String>> {
    match fs::read_link(link) {
        Ok(to) => Ok(to
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())),
        Err(error) => unless_gone(&error).map_or(Ok(None), |error| Err(Some(error))),
    }
}

/// The start of a regular file; nothing if there is none.
pub fn read(path: &Path) -> Seen<Option<String>> {
    let told = |error: &io::Error| {
        let error = unless_gone(error)?;
        Some(format!("failed to read {path:?}: {error}"))
    };
    let read = || {
        // Nothing that waits for somebody is opened.
        if !fs::metadata(path)?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    };
    read().or_else(|error: io::Error| told(&error).map_or(Ok(None), |error| Err(Some(error))))
}

/// An error in words, unless it says that something is not there, or that the device does not have
/// such a thing.
pub fn unless_gone(error: &io::Error) -> Option<String> {
    let is_absent = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    let no_such_thing = [
        Errno::NODEV,
        Errno::NXIO,
        Errno::INVAL,
        Errno::OPNOTSUPP,
        Errno::NODATA,
    ];
    let errno = error.raw_os_error();
    let is_refused = no_such_thing
        .iter()
        .any(|one| Some(one.raw_os_error()) == errno);
    (!is_absent && !is_refused).then(|| error.to_string())
}
