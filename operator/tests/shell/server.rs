//! An API server of a few kinds, in the process: reads, lists, watches that end in time, creations,
//! replacements, merge patches, applied statuses and deletions, with resource versions,
//! preconditions and finalizers as the real one has them. A test can hold its watches back, refuse
//! reads and writes, and serve a kind later.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

/// How long anything that is awaited may take; a loaded machine needs a fraction of it.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Server {
    state: Arc<Mutex<Cluster>>,
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
pub struct Cluster {
    version: u64,
    pub objects: BTreeMap<String, BTreeMap<String, Value>>,
    log: Vec<Logged>,
    /// Kinds that are not served.
    pub missing: BTreeSet<&'static str>,
    /// Kinds that an admission webhook keeps as they are, whatever is patched.
    pub frozen: BTreeSet<&'static str>,
    /// Kinds whose watches tell nothing new.
    held: BTreeSet<&'static str>,
    /// Ends every watch with "too old" up to this version.
    compacted: u64,
    refusals: Vec<Refusal>,
    /// Every write: verb, kind, name, code, and when.
    pub writes: Vec<(String, u16, Instant)>,
    pub lists: usize,
    /// Reasons that any status of a config ever gave.
    pub reasons: BTreeSet<String>,
}

struct Logged {
    version: u64,
    kind: String,
    event: Value,
}

