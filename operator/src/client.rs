//! The connection to the API server.

use std::future::Future;
use std::time::Duration;

use kube::{Client, Config};

/// How long one call may take. The API server itself gives up on a request after a minute; a
/// quarter of this would fail on a server that is merely busy, and without a limit a dead
/// connection would hold up everything for ever.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server refused it, or could not be reached.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// No answer came.
    #[error("no answer within {} s", CALL_TIMEOUT.as_secs())]
    NoAnswer,
}

impl CallError {
    /// The API server's own answer, where there is one.
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status),
            Self::Kube(_) | Self::NoAnswer => None,
        }
    }

    /// The whole chain of causes in one line.
    pub fn chain(&self) -> String {
        if let Some(status) = self.status() {
            return status.message.clone();
        }
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let cause = error.to_string();
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
            source = error.source();
        }
        text
    }
}

/// A client for the cluster that the process runs in, or that KUBECONFIG names.
///
/// # Errors
/// When no cluster is configured.
pub async fn connect() -> anyhow::Result<Client> {
    let mut config = Config::infer().await?;
    configure(&mut config);
    Ok(Client::try_from(config)?)
}

/// The client's own retries would hide refusals for minutes: whoever calls looks again instead.
pub fn configure(config: &mut Config) {
    config.default_retry = false;
}

/// A call with a limit.
///
/// # Errors
/// Those of the call, and that no answer came.
pub async fn call<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(CallError::NoAnswer),
    }
}
