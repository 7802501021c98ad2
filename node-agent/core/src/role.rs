//! Which role an agent has on its node: whether it may take the locks and register, keeps what it
//! has, or lets go of it.
//!
//! The node's object decides, by naming revisions; the locks only keep two processes apart. An agent
//! that took a free lock as an invitation would let a staged, unproven revision serve as soon as the
//! proven one dies. Until the object is known, what the host remembers decides, so that a start needs
//! no answer of the API server.
//!
//! How a lock is taken, and in which order things are let go, is not known here.

use std::str::FromStr;
use std::time::Duration;

/// How long the role must have been free before the proven standby takes it. The operator gives a
/// new agent 60 s to take it and 120 s to be verified; with half of it the standby would snatch the
/// role from a slow but healthy start, with twice as much a node whose operator is away would pass
/// the five minutes after which the kubelet forgets the resource.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(180);

/// How long nobody of the named revisions must have been there before an agent that nobody named
/// serves. A restarted container is back within this time; with half of it an image that is pulled
/// for the second time could lose its turn, with twice as much a stale object costs two minutes.
pub const FALL_BACK_AFTER: Duration = Duration::from_secs(60);

/// What an agent is where nothing on the node or in the cluster says otherwise. A revision's pod
/// template says so: the stable revision's agents are active, a target's stand by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InitialRole {
    /// It serves.
    Active,
    /// It stands by.
    Standby,
}

/// A word that is no role.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no role: Active or Standby")]
pub struct NoRole(String);

impl FromStr for InitialRole {
    type Err = NoRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "Active" => Ok(Self::Active),
            "Standby" => Ok(Self::Standby),
            other => Err(NoRole(other.to_owned())),
        }
    }
}

/// The revisions that a node's object names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Named<'a> {
    /// The one that may serve.
    pub active: &'a str,
    /// The one that runs beside it.
    pub standby: Option<&'a str>,
    /// The proven one, while the node is being changed.
    pub baseline: Option<&'a str>,
}

/// What is known of the node's object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ObjectView<'a> {
    /// Nothing: no list has answered since the start.
    Unknown,
    /// There is none, or it belongs to a config of the same name that is no more.
    Absent,
    /// It names these.
    Present(Named<'a>),
}

/// What a role follows from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Evidence<'a> {
    /// The agent's revision.
    pub own: &'a str,
    /// What it is where nothing says otherwise.
    pub initial: InitialRole,
    /// The node's object.
    pub object: ObjectView<'a>,
    /// The revision that served here last, if the host remembers one of this very config.
    pub remembered: Option<&'a str>,
    /// Whether this process holds the config's role lock.
    pub holds_role: bool,
    /// Whether it took it as the proven standby, and the object has not changed since.
    pub took_over: bool,
    /// How long it has seen the role lock free; zero while anybody holds it.
    pub role_free_for: Duration,
    /// How long no process of the named active or standby revision, or of the remembered one where
    /// there is no object, has been on this host.
    pub named_gone_for: Duration,
    /// Whether a process of the named active revision is on this host, knows that it is its turn, and
    /// waits for the role.
    pub successor_waits: bool,
}

/// What an agent does about the locks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// It takes the role lock and the resource locks, and registers.
    Active,
    /// It holds nothing, lets go of what it holds, and reports whether it could serve.
    Standby,
    /// Nobody names it: it lets go of what it holds.
    Leaving,
    /// It keeps what it holds and takes nothing new.
    Kept,
    /// It holds nothing and takes nothing.
    Idle,
}

impl Role {
    /// Whether it may take locks that it does not hold.
    pub fn may_take(self) -> bool {
        matches!(self, Self::Active)
    }

    /// Whether it may keep the locks that it holds.
    pub fn may_keep(self) -> bool {
        matches!(self, Self::Active | Self::Kept)
    }
}

/// Whoever has held the role for this long has served: after that the time until the standby takes
/// over begins anew. An agent that crashes again and again does it within seconds.
pub const SERVED_AFTER: Duration = Duration::from_secs(60);

