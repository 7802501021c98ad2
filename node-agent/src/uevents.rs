//! The kernel's word that a device came, went or changed: one netlink socket for the whole process,
//! which needs no privilege and works in every pod. Where there is none, everything is found by
//! looking from time to time.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use node_agent_core::uevent::{MESSAGE_MAX, Uevent};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, netlink, socket_with};
use tokio::net::UnixDatagram;
use tokio::sync::Notify;

/// The group that the kernel itself sends to.
const KERNEL_GROUP: u32 = 1;

/// Whether a change is of interest; nothing: some were lost.
type Interest = Box<dyn Fn(Option<&Uevent>) -> bool + Send>;

/// The process's source of events.
#[derive(Clone, Default)]
pub struct Uevents {
    subscribers: Option<Arc<Mutex<Vec<Subscriber>>>>,
}

struct Subscriber {
    changed: Arc<Notify>,
    interest: Interest,
}

/// A socket that events come from. A netlink socket is read like every other that has messages.
pub struct Messages {
    socket: UnixDatagram,
}

impl Messages {
    /// Listens to the kernel.
    ///
    /// # Errors
    /// When there is no such socket to be had.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::KOBJECT_UEVENT),
        )?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Self::from(socket)
    }

    /// Listens to whoever has the other end of a socket that does not block.
    fn from(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: UnixDatagram::from_std(socket.into())?,
        })
    }
}

impl Uevents {
    /// A source that never tells anything.
    pub fn none() -> Self {
        Self::default()
    }

    /// A source whose messages must be [`delivered`].
    pub fn new() -> Self {
        Self {
            subscribers: Some(Arc::default()),
        }
    }

    /// Whether changes will be told.
    pub fn tells(&self) -> bool {
        self.subscribers.is_some()
    }

    /// What is notified of each change of interest, and of changes that were lost.
    pub fn subscribe(
        &self,
        interest: impl Fn(Option<&Uevent>) -> bool + Send + 'static,
    ) -> Arc<Notify> {
        let changed = Arc::new(Notify::new());
        if let Some(subscribers) = &self.subscribers {
            lock(subscribers).push(Subscriber {
                changed: changed.clone(),
                interest: Box::new(interest),
            });
        }
        changed
    }

    fn deliver(&self, event: Option<&Uevent>) {
        let Some(subscribers) = &self.subscribers else {
            return;
        };
        for subscriber in lock(subscribers).iter() {
            if (subscriber.interest)(event) {
                subscriber.changed.notify_one();
            }
        }
    }
}

/// Delivers the kernel's messages to the subscribers, for ever.
pub async fn delivered(events: Uevents, messages: Messages) {
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        match messages.socket.recv(&mut buffer).await {
            Ok(length) => {
                let message = buffer.get(..length).unwrap_or_default();
                if let Some(event) = Uevent::read(message) {
                    events.deliver(Some(&event));
                }
            }
            // More happened at once than the kernel keeps for us.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                events.deliver(None);
            }
            Err(error) => {
                tracing::warn!(%error, "failed to read device events: polling instead");
                return;
            }
        }
    }
}

/// The list is whole between any two statements.
fn lock(subscribers: &Mutex<Vec<Subscriber>>) -> MutexGuard<'_, Vec<Subscriber>> {
    subscribers.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use rustix::net::{SendFlags, send, socketpair};

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn is_told(changed: &Notify) -> bool {
        tokio::time::timeout(DEADLINE, changed.notified())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn subscribers_are_told_of_what_interests_them() {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
        let (kernel, ours) = pair.unwrap();
        let events = Uevents::new();
        let of = |subsystem: &'static str| {
            events.subscribe(move |event| event.is_none_or(|event| event.subsystem == subsystem))
        };
        let (tty, usb) = (of("tty"), of("usb"));
        tokio::spawn(delivered(events.clone(), Messages::from(ours).unwrap()));
        for message in [
            b"libudev\0\xfe\xed".as_slice(),
            b"\xff\xff\xff",
            b"add@/devices/x\0SUBSYSTEM=tty\0",
            b"add@/devices/y\0SUBSYSTEM=usb\0",
        ] {
            send(&kernel, message, SendFlags::empty()).unwrap();
        }
        // Messages come in their order: the later one is told when the earlier one was.
        assert!(is_told(&usb).await);
        assert!(is_told(&tty).await);
        let twice = tokio::time::timeout(Duration::ZERO, tty.notified()).await;
        assert!(twice.is_err(), "told once");
        events.deliver(None);
        assert!(is_told(&tty).await && is_told(&usb).await, "some were lost");
    }

    /// The kernel makes an event for whoever writes to a device's `uevent` file, which needs root;
    /// without, the test ends with the socket that could be opened.
    #[tokio::test]
    async fn the_kernel_is_heard() {
        let messages = Messages::open().unwrap();
        let events = Uevents::new();
        let is_null = |event: &Uevent| event.path == "/devices/virtual/mem/null";
        let changed = events.subscribe(move |event| event.is_some_and(is_null));
        tokio::spawn(delivered(events, messages));
        match std::fs::write("/sys/class/mem/null/uevent", "change") {
            Ok(()) => assert!(is_told(&changed).await),
            Err(error) => assert!(!rustix::process::geteuid().is_root(), "{error}"),
        }
    }
}
