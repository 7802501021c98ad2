use super::*;
use Event::{
    Accepted, Displaced, KubeletAppeared, KubeletVanished, OwnSocketGone, Refused, ServeFailed,
    StreamClosed, StreamOpened, TimeUp, Unreachable,
};

const AFRESH: [Effect; 4] = [
    Effect::StopWaiting,
    Effect::Close,
    Effect::Serve,
    Effect::Register,
];

/// Runs events, one second apart, and tells the last phase and its effects.
fn run(events: &[Event]) -> (Phase, Vec<Effect>) {
    run_every(Duration::from_secs(1), events)
}

fn run_every(step: Duration, events: &[Event]) -> (Phase, Vec<Effect>) {
    let (mut registration, mut effects) = Registration::start(true);
    let mut now = Duration::ZERO;
    for event in events {
        now += step;
        (registration, effects) = registration.next(*event, now, 0.0, &Limits::default());
    }
    (registration.phase(), effects)
}

fn wait(millis: u64) -> Effect {
    Effect::Wait(Duration::from_millis(millis))
}

const REGISTERING: Phase = Phase::Registering {
    streams: 0,
    opened: false,
};

#[test]
fn a_registration_that_goes_well() {
    assert_eq!(run(&[]), (REGISTERING, AFRESH.to_vec()));
    assert_eq!(
        run(&[Accepted]),
        (Phase::AwaitingStream, vec![wait(30_000)])
    );
    let watching = (Phase::Watching { streams: 1 }, vec![Effect::StopWaiting]);
    assert_eq!(run(&[Accepted, StreamOpened]), watching);
    assert_eq!(
        run(&[StreamOpened, Accepted]),
        watching,
        "the kubelet may be that fast"
    );
}

#[test]
fn a_displaced_list_is_registered_afresh() {
    let many: Vec<Event> = [Accepted, StreamOpened, Displaced].repeat(5);
    assert_eq!(
        run_every(Duration::ZERO, &many),
        (REGISTERING, AFRESH.to_vec())
    );
    assert_eq!(run(&[Accepted, Displaced]).1, Vec::new(), "not ours yet");
}

#[test]
fn without_a_kubelet_nothing_is_done_until_it_appears() {
    let (registration, effects) = Registration::start(false);
    assert_eq!(
        (registration.phase(), effects),
        (Phase::AwaitingKubelet, Vec::new())
    );
    let (registration, effects) =
        registration.next(KubeletAppeared, Duration::ZERO, 0.0, &Limits::default());
    assert_eq!(
        (registration.phase(), effects),
        (REGISTERING, AFRESH.to_vec())
    );
}

#[test]
fn every_loss_is_answered_by_a_fresh_registration() {
    let afresh = (REGISTERING, AFRESH.to_vec());
    assert_eq!(
        run(&[Accepted, StreamOpened, StreamClosed]),
        afresh,
        "stream lost"
    );
    assert_eq!(
        run(&[StreamOpened, StreamClosed, Accepted]),
        afresh,
        "lost before accepted"
    );
    assert_eq!(run(&[Accepted, TimeUp]), afresh, "never watched");
    for event in [OwnSocketGone, KubeletAppeared] {
        assert_eq!(run(&[event]), afresh);
        assert_eq!(run(&[Accepted, event]), afresh);
        assert_eq!(run(&[Accepted, StreamOpened, event]), afresh);
    }
    assert_eq!(
        run(&[Refused, KubeletAppeared]),
        afresh,
        "a new kubelet ends a back-off"
    );
}

#[test]
fn the_stream_is_lost_with_the_last_one_of_several() {
    let two = [Accepted, StreamOpened, StreamOpened, StreamClosed];
    assert_eq!(run(&two), (Phase::Watching { streams: 1 }, Vec::new()));
    assert_eq!(
        run(&[&two[..], &[StreamClosed]].concat()),
        (REGISTERING, AFRESH.to_vec())
    );
}

#[test]
fn a_kubelet_that_does_not_answer_is_asked_again_from_the_same_server() {
    let serving = Phase::BackingOff { serving: true };
    assert_eq!(run(&[Unreachable]), (serving, vec![wait(2)]));
    assert_eq!(
        run(&[Unreachable, TimeUp]),
        (REGISTERING, vec![Effect::Register])
    );
    assert_eq!(
        run(&[Unreachable, TimeUp, Unreachable]),
        (serving, vec![wait(4)])
    );
    let long: Vec<Event> = [Unreachable, TimeUp].repeat(40);
    assert_eq!(
        run(&[&long[..], &[Unreachable]].concat()),
        (serving, vec![wait(5_000)])
    );
}

