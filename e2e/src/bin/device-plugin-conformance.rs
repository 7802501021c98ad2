//! `device-plugin-conformance`: plays kubelets to any device plugin and tells which behaviours of
//! the kubelet's contract it shows. `docs/conformance.md` says how to use it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Parser, ValueEnum};
use e2e::conformance::{Action, BEHAVIOURS, Driver, Level, Options, Selection, junit, run};
use e2e::kubelet::Model;

/// The driver of this project's own agent.
const AGENT_DRIVER: &str = include_str!("../../conformance/device-plugin-agent.yaml");

/// Plays kubelets to a device plugin and tells which behaviours of the kubelet's contract it shows.
/// Exit code 0: all that count were shown; 1: some were not; 2: the suite could not tell.
#[derive(Debug, Parser)]
#[command(name = "device-plugin-conformance", version)]
struct Arguments {
    /// Lists the behaviours and ends.
    #[arg(long)]
    list: bool,
    /// How the plugin is started and worked, a YAML file.
    #[arg(long, value_name = "FILE")]
    driver: Option<PathBuf>,
    /// Judges this project's agent, the program at this path.
    #[arg(long, value_name = "PATH", conflicts_with = "driver")]
    agent: Option<PathBuf>,
    /// The resource that the plugin serves, in place of the driver's.
    #[arg(long)]
    resource: Option<String>,
    /// How many devices the plugin has without any action.
    #[arg(long)]
    devices: Option<usize>,
    /// A variable of the plugin's environment, in which placeholders are filled in.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A shell command for an action of the driver's, such as
    /// `remove-device=rm {home}/dev/{device}`.
    #[arg(long, value_name = "NAME=COMMAND")]
    action: Vec<String>,
    /// A placeholder of your own.
    #[arg(long, value_name = "NAME=VALUE")]
    place: Vec<String>,
    /// Which kubelets are played.
    #[arg(long, value_enum, default_value_t = Models::Both)]
    kubelet_model: Models,
    /// Only these behaviours, such as `1,5,17-20`.
    #[arg(long, value_name = "NUMBERS", default_value = None)]
    only: Option<Selection>,
    /// All but these.
    #[arg(long, value_name = "NUMBERS")]
    skip: Option<Selection>,
    /// Failures up to this level count.
    #[arg(long, value_enum, default_value_t = UpTo::Must)]
    level: UpTo,
    /// What is skipped counts as a failure.
    #[arg(long)]
    strict: bool,
    /// How many checks run at once [default: eight for each processor; they wait mostly].
    #[arg(long)]
    jobs: Option<usize>,
    /// Added to every time limit, for a machine that is busy.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    slack: u64,
    /// How often the kubelet of behaviour 21 restarts, within ten seconds: a thousand times is a storm.
    #[arg(long, value_name = "N", default_value_t = 20)]
    restarts: u32,
    /// Where the checks have their directories; it is made, and kept [default: a temporary one].
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// Also writes the findings as JUnit XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Not a check: moves a file away and back a thousand times a second, for a driver's
    /// `flap-device`.
    #[arg(long, hide = true, value_name = "FILE")]
    flap: Option<PathBuf>,
    /// Not a check: prints what an HTTP server answers, for a driver's `reported`.
    #[arg(long, hide = true, value_name = "ADDRESS/PATH")]
    get: Option<String>,
    /// For how long.
    #[arg(long, hide = true, default_value_t = 5)]
    seconds: u64,
    /// The plugin's command line, in place of the driver's. {plugin_dir}, {pod_resources_dir},
    /// {home} and others are filled in.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Models {
    #[value(name = "1.36")]
    Old,
    #[value(name = "1.37")]
    New,
    Both,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UpTo {
    Must,
    Should,
    Ours,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = if arguments.list {
        list();
        Ok(0)
    } else if let Some(file) = &arguments.flap {
        flap(file, Duration::from_secs(arguments.seconds)).map(|()| 0)
    } else if let Some(place) = &arguments.get {
        get(place).map(|()| 0)
    } else {
        judge(&arguments)
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&error);
            ExitCode::from(2)
        }
    }
}

