//! The runner: the second container of an agent's pod, in which everything runs that opens, resets
//! or writes to a device. The agent asks it over a socket in a directory that both mount; each action
//! is a process of its own there.
//!
//! This file has what both sides agree on. It deliberately knows nothing of hooks and probes: what is
//! run when, and what its outcome means, is decided by whoever asks.

mod built_in;
mod client;
pub mod command;
mod descendants;
mod frame;
mod keeper;
mod output;
pub mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use client::{Runner, RunnerError};

/// Most characters of an outcome's message. The end of a program's output says why it failed; half
/// would cut a usual stack of causes, double would not fit a condition with its device's name.
pub const MESSAGE_MAX: usize = 1024;

/// What is to be done, and how long it may take.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ActionRequest {
    /// What is to be done.
    pub action: Action,
    /// The whole environment of a program, beside `PATH`.
    pub env: BTreeMap<String, String>,
    /// How long it may take; then all that it started is killed.
    pub timeout: Duration,
}

/// What the runner does.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Action {
    /// Runs a program of the tools image.
    Exec {
        /// The program's absolute path, and its arguments.
        command: Vec<String>,
    },
    /// Opens a character device for reading, without waiting, and closes it.
    Open {
        /// The device node's path on the host, links resolved.
        path: String,
    },
    /// Has the kernel reset a PCI function.
    PciReset {
        /// Its address, such as `0000:3b:00.0`.
        address: String,
    },
    /// Takes a USB device from its drivers and gives it back.
    UsbReset {
        /// The path on the host of a device node that belongs to the USB device, links resolved.
        path: String,
    },
    /// Writes to a file below `/sys/devices`.
    SysfsWrite {
        /// The file's absolute path on the host.
        path: String,
        /// What is written.
        value: String,
    },
    /// Gives a PCI function to a driver.
    DriverBind {
        /// The function's address.
        address: String,
        /// The driver's name.
        driver: String,
    },
}

/// How an action ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Outcome {
    /// Whether it did what it was to do.
    pub success: bool,
    /// Whether it was begun at all: else its end says nothing of the device.
    pub begun: bool,
    /// How it ended and the end of what it printed, on one line, at most [`MESSAGE_MAX`] characters.
    /// May be empty after a success.
    pub message: String,
    /// How long it took.
    pub duration: Duration,
}

/// Where the host's directories are.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Its sysfs.
    pub sys: PathBuf,
    /// Its `/dev`.
    pub dev: PathBuf,
}

impl Roots {
    /// The same for another process of this program.
    fn arguments(&self) -> [&std::ffi::OsStr; 4] {
        [
            "--sys-dir".as_ref(),
            self.sys.as_os_str(),
            "--host-dev-dir".as_ref(),
            self.dev.as_os_str(),
        ]
    }
}
