//! The part of an API server that an agent at rest talks to, over TLS as a real one: one object, its
//! watch, and its status.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use axum::serve::Listener;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The server, until it is dropped.
pub struct Api {
    server: JoinHandle<()>,
}

/// The node's object as it is now.
type Object = Arc<Mutex<Value>>;

const PLURAL: &str = "/apis/deviceplugins.dev/v1alpha1/devicepluginnodes";

impl Api {
    /// Serves the object of a node whose agent of `revision` is the active one, and writes to
    /// `kubeconfig` how it is reached.
    ///
    /// # Errors
    /// When no port is free, or the file cannot be written.
    pub async fn start(kubeconfig: &Path, name: &str, revision: &str) -> Result<Self> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(vec!["localhost".to_owned()])
                .context("failed to make a certificate")?;
        let key = PrivateKeyDer::try_from(signing_key.serialize_der())
            .map_err(|error| anyhow::anyhow!("failed to read the key again: {error}"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let listener = TlsListener {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(tls)),
        };
        let ca = kubeconfig.with_extension("pem");
        std::fs::write(&ca, cert.pem()).with_context(|| format!("failed to write {ca:?}"))?;
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "bench",
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "agent" } }],
            "clusters": [{ "name": "bench", "cluster": {
                "server": format!("https://localhost:{port}"), "certificate-authority": ca,
            }}],
            "users": [{ "name": "agent", "user": { "token": "of-a-service-account" } }],
        });
        std::fs::write(kubeconfig, text.to_string())
            .with_context(|| format!("failed to write {kubeconfig:?}"))?;
        let object: Object = Arc::new(Mutex::new(json!({
            "apiVersion": "deviceplugins.dev/v1alpha1",
            "kind": "DevicePluginNode",
            "metadata": { "name": name, "uid": "object", "resourceVersion": "1", "generation": 1,
                "ownerReferences": [{ "apiVersion": "deviceplugins.dev/v1alpha1", "name": "bench",
                    "kind": "DevicePluginConfig", "uid": "config", "controller": true }] },
            "spec": { "configName": "bench", "nodeName": "n1", "nodeUID": "node", "active": revision },
        })));
        let router = Router::new()
            .route(PLURAL, get(list))
            .route(&format!("{PLURAL}/{{name}}"), get(read))
            .route(&format!("{PLURAL}/{{name}}/status"), patch(write))
            .with_state(object);
        let server = tokio::spawn(async move {
            // Ends with the task only: accepting never fails for good.
            let _never = axum::serve(listener, router).await;
        });
        Ok(Self { server })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok((stream, address)) = self.listener.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

async fn list(State(object): State<Object>, RawQuery(query): RawQuery) -> Response {
    if query.is_some_and(|query| query.contains("watch=true")) {
        // Nothing happens to the object but what the agent itself writes.
        let silence = tokio_stream::pending::<std::io::Result<Bytes>>();
        return as_json(Body::from_stream(silence));
    }
    let object = lock(&object).clone();
    let list = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1",
        "kind": "DevicePluginNodeList",
        "metadata": { "resourceVersion": object.pointer("/metadata/resourceVersion") },
        "items": [object],
    });
    as_json(Body::from(list.to_string()))
}

async fn read(State(object): State<Object>) -> Response {
    as_json(Body::from(lock(&object).to_string()))
}

async fn write(State(object): State<Object>, body: Bytes) -> Response {
    let mut object = lock(&object);
    let written = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    if let (Some(whole), Some(status)) = (object.as_object_mut(), written.get("status")) {
        whole.insert("status".to_owned(), status.clone());
    }
    as_json(Body::from(object.to_string()))
}

fn lock(object: &Object) -> std::sync::MutexGuard<'_, Value> {
    object.lock().unwrap_or_else(PoisonError::into_inner)
}

fn as_json(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