/// The role that follows from the evidence.
pub fn role(evidence: &Evidence<'_>) -> Role {
    match evidence.object {
        ObjectView::Present(named) if named.active == evidence.own => Role::Active,
        ObjectView::Present(named) if named.standby == Some(evidence.own) => {
            standby(evidence, named)
        }
        ObjectView::Present(_) => unnamed(evidence),
        ObjectView::Unknown | ObjectView::Absent => by_memory(evidence),
    }
}

/// It stands by. What it still holds is let go of when somebody is there to take it: an agent that
/// served when the active one's process has just died serves on until that one is back, or until the
/// operator gives up on it.
fn standby(evidence: &Evidence<'_>, named: Named<'_>) -> Role {
    let is_proven = named.baseline == Some(evidence.own);
    let takes_over =
        evidence.took_over || (!evidence.holds_role && evidence.role_free_for >= TAKE_OVER_AFTER);
    if is_proven && takes_over {
        Role::Active
    } else if evidence.holds_role && !evidence.successor_waits {
        Role::Kept
    } else {
        Role::Standby
    }
}

/// The object names others.
fn unnamed(evidence: &Evidence<'_>) -> Role {
    if evidence.successor_waits {
        return if evidence.holds_role {
            Role::Leaving
        } else {
            Role::Idle
        };
    }
    if falls_back(evidence) {
        Role::Active
    } else if evidence.holds_role {
        Role::Kept
    } else {
        Role::Idle
    }
}

/// No object of this config is known.
fn by_memory(evidence: &Evidence<'_>) -> Role {
    let is_remembered = evidence.remembered.map(|revision| revision == evidence.own);
    match (is_remembered, evidence.initial) {
        (Some(true), _) | (None, InitialRole::Active) => Role::Active,
        (Some(false), _) if falls_back(evidence) => Role::Active,
        _ if evidence.holds_role => Role::Kept,
        (Some(false), InitialRole::Active) => Role::Idle,
        (Some(false) | None, InitialRole::Standby) => Role::Standby,
    }
}

