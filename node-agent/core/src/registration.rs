//! When to register a resource, and when to do it again.
//!
//! A registration is a server at a socket name that was never used before, one `Register` call, and
//! the kubelet's `ListAndWatch` stream. The kubelet tells nobody when it forgets a plugin: the end of
//! the stream is the only sign, and on kubelets 1.25 to 1.36 it also follows another instance's exit.

use std::time::Duration;

use crate::pace::Pace;

/// How long things may take before they are tried again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// From an accepted registration to the kubelet's `ListAndWatch`, which it calls once and never
    /// again.
    pub watchdog: Duration,
    /// After a kubelet that did not answer at all.
    pub unreachable: Pace,
    /// After a kubelet that refused, and after streams that ended in quick succession.
    pub refused: Pace,
    /// Streams that end within this time of each other count as quick succession from the third on.
    pub succession: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The kubelet needs milliseconds. Half of it could hit a kubelet that is busy starting;
            // twice as much leaves a node without devices for a minute.
            watchdog: Duration::from_secs(30),
            // Between bind and listen of a starting kubelet lie milliseconds; a stale socket may stay
            // for as long as the kubelet is down, and then one try in 5 s costs nothing.
            unreachable: Pace {
                first: Duration::from_millis(2),
                limit: Duration::from_secs(5),
            },
            // A refusal is an answer: the same question at once would get the same one.
            refused: Pace {
                first: Duration::from_millis(250),
                limit: Duration::from_secs(5),
            },
            // Two instances that displace each other do it within milliseconds; a node whose kubelet
            // restarts twice in 10 s has other worries.
            succession: Duration::from_secs(10),
        }
    }
}

/// Where the registration of one resource stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Registration {
    phase: Phase,
    kubelet_is_there: bool,
    failures: u32,
    losses: Vec<Duration>,
}

/// The phases of a registration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// There is no kubelet socket.
    AwaitingKubelet,
    /// A `Register` call is under way. The kubelet may call `ListAndWatch` before it answers.
    Registering {
        /// Streams that are open.
        streams: u32,
        /// Whether one was ever opened.
        opened: bool,
    },
    /// Accepted, but the kubelet has not called `ListAndWatch` yet.
    AwaitingStream,
    /// The kubelet reads the list.
    Watching {
        /// Streams that are open.
        streams: u32,
    },
    /// Something failed; the next try comes when the timer fires.
    BackingOff {
        /// Whether the server, whose name the kubelet never heard, is still good.
        serving: bool,
    },
}

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// The kubelet's socket appeared, or is another one than before.
    KubeletAppeared,
    /// The kubelet's socket is gone.
    KubeletVanished,
    /// No server could be started.
    ServeFailed,
    /// The kubelet accepted the registration.
    Accepted,
    /// The kubelet did not answer at the socket: it has not heard the server's name.
    Unreachable,
    /// The kubelet refused the registration, or did not answer in time.
    Refused,
    /// The kubelet called `ListAndWatch`.
    StreamOpened,
    /// A `ListAndWatch` stream ended.
    StreamClosed,
    /// Our own socket is gone, or is another file.
    OwnSocketGone,
    /// The kubelet has other devices than it was sent, although its stream is open.
    Displaced,
    /// The time of the last [`Effect::Wait`] is over.
    TimeUp,
}

/// What to do, in this order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// End the server and its streams, if there is one, and remove its socket.
    Close,
    /// Start a server at a fresh socket name. On failure the effects after it are left out.
    Serve,
    /// Call `Register`; a call still under way is given up.
    Register,
    /// Tell of [`Event::TimeUp`] after this time; an earlier wait is given up.
    Wait(Duration),
    /// Give up the wait.
    StopWaiting,
}

