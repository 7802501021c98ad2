//! The conformance suite held to the truth: our own agent shows every behaviour, a plugin that
//! behaves passes, and each check fails a plugin that misbehaves in its way.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that meets the unexpected fails"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use e2e::conformance::{BEHAVIOURS, Driver, Level, Options, Outcome, Report, Selection, run};
use e2e::kubelet::Model;
use e2e::scripted_plugin::{Fault, expected_failures};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const SUITE: &str = env!("CARGO_BIN_EXE_device-plugin-conformance");
const SCRIPTED: &str = env!("CARGO_BIN_EXE_scripted-plugin");

/// Paths of sockets are short.
fn directory() -> TempDir {
    let builder = &mut tempfile::Builder::new();
    builder
        .prefix("dpc")
        .rand_bytes(4)
        .tempdir_in("/tmp")
        .unwrap()
}

fn driver(name: &str, places: &[(&str, &str)]) -> Driver {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut driver = Driver::read(&checkout.join("conformance").join(name)).unwrap();
    for (name, value) in places.iter().chain(&[("suite", SUITE)]) {
        driver
            .places
            .insert((*name).to_owned(), (*value).to_owned());
    }
    driver
}

fn options(driver: Driver, directory: &TempDir) -> Options {
    Options {
        driver,
        models: vec![Model::V1_36, Model::V1_37],
        only: Selection::default(),
        skip: Selection::default(),
        jobs: 16,
        // Other tests run beside these.
        slack: Duration::from_secs(3),
        restarts: 20,
        level: Level::Ours,
        strict: false,
        directory: directory.path().to_owned(),
    }
}

fn lines(report: &Report) -> String {
    let findings = report.findings.iter();
    let amiss = findings.filter(|finding| finding.outcome != Outcome::Pass);
    let lines: Vec<String> = amiss.map(|finding| report.line(finding)).collect();
    lines.join("\n")
}

/// Numbers of the behaviours that were skipped, and nothing may have failed.
fn skipped(report: &Report) -> BTreeSet<u8> {
    let mut skipped = BTreeSet::new();
    for finding in &report.findings {
        match &finding.outcome {
            Outcome::Pass => {}
            Outcome::Skip(_) => _ = skipped.insert(finding.number),
            Outcome::Fail { .. } | Outcome::Broken(_) => panic!("{}", lines(report)),
        }
    }
    skipped
}

/// Our agent's program, built from this checkout in the profile of this test.
fn agent() -> PathBuf {
    let profile = Path::new(SUITE).parent().unwrap();
    let name = match profile.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        name => name,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "node-agent"])
        .args(["--bin", "device-plugin-agent", "--profile", name])
        .arg("--target-dir")
        .arg(profile.parent().unwrap())
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .status();
    assert!(built.unwrap().success());
    profile.join("device-plugin-agent")
}

#[tokio::test(flavor = "multi_thread")]
async fn our_agent_shows_every_behaviour() {
    let agent = agent();
    let directory = directory();
    let places = [("agent", agent.to_str().unwrap())];
    let mut options = options(driver("device-plugin-agent.yaml", &places), &directory);
    if !rustix::process::geteuid().is_root() {
        // Devices with numbers of their own, by which sysfs finds them.
        options.skip = Selection::from_iter([40]);
    }
    let report = run(&options, |_, _| {}).await.unwrap();
    assert_eq!(skipped(&report), BTreeSet::new(), "{}", lines(&report));
}

#[tokio::test(flavor = "multi_thread")]
async fn our_agent_survives_a_storm_of_kubelets() {
    let agent = agent();
    for devices in [2, 10_000] {
        let directory = directory();
        let places = [("agent", agent.to_str().unwrap())];
        let mut driver = driver("device-plugin-agent.yaml", &places);
        driver.environment.insert(
            "DISCOVERY".to_owned(),
            format!(r#"{{"simulated": {{"count": {devices}}}}}"#),
        );
        let options = Options {
            only: Selection::from_iter([21]),
            restarts: 1_000,
            ..options(driver, &directory)
        };
        let report = run(&options, |_, _| {}).await.unwrap();
        let passed = report
            .findings
            .iter()
            .filter(|f| f.outcome == Outcome::Pass);
        assert_eq!(passed.count(), 2, "{devices} devices: {}", lines(&report));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_behaves_passes() {
    let directory = directory();
    let places = [("plugin", SCRIPTED), ("fault", "")];
    let options = options(driver("scripted-plugin.yaml", &places), &directory);
    let report = run(&options, |_, _| {}).await.unwrap();
    assert_eq!(skipped(&report), BTreeSet::new(), "{}", lines(&report));
}

#[test]
fn every_behaviour_has_a_fault() {
    let faults = Fault::value_variants().iter();
    let covered: BTreeSet<u8> = faults
        .flat_map(|f| expected_failures(*f))
        .copied()
        .collect();
    let all: BTreeSet<u8> = BEHAVIOURS.iter().map(|one| one.number).collect();
    assert_eq!(covered, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_is_found() {
    // Most checks of a plugin that misbehaves wait for what never comes.
    let places = Arc::new(Semaphore::new(40));
    let mut faults = JoinSet::new();
    for fault in Fault::value_variants() {
        let places = places.clone();
        faults.spawn(async move {
            let _place = places.acquire().await.unwrap();
            not_found(*fault).await
        });
    }
    let missed: Vec<String> = faults.join_all().await.into_iter().flatten().collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// What of a fault's expected failures did not come.
async fn not_found(fault: Fault) -> Option<String> {
    let name = fault.to_possible_value().unwrap().get_name().to_owned();
    let directory = directory();
    let flag = format!("--fault {name}");
    let places = [("plugin", SCRIPTED), ("fault", flag.as_str())];
    let driver = driver("scripted-plugin.yaml", &places);
    let expected = expected_failures(fault);
    // One kubelet is enough to see it; 25 is about the older.
    let models = match expected.contains(&25) {
        true => vec![Model::V1_36, Model::V1_37],
        false => vec![Model::V1_37],
    };
    let options = Options {
        models,
        only: expected.iter().copied().collect(),
        ..options(driver, &directory)
    };
    let report = run(&options, |_, _| {}).await.unwrap();
    let failed = |number: &u8| {
        let mut findings = report.findings.iter();
        findings.any(|f| f.number == *number && matches!(f.outcome, Outcome::Fail { .. }))
    };
    let missed: Vec<&u8> = expected.iter().filter(|number| !failed(number)).collect();
    (!missed.is_empty()).then(|| format!("{name} passes {missed:?}: {}", lines(&report)))
}

#[test]
fn what_judges_nothing_or_the_wrong_thing_is_an_error() {
    let used = directory();
    std::fs::create_dir(used.path().join("1-7")).unwrap();
    let used = used.path().to_str().unwrap();
    let cases: [(&[&str], &str); 3] = [
        (&["--only", "66"], "no behaviour is left to judge"),
        (
            &["--only", "1", "--directory", used],
            "is of an earlier run",
        ),
        (
            &["--devices", "1", "--action", "add-device=true"],
            "leave devices out",
        ),
    ];
    for (flags, told) in cases {
        let output = Command::new(SUITE)
            .args(["--resource", "example.com/x"])
            .args(flags)
            .args(["--", "/bin/false"])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(told), "{flags:?}: {said}");
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
    }
}
