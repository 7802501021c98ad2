//! What is said on the socket: by nobody yet, by others, and wrongly.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use node_agent::runner::{Action, Runner, RunnerError};

use crate::rig::{LONG, Rig, request, until};

fn ping() -> Action {
    let command = vec!["/bin/true".to_owned()];
    Action::Exec { command }
}

#[tokio::test]
async fn a_runner_that_comes_later_is_waited_for() {
    let mut rig = Rig::empty();
    // What a killed container leaves: a socket that nobody listens at.
    drop(UnixListener::bind(rig.path("socket")).unwrap());
    let client = rig.client();
    let run = tokio::spawn(async move { client.run(&request(ping(), LONG)).await });
    tokio::task::yield_now().await;
    rig.start("dev");
    assert!(run.await.unwrap().unwrap().success);
}

#[tokio::test]
async fn a_runner_that_never_comes_is_an_error_that_names_it() {
    let rig = Rig::empty();
    let short = request(ping(), Duration::from_millis(200));
    let error = rig.client().run(&short).await.unwrap_err();
    assert!(matches!(error, RunnerError::Connect { .. }), "{error:?}");
    assert!(error.to_string().contains("socket"), "{error}");
}

#[tokio::test]
async fn a_runner_that_says_nonsense_or_nothing_is_an_error() {
    let rig = Rig::empty();
    let listener = UnixListener::bind(rig.path("socket")).unwrap();
    let answers: [&[u8]; 4] = [
        b"",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02{}",
        b"\0\0\0\x09{\"succ",
    ];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4];
            stream.read_exact(&mut head).unwrap();
            stream.write_all(answer).unwrap();
        }
        // The last one is heard and never answered.
        listener.accept().unwrap()
    });
    let client = Runner::new(rig.path("socket"));
    for answer in answers {
        let error = client.run(&request(ping(), LONG)).await.unwrap_err();
        assert!(
            matches!(error, RunnerError::Talk(_)),
            "{answer:?}: {error:?}"
        );
    }
    let short = request(ping(), Duration::from_millis(100));
    let error = client.run(&short).await.unwrap_err();
    assert!(matches!(error, RunnerError::Silent(_)), "{error:?}");
    drop(server.join().unwrap());
}

#[tokio::test]
async fn a_request_that_is_too_long_is_not_sent() {
    let rig = Rig::new();
    let command = vec!["x".repeat(1 << 20)];
    let long = request(Action::Exec { command }, LONG);
    let error = rig.client().run(&long).await.unwrap_err();
    assert!(matches!(error, RunnerError::Request(_)), "{error:?}");
}

#[tokio::test]
async fn whoever_says_nonsense_harms_nobody() {
    let rig = Rig::new();
    assert!(rig.run(ping()).await.success);
    let mut idle = Vec::new();
    for said in [
        &b""[..],
        b"\0",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02{}",
        b"\0\0\0\x09not json!",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = UnixStream::connect(rig.path("socket")).unwrap();
        stream.write_all(said).unwrap();
        idle.push(stream);
        assert!(rig.run(ping()).await.success, "after {said:?}");
    }
    // The longest time that there is.
    let mut endless = serde_json::to_value(request(ping(), LONG)).unwrap();
    endless["timeout"]["secs"] = u64::MAX.into();
    let body = endless.to_string();
    let mut stream = UnixStream::connect(rig.path("socket")).unwrap();
    stream
        .write_all(&u32::try_from(body.len()).unwrap().to_be_bytes())
        .unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut head = [0; 4];
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.read_exact(&mut head).unwrap();
}

#[tokio::test]
async fn nothing_is_left_of_many_actions() {
    let rig = Rig::new();
    assert!(rig.run(ping()).await.success);
    let runner = rig.runner.as_ref().unwrap().id();
    let open = || fs::read_dir(format!("/proc/{runner}/fd")).unwrap().count();
    let mut before = open();
    until("a quiet runner", || {
        let now = open();
        std::mem::replace(&mut before, now) == now
    })
    .await;
    for _ in 0..40 {
        assert!(rig.shell("(sleep 1000 &) & exit 0", LONG).await.success);
    }
    until("as many descriptors as before", || open() <= before).await;
    let children = format!("/proc/{runner}/task/{runner}/children");
    until("no child", || {
        fs::read_to_string(&children).unwrap().is_empty()
    })
    .await;
}
