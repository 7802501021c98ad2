//! The part of an API server that an agent talks to: one list with its watch, one status.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::fake_kubelet::DEADLINE;

/// One write of a status.
#[derive(Clone, Debug)]
pub struct Write {
    /// Name of the object.
    pub name: String,
    /// The query, such as `fieldManager=…`.
    pub query: String,
    /// How the patch is to be read.
    pub content_type: String,
    /// The patch.
    pub body: Value,
    /// When.
    pub at: Instant,
}

#[derive(Clone)]
struct Shared {
    object: Arc<Mutex<Option<Value>>>,
    events: broadcast::Sender<Value>,
    writes: Arc<watch::Sender<Vec<Write>>>,
}

/// An API server.
pub struct FakeApi {
    shared: Shared,
    address: SocketAddr,
    server: Option<JoinHandle<()>>,
}

const PLURAL: &str = "/apis/deviceplugins.dev/v1alpha1/devicepluginnodes";

impl FakeApi {
    /// A server that is away: nobody listens at its address.
    pub async fn away() -> Self {
        let shared = Shared {
            object: Arc::default(),
            events: broadcast::Sender::new(64),
            writes: Arc::new(watch::Sender::new(Vec::new())),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self {
            shared,
            address,
            server: None,
        }
    }

    /// A server that is there.
    pub async fn start() -> Self {
        let mut api = Self::away().await;
        api.come_back().await;
        api
    }

    /// Listens from now on.
    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let router = Router::new()
            .route(PLURAL, get(list))
            .route(&format!("{PLURAL}/{{name}}"), get(read))
            .route(&format!("{PLURAL}/{{name}}/status"), patch(write))
            .with_state(self.shared.clone());
        self.server = Some(tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        }));
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes the node's object, or changes its spec.
    pub fn set_object(&self, name: &str, spec: &Value) {
        self.set_object_of(name, "uid-1", spec);
    }

    /// Makes the node's object for the config with a UID.
    pub fn set_object_of(&self, name: &str, owner: &str, spec: &Value) {
        let mut object = self.shared.object.lock().unwrap();
        let kind = if object.is_none() {
            "ADDED"
        } else {
            "MODIFIED"
        };
        let status = object
            .as_ref()
            .map_or(json!({}), |object| object["status"].clone());
        let mut whole = json!({
            "configName": "test", "nodeName": "n1", "nodeUID": "node-uid", "active": "0123456789",
        });
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let made = json!({
            "apiVersion": "deviceplugins.dev/v1alpha1",
            "kind": "DevicePluginNode",
            "metadata": { "name": name, "generation": version(&object) + 1, "uid": "object-1",
                "resourceVersion": (version(&object) + 1).to_string(),
                "ownerReferences": [{ "apiVersion": "deviceplugins.dev/v1alpha1",
                    "kind": "DevicePluginConfig", "name": "test", "uid": owner, "controller": true }] },
            "spec": whole,
            "status": status,
        });
        *object = Some(made.clone());
        self.shared.tell(kind, &made);
    }

    /// Deletes the node's object.
    pub fn delete_object(&self) {
        let mut object = self.shared.object.lock().unwrap();
        let mut gone = object.take().unwrap();
        let next = version(&Some(gone.clone())) + 1;
        gone["metadata"]["resourceVersion"] = json!(next.to_string());
        self.shared.tell("DELETED", &gone);
    }

    /// The status now.
    pub fn status(&self) -> Value {
        let object = self.shared.object.lock().unwrap();
        object.as_ref().map_or(Value::Null, |o| o["status"].clone())
    }

    /// Waits until the status is like this.
    pub async fn until_status(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            let mut turn = tokio::time::interval(std::time::Duration::from_millis(2));
            while !is(&self.status()) {
                turn.tick().await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, wait).await;
        assert!(
            waited.is_ok(),
            "not within {DEADLINE:?}: {what}; {:#}",
            self.status()
        );
        self.status()
    }

    /// Answers nobody from now on, and ends all watches.
    pub fn go_away(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
        let _watchers = self.shared.events.send(Value::Null);
    }

    /// Changes the status as somebody else would.
    pub fn change_status(&self, change: impl FnOnce(&mut Value)) {
        let mut object = self.shared.object.lock().unwrap();
        let next = version(&object) + 1;
        let present = object.as_mut().unwrap();
        change(&mut present["status"]);
        present["metadata"]["resourceVersion"] = json!(next.to_string());
        let present = present.clone();
        self.shared.tell("MODIFIED", &present);
    }

    /// The writes so far.
    pub fn writes(&self) -> Vec<Write> {
        self.shared.writes.borrow().clone()
    }

    /// Waits until a write is like this; returns all.
    pub async fn until(&self, what: &str, is: impl Fn(&Write) -> bool) -> Vec<Write> {
        let mut writes = self.shared.writes.subscribe();
        let found = writes.wait_for(|writes| writes.last().is_some_and(&is));
        match tokio::time::timeout(DEADLINE, found).await {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!(
                "not within {DEADLINE:?}: {what}; writes: {:#?}",
                self.writes()
            ),
        }
    }

    /// Waits until there were so many writes.
    pub async fn until_written(&self, times: usize) {
        let mut writes = self.shared.writes.subscribe();
        let found = writes.wait_for(|writes| writes.len() >= times);
        tokio::time::timeout(DEADLINE, found)
            .await
            .unwrap()
            .unwrap();
    }
}

