//! What both binaries need around their work: logs, an orderly stop, and the endpoint that serves
//! metrics, liveness and readiness. It knows nothing of devices or configs.

mod endpoint;
mod logs;
mod readiness;
mod stop;

pub use endpoint::serve;
pub use logs::{LogError, Logs};
pub use readiness::Readiness;
pub use stop::Stop;
