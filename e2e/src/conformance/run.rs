//! Runs the checks: many at once, because most of them wait most of the time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::behaviour::{BEHAVIOURS, Behaviour, Level, Models};
use super::driver::Driver;
use super::report::{Finding, Outcome, Report};
use super::rig::Rig;
use super::selection::Selection;
use super::verdict::Failed;
use crate::kubelet::Model;

/// Longest path of the directory in which a check has its own: names below it are a plugin's socket
/// of 75 bytes and a few more, and the path of a socket has no more than 107.
const DIRECTORY_MAX: usize = 22;

/// How long any check may take. The longest waits for 60 s of silence.
const LIMIT: Duration = Duration::from_secs(300);

/// Those that take longest begin first, so that the whole takes no longer than they do.
const LONG: [u8; 9] = [31, 39, 9, 61, 23, 10, 65, 38, 21];

/// What is wanted of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the plugin is worked.
    pub driver: Driver,
    /// Which kubelets are played.
    pub models: Vec<Model>,
    /// Which behaviours; all where there is none.
    pub only: Selection,
    /// Which not.
    pub skip: Selection,
    /// How many checks run at once.
    pub jobs: usize,
    /// Added to every limit.
    pub slack: Duration,
    /// How often the kubelet of behaviour 21 restarts, within ten seconds.
    pub restarts: u32,
    /// Failures up to this level count.
    pub level: Level,
    /// What was skipped counts as a failure.
    pub strict: bool,
    /// An existing directory in which each check has one of its own.
    pub directory: PathBuf,
}

/// Runs the checks, and tells each finding as soon as all before it are there.
///
/// # Errors
/// When the directory cannot be used.
pub async fn run(options: &Options, mut tell: impl FnMut(&Report, &Finding)) -> Result<Report> {
    let directory = options
        .directory
        .canonicalize()
        .with_context(|| format!("failed to find {:?}", options.directory))?;
    let length = directory.as_os_str().len();
    if length > DIRECTORY_MAX {
        bail!(
            "the path {directory:?} has {length} bytes, but paths of sockets below it must not be \
             longer than 107: at most {DIRECTORY_MAX}, such as /tmp/conformance"
        );
    }
    let mut report = Report {
        findings: Vec::new(),
        level: options.level,
        strict: options.strict,
    };
    let places = Arc::new(Semaphore::new(options.jobs.max(1)));
    let mut wanted = wanted(options);
    if wanted.is_empty() {
        bail!(
            "no behaviour is left to judge: --list shows which there are; 66 to 80 take a real cluster"
        );
    }
    // What an earlier run has left there would be taken for this one's.
    for (behaviour, model) in &wanted {
        let home = home(&directory, behaviour, *model);
        if home.exists() {
            bail!("{home:?} is of an earlier run: another --directory is needed, or an empty one");
        }
    }
    let order: Vec<(u8, Model)> = wanted.iter().map(|(one, m)| (one.number, *m)).collect();
    wanted.sort_by_key(|(one, _)| {
        LONG.iter()
            .position(|n| *n == one.number)
            .unwrap_or(LONG.len())
    });
    let mut checks = JoinSet::new();
    for (behaviour, model) in wanted {
        let (places, options) = (places.clone(), options.clone());
        let home = home(&directory, behaviour, model);
        checks.spawn(async move {
            // Never closed.
            let _place = places.acquire_owned().await;
            finding(behaviour, model, &home, &options).await
        });
    }
    let mut done: BTreeMap<(u8, Model), Finding> = BTreeMap::new();
    let mut next = order.iter();
    let mut awaited = next.next();
    while let Some(finding) = checks.join_next().await {
        let finding = finding.context("a check panicked")?;
        done.insert((finding.number, finding.model), finding);
        while let Some(finding) = awaited.and_then(|key| done.remove(key)) {
            tell(&report, &finding);
            report.findings.push(finding);
            awaited = next.next();
        }
    }
    Ok(report)
}

/// The directory of one check.
fn home(directory: &Path, behaviour: &Behaviour, model: Model) -> PathBuf {
    directory.join(format!("{}-{}", behaviour.number, short(model)))
}

fn short(model: Model) -> &'static str {
    match model {
        Model::V1_36 => "6",
        Model::V1_37 => "7",
    }
}

/// Which behaviours are judged at which kubelets, by number.
fn wanted(options: &Options) -> Vec<(&'static Behaviour, Model)> {
    let newest = options.models.iter().max();
    let is_wanted = |one: &&Behaviour| {
        let is_named = options.only.is_empty() || options.only.contains(one.number);
        is_named && !options.skip.contains(one.number)
    };
    let mut wanted = Vec::new();
    for behaviour in BEHAVIOURS.iter().filter(is_wanted) {
        for model in &options.models {
            let fits = match behaviour.models {
                Models::Each => true,
                Models::Any => Some(model) == newest,
                Models::Old => *model == Model::V1_36,
                Models::New => *model == Model::V1_37,
            };
            if fits {
                wanted.push((behaviour, *model));
            }
        }
    }
    wanted
}

async fn finding(behaviour: &Behaviour, model: Model, home: &Path, options: &Options) -> Finding {
    let began = Instant::now();
    let mut notes = Vec::new();
    let outcome = match Rig::new(home, options, model) {
        Err(error) => Outcome::Broken(format!("{error:#}")),
        Ok(mut rig) => {
            let checked = tokio::time::timeout(LIMIT, (behaviour.check)(&mut rig)).await;
            notes.append(&mut rig.notes);
            match checked {
                Err(_) => Outcome::Fail {
                    expected: format!("the whole check, within {LIMIT:?}"),
                    seen: rig.seen(),
                    level: behaviour.level,
                },
                Ok(Ok(())) => Outcome::Pass,
                Ok(Err(Failed::Missing(what))) => Outcome::Skip(what),
                Ok(Err(Failed::Broken(error))) => Outcome::Broken(format!("{error:#}")),
                Ok(Err(Failed::Mismatch {
                    expected,
                    seen,
                    level,
                })) => Outcome::Fail {
                    expected,
                    seen,
                    level: level.unwrap_or(behaviour.level),
                },
            }
        }
    };
    Finding {
        number: behaviour.number,
        name: behaviour.name,
        model,
        outcome,
        notes,
        took: began.elapsed(),
    }
}