fn version(object: &Option<Value>) -> u64 {
    let version = object
        .as_ref()
        .and_then(|o| o["metadata"]["resourceVersion"].as_str());
    version.map_or(0, |version| version.parse().unwrap())
}

impl Shared {
    fn tell(&self, kind: &str, object: &Value) {
        // Nobody may be watching.
        let _watchers = self.events.send(json!({ "type": kind, "object": object }));
    }
}

async fn list(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    assert!(
        query.contains("fieldSelector=metadata.name%3D"),
        "one object, by name: {query}"
    );
    let events = shared.events.subscribe();
    let object = shared.object.lock().unwrap().clone();
    if !query.contains("watch=true") {
        let metadata = json!({ "resourceVersion": version(&object).to_string() });
        let items: Vec<Value> = object.into_iter().collect();
        let kind = "DevicePluginNodeList";
        let api = "deviceplugins.dev/v1alpha1";
        let list = json!({ "apiVersion": api, "kind": kind, "metadata": metadata, "items": items });
        return answer(&list);
    }
    // What happened between the list and this watch comes first.
    let since = query.split("resourceVersion=").nth(1).unwrap_or_default();
    let since: u64 = since
        .split('&')
        .next()
        .unwrap_or_default()
        .parse()
        .unwrap_or(0);
    let missed = object.filter(|object| version(&Some(object.clone())) > since);
    let missed = missed.map(|object| json!({ "type": "MODIFIED", "object": object }));
    let stream = futures::stream::unfold((missed, events), |(missed, mut events)| async move {
        let event = match missed {
            Some(missed) => missed,
            None => events.recv().await.ok().filter(|event| !event.is_null())?,
        };
        Some((
            Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n"))),
            (None, events),
        ))
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(stream),
    )
        .into_response()
}

async fn read(State(shared): State<Shared>) -> Response {
    let object = shared.object.lock().unwrap().clone();
    object.map_or_else(not_found, |object| answer(&object))
}

fn not_found() -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
    });
    (StatusCode::NOT_FOUND, status.to_string()).into_response()
}

async fn write(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let mut object = shared.object.lock().unwrap();
    let next = version(&object) + 1;
    let Some(present) = object.as_mut() else {
        return not_found();
    };
    let query = query.unwrap_or_default();
    let expected = &body["metadata"]["resourceVersion"];
    assert!(
        expected.is_string(),
        "a write says what it was made from: {body}"
    );
    if *expected != present["metadata"]["resourceVersion"] {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409,
        });
        return (StatusCode::CONFLICT, status.to_string()).into_response();
    }
    // Each manager owns its fields: what it leaves out is removed.
    let owned: &[&str] = if query.contains("fieldManager=agent-active") {
        &["active", "conditions"]
    } else {
        &["standby"]
    };
    for field in body["status"].as_object().unwrap().keys() {
        assert!(
            owned.contains(&field.as_str()),
            "{field} is another manager's: {query}"
        );
    }
    if !present["status"].is_object() {
        present["status"] = json!({});
    }
    for field in owned {
        match body["status"].get(field) {
            Some(value) => present["status"][*field] = value.clone(),
            None => {
                present["status"].as_object_mut().unwrap().remove(*field);
            }
        }
    }
    present["metadata"]["resourceVersion"] = json!(next.to_string());
    let present = present.clone();
    shared.tell("MODIFIED", &present);
    let content_type = headers[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    let write = Write {
        name,
        query,
        content_type,
        body,
        at: Instant::now(),
    };
    shared.writes.send_modify(|writes| writes.push(write));
    answer(&present)
}

fn answer(value: &Value) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        value.to_string(),
    )
        .into_response()
}
