//! Measures the agent beside the bare stub and any other plugin: `cargo xtask bench agent`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use e2e::bench::{Amounts, Subject, run};

/// Medians and ratios of the agent and others, of one run.
#[derive(Debug, Parser)]
struct Arguments {
    /// Our agent's program.
    #[arg(long)]
    agent: PathBuf,
    /// The bare stub's program: what the protocol's libraries cost by themselves.
    #[arg(long)]
    stub: PathBuf,
    /// Another plugin: its name, `=`, and a command line for sh, in which {plugin_dir}, {dev_dir},
    /// {pod_resources_dir}, {resource} and {devices} are replaced. It serves the character devices
    /// bench0, bench1, … in {dev_dir}. May be given several times.
    #[arg(long, value_parser = peer)]
    peer: Vec<Subject>,
    /// How often everything is measured, each subject in turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Kubelet restarts in each round.
    #[arg(long, default_value_t = 200)]
    restarts: usize,
    /// Seconds of each look at a plugin at rest.
    #[arg(long, default_value_t = 15)]
    idle_seconds: u64,
}

fn peer(text: &str) -> Result<Subject> {
    let (name, line) = text
        .split_once('=')
        .with_context(|| format!("{text:?} is not a name, \"=\" and a command line"))?;
    Ok(Subject::Other(name.to_owned(), line.to_owned()))
}

#[tokio::main]
async fn main() -> ExitCode {
    match measure(Arguments::parse()).await {
        Ok(table) => {
            tell_result(&table);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: Arguments) -> Result<String> {
    let stub = format!(
        "{} --resource {{resource}} --devices {{devices}} --directory {{plugin_dir}}",
        arguments.stub.display()
    );
    let mut subjects = vec![
        Subject::Agent(arguments.agent),
        Subject::Other("stub".to_owned(), stub),
    ];
    subjects.extend(arguments.peer);
    let amounts = Amounts {
        starts: 20,
        calls: 5_000,
        flaps: 20,
        restarts: arguments.restarts,
        idle: Duration::from_secs(arguments.idle_seconds),
    };
    run(&subjects, arguments.rounds, amounts, tell).await
}

#[expect(clippy::print_stderr, reason = "progress belongs on standard error")]
fn tell(line: &str) {
    eprintln!("{line}");
}

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
fn tell_result(table: &str) {
    println!("{table}");
}
