//! PreStartContainer: every device of a container is reset before it starts.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::given::Given;
use crate::hooks::ResetRequest;

/// Asks for resets, and waits for them.
#[derive(Clone, Debug)]
pub struct Resets {
    /// Who looks after the devices.
    pub requests: mpsc::Sender<ResetRequest>,
    /// Told which devices are about to be used.
    pub given: Given,
    /// How long all of them may take together.
    pub limit: Duration,
}

impl Resets {
    /// Has devices reset, all at the same time. Who gives up waiting stops nothing: the reset that
    /// runs then is also that of whoever asks next.
    ///
    /// # Errors
    /// Which devices could not be reset, and why.
    pub async fn reset(&self, resource: &str, devices: BTreeSet<&str>) -> Result<(), String> {
        let deadline = Instant::now() + self.limit;
        let resets = devices.into_iter().map(|device| async move {
            let reset = timeout_at(deadline, self.reset_one(device)).await;
            let ended = reset.unwrap_or_else(|_| {
                let limit = self.limit;
                Err(format!("it has not ended within {limit:?}"))
            });
            let told =
                |error| format!("reset of device {device:?} of {resource:?} failed: {error}");
            ended.map_err(told)
        });
        let ended = join_all(resets).await;
        let failed: Vec<String> = ended.into_iter().filter_map(Result::err).collect();
        if failed.is_empty() {
            Ok(())
        } else {
            Err(failed.join("; "))
        }
    }

    async fn reset_one(&self, device: &str) -> Result<(), String> {
        self.given.prepared(device);
        let (answer, answered) = oneshot::channel();
        let request = ResetRequest {
            device: device.to_owned(),
            answer,
        };
        let leaves = "this agent stops to serve";
        let sent = self.requests.send(request).await;
        sent.map_err(|_| leaves.to_owned())?;
        answered.await.unwrap_or_else(|_| Err(leaves.to_owned()))
    }
}
