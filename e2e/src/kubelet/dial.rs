//! Calling a plugin as kubelets do since 1.26: over its unix socket, with the authority `localhost`.

use std::path::Path;
use std::time::Duration;

use proto::v1beta1::device_plugin_client::DevicePluginClient;
use tonic::transport::{Channel, Endpoint, Error, Uri};

/// A client of one plugin.
pub type Client = DevicePluginClient<Channel>;

/// Largest message that a kubelet reads; it never raised grpc-go's default.
pub const MESSAGE_MAX: usize = 4 << 20;

/// How long a kubelet tries to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Connects to a plugin.
///
/// # Errors
/// When nobody answers at the socket within 10 s.
pub async fn dial(socket: &Path) -> Result<Client, Error> {
    dial_with_window(socket, None).await
}

/// The same with a flow control window of so many bytes for each call: a reader that stops reading
/// makes the plugin stop after them.
///
/// # Errors
/// When nobody answers at the socket within 10 s.
pub async fn dial_with_window(socket: &Path, window: Option<u32>) -> Result<Client, Error> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?
        .origin(Uri::from_static("http://localhost"))
        .initial_stream_window_size(window)
        .connect_timeout(CONNECT);
    let client = DevicePluginClient::new(endpoint.connect().await?);
    Ok(client.max_decoding_message_size(MESSAGE_MAX))
}
