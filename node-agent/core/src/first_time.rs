//! Whether an agent may register a resource on this node: never beside somebody else who serves it.

use std::time::Duration;

/// How patiently the first time is approached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Patience {
    /// Between two readings of the kubelet's list: a plugin that re-registers is away for less.
    pub between_readings: Duration,
    /// The same after a kubelet's start, and how old its socket must be for that to be over: other
    /// plugins need this long to notice a new kubelet.
    pub after_kubelet_start: Duration,
    /// How soon to look again when somebody else serves the resource.
    pub look_again: Duration,
    /// How soon to try a lock again that another process holds.
    pub lock_poll: Duration,
    /// How long a process that holds the lock counts as one that is leaving.
    pub leaving: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            between_readings: Duration::from_secs(1),
            after_kubelet_start: Duration::from_secs(15),
            // Nobody waits for the end of a foreign plugin by the second.
            look_again: Duration::from_secs(5),
            // A hand-over is noticed within this time; a try is a handful of system calls.
            lock_poll: Duration::from_millis(50),
            // A pod that is deleted ends within ten seconds. At half of this a slow end would be told
            // as trouble; double would only delay the telling.
            leaving: Duration::from_secs(15),
        }
    }
}

/// What is known when the question is asked.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// The resource.
    pub resource: &'a str,
    /// The agent's state on the host says that this config has served the resource here.
    pub served_before: bool,
    /// This process holds the resource's lock.
    pub lock_is_ours: bool,
    /// Age of the kubelet's socket at the first reading.
    pub socket_age: Duration,
    /// Readings of the kubelet's own list since the lock was won, in order.
    pub readings: &'a [Reading],
    /// Now, by the clock of the readings, which began with the first try of the lock.
    pub now: Duration,
}

/// One reading of the kubelet's own list.
#[derive(Clone, Debug)]
pub struct Reading {
    /// When.
    pub at: Duration,
    /// How many devices the kubelet has for the resource, or why that could not be read.
    pub devices: Result<usize, String>,
    /// Whether a plugin of somebody else, or of this resource, answers in the plugin directory.
    /// Devices without any are a phantom: kubelets from 1.37 on go on listing what nobody serves.
    pub somebody_is_there: bool,
}

/// The answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Register.
    Register,
    /// Try the lock again after this time: a process of ours is leaving.
    TryLock(Duration),
    /// Read the kubelet's list after this time.
    Read(Duration),
    /// Somebody else serves the resource, which is told like this; begin anew, without the lock,
    /// after this time.
    Foreign(String, Duration),
    /// The kubelet's list cannot be read, which is told like this; begin anew after this time.
    Unreadable(String, Duration),
}

