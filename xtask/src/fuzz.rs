//! Fuzzing of everything that the agent reads and did not write.

use std::process::Command;

use anyhow::Context;

use crate::steps::{Step, note};
use crate::tools;
use crate::workspace::{cache, root, run};

/// All of them: a target that fails prints its input and how to run it again.
pub const STEPS: &[Step] = &[
    ("building the fuzz targets", build),
    ("fuzzing: the config", || fuzz("config", "examples")),
    ("fuzzing: device events", || seeded("uevent")),
    ("fuzzing: udev's database", || seeded("udev")),
    ("fuzzing: what sysfs says of devices", || seeded("device")),
];

/// How long each target runs, in seconds.
const DURATION: &str = "60";

fn build() -> anyhow::Result<()> {
    run(cargo_fuzz()?.arg("build").args(OPTIONS))
}

/// What is the same for building and running. Without a sanitizer the stable compiler serves, and
/// what a sanitizer finds cannot be there: nothing here is unsafe.
const OPTIONS: [&str; 4] = ["--sanitizer", "none", "--fuzz-dir", "node-agent/fuzz"];

/// Runs a target on its own seeds.
fn seeded(target: &str) -> anyhow::Result<()> {
    fuzz(target, &format!("node-agent/fuzz/seeds/{target}"))
}

/// Runs a target on what earlier runs found interesting, and on the files of a directory.
fn fuzz(target: &str, seeds: &str) -> anyhow::Result<()> {
    let found = cache()?.join("fuzz").join(target);
    std::fs::create_dir_all(&found)
        .with_context(|| format!("failed to make {:?}", found.display()))?;
    let mut command = cargo_fuzz()?;
    command.arg("run").args(OPTIONS).arg(target);
    command.arg(found).arg(root().join(seeds));
    // An input takes microseconds; one that takes ten seconds would hold up every device.
    command.args(["--", "-timeout=10", "-rss_limit_mb=2048", "-verbosity=0"]);
    run(command.arg(format!("-max_total_time={DURATION}")))
}

fn cargo_fuzz() -> anyhow::Result<Command> {
    let mut command = Command::new(tools::cargo_fuzz()?);
    command.current_dir(root());
    // The flags of fuzzing are none of the other builds': both would begin anew each time.
    command.env("CARGO_TARGET_DIR", cache()?.join("fuzz/target"));
    note("targets are in node-agent/fuzz; what they found interesting is kept in the cache");
    Ok(command)
}
