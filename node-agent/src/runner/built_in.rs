//! The actions that need no program of others. Paths come from a config, from sysfs and from the
//! host's `/dev`, where links may be swapped at any moment: a file is judged when it is held, and
//! what was judged is what is used.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use node_agent_core::discovery::forbidden;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, major, minor, openat, openat2};

use crate::runner::{Action, Roots};

/// How often a USB device is given its authorization back, and how long between: its hub may be asleep.
const AUTHORIZED_TRIES: usize = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Why an action failed, in words for the report.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// What was asked for is not allowed, whoever asks.
    #[error("{path:?} {why}")]
    Refused {
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel refused.
    #[error("failed to {doing} {path:?}: {source}")]
    Kernel {
        /// What was done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel did something else.
    #[error("{0}")]
    Ineffective(String),
}

fn refused(path: impl Into<String>, why: impl Into<String>) -> ActionError {
    ActionError::Refused {
        path: path.into(),
        why: why.into(),
    }
}

fn kernel(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ActionError {
    let path = path.to_owned();
    move |source| ActionError::Kernel {
        doing,
        path,
        source,
    }
}

/// Does what an action says.
///
/// # Errors
/// When it was not done.
pub fn perform(action: &Action, roots: &Roots) -> Result<(), ActionError> {
    match action {
        Action::Open { path } => open_device(path, roots),
        Action::PciReset { address } => {
            let function = pci_function(address, roots)?;
            write_attribute(&function.join("reset"), "1", roots)
        }
        Action::UsbReset { path } => reset_usb(path, roots),
        Action::SysfsWrite { path, value } => {
            let below = path.strip_prefix("/sys/");
            let below = below.ok_or_else(|| refused(path, "is not below /sys"))?;
            write_attribute(&roots.sys.join(below), value, roots)
        }
        Action::DriverBind { address, driver } => bind(address, driver, roots),
        Action::Exec { .. } => Err(ActionError::Ineffective("a program is no built-in".into())),
    }
}

/// Opens what a path is now, if that is a device that may be opened. It is looked at before it is
/// opened for reading: opening some devices, a watchdog for one, is more than a look.
fn open_device(path: &str, roots: &Roots) -> Result<(), ActionError> {
    let held = held(path, roots)?;
    let (major, minor) = device_number(path, &held)?;
    if let Some(what) = forbidden(major, minor) {
        return Err(refused(path, format!("is {major}:{minor}, {what}")));
    }
    // The same file, whatever its name leads to by now.
    let same = format!("/proc/self/fd/{}", held.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(CWD, same.as_str(), flags, Mode::empty())
        .map_err(|error| kernel("open", Path::new(path))(error.into()))?;
    if device_number(path, &opened)? == (major, minor) {
        Ok(())
    } else {
        Err(refused(path, "became another device while it was opened"))
    }
}

/// The file that a path of the host's `/dev` names, held without being opened. No link is followed:
/// the agent has resolved them, and one that is there now was put there since.
fn held(path: &str, roots: &Roots) -> Result<OwnedFd, ActionError> {
    let below = path.strip_prefix("/dev/");
    let below = below.ok_or_else(|| refused(path, "is not below /dev"))?;
    let root = File::open(&roots.dev).map_err(kernel("open", &roots.dev))?;
    openat2(
        &root,
        below,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
    .map_err(|error| kernel("look at", Path::new(path))(error.into()))
}

fn device_number(path: &str, file: &OwnedFd) -> Result<(u32, u32), ActionError> {
    let stat = fstat(file).map_err(|error| kernel("look at", Path::new(path))(error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => Ok((major(stat.st_rdev), minor(stat.st_rdev))),
        FileType::BlockDevice => Err(refused(path, "is a block device")),
        FileType::Symlink => Err(refused(path, "is a link")),
        _ => Err(refused(path, "is no device")),
    }
}

/// Writes to a file of sysfs that lies below `devices` when every link is resolved.
fn write_attribute(place: &Path, value: &str, roots: &Roots) -> Result<(), ActionError> {
    write_below(&roots.sys.join("devices"), place, value)
}

fn write_below(base: &Path, place: &Path, value: &str) -> Result<(), ActionError> {
    let base = fs::canonicalize(base).map_err(kernel("find", base))?;
    let real = fs::canonicalize(place).map_err(kernel("find", place))?;
    let below = real.strip_prefix(&base);
    let below = below.map_err(|_| {
        refused(
            place.to_string_lossy(),
            format!("leads to {real:?}, which is not below {base:?}"),
        )
    })?;
    let directory = File::open(&base).map_err(kernel("open", &base))?;
    // What was resolved is opened without following anything: nothing can be put in its place.
    let file = openat2(
        &directory,
        below,
        OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
    .map_err(|error| kernel("open", &real)(error.into()))?;
    let stat = fstat(&file).map_err(|error| kernel("look at", &real)(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(real.to_string_lossy(), "is no file of sysfs"));
    }
    // One write: sysfs takes each as a whole value.
    let written = File::from(file).write(value.as_bytes());
    let length = written.map_err(kernel("write to", &real))?;
    if length == value.len() {
        Ok(())
    } else {
        Err(ActionError::Ineffective(format!(
            "{real:?} took {length} of {} bytes",
            value.len()
        )))
    }
}

/// The directory of a PCI function.
fn pci_function(address: &str, roots: &Roots) -> Result<PathBuf, ActionError> {
    if !is_pci_address(address) {
        return Err(refused(address, "is no PCI address, such as 0000:3b:00.0"));
    }
    Ok(roots.sys.join("bus/pci/devices").join(address))
}

/// `domain:bus:device.function` in hex digits.
fn is_pci_address(address: &str) -> bool {
    let hex = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let mut parts = address.split(':');
    let (domain, bus, rest) = (parts.next(), parts.next(), parts.next());
    let (Some(domain), Some(bus), Some(rest), None) = (domain, bus, rest, parts.next()) else {
        return false;
    };
    let Some((device, function)) = rest.split_once('.') else {
        return false;
    };
    hex(domain, 4..=8) && hex(bus, 2..=2) && hex(device, 2..=2) && hex(function, 1..=1)
}

/// The kernel's own reset of a USB device wants its device node opened for writing, and a system call
/// that safe Rust does not have. Withdrawing and giving the authorization does what an administrator
/// does by pulling the plug: drivers are unbound and bound anew.
fn reset_usb(path: &str, roots: &Roots) -> Result<(), ActionError> {
    let (major, minor) = device_number(path, &held(path, roots)?)?;
    let link = roots.sys.join(format!("dev/char/{major}:{minor}"));
    let devices = roots.sys.join("devices");
    let devices = fs::canonicalize(&devices).map_err(kernel("find", &devices))?;
    let real = fs::canonicalize(&link).map_err(kernel("find", &link))?;
    let usb = real
        .ancestors()
        .take_while(|one| one.starts_with(&devices))
        .find(|one| is_usb_device(one));
    let usb = usb.ok_or_else(|| refused(path, format!("is of no USB device: it is {real:?}")))?;
    let authorized = usb.join("authorized");
    write_attribute(&authorized, "0", roots)?;
    // Without it the device is gone, and nobody would try again.
    for _ in 1..AUTHORIZED_TRIES {
        if write_attribute(&authorized, "1", roots).is_ok() {
            return Ok(());
        }
        std::thread::sleep(BETWEEN_TRIES);
    }
    write_attribute(&authorized, "1", roots)
}

/// A device, and not one of its interfaces; no root hub, whose name is `usb` and a number.
fn is_usb_device(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str());
    let plugged = name.is_some_and(|name| name.contains('-') && !name.contains(':'));
    plugged && directory.join("authorized").is_file() && directory.join("idVendor").is_file()
}

fn bind(address: &str, driver: &str, roots: &Roots) -> Result<(), ActionError> {
    let function = pci_function(address, roots)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if driver.is_empty() || !driver.bytes().all(plain) {
        return Err(refused(driver, "is no name of a driver, such as vfio-pci"));
    }
    let bus = roots.sys.join("bus/pci");
    if !bus.join("drivers").join(driver).is_dir() {
        return Err(ActionError::Ineffective(format!(
            "the node has no PCI driver {driver:?}: its module must be loaded"
        )));
    }
    let bound = || {
        let link = fs::read_link(function.join("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    };
    write_attribute(&function.join("driver_override"), driver, roots)?;
    match bound() {
        Some(now) if now == driver => return Ok(()),
        Some(_) => write_below(&bus, &function.join("driver/unbind"), address)?,
        None => {}
    }
    write_below(&bus, &bus.join("drivers_probe"), address)?;
    match bound() {
        Some(now) if now == driver => Ok(()),
        now => Err(ActionError::Ineffective(format!(
            "{address} is bound to {} and not to {driver:?}: the driver did not take it",
            now.map_or_else(|| "no driver".to_owned(), |now| format!("{now:?}"))
        ))),
    }
}
