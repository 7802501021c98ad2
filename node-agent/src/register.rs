//! The one call to the kubelet's registration service.

use std::path::Path;
use std::time::Duration;

use proto::DEVICE_PLUGIN_VERSION;
use proto::v1beta1::registration_client::RegistrationClient;
use proto::v1beta1::{DevicePluginOptions, RegisterRequest};

use crate::allocations::unix_endpoint;

/// Why a registration failed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Nobody answers at the kubelet's socket: normal while the kubelet starts or is stopped.
    #[error("failed to connect to the kubelet")]
    Connect(#[source] tonic::transport::Error),
    /// The kubelet refused.
    #[error("the kubelet refused: {0}")]
    Refuse(String),
    /// The kubelet took too long.
    #[error("the kubelet did not answer within {0:?}")]
    WaitForAnswer(Duration),
}

/// Registers the server at the socket `endpoint` for a resource.
pub async fn register(
    kubelet: &Path,
    endpoint: String,
    resource: String,
    options: DevicePluginOptions,
    limit: Duration,
) -> Result<(), RegisterError> {
    let call = async {
        let channel = unix_endpoint(kubelet)
            .connect()
            .await
            .map_err(RegisterError::Connect)?;
        let request = RegisterRequest {
            version: DEVICE_PLUGIN_VERSION.to_owned(),
            endpoint,
            resource_name: resource,
            options: Some(options),
        };
        let answer = RegistrationClient::new(channel).register(request).await;
        answer.map_err(|status| RegisterError::Refuse(told(&status)))?;
        Ok(())
    };
    tokio::time::timeout(limit, call)
        .await
        .map_err(|_| RegisterError::WaitForAnswer(limit))?
}

/// What the kubelet said. Where the connection broke there is only a code.
fn told(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    }
}
