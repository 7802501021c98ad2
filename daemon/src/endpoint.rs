//! `/metrics`, `/healthz` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::readiness::Readiness;
use crate::stop::Stop;

/// What the text format of prometheus-client is.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `/metrics`, `/healthz` (the process runs) and `/readyz` (503 and the reason while it
/// cannot do its work) until a stop is asked for.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    readiness: Readiness,
    stop: Stop,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, router(Arc::new(registry), readiness))
        .with_graceful_shutdown(async move { stop.requested().await })
        .await
}

fn router(registry: Arc<Registry>, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(move || async move { metrics(&registry) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move { ready(readiness.get()) }),
        )
}

fn metrics(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn ready(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    async fn body(response: Response) -> Result<(StatusCode, String), axum::Error> {
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 65_536).await?;
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    #[tokio::test]
    async fn readiness_tells_why_not() -> Result<(), axum::Error> {
        let readiness = Readiness::new("caches are filling");
        let refused = body(ready(readiness.get())).await?;
        assert_eq!(
            refused,
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "caches are filling\n".to_owned()
            )
        );
        readiness.set(Ok(()));
        assert_eq!(
            body(ready(readiness.get())).await?,
            (StatusCode::OK, "ok\n".to_owned())
        );
        Ok(())
    }

    #[tokio::test]
    async fn metrics_are_open_metrics() -> Result<(), axum::Error> {
        let mut registry = Registry::default();
        let writes: Counter = Counter::default();
        writes.inc();
        registry.register("writes", "Writes.", writes);
        let response = metrics(&registry);
        assert_eq!(
            response
                .headers()
                .get(header::CONTENT_TYPE)
                .and_then(|v| v.to_str().ok()),
            Some(OPEN_METRICS)
        );
        let (_, text) = body(response).await?;
        assert!(
            text.contains("writes_total 1\n") && text.ends_with("# EOF\n"),
            "{text}"
        );
        Ok(())
    }
}
