//! What the init containers of an agent's pod run.

use std::process::{Command, Output};

use crate::rig::{Rig, ended};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_device-plugin-agent"))
}

fn driver(rig: &Rig, timeout: &str, script: &str) -> Output {
    let mut command = program();
    command
        .args(["run-driver", "--timeout-seconds", timeout, "--"])
        .args(["/bin/sh", "-c", script])
        .current_dir(rig.home.path());
    command.output().unwrap()
}

#[test]
fn the_program_is_put_where_other_images_find_it() {
    let rig = Rig::empty();
    for _ in 0..2 {
        let installed = program()
            .args(["install-runner", "--directory"])
            .arg(rig.home.path())
            .status()
            .unwrap();
        assert!(installed.success());
    }
    let copy = rig.path("device-plugin-agent");
    let said = Command::new(&copy).arg("--version").output().unwrap();
    assert!(said.status.success());
    assert!(said.stdout.starts_with(b"device-plugin-agent "));
    assert!(!rig.path(".part").exists());
    let nowhere = program()
        .args(["install-runner", "--directory", "/no/such/directory"])
        .output()
        .unwrap();
    assert!(!nowhere.status.success());
    let log = String::from_utf8_lossy(&nowhere.stdout);
    assert!(log.contains("/no/such/directory"), "{log}");
}

#[tokio::test]
async fn a_driver_runs_to_its_end_or_is_killed() {
    let rig = Rig::empty();
    let done = driver(&rig, "60", "echo loaded; exit 0");
    assert!(done.status.success());
    assert_eq!(done.stdout, b"loaded\n");

    let failed = driver(&rig, "60", "echo no such module >&2; exit 7");
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(failed.stderr, b"no such module\n");
    let log = String::from_utf8_lossy(&failed.stdout);
    assert!(log.contains("exit code 7"), "{log}");

    let script = "echo $$ >> pids; setsid sh -c 'echo $$ >> pids; sleep 1000' & sleep 1000";
    let hung = driver(&rig, "1", script);
    assert_eq!(hung.status.code(), Some(1));
    let log = String::from_utf8_lossy(&hung.stdout);
    assert!(log.contains("took too long and was killed"), "{log}");
    ended(&rig.pids("pids", 2).await).await;
}