/// Verb, kind, and start of the name.
pub type Target = (&'static str, &'static str, &'static str);

struct Refusal {
    verb: &'static str,
    kind: &'static str,
    /// Start of the name.
    name: &'static str,
    code: u16,
    times: usize,
}

impl Cluster {
    pub fn get(&self, kind: &str, name: &str) -> Option<&Value> {
        self.objects.get(kind)?.get(name)
    }

    pub fn names(&self, kind: &str) -> Vec<&str> {
        let objects = self.objects.get(kind).into_iter().flatten();
        objects.map(|(name, _)| name.as_str()).collect()
    }

    /// The reason of a config's condition.
    pub fn reason(&self, config: &str, condition: &str) -> String {
        let conditions = self
            .get("devicepluginconfigs", config)
            .and_then(|config| config.pointer("/status/conditions")?.as_array());
        let conditions = conditions.into_iter().flatten();
        let mut of_type = conditions.filter(|one| one["type"] == condition);
        let reason = of_type.next().and_then(|one| one["reason"].as_str());
        reason.unwrap_or_default().to_owned()
    }

    /// Writes that were done, without statuses, events and the election, in order.
    pub fn done(&self) -> Vec<&str> {
        let done = self.writes.iter().filter(|(_, code, _)| *code < 300);
        let lines = done.map(|(line, _, _)| line.as_str());
        lines
            .filter(|line| {
                ["/status", "events", " leases "]
                    .iter()
                    .all(|one| !line.contains(one))
            })
            .collect()
    }

    /// What the Lease says.
    pub fn holder(&self) -> (&str, i64) {
        let spec = self
            .get("leases", "device-plugin-operator")
            .map(|lease| &lease["spec"]);
        let holder = spec.and_then(|spec| spec["holderIdentity"].as_str());
        let transitions = spec.and_then(|spec| spec["leaseTransitions"].as_i64());
        (holder.unwrap_or_default(), transitions.unwrap_or_default())
    }

    fn put(&mut self, kind: &str, name: &str, mut object: Value, event: &str) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let event = json!({ "type": event, "object": object });
        self.log.push(Logged {
            version: self.version,
            kind: kind.to_owned(),
            event,
        });
        let objects = self.objects.entry(kind.to_owned()).or_default();
        objects.insert(name.to_owned(), object.clone());
        object
    }

    fn remove(&mut self, kind: &str, name: &str) {
        let Some(mut object) = self.objects.get_mut(kind).and_then(|of| of.remove(name)) else {
            return;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let event = json!({ "type": "DELETED", "object": object });
        self.log.push(Logged {
            version: self.version,
            kind: kind.to_owned(),
            event,
        });
    }

    fn refused(&mut self, verb: &str, kind: &str, name: &str) -> Option<u16> {
        let mut refusals = self.refusals.iter_mut().filter(|one| one.times > 0);
        let refusal = refusals
            .find(|one| one.verb == verb && one.kind == kind && name.starts_with(one.name))?;
        refusal.times -= 1;
        Some(refusal.code)
    }
}

impl Server {
    /// A server on a free port; its address.
    pub async fn start() -> (Self, SocketAddr) {
        let server = Self {
            state: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (server, address)
    }

    /// Changes the cluster behind everybody's back; watches tell.
    pub fn change<T>(&self, change: impl FnOnce(&mut Cluster) -> T) -> T {
        let result = change(&mut self.state.lock().unwrap());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// Makes an object.
    pub fn create(&self, kind: &str, object: Value) {
        self.change(|cluster| created(cluster, kind, object));
    }

    /// Merges a patch into an object.
    pub fn patch(&self, kind: &str, name: &str, patch: &Value) {
        self.change(|cluster| {
            let mut object = cluster.get(kind, name).unwrap().clone();
            merge(&mut object, patch);
            cluster.put(kind, name, object, "MODIFIED");
        });
    }

    pub fn delete(&self, kind: &str, name: &str) {
        self.change(|cluster| deleted(cluster, kind, name, None));
    }

    /// Watches of these kinds tell nothing until they are released.
    pub fn hold(&self, kinds: &[&'static str]) {
        self.change(|cluster| cluster.held.extend(kinds));
    }

    pub fn release(&self) {
        self.change(|cluster| cluster.held.clear());
    }

    /// Refuses writes of a verb to objects of a kind whose names start so.
    pub fn refuse(&self, (verb, kind, name): Target, code: u16, times: usize) {
        self.change(|cluster| {
            cluster.refusals.push(Refusal {
                verb,
                kind,
                name,
                code,
                times,
            });
        });
    }

    /// Ends every watch as if its version were compacted away.
    pub fn compact(&self) {
        self.change(|cluster| cluster.compacted = cluster.version);
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, mut is_so: impl FnMut(&Cluster) -> bool) {
        let mut changes = self.changed.subscribe();
        let wait = async {
            loop {
                changes.borrow_and_update();
                if is_so(&self.state.lock().unwrap()) {
                    return;
                }
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            let cluster = self.state.lock().unwrap();
            let objects = serde_json::to_string_pretty(&cluster.objects).unwrap();
            panic!(
                "{what} did not come about; writes: {:#?}; objects: {objects}",
                cluster.writes
            );
        }
    }
}

async fn answer(State(server): State<Server>, request: Request) -> Response {
    let path: Vec<_> = request
        .uri()
        .path()
        .trim_matches('/')
        .split('/')
        .map(str::to_owned)
        .collect();
    let mut rest = path
        .iter()
        .skip(if path[0] == "api" { 2 } else { 3 })
        .map(String::as_str);
    let mut kind = rest.next().unwrap_or_default().to_owned();
    if kind == "namespaces" {
        kind = rest.nth(1).unwrap_or_default().to_owned();
    }
    let (name, sub) = (
        rest.next().map(str::to_owned),
        rest.next().map(str::to_owned),
    );
    let query = request.uri().query().unwrap_or_default().to_owned();
    let method = request.method().clone();
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let is_missing = server.state.lock().unwrap().missing.contains(kind.as_str());
    if is_missing {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    if method == Method::GET {
        return match name {
            Some(name) => read(&server, &kind, &name),
            None if query.contains("watch=true") => follow(server, kind, &query),
            None => list(&server, &kind, is_labelled(&query)),
        };
    }
    let verb = match (method.as_str(), sub.as_deref()) {
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", Some("status")) => "apply",
        ("PATCH", _) => "patch",
        _ => "delete",
    };
    server.change(|cluster| {
        let named = name
            .clone()
            .or_else(|| body["metadata"]["name"].as_str().map(str::to_owned));
        let named = named.unwrap_or_default();
        let (code, answer) = match cluster.refused(verb, &kind, &named) {
            Some(code) => refusal(code),
            None => match verb {
                "create" => created(cluster, &kind, body),
                "update" => updated(cluster, &kind, &named, body),
                "delete" => deleted(cluster, &kind, &named, body.pointer("/preconditions/uid")),
                "apply" => applied(cluster, &kind, &named, &body),
                _ => patched(cluster, &kind, &named, &body),
            },
        };
        let sub = sub.map(|sub| format!("/{sub}")).unwrap_or_default();
        let line = format!("{verb} {kind}{sub} {named}");
        cluster.writes.push((line, code, Instant::now()));
        (StatusCode::from_u16(code).unwrap(), answer.to_string()).into_response()
    })
}

fn read(server: &Server, kind: &str, name: &str) -> Response {
    let mut cluster = server.state.lock().unwrap();
    let (code, answer) = match cluster.refused("get", kind, name) {
        Some(code) => refusal(code),
        None => match cluster.get(kind, name) {
            Some(object) => (200, object.clone()),
            None => not_found(kind, name),
        },
    };
    (StatusCode::from_u16(code).unwrap(), answer.to_string()).into_response()
}

/// Whether only objects with our label are asked for; no other selector is known.
fn is_labelled(query: &str) -> bool {
    let selector = query
        .split('&')
        .find_map(|part| part.strip_prefix("labelSelector="));
    match selector {
        None | Some("") => false,
        Some("deviceplugins.dev%2Fconfig" | "deviceplugins.dev/config") => true,
        Some(other) => panic!("this server knows no selector {other:?}"),
    }
}

fn has_label(object: &Value) -> bool {
    !object["metadata"]["labels"]["deviceplugins.dev/config"].is_null()
}

fn list(server: &Server, kind: &str, labelled: bool) -> Response {
    server.change(|cluster| {
        cluster.lists += 1;
        let objects = cluster.objects.get(kind).into_iter().flatten();
        let items: Vec<_> = objects
            .map(|(_, one)| one)
            .filter(|one| !labelled || has_label(one))
            .collect();
        let version = cluster.version.to_string();
        json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": version }, "items": items })
            .to_string()
            .into_response()
    })
}

/// Tells everything that is newer than the version it was asked from.
fn follow(server: Server, kind: String, query: &str) -> Response {
    let version = query
        .split('&')
        .find_map(|part| part.strip_prefix("resourceVersion="));
    let cursor: u64 = version.unwrap_or_default().parse().unwrap_or_default();
    let seconds = query
        .split('&')
        .find_map(|part| part.strip_prefix("timeoutSeconds="))
        .unwrap()
        .parse()
        .unwrap();
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let labelled = is_labelled(query);
    let changes = server.changed.subscribe();
    let events = stream::unfold(
        (server, changes, cursor, false),
        move |(server, mut changes, mut cursor, ended)| {
            let kind = kind.clone();
            async move {
                if ended {
                    return None;
                }
                loop {
                    changes.borrow_and_update();
                    let next = next_event(&server.state.lock().unwrap(), &kind, cursor);
                    if let Some((version, event)) = next {
                        let ended = version == u64::MAX;
                        cursor = version;
                        if labelled && !ended && !has_label(&event["object"]) {
                            continue;
                        }
                        let line = Ok::<_, Infallible>(format!("{event}\n"));
                        return Some((line, (server, changes, version, ended)));
                    }
                    tokio::time::timeout_at(end, changes.changed())
                        .await
                        .ok()?
                        .ok()?;
                }
            }
        },
    );
    Body::from_stream(events).into_response()
}

fn next_event(cluster: &Cluster, kind: &str, cursor: u64) -> Option<(u64, Value)> {
    if cursor < cluster.compacted || cluster.missing.contains(kind) {
        let gone = json!({ "type": "ERROR", "object": status(410, "Expired", "too old resource version") });
        return Some((u64::MAX, gone));
    }
    if cluster.held.contains(kind) {
        return None;
    }
    let mut log = cluster.log.iter();
    let next = log.find(|one| one.version > cursor && one.kind == kind)?;
    Some((next.version, next.event.clone()))
}

fn created(cluster: &mut Cluster, kind: &str, mut object: Value) -> (u16, Value) {
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    if cluster.get(kind, &name).is_some() {
        return (
            409,
            status(
                409,
                "AlreadyExists",
                &format!("{kind} {name:?} already exists"),
            ),
        );
    }
    let metadata = &mut object["metadata"];
    metadata["uid"] = format!("uid-{kind}-{name}-{}", cluster.version).into();
    metadata["creationTimestamp"] = now();
    metadata["generation"] = 1.into();
    (201, cluster.put(kind, &name, object, "ADDED"))
}

fn updated(cluster: &mut Cluster, kind: &str, name: &str, object: Value) -> (u16, Value) {
    let Some(present) = cluster.get(kind, name).cloned() else {
        return not_found(kind, name);
    };
    if let Some(conflict) = conflict(&object, &present) {
        return conflict;
    }
    (200, cluster.put(kind, name, object, "MODIFIED"))
}

/// The answer to a write that assumed another object, or another version of it.
fn conflict(write: &Value, present: &Value) -> Option<(u16, Value)> {
    let fields = ["uid", "resourceVersion"];
    let other = fields.into_iter().find(|field| {
        let assumed = &write["metadata"][field];
        !assumed.is_null() && *assumed != present["metadata"][field]
    })?;
    let answer = status(409, "Conflict", &format!("{other} is another one"));
    Some((409, answer))
}

fn not_found(kind: &str, name: &str) -> (u16, Value) {
    let message = format!("{kind} {name:?} not found");
    (404, status(404, "NotFound", &message))
}

fn patched(cluster: &mut Cluster, kind: &str, name: &str, patch: &Value) -> (u16, Value) {
    let Some(present) = cluster.get(kind, name).cloned() else {
        return not_found(kind, name);
    };
    if let Some(conflict) = conflict(patch, &present) {
        return conflict;
    }
    let mut object = present.clone();
    merge(&mut object, patch);
    let is_over = object["metadata"]["deletionTimestamp"].is_string()
        && object["metadata"]["finalizers"]
            .as_array()
            .is_none_or(Vec::is_empty);
    if is_over {
        cluster.remove(kind, name);
        return (200, object);
    }
    if object == present || cluster.frozen.contains(kind) {
        return (200, present);
    }
    (200, cluster.put(kind, name, object, "MODIFIED"))
}

fn applied(cluster: &mut Cluster, kind: &str, name: &str, body: &Value) -> (u16, Value) {
    let Some(present) = cluster.get(kind, name).cloned() else {
        return not_found(kind, name);
    };
    if body["metadata"]["uid"] != present["metadata"]["uid"] {
        return (409, status(409, "Conflict", "uid is another one"));
    }
    let mut object = present.clone();
    object["status"] = body["status"].clone();
    let conditions = object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let reasons = conditions.filter_map(|one| one["reason"].as_str().map(str::to_owned));
    cluster.reasons.extend(reasons);
    if object == present {
        return (200, present);
    }
    (200, cluster.put(kind, name, object, "MODIFIED"))
}

fn deleted(cluster: &mut Cluster, kind: &str, name: &str, uid: Option<&Value>) -> (u16, Value) {
    let Some(mut object) = cluster.get(kind, name).cloned() else {
        return not_found(kind, name);
    };
    if uid.is_some_and(|uid| *uid != object["metadata"]["uid"]) {
        return (409, status(409, "Conflict", "uid is another one"));
    }
    if object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|one| !one.is_empty())
    {
        object["metadata"]["deletionTimestamp"] = now();
        return (200, cluster.put(kind, name, object, "MODIFIED"));
    }
    cluster.remove(kind, name);
    (
        200,
        json!({ "apiVersion": "v1", "kind": "Status", "status": "Success" }),
    )
}

fn refusal(code: u16) -> (u16, Value) {
    let reason = match code {
        409 => "Conflict",
        _ => "Forbidden",
    };
    (code, status(code, reason, "the test refuses this"))
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message })
}

fn now() -> Value {
    let now = k8s_openapi::jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let members = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            members.remove(key);
        } else {
            merge(members.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
