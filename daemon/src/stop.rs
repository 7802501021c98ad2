//! An orderly stop: asked for once, seen by everybody.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A wish to stop that many tasks can wait for.
#[derive(Clone, Debug)]
pub struct Stop {
    requested: Arc<watch::Sender<bool>>,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            requested: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl Stop {
    /// Requested by SIGTERM (the kubelet) or SIGINT (a terminal).
    ///
    /// # Errors
    /// When the process cannot listen for signals.
    pub fn on_signals() -> std::io::Result<Self> {
        let stop = Self::default();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signals = signal(kind)?;
            let stop = stop.clone();
            tokio::spawn(async move {
                if signals.recv().await.is_some() {
                    stop.request();
                }
            });
        }
        Ok(stop)
    }

    /// Asks everybody to stop.
    pub fn request(&self) {
        self.requested.send_replace(true);
    }

    /// Whether a stop was asked for.
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// Returns when a stop is asked for.
    pub async fn requested(&self) {
        let mut receiver = self.requested.subscribe();
        // The sender lives in `self`, so waiting cannot fail; if it did, stopping is right.
        let _closed = receiver.wait_for(|requested| *requested).await;
    }
}
