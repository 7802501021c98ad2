//! What else this program does beside being an agent: each is a process of its own, in or for the
//! runner's container.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser};
use crds::names::{RUNNER_SOCKET, paths};
use daemon::{Logs, Stop};

use crate::runner::server::{self, Service};
use crate::runner::{Action, Roots, built_in, keeper};

/// Runs hooks and probes for the agent of the same pod.
#[derive(Debug, Parser)]
#[command(name = "device-plugin-agent", version)]
pub enum Command {
    /// Listen for actions, and run each in a process of its own.
    RunHooks {
        /// The socket.
        #[arg(long, default_value_os_t = default_socket())]
        socket: PathBuf,
        /// Where the host's directories are.
        #[command(flatten)]
        roots: RootFlags,
    },
    /// Put this program into a directory, for containers of other images.
    InstallRunner {
        /// The directory.
        #[arg(long, default_value = paths::RUNNER_PROGRAM_DIR)]
        directory: PathBuf,
    },
    /// Run a program that makes a driver ready, and kill it when its time is over.
    RunDriver {
        /// How long it may take, in seconds.
        #[arg(long)]
        timeout_seconds: u64,
        /// The program and its arguments.
        #[arg(required = true, last = true)]
        program: Vec<String>,
    },
    /// Run the one action that standard input asks for.
    #[command(hide = true)]
    KeepAction {
        /// Where the host's directories are.
        #[command(flatten)]
        roots: RootFlags,
    },
    /// Perform one built-in action.
    #[command(hide = true)]
    PerformAction {
        /// Where the host's directories are.
        #[command(flatten)]
        roots: RootFlags,
        /// The action, as JSON.
        action: String,
    },
}

/// Where the host's directories are.
#[derive(Args, Clone, Debug)]
pub struct RootFlags {
    /// Where sysfs is mounted.
    #[arg(long, default_value = "/sys")]
    sys_dir: PathBuf,
    /// Where the host's /dev is mounted.
    #[arg(long, default_value = paths::HOST_DEV_DIR)]
    host_dev_dir: PathBuf,
}

impl RootFlags {
    fn roots(self) -> Roots {
        Roots {
            sys: self.sys_dir,
            dev: self.host_dev_dir,
        }
    }
}

fn default_socket() -> PathBuf {
    Path::new(paths::RUNNER_SOCKET_DIR).join(RUNNER_SOCKET)
}

impl Command {
    /// Does it. Whether a built-in action was performed is said on standard output.
    ///
    /// # Errors
    /// When it could not be done.
    pub fn run(self) -> Result<()> {
        match self {
            Self::RunHooks { socket, roots } => run_hooks(socket, roots.roots()),
            Self::InstallRunner { directory } => install(&directory),
            Self::RunDriver {
                timeout_seconds,
                program,
            } => run_driver(&program, Duration::from_secs(timeout_seconds)),
            Self::KeepAction { roots } => {
                let program = std::env::current_exe()?;
                keeper::keep(program, &roots.roots()).context("failed to keep an action")
            }
            Self::PerformAction { roots, action } => perform(&action, &roots.roots()),
        }
    }
}

fn run_hooks(socket: PathBuf, roots: Roots) -> Result<()> {
    let _logs = Logs::start("info")?;
    let service = Service {
        socket,
        program: std::env::current_exe()?,
        roots,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = Stop::on_signals().context("failed to listen for signals")?;
        let socket = service.socket.clone();
        let served = server::serve(service, stop).await;
        served.with_context(|| format!("failed to listen at {socket:?}"))
    })
}

/// Copies this program. Its place is taken in one step: a container that starts again meanwhile finds
/// the old one or the new one.
fn install(directory: &Path) -> Result<()> {
    let _logs = Logs::start("info")?;
    let program = std::env::current_exe()?;
    let name = program.file_name().context("this program has no name")?;
    let part = directory.join(".part");
    let copy = || {
        fs::copy(&program, &part)?;
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
        fs::rename(&part, directory.join(name))
    };
    copy().with_context(|| format!("failed to put {program:?} into {directory:?}"))
}

fn run_driver(program: &[String], timeout: Duration) -> Result<()> {
    let _logs = Logs::start("info")?;
    let outcome = keeper::run_to_end(program, timeout)?;
    if !outcome.success {
        bail!("the driver's program {program:?}: {}", outcome.message);
    }
    Ok(())
}

/// The keeper reads the output as it reads that of a program.
fn perform(action: &str, roots: &Roots) -> Result<()> {
    let action: Action = serde_json::from_str(action).context("failed to read the action")?;
    if let Err(error) = built_in::perform(&action, roots) {
        let mut output = io::stdout().lock();
        output.write_all(error.to_string().as_bytes())?;
        output.flush()?;
        std::process::exit(1);
    }
    Ok(())
}
