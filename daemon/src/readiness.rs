//! Whether the process can do its work now, and if not, why.

use std::sync::Arc;

use tokio::sync::watch;

/// Shared by whoever knows and whoever is asked.
#[derive(Clone, Debug)]
pub struct Readiness {
    state: Arc<watch::Sender<Result<(), String>>>,
}

impl Readiness {
    /// Not ready yet, for this reason.
    pub fn new(reason: &str) -> Self {
        Self {
            state: Arc::new(watch::Sender::new(Err(reason.to_owned()))),
        }
    }

    /// Ready, or not and why.
    pub fn set(&self, state: Result<(), String>) {
        self.state.send_if_modified(|present| {
            let changed = *present != state;
            *present = state;
            changed
        });
    }

    /// The state now.
    pub fn get(&self) -> Result<(), String> {
        self.state.borrow().clone()
    }
}