#[test]
fn a_kubelet_that_refuses_hears_another_name_later() {
    let refused = (
        Phase::BackingOff { serving: false },
        vec![Effect::Close, wait(250)],
    );
    assert_eq!(run(&[Refused]), refused);
    assert_eq!(run(&[ServeFailed]), refused);
    assert_eq!(run(&[Refused, TimeUp]), (REGISTERING, AFRESH.to_vec()));
    assert_eq!(
        run(&[Refused, TimeUp, Refused]),
        (
            Phase::BackingOff { serving: false },
            vec![Effect::Close, wait(500)]
        )
    );
    let after_success = [
        Refused,
        TimeUp,
        Accepted,
        StreamOpened,
        StreamClosed,
        Refused,
    ];
    assert_eq!(run(&after_success), refused, "success forgets failures");
}

#[test]
fn the_third_loss_in_quick_succession_is_answered_more_slowly() {
    let lose = [Accepted, StreamOpened, StreamClosed];
    let quick = Duration::from_millis(1);
    assert_eq!(
        run_every(quick, &lose.repeat(2)),
        (REGISTERING, AFRESH.to_vec())
    );
    let slow = (
        Phase::BackingOff { serving: false },
        vec![Effect::Close, wait(250)],
    );
    assert_eq!(run_every(quick, &lose.repeat(3)), slow);
    let fourth = [&lose.repeat(3)[..], &[TimeUp], &lose[..]].concat();
    assert_eq!(run_every(quick, &fourth).1, [Effect::Close, wait(500)]);
    let rare = Duration::from_secs(4);
    assert_eq!(
        run_every(rare, &lose.repeat(9)),
        (REGISTERING, AFRESH.to_vec())
    );
}

#[test]
fn a_kubelet_that_is_gone_is_waited_for() {
    let waiting = (
        Phase::AwaitingKubelet,
        vec![Effect::StopWaiting, Effect::Close],
    );
    assert_eq!(
        run(&[Accepted, StreamOpened, KubeletVanished, StreamClosed]),
        waiting
    );
    assert_eq!(run(&[Unreachable, KubeletVanished]), waiting);
    assert_eq!(run(&[KubeletVanished, Unreachable]), waiting);
    assert_eq!(run(&[KubeletVanished, Refused]), waiting);
    let kept = run(&[Accepted, StreamOpened, KubeletVanished]);
    assert_eq!(
        kept,
        (Phase::Watching { streams: 1 }, Vec::new()),
        "the stream still runs"
    );
}

#[test]
fn a_socket_that_vanishes_during_a_back_off_is_not_used_again() {
    assert_eq!(
        run(&[Unreachable, OwnSocketGone, TimeUp]),
        (REGISTERING, AFRESH.to_vec())
    );
}

#[test]
fn every_sequence_ends_in_one_registration_once_the_kubelet_behaves() {
    const ALL: [Event; 10] = [
        KubeletAppeared,
        KubeletVanished,
        ServeFailed,
        Accepted,
        Unreachable,
        Refused,
        StreamOpened,
        StreamClosed,
        OwnSocketGone,
        TimeUp,
    ];
    for sequence in 0..10_usize.pow(5) {
        let events = (0..5).map(|digit| ALL[sequence / 10_usize.pow(digit) % 10]);
        let (mut registration, _) = Registration::start(sequence % 2 == 0);
        let mut timer = false;
        for event in events {
            timer &= event != TimeUp;
            let effects;
            (registration, effects) =
                registration.next(event, Duration::ZERO, 0.5, &Limits::default());
            for effect in &effects {
                match effect {
                    Effect::Wait(_) => timer = true,
                    Effect::StopWaiting => timer = false,
                    Effect::Close | Effect::Serve | Effect::Register => {}
                }
            }
            let serves = effects.contains(&Effect::Serve);
            assert!(
                !serves || effects.contains(&Effect::Close),
                "two servers: {effects:?}"
            );
            let phase = registration.phase();
            let waits = matches!(phase, Phase::AwaitingStream | Phase::BackingOff { .. });
            assert_eq!(
                waits, timer,
                "{phase:?} after {event:?} of sequence {sequence}"
            );
        }
        let (registration, _) =
            registration.next(KubeletAppeared, Duration::ZERO, 0.5, &Limits::default());
        let (registration, _) =
            registration.next(Accepted, Duration::ZERO, 0.5, &Limits::default());
        let (registration, _) =
            registration.next(StreamOpened, Duration::ZERO, 0.5, &Limits::default());
        assert_eq!(registration.phase(), Phase::Watching { streams: 1 });
    }
}
