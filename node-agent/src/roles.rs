//! Takes the role that `role` of the core gives, and lets go of it: holds the locks of the config and
//! of this process, and tells the rest of the agent what it may do.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daemon::Stop;
use node_agent_core::identity::{presence_lock_name, role_lock_name, waiting_lock_name};
use node_agent_core::role::{Evidence, InitialRole, ObjectView, Role, SERVED_AFTER, role};
use node_agent_core::seen::Part;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::board::Board;
use crate::farewell::Farewell;
use crate::lock::FileLock;
use crate::node_object::{ObjectSeen, Revisions};
use crate::settings::RoleTiming;
use crate::state_file::StateFile;

/// What the agent may do now.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Duty {
    /// Take the locks of resources, and register.
    pub may_take: bool,
    /// Keep what is registered.
    pub may_keep: bool,
    /// It is this agent's turn, and another process holds the role lock.
    pub awaits_role: bool,
    /// Why locks cannot be taken on this host; empty otherwise.
    pub lock_error: String,
    /// The role came from another process, whose streams the kubelet may not have seen end yet.
    pub after_another: bool,
    /// Resources that the node served before its change began, whoever served them.
    pub baseline: Arc<BTreeSet<String>>,
}

/// The role of this process, shared by those who act on it.
#[derive(Clone)]
pub struct Roles {
    keeper: Arc<Mutex<Keeper>>,
    duty: watch::Sender<Duty>,
    holding: watch::Sender<usize>,
}

/// What a role is decided from.
pub struct Keeper {
    /// Name of the config.
    pub config: String,
    /// The agent's revision.
    pub revision: String,
    /// What it is where nothing says otherwise.
    pub initial: InitialRole,
    /// The directory of the locks.
    pub lock_dir: PathBuf,
    /// The node's object.
    pub object: watch::Receiver<ObjectSeen>,
    /// What the host remembers.
    pub state: Arc<StateFile>,
    /// Where the role is posted.
    pub board: Board,
    /// How patient it is.
    pub timing: RoleTiming,
    /// What was found out so far.
    pub found: Found,
}

/// What was found out, and is held.
#[derive(Default)]
pub struct Found {
    presence: Option<FileLock>,
    waiting: Option<FileLock>,
    role_lock: Option<FileLock>,
    took_over: Option<Revisions>,
    role_free: Free,
    named_gone_since: Option<Instant>,
    looked_for: Vec<String>,
    waiting_since: Option<Instant>,
    after_another: bool,
    lock_error: String,
    stopping: bool,
}

/// For how long the role lock was seen free.
#[derive(Clone, Copy, Debug, Default)]
struct Free {
    total: Duration,
    /// The last look, if it was free then.
    free_at: Option<Instant>,
    held_since: Option<Instant>,
}

impl Free {
    /// One more look. Whoever takes the lock and dies soon after has not served: the time goes on
    /// where it stopped.
    fn next(self, is_free: bool, now: Instant, haste: u32) -> Self {
        if is_free {
            let passed = self.free_at.map_or(Duration::ZERO, |at| now - at);
            return Self {
                total: self.total + passed,
                free_at: Some(now),
                held_since: None,
            };
        }
        let held_since = self.held_since.unwrap_or(now);
        let has_served = (now - held_since).saturating_mul(haste) >= SERVED_AFTER;
        Self {
            total: if has_served {
                Duration::ZERO
            } else {
                self.total
            },
            free_at: None,
            held_since: Some(held_since),
        }
    }
}

/// Somebody holds locks that the role lock stands above.
pub struct Holding(watch::Sender<usize>);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Roles {
    /// Takes the first look, so that everybody starts with a role.
    pub fn new(keeper: Keeper) -> Self {
        let roles = Self {
            keeper: Arc::new(Mutex::new(keeper)),
            duty: watch::Sender::new(Duty::default()),
            holding: watch::Sender::new(0),
        };
        roles.look();
        roles
    }

    /// What may be done, now and later.
    pub fn duty(&self) -> watch::Receiver<Duty> {
        self.duty.subscribe()
    }

    /// Returns when the duty is like this. Should there be no duty any more, the process is ending.
    pub async fn until(&self, is: impl Fn(&Duty) -> bool) {
        let mut duty = self.duty();
        let _ended = duty.wait_for(|duty| is(duty)).await;
    }

    /// Keeps the role lock from being released for as long as the answer lives, if locks may be taken
    /// now.
    pub fn hold(&self) -> Option<Holding> {
        if !self.duty.borrow().may_take {
            return None;
        }
        Some(self.holding())
    }

    fn holding(&self) -> Holding {
        self.holding.send_modify(|count| *count += 1);
        Holding(self.holding.clone())
    }

    /// Whether what was taken may be used: the role is looked at again after a lock was won.
    pub fn confirms(&self) -> bool {
        self.look();
        self.duty.borrow().may_take
    }

