use super::*;
use crate::health::Thresholds;
use crate::pace::Pace;
use crate::work::Probes;

const BOOT: &str = "boot-1";

fn rules() -> Rules {
    Rules {
        probes: None,
        init: None,
        reset: false,
        release: false,
        boot_id: BOOT.to_owned(),
        pace: Pace {
            first: Duration::from_secs(10),
            limit: Duration::from_secs(300),
        },
        reset_grace: Duration::from_secs(60),
    }
}

fn probes(only_free: bool, at_once: usize) -> Option<Probes> {
    Some(Probes {
        thresholds: Thresholds {
            failure: 2,
            success: 2,
        },
        only_free,
        at_once,
    })
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ids(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn failed(why: &str) -> Ended {
    Ended::Failed(why.to_owned())
}

/// A resource's devices, with the world around them.
struct Ward {
    care: Care,
    present: BTreeSet<String>,
    given: BTreeSet<String>,
    noted: BTreeSet<String>,
    opened: Option<Duration>,
    number: u64,
}

impl Ward {
    fn new(rules: Rules, present: &[&str]) -> Self {
        let mut care = Care::new(rules);
        care.set_serves(true);
        Self {
            care,
            present: ids(present),
            given: BTreeSet::new(),
            noted: BTreeSet::new(),
            opened: None,
            number: 0,
        }
    }

    /// One that serves.
    fn serving(rules: Rules, present: &[&str]) -> Self {
        let mut ward = Self::new(rules, present);
        ward.care.begin(Record::default());
        ward
    }

    /// A new reading of who holds what.
    fn held(&mut self, held: &[&str]) {
        self.number += 1;
        self.look(Some(&ids(held)));
    }

    fn look(&mut self, held: Option<&BTreeSet<String>>) {
        let reading = Reading {
            held,
            given: &self.given,
            noted: &self.noted,
            opened: self.opened,
            number: self.number,
            now: at(self.number),
        };
        self.care.saw(self.present.iter(), reading);
    }

    /// What starts, as `init a`.
    fn started(&mut self, seconds: u64) -> Vec<String> {
        let started = self.care.next(at(seconds));
        let told = started
            .iter()
            .map(|(id, work)| format!("{} {id}", work.as_str()));
        told.collect()
    }

    fn ended(&mut self, told: &str, ended: &Ended, seconds: u64) {
        let (work, id) = told.split_once(' ').unwrap();
        let works = [Work::Probe, Work::Init, Work::Reset, Work::Release];
        let work = works.into_iter().find(|one| one.as_str() == work).unwrap();
        self.care.done(id, work, ended, at(seconds));
    }

    /// Why a device is not given out, with `?` where it only waits; empty when it is.
    fn objection(&self, id: &str) -> String {
        self.care
            .objection(id)
            .map_or_else(String::new, |objection| {
                let waits = if objection.awaits { "?" } else { "" };
                format!("{}{waits}", objection.reason)
            })
    }
}

fn init(hash: &str) -> Rules {
    Rules {
        init: Some(hash.to_owned()),
        ..rules()
    }
}

#[test]
fn a_device_is_initialised_before_it_is_given_out_and_once_only() {
    let mut ward = Ward::serving(init("h1"), &["a", "b"]);
    ward.look(None);
    assert_eq!(
        ward.started(0),
        [""; 0],
        "a container may hold it, for all that is known"
    );
    assert_eq!(ward.objection("a"), "it is being initialised?");
    ward.held(&["b"]);
    assert_eq!(ward.started(1), ["init a"], "never one that is held");
    assert_eq!(
        ward.objection("b"),
        "",
        "what a container holds was initialised"
    );
    assert_eq!(ward.started(1), [""; 0]);
    ward.ended("init a", &Ended::Passed, 2);
    assert_eq!(ward.objection("a"), "");
    assert_eq!(ward.started(2), [""; 0]);
    let record = ward.care.changed_record().unwrap();
    assert!(record.is_initialised("a", BOOT, "h1") && !record.is_initialised("b", BOOT, "h1"));
    assert_eq!(ward.care.changed_record(), None, "told once");

    let restarted = |rules: Rules| {
        let mut ward = Ward::new(rules, &["a"]);
        ward.care.begin(record.clone());
        ward.held(&[]);
        ward.started(0)
    };
    assert_eq!(restarted(init("h1")), [""; 0]);
    assert_eq!(restarted(init("h2")), ["init a"]);
    let boot_id = "boot-2".to_owned();
    assert_eq!(
        restarted(Rules {
            boot_id,
            ..init("h1")
        }),
        ["init a"]
    );
}

#[test]
fn a_failed_init_is_told_tried_again_and_holds_back_no_other() {
    let mut ward = Ward::serving(init("h"), &["a", "b"]);
    ward.held(&[]);
    assert_eq!(ward.started(0), ["init a", "init b"]);
    ward.ended("init a", &failed("exit code 1"), 1);
    ward.ended("init b", &Ended::Passed, 1);
    assert_eq!(ward.objection("a"), "init failed: exit code 1");
    assert_eq!(ward.objection("b"), "");
    assert_eq!(ward.started(10), [""; 0]);
    assert_eq!(ward.care.wake_at(at(10)), Some(at(11)));
    assert_eq!(ward.started(11), ["init a"]);
    ward.ended("init a", &Ended::NotRun("no runner".to_owned()), 12);
    assert_eq!(ward.objection("a"), "init failed: no runner");
    assert_eq!(
        ward.care.wake_at(at(12)),
        Some(at(32)),
        "twice as long as before"
    );
    assert_eq!(ward.started(32), ["init a"]);
    ward.ended("init a", &Ended::Passed, 33);
    assert_eq!(
        (ward.objection("a"), ward.care.wake_at(at(33))),
        (String::new(), None)
    );
}

#[test]
fn a_device_that_vanishes_over_its_hook_is_not_tried_at_once() {
    let mut ward = Ward::serving(init("h"), &["a"]);
    ward.held(&[]);
    assert_eq!(ward.started(0), ["init a"]);
    ward.present.clear();
    ward.held(&[]);
    ward.ended("init a", &failed("it went away"), 1);
    ward.present = ids(&["a"]);
    ward.held(&[]);
    assert_eq!(ward.started(2), [""; 0]);
    assert_eq!(ward.objection("a"), "init failed: it went away");
    assert_eq!(ward.started(11), ["init a"]);
    ward.ended("init a", &failed("again"), 12);
    ward.present.clear();
    ward.number = 1_000;
    ward.held(&[]);
    ward.present = ids(&["a"]);
    ward.held(&[]);
    assert_eq!(ward.objection("a"), "it is being initialised?", "long ago");
}

#[test]
fn hooks_that_hang_leave_room_for_what_the_kubelet_asks() {
    let all: Vec<String> = (0..100).map(|n| format!("d{n:02}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut rules = init("h");
    rules.reset = true;
    let mut ward = Ward::serving(rules, &all);
    ward.held(&[]);
    assert_eq!(ward.started(0).len(), HOOKS_AT_ONCE);
    assert_eq!(ward.care.wake_at(at(0)), None, "an end will come");
    for id in all.iter().skip(40) {
        ward.care.ask(id).unwrap();
    }
    let resets = ward.started(0);
    assert_eq!(resets.len(), ASKED_AT_ONCE);
    assert!(resets.iter().all(|told| told.starts_with("reset ")));
    ward.ended(&resets[0], &Ended::Passed, 1);
    assert_eq!(ward.started(1).len(), 1);
}

#[test]
fn who_stands_by_runs_no_hook_and_counts_what_waits_for_one() {
    let mut ward = Ward::new(init("h"), &["a"]);
    ward.held(&[]);
    assert_eq!(ward.started(0), [""; 0]);
    assert!(ward.objection("a").ends_with("does not serve yet?"));
    assert!(ward.care.ask("a").is_err());
    let mut record = Record::default();
    record.initialised("a", BOOT, "h");
    ward.care.begin(record);
    assert_eq!(ward.objection("a"), "");
    ward.care.leave();
    assert_eq!(
        ward.objection("a"),
        "",
        "the last list stays as it was: {:?}",
        ward.care
    );
    assert!(ward.care.ask("a").is_err());
    let without_gate = Ward::new(
        Rules {
            reset: true,
            ..rules()
        },
        &["a"],
    );
    assert_eq!(without_gate.objection("a"), "");
}

#[test]
fn what_ran_when_the_role_ended_is_forgotten() {
    let mut ward = Ward::serving(init("h"), &["a"]);
    ward.held(&[]);
    assert_eq!(ward.started(0), ["init a"]);
    ward.care.leave();
    assert_eq!(ward.started(0), [""; 0]);
    ward.ended("init a", &Ended::Passed, 1);
    assert_eq!(ward.care.changed_record(), None);
    ward.care.begin(Record::default());
    assert_eq!(ward.started(2), ["init a"], "it was killed");
}

fn reset() -> Rules {
    Rules {
        reset: true,
        ..rules()
    }
}

#[test]
fn a_reset_runs_for_each_start_and_never_twice_at_once() {
    let mut ward = Ward::serving(reset(), &["a"]);
    ward.held(&["a"]);
    for start in 0..2 {
        ward.care.ask("a").unwrap();
        assert_eq!(ward.started(start), ["reset a"]);
        ward.care.ask("a").unwrap();
        assert_eq!(ward.started(start), [""; 0], "the retry joins");
        ward.ended("reset a", &Ended::Passed, start);
        assert_eq!(ward.started(start), [""; 0], "what joined is done as well");
    }
    let gone = ward.care.ask("b").unwrap_err();
    assert!(gone.contains("gone"), "{gone}");
    ward.present.clear();
    ward.held(&["a"]);
    assert!(ward.care.ask("a").is_err());
}

#[test]
fn a_reset_waits_for_the_probe_of_its_device() {
    let mut rules = reset();
    rules.probes = probes(false, 8);
    let mut ward = Ward::serving(rules, &["a"]);
    ward.held(&[]);
    assert_eq!(ward.started(0), ["probe a"]);
    ward.care.ask("a").unwrap();
    assert_eq!(ward.started(0), [""; 0]);
    ward.care.probe_all();
    ward.ended("probe a", &Ended::Passed, 1);
    assert_eq!(ward.started(1), ["reset a"]);
    ward.care.probe_all();
    assert_eq!(ward.started(1), [""; 0]);
}

#[test]
fn a_failed_reset_is_tried_again_once_the_device_is_surely_free() {
    let mut ward = Ward::serving(reset(), &["a"]);
    ward.held(&["a"]);
    ward.care.ask("a").unwrap();
    assert_eq!(ward.started(0), ["reset a"]);
    ward.ended("reset a", &failed("stuck"), 1);
    assert_eq!(ward.objection("a"), "reset failed: stuck");
    assert_eq!(ward.started(99), [""; 0], "a container holds it");
    ward.held(&[]);
    assert!(ward.care.wants_reading());
    assert_eq!(ward.started(99), [""; 0], "one reading is not enough");
    ward.noted = ids(&["a"]);
    ward.held(&[]);
    assert_eq!(ward.started(99), [""; 0], "the kubelet has it on its disk");
    ward.opened = Some(at(2));
    ward.held(&[]);
    assert_eq!(
        ward.started(99),
        [""; 0],
        "a kubelet that registered us after it was held may not know its pods"
    );
    ward.opened = Some(at(0));
    ward.held(&[]);
    assert!(!ward.care.wants_reading());
    assert_eq!(ward.started(99), ["reset a"]);
    ward.ended("reset a", &Ended::Passed, 100);
    assert_eq!(ward.objection("a"), "");
    let record = ward.care.changed_record().unwrap();
    assert!(
        !record.reset.contains("a"),
        "no container was given it since"
    );
}

fn release() -> Rules {
    Rules {
        release: true,
        ..rules()
    }
}

#[test]
fn a_device_is_released_once_two_readings_show_it_free() {
    let mut ward = Ward::serving(release(), &["a", "b"]);
    ward.held(&["a"]);
    assert_eq!(ward.care.changed_record().unwrap().used, ids(&["a"]));
    assert_eq!(
        (ward.objection("a"), ward.started(0).len()),
        (String::new(), 0)
    );
    ward.held(&[]);
    assert_eq!(
        ward.objection("a"),
        "it is being released",
        "nothing lands on it from the first reading on"
    );
    assert!(ward.care.wants_reading());
    ward.look(Some(&ids(&[])));
    assert_eq!(ward.started(0), [""; 0], "the same reading again");
    ward.held(&[]);
    assert_eq!(ward.started(0), ["release a"]);
    ward.ended("release a", &failed("exit code 2"), 1);
    assert_eq!(ward.objection("a"), "release failed: exit code 2");
    assert_eq!(ward.started(11), ["release a"]);
    ward.ended("release a", &Ended::Passed, 12);
    assert_eq!(ward.objection("a"), "");
    assert_eq!(ward.care.changed_record().unwrap().used, ids(&[]));
    ward.held(&[]);
    assert_eq!(ward.started(99), [""; 0], "once");
}

#[test]
fn what_is_held_again_is_not_released() {
    let mut ward = Ward::serving(release(), &["a"]);
    ward.held(&["a"]);
    ward.held(&[]);
    ward.held(&["a"]);
    ward.held(&[]);
    assert_eq!(ward.started(0), [""; 0]);
    ward.given.insert("a".to_owned());
    ward.held(&[]);
    assert_eq!(
        (ward.started(0).len(), ward.objection("a")),
        (0, String::new()),
        "its pod is not told of yet"
    );
    ward.given.clear();
    ward.held(&[]);
    ward.held(&[]);
    assert_eq!(ward.started(0), ["release a"]);
    ward.held(&["a"]);
    ward.ended("release a", &Ended::Passed, 1);
    ward.care.changed_record();
    ward.held(&[]);
    ward.held(&[]);
    assert_eq!(ward.started(1), ["release a"], "it was used once more");
}

#[test]
fn a_restart_between_the_end_of_a_container_and_its_release_loses_nothing() {
    let record = Record {
        used: ids(&["a"]),
        ..Record::default()
    };
    let mut ward = Ward::new(release(), &["a", "b"]);
    ward.look(None);
    ward.care.begin(record);
    assert!(ward.objection("a").contains("not known"));
    assert_eq!(ward.objection("b"), "");
    ward.held(&[]);
    ward.held(&[]);
    assert_eq!(ward.started(0), ["release a"]);
}

#[test]
fn a_container_that_never_asked_for_its_reset_is_found() {
    let check = |change: &dyn Fn(&mut Ward), expected: &[&str]| {
        let mut ward = Ward::serving(reset(), &["a"]);
        ward.held(&["a"]);
        change(&mut ward);
        let found = ward.care.never_reset(Some(at(100)), at(160));
        assert_eq!(found, ids(expected));
        let early = ward.care.never_reset(Some(at(100)), at(159));
        assert_eq!(early, ids(&[]), "its image may still be on its way");
    };
    check(&|_| {}, &["a"]);
    let asks = |ward: &mut Ward| ward.care.ask("a").unwrap();
    check(&asks, &[]);
    let was_reset_before_the_restart = |ward: &mut Ward| {
        let reset = ids(&["a"]);
        ward.care.begin(Record {
            reset,
            ..Record::default()
        });
    };
    check(&was_reset_before_the_restart, &[]);
    let given_after_the_registration = |ward: &mut Ward| {
        ward.care.gave("a", at(101));
        ward.held(&["a"]);
    };
    check(&given_after_the_registration, &[]);
    check(&|ward: &mut Ward| ward.held(&[]), &[]);
    let mut ward = Ward::serving(reset(), &["a"]);
    ward.held(&["a"]);
    assert_eq!(ward.care.never_reset(None, at(999)), ids(&[]));
}

#[test]
fn the_next_container_must_be_reset_anew() {
    let mut ward = Ward::serving(reset(), &["a"]);
    ward.held(&["a"]);
    ward.care.ask("a").unwrap();
    assert_eq!(ward.started(0), ["reset a"]);
    ward.ended("reset a", &Ended::Passed, 1);
    assert_eq!(ward.care.changed_record().unwrap().reset, ids(&["a"]));
    ward.care.gave("a", at(2));
    assert_eq!(ward.care.changed_record().unwrap().reset, ids(&[]));
    ward.held(&["a"]);
    assert_eq!(ward.care.never_reset(Some(at(3)), at(63)), ids(&["a"]));
}

#[test]
fn probes_follow_thresholds_and_a_device_that_returns_begins_anew() {
    let mut with_probes = rules();
    with_probes.probes = probes(false, 8);
    let mut ward = Ward::new(with_probes, &["a"]);
    ward.look(None);
    for (probe, expected) in [
        (Ended::Passed, ""),
        (failed("1"), ""),
        (failed("2"), "2"),
        (failed("3"), "3"),
        (Ended::Passed, "3"),
        (Ended::Passed, ""),
        (failed("4"), ""),
        (failed("5"), "5"),
    ] {
        assert_eq!(ward.started(0), ["probe a"]);
        assert_eq!(ward.started(0), [""; 0], "one at a time");
        ward.care.probe_all();
        assert_eq!(ward.started(0), [""; 0], "also when the time has come");
        ward.ended("probe a", &probe, 0);
        assert_eq!(ward.objection("a"), expected);
        ward.care.probe_all();
    }
    ward.present.clear();
    ward.look(None);
    assert_eq!(ward.started(0), [""; 0]);
    ward.present = ids(&["a"]);
    ward.look(None);
    assert_eq!(ward.objection("a"), "");
    assert_eq!(ward.started(0), ["probe a"], "at once");
}

#[test]
fn what_a_container_may_hold_is_not_opened() {
    let mut with_probes = rules();
    with_probes.probes = probes(true, 8);
    let mut ward = Ward::new(with_probes, &["a", "b", "c"]);
    ward.look(None);
    ward.care.probe_all();
    assert_eq!(ward.started(0), [""; 0], "who holds what is not known");
    ward.given.insert("b".to_owned());
    ward.held(&["a"]);
    ward.care.probe_all();
    assert_eq!(ward.started(0), ["probe c"]);
    ward.given.clear();
    ward.held(&["b"]);
    ward.care.probe_all();
    assert_eq!(ward.started(0), ["probe a"]);
}

#[test]
fn what_another_agent_or_this_one_gives_out_is_not_opened() {
    let mut with_probes = rules();
    with_probes.probes = probes(true, 8);
    let mut ward = Ward::new(with_probes, &["a", "b"]);
    ward.care.set_serves(false);
    ward.held(&[]);
    ward.care.probe_all();
    assert_eq!(ward.started(0), [""; 0], "another agent gives them out");
    ward.care.set_serves(true);
    ward.care.probe_all();
    ward.care.gave("b", at(1));
    assert_eq!(ward.started(1), ["probe a"], "b was given since the look");
}

/// The kubelet does not tell of a container that runs before the pod's others, but has it in its notes.
#[test]
fn a_device_of_an_init_container_is_not_released_under_it() {
    let mut ward = Ward::serving(release(), &["a"]);
    ward.opened = Some(at(0));
    ward.given = ids(&["a"]);
    ward.noted = ids(&["a"]);
    ward.held(&[]);
    ward.given.clear();
    for second in 2..5 {
        ward.held(&[]);
        assert_eq!(ward.started(second), [""; 0]);
    }
    ward.noted.clear();
    ward.held(&[]);
    ward.held(&[]);
    assert_eq!(ward.started(9), ["release a"]);
}

#[test]
fn devices_that_hang_never_take_more_than_half_of_the_places() {
    let all: Vec<String> = (0..20).map(|n| format!("d{n:02}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut with_probes = rules();
    with_probes.probes = probes(false, 4);
    let mut ward = Ward::new(with_probes, &all);
    ward.look(None);
    let mut begun = ward.started(0);
    assert_eq!(begun.len(), 4);
    let mut probed = 0;
    while let Some(told) = begun.pop() {
        let ended = if told.as_str() < "probe d10" {
            failed("timed out")
        } else {
            Ended::Passed
        };
        ward.ended(&told, &ended, 0);
        probed += 1;
        begun.extend(ward.started(0));
    }
    assert_eq!(probed, 20);
    ward.care.probe_all();
    let begun = ward.started(0);
    let hanging = begun.iter().filter(|told| told.as_str() < "probe d10");
    assert_eq!((begun.len(), hanging.count()), (4, 2));
}
