//! A runner that runs nothing: what each action comes to is scripted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use node_agent::runner::{Action, ActionRequest, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::fake_kubelet::DEADLINE;

/// What the actions of one name come to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Play {
    /// Success.
    Pass,
    /// Failure; what it prints.
    Fail(&'static str),
    /// It runs until its time is up or nobody wants it any more.
    Hang,
}

/// What the runner was asked, and what it answers.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// Actions that began: the program's name or `open`, a blank and the device.
    pub begun: Vec<String>,
    /// Actions that run.
    pub running: Vec<String>,
    /// Those that were given up by whoever asked.
    pub killed: Vec<String>,
    /// Devices that had two actions at once.
    pub overlaps: Vec<String>,
    /// Most actions at once.
    pub most: usize,
    /// What actions come to, by what they are told as, or by program; else success.
    pub plays: BTreeMap<String, Play>,
    /// The last request.
    pub last: Option<ActionRequest>,
}

/// The runner.
#[derive(Clone)]
pub struct FakeRunner {
    runs: Arc<watch::Sender<Runs>>,
}

impl FakeRunner {
    /// Listens as long as the test runs.
    pub fn start(socket: &Path) -> Self {
        let fake = Self {
            runs: Arc::new(watch::Sender::new(Runs::default())),
        };
        let listener = UnixListener::bind(socket).unwrap();
        let server = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().serve(stream));
            }
        });
        fake
    }

    /// From now on the actions of a name come to this.
    pub fn play(&self, name: &str, play: Play) {
        self.runs
            .send_modify(|runs| _ = runs.plays.insert(name.to_owned(), play));
    }

    /// What was run so far.
    pub fn now(&self) -> Runs {
        self.runs.borrow().clone()
    }

    /// How often an action began.
    pub fn count(&self, told: &str) -> usize {
        let runs = self.runs.borrow();
        runs.begun.iter().filter(|one| *one == told).count()
    }

    /// Waits for something.
    pub async fn until(&self, what: &str, is: impl Fn(&Runs) -> bool) {
        let mut runs = self.runs.subscribe();
        let found = tokio::time::timeout(DEADLINE, runs.wait_for(|runs| is(runs))).await;
        assert!(found.is_ok(), "not in time: {what}; {:#?}", self.now());
    }

    async fn serve(self, mut stream: UnixStream) {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.unwrap();
        let mut body = vec![0; u32::from_be_bytes(head) as usize];
        stream.read_exact(&mut body).await.unwrap();
        let request: ActionRequest = serde_json::from_slice(&body).unwrap();
        let name = match &request.action {
            Action::Exec { command } => command[0].trim_start_matches("/tools/").to_owned(),
            Action::Open { .. } => "open".to_owned(),
            other => panic!("not played: {other:?}"),
        };
        let device = request.env["DEVICE_ID"].clone();
        let told = format!("{name} {device}");
        let limit = request.timeout;
        self.runs.send_modify(|runs| {
            let same = format!(" {device}");
            if runs.running.iter().any(|one| one.ends_with(&same)) {
                runs.overlaps.push(told.clone());
            }
            runs.begun.push(told.clone());
            runs.running.push(told.clone());
            runs.most = runs.most.max(runs.running.len());
            runs.last = Some(request);
        });
        let success = tokio::select! {
            success = self.played(&name, &told, limit) => Some(success),
            // Nothing more is sent: what comes is the end.
            _closed = stream.read_u8() => None,
        };
        self.runs.send_modify(|runs| {
            let index = runs.running.iter().position(|one| *one == told);
            runs.running.remove(index.unwrap());
            if success.is_none() {
                runs.killed.push(told.clone());
            }
        });
        let Some(result) = success else {
            return;
        };
        let outcome = Outcome {
            success: result.is_ok(),
            begun: true,
            message: result.err().unwrap_or_default(),
            duration: Duration::ZERO,
        };
        let body = serde_json::to_vec(&outcome).unwrap();
        let head = u32::try_from(body.len()).unwrap().to_be_bytes();
        let _gone = stream.write_all(&[&head[..], &body].concat()).await;
    }

    /// Follows the play: one that is changed while it hangs goes on.
    async fn played(&self, name: &str, told: &str, limit: Duration) -> Result<(), String> {
        let mut runs = self.runs.subscribe();
        let play = |runs: &Runs| {
            let play = runs.plays.get(told).or_else(|| runs.plays.get(name));
            play.copied().unwrap_or(Play::Pass)
        };
        let decided = runs.wait_for(|runs| play(runs) != Play::Hang);
        match tokio::time::timeout(limit, decided).await {
            Err(_) => Err(format!("killed after {limit:?}")),
            Ok(runs) => match play(&runs.unwrap()) {
                Play::Fail(why) => Err(why.to_owned()),
                Play::Pass | Play::Hang => Ok(()),
            },
        }
    }
}