/// No stale object and no stale memory leaves a node without devices.
fn falls_back(evidence: &Evidence<'_>) -> bool {
    evidence.initial == InitialRole::Active && evidence.named_gone_for >= FALL_BACK_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: Named<'_> = Named {
        active: "new",
        standby: Some("old"),
        baseline: Some("old"),
    };

    /// An agent that has just started and seen nothing.
    fn fresh(own: &str) -> Evidence<'_> {
        Evidence {
            own,
            initial: InitialRole::Standby,
            object: ObjectView::Unknown,
            remembered: None,
            holds_role: false,
            took_over: false,
            role_free_for: Duration::ZERO,
            named_gone_for: Duration::ZERO,
            successor_waits: false,
        }
    }

    fn named(own: &str) -> Evidence<'_> {
        Evidence {
            object: ObjectView::Present(NAMED),
            ..fresh(own)
        }
    }

    #[test]
    fn the_named_active_revision_is_active_whatever_else_is_so() {
        for initial in [InitialRole::Active, InitialRole::Standby] {
            for (holds_role, successor_waits) in [(false, false), (true, true)] {
                let evidence = Evidence {
                    initial,
                    holds_role,
                    successor_waits,
                    remembered: Some("old"),
                    ..named("new")
                };
                assert_eq!(role(&evidence), Role::Active, "{evidence:?}");
            }
        }
    }

    #[test]
    fn a_standby_takes_over_only_if_it_is_proven_and_the_role_was_free_long_enough() {
        let check = |baseline: Option<&'static str>, free: Duration, expected| {
            let object = ObjectView::Present(Named { baseline, ..NAMED });
            let evidence = Evidence {
                object,
                role_free_for: free,
                remembered: Some("old"),
                initial: InitialRole::Active,
                named_gone_for: Duration::MAX,
                ..fresh("old")
            };
            assert_eq!(role(&evidence), expected, "{baseline:?} {free:?}");
        };
        let just_short = TAKE_OVER_AFTER - Duration::from_millis(1);
        check(Some("old"), TAKE_OVER_AFTER, Role::Active);
        check(Some("old"), just_short, Role::Standby);
        check(None, Duration::MAX, Role::Standby);
        check(Some("older"), Duration::MAX, Role::Standby);
    }

    #[test]
    fn who_took_over_stays_until_the_object_changes() {
        let holder = Evidence {
            holds_role: true,
            successor_waits: true,
            ..named("old")
        };
        let took_over = Evidence {
            took_over: true,
            ..holder
        };
        assert_eq!(role(&took_over), Role::Active);
        assert_eq!(role(&holder), Role::Standby);
        let unproven = ObjectView::Present(Named {
            baseline: None,
            ..NAMED
        });
        let changed = Evidence {
            object: unproven,
            ..took_over
        };
        assert_eq!(role(&changed), Role::Standby);
    }

    #[test]
    fn a_holder_that_shall_stand_by_waits_for_its_successors_process() {
        let holder = Evidence {
            holds_role: true,
            ..named("old")
        };
        assert_eq!(role(&holder), Role::Kept);
        let followed = Evidence {
            successor_waits: true,
            ..holder
        };
        assert_eq!(role(&followed), Role::Standby);
    }

    #[test]
    fn who_is_not_named_keeps_what_it_has_until_the_active_one_is_there() {
        let check = |holds_role, successor_waits, expected| {
            let evidence = Evidence {
                holds_role,
                successor_waits,
                initial: InitialRole::Active,
                remembered: Some("other"),
                ..named("other")
            };
            assert_eq!(role(&evidence), expected, "{evidence:?}");
        };
        check(true, true, Role::Leaving);
        check(true, false, Role::Kept);
        check(false, true, Role::Idle);
        check(false, false, Role::Idle);
    }

    #[test]
    fn who_is_not_named_serves_only_if_nobody_else_could() {
        let check = |initial, gone, successor_waits, expected| {
            let evidence = Evidence {
                initial,
                named_gone_for: gone,
                successor_waits,
                ..named("other")
            };
            assert_eq!(role(&evidence), expected, "{evidence:?}");
        };
        let just_short = FALL_BACK_AFTER - Duration::from_millis(1);
        check(InitialRole::Active, FALL_BACK_AFTER, false, Role::Active);
        check(InitialRole::Active, just_short, false, Role::Idle);
        check(InitialRole::Standby, Duration::MAX, false, Role::Idle);
        check(InitialRole::Active, Duration::MAX, true, Role::Idle);
    }

    #[test]
    fn without_an_object_the_host_remembers() {
        for object in [ObjectView::Unknown, ObjectView::Absent] {
            let check = |initial, remembered, gone, holds_role, expected| {
                let evidence = Evidence {
                    object,
                    initial,
                    remembered,
                    named_gone_for: gone,
                    holds_role,
                    role_free_for: Duration::MAX,
                    ..fresh("own")
                };
                assert_eq!(role(&evidence), expected, "{evidence:?}");
            };
            use InitialRole::{Active, Standby};
            let now = Duration::ZERO;
            check(Active, None, now, false, Role::Active);
            check(Standby, None, Duration::MAX, false, Role::Standby);
            check(Active, Some("own"), now, false, Role::Active);
            check(Standby, Some("own"), now, false, Role::Active);
            check(Active, Some("other"), now, false, Role::Idle);
            check(Standby, Some("other"), Duration::MAX, false, Role::Standby);
            check(Active, Some("other"), FALL_BACK_AFTER, false, Role::Active);
            // Whoever holds the role keeps it.
            check(Standby, None, now, true, Role::Kept);
            check(Standby, Some("other"), now, true, Role::Kept);
            check(Active, Some("other"), now, true, Role::Kept);
            check(Standby, Some("own"), now, true, Role::Active);
        }
    }

    #[test]
    fn roles_have_names() {
        assert_eq!(
            "Active".parse::<InitialRole>().ok(),
            Some(InitialRole::Active)
        );
        assert_eq!(
            "Standby".parse::<InitialRole>().ok(),
            Some(InitialRole::Standby)
        );
        let error = "active".parse::<InitialRole>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#""active" is no role: Active or Standby"#
        );
    }
}