impl Registration {
    /// The beginning.
    pub fn start(kubelet_is_there: bool) -> (Self, Vec<Effect>) {
        let start = Self {
            phase: Phase::AwaitingKubelet,
            kubelet_is_there,
            failures: 0,
            losses: Vec::new(),
        };
        if kubelet_is_there {
            start.afresh()
        } else {
            (start, Vec::new())
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What follows from an event. `now` is any clock that never goes back; `jitter` is a random
    /// number from 0 to 1.
    pub fn next(
        mut self,
        event: Event,
        now: Duration,
        jitter: f64,
        limits: &Limits,
    ) -> (Self, Vec<Effect>) {
        match event {
            Event::KubeletAppeared => {
                self.kubelet_is_there = true;
                self.failures = 0;
                self.afresh()
            }
            Event::KubeletVanished => {
                self.kubelet_is_there = false;
                match self.phase {
                    Phase::BackingOff { .. } => self.await_kubelet(),
                    // A call or stream under way ends by itself if the kubelet is gone.
                    Phase::AwaitingKubelet
                    | Phase::Registering { .. }
                    | Phase::AwaitingStream
                    | Phase::Watching { .. } => (self, Vec::new()),
                }
            }
            Event::ServeFailed => self.refused(jitter, limits),
            Event::Accepted => self.accepted(now, jitter, limits),
            Event::Unreachable => self.unreachable(jitter, limits),
            Event::Refused => match self.phase {
                Phase::Registering { .. } => self.refused(jitter, limits),
                _ => (self, Vec::new()),
            },
            Event::StreamOpened => self.stream_opened(),
            Event::StreamClosed => self.stream_closed(now, jitter, limits),
            Event::OwnSocketGone => match self.phase {
                Phase::AwaitingKubelet => (self, Vec::new()),
                Phase::BackingOff { .. } => {
                    self.phase = Phase::BackingOff { serving: false };
                    (self, vec![Effect::Close])
                }
                Phase::Registering { .. } | Phase::AwaitingStream | Phase::Watching { .. } => {
                    self.lost(now, jitter, limits)
                }
            },
            // Whoever saw it knows how often that may be answered.
            Event::Displaced => match self.phase {
                Phase::Watching { .. } if self.kubelet_is_there => self.afresh(),
                _ => (self, Vec::new()),
            },
            Event::TimeUp => self.time_up(),
        }
    }

    fn afresh(mut self) -> (Self, Vec<Effect>) {
        self.phase = Phase::Registering {
            streams: 0,
            opened: false,
        };
        let effects = vec![
            Effect::StopWaiting,
            Effect::Close,
            Effect::Serve,
            Effect::Register,
        ];
        (self, effects)
    }

    fn await_kubelet(mut self) -> (Self, Vec<Effect>) {
        self.phase = Phase::AwaitingKubelet;
        (self, vec![Effect::StopWaiting, Effect::Close])
    }

    fn accepted(mut self, now: Duration, jitter: f64, limits: &Limits) -> (Self, Vec<Effect>) {
        let Phase::Registering { streams, opened } = self.phase else {
            return (self, Vec::new());
        };
        self.failures = 0;
        match (streams, opened) {
            (0, true) => self.lost(now, jitter, limits),
            (0, false) => {
                self.phase = Phase::AwaitingStream;
                (self, vec![Effect::Wait(limits.watchdog)])
            }
            (streams, _) => {
                self.phase = Phase::Watching { streams };
                (self, vec![Effect::StopWaiting])
            }
        }
    }

    fn unreachable(mut self, jitter: f64, limits: &Limits) -> (Self, Vec<Effect>) {
        if !matches!(self.phase, Phase::Registering { .. }) {
            return (self, Vec::new());
        }
        if !self.kubelet_is_there {
            return self.await_kubelet();
        }
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::BackingOff { serving: true };
        let wait = limits.unreachable.wait(self.failures, jitter);
        (self, vec![Effect::Wait(wait)])
    }

    fn refused(mut self, jitter: f64, limits: &Limits) -> (Self, Vec<Effect>) {
        if !self.kubelet_is_there {
            return self.await_kubelet();
        }
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::BackingOff { serving: false };
        let wait = limits.refused.wait(self.failures, jitter);
        (self, vec![Effect::Close, Effect::Wait(wait)])
    }

    fn stream_opened(mut self) -> (Self, Vec<Effect>) {
        match self.phase {
            Phase::Registering { streams, .. } => {
                self.phase = Phase::Registering {
                    streams: streams + 1,
                    opened: true,
                };
                (self, Vec::new())
            }
            Phase::AwaitingStream => {
                self.phase = Phase::Watching { streams: 1 };
                (self, vec![Effect::StopWaiting])
            }
            Phase::Watching { streams } => {
                self.phase = Phase::Watching {
                    streams: streams + 1,
                };
                (self, Vec::new())
            }
            Phase::AwaitingKubelet | Phase::BackingOff { .. } => (self, Vec::new()),
        }
    }

    fn stream_closed(mut self, now: Duration, jitter: f64, limits: &Limits) -> (Self, Vec<Effect>) {
        match self.phase {
            Phase::Registering { streams, opened } => {
                self.phase = Phase::Registering {
                    streams: streams.saturating_sub(1),
                    opened,
                };
                (self, Vec::new())
            }
            Phase::Watching { streams: 0 | 1 } => self.lost(now, jitter, limits),
            Phase::Watching { streams } => {
                self.phase = Phase::Watching {
                    streams: streams - 1,
                };
                (self, Vec::new())
            }
            Phase::AwaitingKubelet | Phase::AwaitingStream | Phase::BackingOff { .. } => {
                (self, Vec::new())
            }
        }
    }

    /// The kubelet has forgotten us: register again at once, but from the third time in quick
    /// succession more slowly, because somebody else may hold the same belief.
    fn lost(mut self, now: Duration, jitter: f64, limits: &Limits) -> (Self, Vec<Effect>) {
        if !self.kubelet_is_there {
            return self.await_kubelet();
        }
        self.losses
            .retain(|loss| now.saturating_sub(*loss) < limits.succession);
        self.losses.push(now);
        let excess = u32::try_from(self.losses.len())
            .unwrap_or(u32::MAX)
            .saturating_sub(2);
        if excess == 0 {
            return self.afresh();
        }
        self.phase = Phase::BackingOff { serving: false };
        let wait = limits.refused.wait(excess, jitter);
        (self, vec![Effect::Close, Effect::Wait(wait)])
    }

    fn time_up(mut self) -> (Self, Vec<Effect>) {
        match self.phase {
            Phase::BackingOff { serving: true } => {
                self.phase = Phase::Registering {
                    streams: 0,
                    opened: false,
                };
                (self, vec![Effect::Register])
            }
            Phase::BackingOff { serving: false } | Phase::AwaitingStream => self.afresh(),
            Phase::AwaitingKubelet | Phase::Registering { .. } | Phase::Watching { .. } => {
                (self, Vec::new())
            }
        }
    }
}

#[cfg(test)]
mod tests;
