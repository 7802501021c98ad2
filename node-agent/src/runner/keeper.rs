//! One action: a process that starts another, waits for it, and ends only when everything that came of
//! it has ended. It has no thread and no runtime; whatever an action does to its keeper, the next
//! action has another one.

use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open, setsid};

use crate::runner::descendants::{self, Process};
use crate::runner::frame;
use crate::runner::output::{Tail, message};
use crate::runner::{Action, ActionRequest, Outcome, Roots};

/// Where programs are looked for: the images' own `PATH` is not asked.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long killed processes may take to end. Those that wait for a device in the kernel do not end
/// at all; half would report busy nodes' processes, double would eat the client's patience.
const KILLED: Duration = Duration::from_secs(1);
/// Most that is read at once.
const CHUNK: usize = 16 << 10;

/// Runs the action that standard input asks for, until it is done, its time is over, or standard
/// input ends; then says on standard output how it ended.
///
/// # Errors
/// When there is no request, or nobody to tell.
pub fn keep(program: PathBuf, roots: &Roots) -> io::Result<()> {
    let mut control = io::stdin().lock();
    let request: ActionRequest = frame::received(&mut control)?;
    // Neither a group nor a terminal is shared with another action.
    setsid()?;
    descendants::inherit_orphans()?;
    let (output, writer) = io::pipe()?;
    ioctl_fionbio(&output, true)?;
    let mut command = command(program, roots, &request)?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .current_dir("/")
        .process_group(0);
    let outcome = outcome(&mut command, request.timeout, Some(output), control.as_fd());
    let mut answer = io::stdout().lock();
    answer.write_all(&frame::framed(&outcome)?)?;
    answer.flush()
}

/// Runs a program to its end, with its output where ours goes, and kills it when its time is over.
///
/// # Errors
/// When it cannot be kept.
pub fn run_to_end(program: &[String], timeout: Duration) -> io::Result<Outcome> {
    descendants::inherit_orphans()?;
    let (first, arguments) = program.split_first().ok_or(ErrorKind::InvalidInput)?;
    let mut command = Command::new(first);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .process_group(0);
    // A pipe whose other end stays open: nobody tells this one to stop.
    let (control, _open) = io::pipe()?;
    Ok(outcome(&mut command, timeout, None, control.as_fd()))
}

fn command(program: PathBuf, roots: &Roots, request: &ActionRequest) -> io::Result<Command> {
    let mut command = match &request.action {
        Action::Exec { command } => {
            let (first, arguments) = command.split_first().ok_or(ErrorKind::InvalidInput)?;
            let mut command = Command::new(first);
            command.args(arguments).env_clear().envs(&request.env);
            command
        }
        // A write that never returns from the kernel hangs a process, and not its keeper.
        built_in => {
            let mut command = Command::new(program);
            command
                .arg("perform-action")
                .args(roots.arguments())
                .arg(serde_json::to_string(built_in)?)
                .env_clear();
            command
        }
    };
    command.env("PATH", PATH);
    Ok(command)
}

/// Why the wait for a child is over.
enum End {
    Exited(ExitStatus),
    TimedOut,
    /// Whoever asked is gone.
    Unwanted,
    Lost(io::Error),
}

fn outcome(
    command: &mut Command,
    timeout: Duration,
    output: Option<PipeReader>,
    control: impl AsFd,
) -> Outcome {
    let start = Instant::now();
    let mut kept = Kept {
        output,
        tail: Tail::default(),
    };
    let spawned = command.spawn();
    // Our own copies of the pipe's end would keep the output open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let end = match spawned {
        Ok(child) => kept.until_end(child, start.checked_add(timeout), control),
        Err(error) => {
            let program = command.get_program().to_string_lossy().into_owned();
            return Outcome {
                success: false,
                begun: true,
                message: message(&format!("failed to start {program:?}: {error}"), ""),
                duration: start.elapsed(),
            };
        }
    };
    let duration = start.elapsed();
    let left = descendants::end_all(KILLED);
    kept.read_output();
    let (success, ending) = match end {
        End::Exited(status) => (status.success(), ending(status)),
        End::TimedOut => (false, "took too long and was killed".to_owned()),
        End::Unwanted => (false, "was killed because nobody waits for it".to_owned()),
        End::Lost(error) => (false, format!("was killed because it was lost: {error}")),
    };
    Outcome {
        success: success && left.is_empty(),
        begun: true,
        message: message(&format!("{ending}{}", immortal(&left)), &kept.tail.line()),
        duration,
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => String::new(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => format!("ended with {status}"),
    }
}

/// Processes that even a kill does not end hold what they hold until the kernel lets go of them.
fn immortal(left: &[Process]) -> String {
    match left.first() {
        Some(one) => format!(
            "; {} processes cannot be killed, the first is {} in state {}",
            left.len(),
            one.pid.as_raw_nonzero(),
            one.state
        ),
        None => String::new(),
    }
}

struct Kept {
    output: Option<PipeReader>,
    tail: Tail,
}

impl Kept {
    fn until_end(
        &mut self,
        mut child: Child,
        deadline: Option<Instant>,
        control: impl AsFd,
    ) -> End {
        match self.wait(&mut child, deadline, control) {
            Ok(end) => end,
            Err(error) => End::Lost(error),
        }
    }

    fn wait(
        &mut self,
        child: &mut Child,
        deadline: Option<Instant>,
        control: impl AsFd,
    ) -> io::Result<End> {
        let exit = exit_of(child)?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(End::Exited(status));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(End::TimedOut);
            }
            let mut watched = vec![
                PollFd::new(&control, PollFlags::IN),
                PollFd::new(&exit, PollFlags::IN),
            ];
            if let Some(output) = &self.output {
                watched.push(PollFd::new(output, PollFlags::IN));
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut watched, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let happened = |index: usize| {
                let watched = watched.get(index);
                watched.is_some_and(|one| !one.revents().is_empty())
            };
            // Nothing more is ever said there: it is ready when it has ended.
            let (unwanted, printed) = (happened(0), happened(2));
            drop(watched);
            if unwanted {
                return Ok(End::Unwanted);
            }
            if printed {
                self.read_output();
            }
        }
    }

    /// Reads what is there, up to a bound: a flood must not keep its reader from looking at the
    /// clock. Who has closed the output may still run.
    fn read_output(&mut self) {
        let mut chunk = [0; CHUNK];
        let Some(output) = &mut self.output else {
            return;
        };
        for _ in 0..16 {
            match output.read(&mut chunk) {
                Ok(0) => {
                    self.output = None;
                    return;
                }
                Ok(length) => self.tail.push(chunk.get(..length).unwrap_or_default()),
                Err(_) => return,
            }
        }
    }
}

/// Ready to be read when the child has ended.
fn exit_of(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(pidfd_open(pid.unwrap_or_else(getpid), PidfdFlags::empty())?)
}