/// Whether to register now, and if not, what to wait for.
pub fn answer(evidence: &Evidence, patience: &Patience) -> Answer {
    let resource = evidence.resource;
    match (evidence.served_before, evidence.lock_is_ours) {
        (true, true) => return Answer::Register,
        (true, false) if evidence.now < patience.leaving => {
            return Answer::TryLock(patience.lock_poll);
        }
        (true | false, false) => {
            let told = format!(
                "resource {resource:?} is served by another agent of this operator on this node, \
                 which holds its lock"
            );
            return Answer::Foreign(told, patience.look_again);
        }
        (false, true) => {}
    }
    for reading in evidence.readings {
        match &reading.devices {
            Ok(0) => {}
            Ok(_) if !reading.somebody_is_there => {}
            Ok(devices) => {
                let told = format!(
                    "resource {resource:?} has {devices} devices at this node's kubelet already: \
                     another plugin serves it; remove that plugin, or give the resource another name"
                );
                return Answer::Foreign(told, patience.look_again);
            }
            Err(error) => {
                let told = format!(
                    "failed to read from the kubelet whether another plugin serves resource \
                     {resource:?}; if this stays, check that the chart's value kubeletRootDir is \
                     the kubelet's --root-dir: {error}"
                );
                return Answer::Unreadable(told, patience.between_readings);
            }
        }
    }
    let young = evidence.socket_age < patience.after_kubelet_start;
    let apart = if young {
        patience.after_kubelet_start
    } else {
        patience.between_readings
    };
    match evidence.readings {
        [] => Answer::Read(Duration::ZERO),
        [first, rest @ ..] => match rest.last() {
            Some(last) if last.at.saturating_sub(first.at) >= apart => Answer::Register,
            _ => Answer::Read(apart.saturating_sub(evidence.now.saturating_sub(first.at))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(
        served_before: bool,
        lock_is_ours: bool,
        age: u64,
        readings: &[(u64, Result<usize, &str>)],
    ) -> Answer {
        let readings: Vec<Reading> = readings
            .iter()
            .map(|(at, devices)| Reading {
                at: Duration::from_secs(*at),
                devices: devices.map_err(str::to_owned),
                somebody_is_there: true,
            })
            .collect();
        let evidence = Evidence {
            resource: "example.com/x",
            served_before,
            lock_is_ours,
            socket_age: Duration::from_secs(age),
            readings: &readings,
            now: readings.last().map_or(Duration::ZERO, |reading| reading.at),
        };
        answer(&evidence, &Patience::default())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_served_before_needs_only_the_lock() {
        assert_eq!(ask(true, true, 0, &[]), Answer::Register);
        assert_eq!(
            ask(true, false, 0, &[]),
            Answer::TryLock(Duration::from_millis(50))
        );
    }

    #[test]
    fn a_lock_that_stays_taken_is_told_as_taken() {
        let evidence = Evidence {
            resource: "example.com/x",
            served_before: true,
            lock_is_ours: false,
            socket_age: SECOND,
            readings: &[],
            now: SECOND * 15,
        };
        let answer = answer(&evidence, &Patience::default());
        assert!(matches!(answer, Answer::Foreign(told, _) if told.contains("another agent")));
    }

    #[test]
    fn a_newcomer_reads_the_kubelets_list_twice() {
        assert_eq!(ask(false, true, 60, &[]), Answer::Read(Duration::ZERO));
        assert_eq!(ask(false, true, 60, &[(7, Ok(0))]), Answer::Read(SECOND));
        assert_eq!(
            ask(false, true, 60, &[(7, Ok(0)), (8, Ok(0))]),
            Answer::Register
        );
    }

    #[test]
    fn a_young_kubelet_is_given_time_to_hear_from_others() {
        assert_eq!(
            ask(false, true, 2, &[(7, Ok(0))]),
            Answer::Read(15 * SECOND)
        );
        assert_eq!(
            ask(false, true, 2, &[(7, Ok(0)), (8, Ok(0))]),
            Answer::Read(14 * SECOND)
        );
        assert_eq!(
            ask(false, true, 2, &[(7, Ok(0)), (22, Ok(0))]),
            Answer::Register
        );
    }

    #[test]
    fn somebody_elses_devices_are_left_alone() {
        for readings in [&[(0, Ok(4))][..], &[(0, Ok(0)), (1, Ok(4))]] {
            let Answer::Foreign(told, again) = ask(false, true, 60, readings) else {
                panic!("must wait");
            };
            assert!(told.contains("\"example.com/x\" has 4 devices"), "{told}");
            assert_eq!(again, 5 * SECOND);
        }
        let Answer::Foreign(told, _) = ask(false, false, 60, &[]) else {
            panic!("must wait");
        };
        assert!(told.contains("holds its lock"), "{told}");
    }

    #[test]
    fn a_phantom_is_served_over_when_it_was_seen_twice() {
        let ask = |readings: &[(u64, bool)]| {
            let reading = |(at, somebody_is_there): &(u64, bool)| Reading {
                at: Duration::from_secs(*at),
                devices: Ok(4),
                somebody_is_there: *somebody_is_there,
            };
            let readings: Vec<Reading> = readings.iter().map(reading).collect();
            let evidence = Evidence {
                resource: "example.com/x",
                served_before: false,
                lock_is_ours: true,
                socket_age: 60 * SECOND,
                readings: &readings,
                now: readings.last().map_or(Duration::ZERO, |reading| reading.at),
            };
            answer(&evidence, &Patience::default())
        };
        assert_eq!(ask(&[(0, false)]), Answer::Read(SECOND));
        assert_eq!(ask(&[(0, false), (1, false)]), Answer::Register);
        assert!(matches!(ask(&[(0, false), (1, true)]), Answer::Foreign(..)));
    }

    #[test]
    fn a_list_that_cannot_be_read_is_no_permission() {
        let Answer::Unreadable(told, again) = ask(false, true, 60, &[(0, Err("no such file"))])
        else {
            panic!("must wait");
        };
        assert!(told.ends_with("no such file"), "{told}");
        assert_eq!(again, SECOND);
    }
}