    /// Follows the object and the other processes until a stop is asked for; lets go of the role
    /// when everything below it is let go of.
    pub async fn keep(self, farewell: Farewell, stop: Stop) {
        let mut object = self.lock().object.clone();
        let mut holding = self.holding.subscribe();
        loop {
            let wait = self.look();
            tokio::select! {
                () = stop.requested() => break,
                Ok(()) = object.changed() => {}
                Ok(()) = holding.changed() => {}
                () = sleep(wait) => {}
            }
        }
        let served_alone = {
            let mut keeper = self.lock();
            let has_company = keeper.has_company();
            keeper.found.stopping = true;
            keeper.found.role_lock.is_some() && !has_company
        };
        // The last look needs the role too.
        let own = self.holding();
        self.look();
        let _none_left = holding.wait_for(|count| *count <= 1).await.is_ok();
        if served_alone {
            // Nobody waits for the role, and nobody but us will find what is left behind.
            farewell.say().await;
        }
        drop(own);
        self.look();
    }

    /// The keeper is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks, takes or lets go, and tells how soon to look again.
    fn look(&self) -> Duration {
        let mut keeper = self.lock();
        let (duty, wait) = keeper.look(|| *self.holding.borrow() == 0);
        self.duty.send_if_modified(|before| {
            let changed = *before != duty;
            *before = duty;
            changed
        });
        wait
    }
}

impl Keeper {
    fn look(&mut self, nothing_is_held: impl Fn() -> bool) -> (Duty, Duration) {
        self.show_presence();
        let mut role = self.role();
        if role.may_take() && self.found.role_lock.is_none() {
            self.try_take_role();
            // Winning may have taken a while: what is true now counts.
            role = self.role();
        }
        if !role.may_take() {
            self.found.waiting_since = None;
        }
        self.show_waiting(role.may_take() && self.found.role_lock.is_none());
        if !role.may_keep() && nothing_is_held() && self.found.role_lock.take().is_some() {
            tracing::info!(?role, "released the role");
            self.found.took_over = None;
        }
        let holds = self.found.role_lock.is_some();
        self.board.part(Part {
            role,
            holds: holds && role.may_keep(),
            // Where no locks can be taken, that is what there is to tell.
            shown: self.found.presence.is_some() || !self.found.lock_error.is_empty(),
        });
        let duty = Duty {
            may_take: holds && role.may_take(),
            may_keep: holds && role.may_keep(),
            awaits_role: !holds && role.may_take(),
            lock_error: self.found.lock_error.clone(),
            after_another: self.found.after_another,
            baseline: self.baseline(),
        };
        (duty, self.next_look(role))
    }

    /// Holds the lock by which whoever holds the role learns that it is awaited, and not only named.
    fn show_waiting(&mut self, waits: bool) {
        if !waits {
            self.found.waiting = None;
        } else if self.found.waiting.is_none() {
            let name = waiting_lock_name(&self.config, &self.revision);
            match FileLock::try_take(&self.lock_dir, &name) {
                Ok(lock) => self.found.waiting = lock,
                Err(error) => self.lock_failed(&error),
            }
        }
    }

    /// Holds this process's own lock, by which others see that it is here. Another process of the
    /// revision, which is leaving, may hold it for a moment.
    fn show_presence(&mut self) {
        if self.found.stopping {
            // Whoever asks shall not wait for one who is leaving.
            self.found.presence = None;
            return;
        }
        if self.found.presence.is_some() {
            return;
        }
        let name = presence_lock_name(&self.config, &self.revision);
        match FileLock::try_take(&self.lock_dir, &name) {
            Ok(lock) => {
                self.found.presence = lock;
                self.locks_work();
            }
            Err(error) => self.lock_failed(&error),
        }
    }

