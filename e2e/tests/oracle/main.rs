//! What is true of every kubelet's device manager: each check is one statement, held against the
//! real device managers of several Kubernetes versions and against the played kubelet that the
//! conformance suite uses. Where they differ, the real one is right.
//!
//! `cargo xtask test --only oracle` runs them; the device managers are built first.

mod checks;
mod plugin;
mod wait;

use std::process::ExitCode;

use anyhow::{Context, Result};
use e2e::kubelet::{DeviceManager, FakeKubelet, Model};
use e2e::oracle::RealDeviceManager;
use e2e::parts;
use e2e::parts::cache::Cache;
use e2e::progress::Progress;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::checks::Check;

/// How many checks run at once: most of their time they wait, and the longest for 30 s; with half of
/// it all of them take twice as long, with more they are in each other's way on two cores.
const THREADS: usize = 8;

/// A kubelet that the checks meet.
#[derive(Clone)]
enum Subject {
    Played(Model),
    Real {
        version: &'static str,
        program: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    match trials(&arguments) {
        Ok(trials) => libtest_mimic::run(&arguments, trials).exit_code(),
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a test harness talks to a terminal")]
fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

fn trials(arguments: &Arguments) -> Result<Vec<Trial>> {
    let mut subjects = vec![Subject::Played(Model::V1_36), Subject::Played(Model::V1_37)];
    // Listing builds nothing.
    if !arguments.list {
        let built = parts::device_managers(&Cache::of_user()?, &Progress::to_stderr())?;
        subjects.extend(
            built
                .into_iter()
                .map(|(version, program)| Subject::Real { version, program }),
        );
    }
    let mut trials = Vec::new();
    for (name, check) in checks::all() {
        for subject in &subjects {
            let (name, subject) = match (subject, check) {
                (Subject::Played(_), Check::OfTheReal(_)) => continue,
                (Subject::Played(model), Check::OfAll(_)) => {
                    (format!("{name}::played_{model}"), subject.clone())
                }
                (Subject::Real { version, .. }, _) => {
                    (format!("{name}::{version}"), subject.clone())
                }
            };
            trials.push(Trial::test(name, move || {
                run(check, &subject).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        }
    }
    Ok(trials)
}

fn run(check: Check, subject: &Subject) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let directory = tempfile::tempdir().context("failed to make a directory")?;
    let directory = directory.path().join("plugins");
    runtime.block_on(async {
        match (subject, check) {
            (Subject::Played(model), Check::OfAll(check)) => {
                let mut kubelet = FakeKubelet::stopped(&directory, *model);
                kubelet.start().await?;
                check(&mut kubelet).await
            }
            (Subject::Played(_), Check::OfTheReal(_)) => Ok(()),
            (Subject::Real { version, program }, check) => {
                let mut kubelet = RealDeviceManager::stopped(program, version, &directory);
                kubelet.start().await?;
                let outcome = match check {
                    Check::OfAll(check) => check(&mut kubelet).await,
                    Check::OfTheReal(check) => check(&mut kubelet).await,
                };
                outcome.with_context(|| format!("the kubelet said: {}", kubelet.last_words()))
            }
        }
    })
}
