//! The agent as a process: signals, exit codes, what it needs to start.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::fake_api::FakeApi;
use crate::fake_kubelet::Model;
use crate::rig::{Rig, TTY, config, tty, until};

/// The process, killed when the test ends.
struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Process {
    fn start(rig: &Rig, environment: &[(&str, &str)], flags: &[&str]) -> Self {
        // It served before: a process has the patience of a real one.
        let state =
            r#"{"configUid":"uid-1","revision":"0123456789","resources":["example.com/tty"]}"#;
        fs::write(rig.settings.state_dir.join("test"), state).unwrap();
        Self::start_as_remembered(rig, environment, flags)
    }

    /// Starts it with what the host remembers.
    fn start_as_remembered(rig: &Rig, environment: &[(&str, &str)], flags: &[&str]) -> Self {
        let file = rig.home.path().join("agent.json");
        fs::write(&file, serde_json::to_vec(&config(&[tty()])).unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_device-plugin-agent"));
        command
            .env_clear()
            .env("CONFIG", "test")
            .env("REVISION", "0123456789");
        command
            .env("NODE_NAME", "n1")
            .env("POD_UID", "pod-1")
            .envs(environment.iter().copied());
        for (flag, path) in [
            ("--config-file", &file),
            ("--plugin-dir", &rig.settings.plugin_dir),
            ("--pod-resources-dir", &rig.settings.pod_resources_dir),
            ("--host-dev-dir", &rig.settings.host_dev_dir),
            ("--lock-dir", &rig.settings.lock_dir),
            ("--state-dir", &rig.settings.state_dir),
        ] {
            command.arg(flag).arg(path);
        }
        if !flags.contains(&"--listen-address") {
            command.args(["--listen-address", "127.0.0.1:0"]);
        }
        let command = command
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let outputs: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for output in outputs {
            let log = log.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    log.lock().unwrap().push_str(&format!("{line}\n"));
                }
            });
        }
        Self { child, log }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        let ended = Mutex::new(&mut self.child);
        until("the process ends", || {
            ended.lock().unwrap().try_wait().unwrap().is_some()
        })
        .await;
        self.child.wait().unwrap()
    }

    fn logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().contains(text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// 14 and 15.
#[tokio::test]
async fn sigterm_leaves_nothing_and_sigkill_is_cleaned_up_after() {
    let rig = Rig::new(Model::V1_36);
    rig.plug("tty0");
    let mut first = Process::start(&rig, &[], &[]);
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    first.signal(Signal::KILL);
    assert!(!first.ended().await.success());
    assert_eq!(rig.plugin_sockets().len(), 1);
    rig.kubelet
        .until("disconnected", |known| !known.is_served(TTY))
        .await;
    let mut second = Process::start(&rig, &[], &[]);
    let known = rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    assert_eq!(
        rig.plugin_sockets(),
        [known.resources[TTY].endpoint.clone()]
    );
    second.signal(Signal::TERM);
    assert_eq!(second.ended().await.code(), Some(0));
    assert!(rig.plugin_sockets().is_empty());
    rig.kubelet
        .until("disconnected", |known| !known.is_served(TTY))
        .await;
}

/// 21: twenty new kubelets lead to one registration, and nothing is left of the others.
#[tokio::test]
async fn many_new_kubelet_sockets_lead_to_one_registration() {
    let mut rig = Rig::new(Model::V1_37);
    let process = Process::start(&rig, &[], &[]);
    rig.kubelet
        .until("served", |known| known.is_served(TTY))
        .await;
    let of_process = |what| format!("/proc/{}/{what}", process.child.id());
    let count = |what| fs::read_dir(of_process(what)).unwrap().count();
    let before = (count("fd"), count("task"));
    let mut turn = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..20 {
        turn.tick().await;
        rig.kubelet.bind();
    }
    let settled = || {
        let known = rig.kubelet.known();
        let newest = known.endpoints(TTY).last().map(|name| (*name).to_owned());
        known.is_served(TTY)
            && newest == Some(known.resources[TTY].endpoint.clone())
            && rig.kubelet.open_streams() == 1
            && rig.plugin_sockets() == [known.resources[TTY].endpoint.clone()]
            && count("fd") <= before.0
            && count("task") <= before.1
    };
    until(
        "one registration, and no more descriptors and threads than before",
        settled,
    )
    .await;
}

#[tokio::test]
async fn a_configuration_of_another_revision_is_refused() {
    let rig = Rig::new(Model::V1_37);
    let mut process = Process::start(&rig, &[("REVISION", "ffffffffff")], &[]);
    assert_eq!(process.ended().await.code(), Some(1));
    let told = r#"is of revision \"0123456789\" of config \"test\", but this pod is of revision \"ffffffffff\""#;
    until("told", || process.logged(told)).await;
    assert!(rig.kubelet.known().calls.is_empty());
}

/// What a pod's template says counts where the host remembers nothing, and must be understood.
#[tokio::test]
async fn the_initial_role_is_the_templates() {
    let rig = Rig::new(Model::V1_37);
    let environment = [("INITIAL_ROLE", "Standby")];
    let process = Process::start_as_remembered(&rig, &environment, &[]);
    until("stands by", || process.logged(r#""role":"Standby""#)).await;
    assert!(rig.kubelet.known().calls.is_empty());
    let mut other = Process::start_as_remembered(&rig, &[], &["--initial-role", "Leader"]);
    assert_eq!(other.ended().await.code(), Some(2));
    until("told", || other.logged(r#""Leader" is no role"#)).await;
}

#[tokio::test]
async fn a_configuration_that_cannot_be_read_is_named() {
    let rig = Rig::new(Model::V1_37);
    for (text, told) in [
        ("{", "failed to understand"),
        (r#"{"config":"test","haken":{}}"#, "unknown field `haken`"),
    ] {
        let file = rig.home.path().join("wrong.json");
        fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_device-plugin-agent"));
        let flags = ["--config=a", "--revision=b", "--node-name=c", "--pod-uid=d"];
        let output = command
            .args(flags)
            .arg("--config-file")
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let log = String::from_utf8(output.stdout).unwrap();
        assert!(log.contains(told) && log.contains("wrong.json"), "{log}");
    }
}

/// Probes and metrics, and the log level that the node's object sets while the agent runs.
#[tokio::test]
async fn the_endpoint_answers_and_the_log_level_is_live() {
    let api = FakeApi::start().await;
    api.set_object("test.n1", &json!({}));
    let rig = Rig::new(Model::V1_37);
    rig.plug("tty0");
    let kubeconfig = rig.home.path().join("kubeconfig");
    let contents = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        "clusters": [{ "name": "c", "cluster": { "server": api.url() } }],
        "users": [{ "name": "u", "user": {} }],
    });
    fs::write(&kubeconfig, contents.to_string()).unwrap();
    // An address of its own, so that no other test takes the port in between.
    let free = std::net::TcpListener::bind("127.77.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let environment = [("KUBECONFIG", kubeconfig.to_str().unwrap())];
    let mut process = Process::start(&rig, &environment, &["--listen-address", &free]);
    rig.kubelet.until_healths(TTY, &["Healthy"]).await;
    until("ready", || {
        get(&free, "/readyz").starts_with("HTTP/1.1 200")
    })
    .await;
    assert!(get(&free, "/healthz").starts_with("HTTP/1.1 200"));
    let metrics = get(&free, "/metrics");
    assert!(
        metrics.contains("device_plugin_agent_registered{resource=\"example.com/tty\"} 1"),
        "{metrics}"
    );
    api.until("registered", |write| {
        write.body["status"]["active"]["summary"]["registered"] == "1/1"
    })
    .await;
    assert!(!process.logged(r#""level":"DEBUG""#));
    api.set_object("test.n1", &json!({ "logLevel": "debug" }));
    until("debug", || process.logged("log level set")).await;
    // A client that asks nothing holds up no stop.
    let _silent = TcpStream::connect(&free).unwrap();
    let started = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.ended().await.code(), Some(0));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

fn get(address: &str, path: &str) -> String {
    let Ok(mut connection) = TcpStream::connect(address) else {
        return String::new();
    };
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}
