//! Programs of a tools image, good and bad.

use std::fs;
use std::time::{Duration, Instant};

use node_agent::runner::{Action, MESSAGE_MAX};

use crate::rig::{LONG, Rig, SHORT, ended, runs};

/// Writes the id of the process that sources it to a file.
const NOTE: &str = "note() { sh -c 'echo $PPID' >> pids; }\n";

fn noting(script: &str) -> String {
    format!("{NOTE}{script}")
}

#[tokio::test]
async fn a_program_tells_how_it_ended() {
    let rig = Rig::new();
    for (script, success, message) in [
        ("true", true, ""),
        ("echo one; echo two >&2", true, "one two"),
        ("echo no card; exit 3", false, "exit code 3: no card"),
        ("kill -TERM $$", false, "ended by signal 15"),
    ] {
        let outcome = rig.shell(script, LONG).await;
        assert_eq!(
            (outcome.success, outcome.message.as_str()),
            (success, message),
            "{script:?}"
        );
    }
    let command = vec!["/no/such/program".to_owned()];
    let outcome = rig.run(Action::Exec { command }).await;
    assert!(!outcome.success);
    for word in ["/no/such/program", "No such file"] {
        assert!(outcome.message.contains(word), "{outcome:?}");
    }
    let outcome = rig.run(Action::Exec { command: vec![] }).await;
    assert!(!outcome.success, "{outcome:?}");
}