fn judge(arguments: &Arguments) -> Result<u8> {
    let driver = driver(arguments)?;
    let temporary = tempfile::Builder::new()
        .prefix("dpc")
        .rand_bytes(4)
        .tempdir()
        .context("failed to make a temporary directory")?;
    let directory = match &arguments.directory {
        Some(directory) => {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("failed to make {directory:?}"))?;
            directory.clone()
        }
        None => temporary.path().to_owned(),
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options {
        models: match arguments.kubelet_model {
            Models::Old => vec![Model::V1_36],
            Models::New => vec![Model::V1_37],
            Models::Both => vec![Model::V1_36, Model::V1_37],
        },
        only: arguments.only.clone().unwrap_or_default(),
        skip: arguments.skip.clone().unwrap_or_default(),
        jobs: arguments.jobs.unwrap_or(processors * 8),
        slack: Duration::from_millis(arguments.slack),
        restarts: arguments.restarts,
        level: match arguments.level {
            UpTo::Must => Level::Must,
            UpTo::Should => Level::Should,
            UpTo::Ours => Level::Ours,
        },
        strict: arguments.strict,
        directory,
        driver,
    };
    let runtime = tokio::runtime::Runtime::new().context("failed to start the runtime")?;
    let report = runtime.block_on(run(&options, |report, finding| {
        say(&report.line(finding));
    }))?;
    // What a plugin of a check still holds open is not waited for.
    runtime.shutdown_background();
    if let Some(file) = &arguments.junit {
        let written = std::fs::write(file, junit(&report));
        written.with_context(|| format!("failed to write {file:?}"))?;
    }
    say(&report.summary(&options.driver));
    Ok(report.exit_code())
}

/// The driver that the arguments make.
fn driver(arguments: &Arguments) -> Result<Driver> {
    let mut driver = match (&arguments.driver, &arguments.agent) {
        (Some(file), _) => Driver::read(file)?,
        (None, Some(agent)) => {
            let agent = agent
                .canonicalize()
                .with_context(|| format!("failed to find {agent:?}"))?;
            let mut driver = Driver::parse(AGENT_DRIVER)?;
            let agent = agent.to_string_lossy().into_owned();
            driver.places.insert("agent".to_owned(), agent);
            driver
        }
        (None, None) => Driver::parse("{}")?,
    };
    if let Some(resource) = &arguments.resource {
        driver.resource.clone_from(resource);
    }
    if let Some(devices) = arguments.devices {
        driver.devices = devices;
    }
    if !arguments.command.is_empty() {
        driver.command.clone_from(&arguments.command);
    }
    for pair in &arguments.env {
        let (name, value) = split(pair)?;
        driver.environment.insert(name, value);
    }
    for pair in &arguments.place {
        let (name, value) = split(pair)?;
        driver.places.insert(name, value);
    }
    for pair in &arguments.action {
        let (name, command) = split(pair)?;
        let action = serde_yaml::from_str(&name);
        let action = action.map_err(|error| anyhow!("{name:?} is no action: {error}"))?;
        driver.actions.insert(action, command);
    }
    if driver.devices > 0 && driver.actions.contains_key(&Action::AddDevice) {
        bail!(
            "devices is {} beside the action add-device: leave devices out, and let the plugin start \
             without any",
            driver.devices
        );
    }
    if driver.command.is_empty() {
        bail!("no plugin to judge: give its command line after --, or a file with --driver");
    }
    if driver.resource.is_empty() {
        bail!("which resource does the plugin serve? Say it with --resource or in the driver file");
    }
    Ok(driver)
}

fn split(pair: &str) -> Result<(String, String)> {
    let (name, value) = pair
        .split_once('=')
        .with_context(|| format!("{pair:?} is not of the form NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn list() {
    for one in BEHAVIOURS {
        say(&format!(
            "{:>2} {:<6} {}: {} -> {}",
            one.number, one.level, one.name, one.stimulus, one.expectation
        ));
    }
}

/// Moves a file away and back, into the current directory, until the time is over.
fn flap(file: &Path, time: Duration) -> Result<()> {
    let away = Path::new("flapping");
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::fs::rename(file, away).with_context(|| format!("failed to move {file:?}"))?;
        std::thread::sleep(Duration::from_micros(500));
        std::fs::rename(away, file).with_context(|| format!("failed to move {file:?} back"))?;
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

/// Prints an answer of an HTTP server, its head included.
fn get(place: &str) -> Result<()> {
    let (address, path) = place.split_once('/').context("no path")?;
    let mut connection =
        TcpStream::connect(address).with_context(|| format!("failed to connect to {address:?}"))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    say(&answer);
    Ok(())
}

#[expect(
    clippy::print_stdout,
    reason = "a command line program tells on standard output"
)]
fn say(line: &str) {
    println!("{line}");
}

#[expect(
    clippy::print_stderr,
    reason = "a command line program tells errors on standard error"
)]
fn complain(error: &anyhow::Error) {
    eprintln!("{error:#}");
}