    fn role(&mut self) -> Role {
        if self.found.stopping {
            return Role::Leaving;
        }
        let object = self.object.borrow().clone();
        let named = object.object.as_ref().map(|present| &present.named);
        let remembered = match named {
            Some(_) => None,
            None => self.state.revision(),
        };
        let now = Instant::now();
        let successor_waits = named.is_some_and(|named| {
            let name = waiting_lock_name(&self.config, &named.active);
            let is_another = named.active != self.revision;
            // Where that cannot be seen, what is served goes on.
            is_another && FileLock::is_held(&self.lock_dir, &name).unwrap_or(false)
        });
        let looked_for: Vec<String> = match named {
            Some(named) => named.all().map(str::to_owned).collect(),
            None => remembered.iter().cloned().collect(),
        };
        let somebody = looked_for.iter().any(|revision| self.is_present(revision));
        let since = self.found.named_gone_since;
        self.found.named_gone_since = if somebody {
            None
        } else if looked_for == self.found.looked_for {
            since.or(Some(now))
        } else {
            // Those who are named from now on get their time.
            Some(now)
        };
        self.found.looked_for = looked_for;
        let is_proven = |named: &Revisions| {
            let own = Some(&self.revision);
            named.standby.as_ref() == own && named.baseline.as_ref() == own
        };
        // Nobody else has to know, and a look disturbs those who want it.
        let may_take_over = named.is_some_and(is_proven) && self.found.role_lock.is_none();
        self.found.role_free = match may_take_over {
            false => Free::default(),
            true => {
                let is_free = self.role_lock_is_free();
                self.found.role_free.next(is_free, now, self.timing.haste)
            }
        };
        let since = |time: Option<Instant>| {
            let lasted = time.map_or(Duration::ZERO, |time| now - time);
            lasted.saturating_mul(self.timing.haste)
        };
        role(&Evidence {
            own: &self.revision,
            initial: self.initial,
            object: object.view(),
            remembered: remembered.as_deref(),
            holds_role: self.found.role_lock.is_some(),
            took_over: named.is_some() && self.found.took_over.as_ref() == named,
            role_free_for: self.found.role_free.total.saturating_mul(self.timing.haste),
            named_gone_for: since(self.found.named_gone_since),
            successor_waits,
        })
    }

    /// Whether a process of another revision is here that the object names: it has served until now,
    /// or serves next.
    fn has_company(&self) -> bool {
        let object = self.object.borrow();
        let named = object.object.as_ref().map(|present| &present.named);
        let mut others = named.into_iter().flat_map(Revisions::all);
        others.any(|other| self.is_present(other))
    }

    /// Whether another process of a revision is on this host. Where that cannot be seen, nobody
    /// counts as being here, and what is served goes on.
    fn is_present(&self, revision: &str) -> bool {
        let name = presence_lock_name(&self.config, revision);
        revision != self.revision && FileLock::is_held(&self.lock_dir, &name).unwrap_or(false)
    }

    fn role_lock_is_free(&self) -> bool {
        let name = role_lock_name(&self.config);
        FileLock::is_held(&self.lock_dir, &name).is_ok_and(|held| !held)
    }

    fn try_take_role(&mut self) {
        let waited = self.found.waiting_since.is_some();
        let now = Instant::now();
        self.found.waiting_since.get_or_insert(now);
        match FileLock::try_take(&self.lock_dir, &role_lock_name(&self.config)) {
            Ok(None) => self.locks_work(),
            Ok(Some(lock)) => {
                self.locks_work();
                self.took_role(lock, waited);
            }
            Err(error) => self.lock_failed(&error),
        }
    }

    fn took_role(&mut self, lock: FileLock, waited: bool) {
        let object = self.object.borrow().clone();
        let named = object.object.map(|present| present.named.clone());
        let is_somebody_elses = |named: &Revisions| named.active != self.revision;
        let with_others = self.has_company();
        self.found.took_over = named.filter(is_somebody_elses);
        self.found.after_another = waited || with_others;
        self.found.role_lock = Some(lock);
        self.found.waiting_since = None;
        tracing::info!(
            waited,
            took_over = self.found.took_over.is_some(),
            "took the role"
        );
    }

    fn locks_work(&mut self) {
        self.found.lock_error.clear();
        self.board.lock_error("");
    }

    fn lock_failed(&mut self, error: &std::io::Error) {
        let told = format!("failed to lock in {:?}: {error}", self.lock_dir);
        if self.board.lock_error(&told) {
            tracing::warn!(told, "no locks on this host");
        }
        self.found.lock_error = told;
    }

    fn baseline(&self) -> Arc<BTreeSet<String>> {
        let object = self.object.borrow();
        let present = object.object.as_ref();
        Arc::new(present.map_or_else(BTreeSet::new, |one| one.baseline_resources.clone()))
    }

    /// How soon to look again where nobody tells of a change: locks have no events.
    fn next_look(&self, role: Role) -> Duration {
        let timing = &self.timing;
        let is_named = match self.object.borrow().view() {
            ObjectView::Present(named) => named.active == self.revision,
            ObjectView::Unknown | ObjectView::Absent => false,
        };
        match role {
            // A directory that takes no locks does not learn it within milliseconds.
            _ if !self.found.lock_error.is_empty() => timing.look_around,
            Role::Active if self.found.role_lock.is_none() => {
                let waited = self
                    .found
                    .waiting_since
                    .map_or(Duration::ZERO, |s| s.elapsed());
                if waited < timing.hand_over {
                    timing.hand_over_poll
                } else {
                    timing.lock_poll
                }
            }
            // Others look for this process's own lock, which a look of theirs may just have kept it
            // from taking.
            _ if self.found.presence.is_none() && !self.found.stopping => timing.lock_poll,
            Role::Active if is_named => timing.idle,
            Role::Kept => timing.lock_poll,
            Role::Active | Role::Standby | Role::Leaving | Role::Idle => timing.look_around,
        }
    }
}