#[tokio::test]
async fn a_program_gets_nothing_but_its_own() {
    let rig = Rig::new();
    let command = vec!["/usr/bin/env".to_owned()];
    let outcome = rig.run(Action::Exec { command }).await;
    assert_eq!(
        outcome.message,
        "DEVICE_ID=card0 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    );
    let command = ["/bin/sh", "-c", "pwd; cat; exec ls -1 /proc/self/fd"];
    // As many open files as what this test starts itself, and nothing to read.
    let here = std::process::Command::new(command[0])
        .args(&command[1..])
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let here = String::from_utf8(here.stdout).unwrap();
    let command = command.map(str::to_owned).to_vec();
    let outcome = rig.run(Action::Exec { command }).await;
    let there: Vec<_> = outcome.message.split(' ').collect();
    assert_eq!(there, here.lines().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_all_it_started() {
    let rig = Rig::new();
    let script = noting(
        "note
         (note; exec sleep 1000) &
         setsid sh -c 'echo $$ >> pids; exec sleep 1000' &
         (trap '' TERM HUP INT; note; while :; do sleep 1000; done) &
         echo waiting; wait",
    );
    let outcome = rig.shell(&script, SHORT).await;
    assert!(!outcome.success);
    assert_eq!(outcome.message, "took too long and was killed: waiting");
    let pids = rig.pids("pids", 4).await;
    for pid in pids {
        assert!(!runs(pid), "{pid} has outlived its action");
    }
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it() {
    let rig = Rig::new();
    // Its parents are gone before it, and it holds the output open.
    let script = "(setsid sh -c '(echo $$ >> pids; setsid sh -c \"echo \\$\\$ >> pids; \
                  while :; do sleep 1000; done\") & sleep 1000' &) &
                  while [ $(cat pids 2>/dev/null | wc -l) -lt 2 ]; do sleep 0.01; done; echo done";
    let outcome = rig.shell(script, LONG).await;
    assert_eq!((outcome.success, outcome.message.as_str()), (true, "done"));
    for pid in rig.pids("pids", 2).await {
        assert!(!runs(pid), "{pid} has outlived its action");
    }
}

#[tokio::test]
async fn a_flood_is_cut_and_blocks_nobody() {
    let rig = Rig::new();
    let flood = "head -c 50000000 /dev/zero | tr '\\0' 'x'; echo the end; exit 4";
    let outcome = rig.shell(flood, LONG).await;
    assert!(outcome.message.starts_with("exit code 4 ... "));
    assert!(outcome.message.ends_with("xxxthe end"));
    assert_eq!(outcome.message.chars().count(), MESSAGE_MAX);

    // For ever, also from a process that is left behind.
    let endless = "yes left & yes right";
    let outcome = rig.shell(endless, SHORT).await;
    assert!(outcome.message.starts_with("took too long"));
    let left = "yes left & exit 0";
    assert!(rig.shell(left, LONG).await.success);
    let peak = peak_memory(rig.runner.as_ref().unwrap().id());
    assert!(peak < 64 << 20, "the runner has used {peak} bytes");
}

fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_program_that_closes_its_output_is_still_waited_for() {
    let rig = Rig::new();
    let silent = "exec >&- 2>&-; while [ ! -e go ]; do sleep 0.01; done; exit 5";
    let request = rig.script(silent, LONG);
    let client = rig.client();
    let run = tokio::spawn(async move { client.run(&request).await });
    assert!(rig.shell("true", LONG).await.success);
    assert!(!run.is_finished());
    fs::write(rig.path("go"), "").unwrap();
    assert_eq!(run.await.unwrap().unwrap().message, "exit code 5");

    let outcome = rig.shell("exec >&- 2>&-; sleep 1000", SHORT).await;
    assert_eq!(outcome.message, "took too long and was killed");
}

#[tokio::test]
async fn whoever_goes_away_takes_the_action_along() {
    let rig = Rig::new();
    let script = noting("note; (note; exec sleep 1000) & setsid sleep 1000 & wait");
    let request = rig.script(&script, LONG);
    let client = rig.client();
    let run = tokio::spawn(async move { client.run(&request).await });
    let pids = rig.pids("pids", 2).await;
    assert!(pids.iter().all(|pid| runs(*pid)));
    run.abort();
    ended(&pids).await;
    assert!(rig.shell("true", LONG).await.success);
}

#[tokio::test]
async fn nothing_outlives_a_runner_that_is_killed() {
    let mut rig = Rig::new();
    let script = noting("note; (note; exec sleep 1000) & wait");
    let request = rig.script(&script, LONG);
    let client = rig.client();
    let run = tokio::spawn(async move { client.run(&request).await });
    let pids = rig.pids("pids", 2).await;
    rig.kill();
    let error = run.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("went away"), "{error}");
    ended(&pids).await;
}

#[tokio::test]
async fn a_program_that_kills_its_keeper_harms_only_itself() {
    let rig = Rig::new();
    // The other one runs all the while.
    let request = rig.script("while [ ! -e go ]; do sleep 0.01; done; echo fine", LONG);
    let client = rig.client();
    let other = tokio::spawn(async move { client.run(&request).await });
    let script = noting(
        "note; (note; exec sleep 1000) &
         while [ $(cat pids | wc -l) -lt 2 ]; do sleep 0.01; done
         kill -KILL $PPID; exec sleep 1000",
    );
    let start = Instant::now();
    let outcome = rig.shell(&script, LONG).await;
    assert!(start.elapsed() < LONG, "its end was not seen");
    assert!(!outcome.success);
    assert!(outcome.message.contains("keeper"), "{outcome:?}");
    ended(&rig.pids("pids", 2).await).await;
    fs::write(rig.path("go"), "").unwrap();
    let outcome = other.await.unwrap().unwrap();
    assert_eq!((outcome.success, outcome.message.as_str()), (true, "fine"));
}

#[tokio::test]
async fn those_that_hang_harm_only_those_that_get_no_turn() {
    let rig = Rig::new();
    let waiting = "echo $$ >> pids; while [ ! -e go ]; do sleep 0.05; done";
    let mut running = Vec::new();
    for _ in 0..16 {
        let (client, request) = (rig.client(), rig.script(waiting, LONG));
        running.push(tokio::spawn(async move { client.run(&request).await }));
    }
    rig.pids("pids", 16).await;
    let outcome = rig.shell("true", Duration::from_millis(200)).await;
    assert!(!outcome.success);
    assert!(outcome.message.contains("for its turn"), "{outcome:?}");
    assert!(!outcome.begun, "it says nothing of the device");
    // One that is given up makes room.
    running.pop().unwrap().abort();
    assert!(rig.shell("true", LONG).await.success);
    fs::write(rig.path("go"), "").unwrap();
    for run in running {
        assert!(run.await.unwrap().unwrap().success);
    }
}
