//! What is refused to whoever has no business with it: to an agent's token nearly everything, and
//! to everybody but the operator the labels that say which revision is proven on a node.

use anyhow::{Context, Result, bail, ensure};
use e2e::product::{NAMESPACE, RELEASE};
use http::{Method, Request};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::change::node_keys;
use crate::api::{path, wait_until};
use crate::scene::{PATIENCE, Scene};

const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const JSON: &str = "application/json";

/// Added to every write: one that is not refused fails the story, and should not fail the next.
const DRY: &str = "dryRun=All";

/// The API server as it answers one token.
struct Bearer {
    runtime: Runtime,
    client: Client,
}

/// A request: what is asked for, and with which body.
struct Asked {
    method: Method,
    path: String,
    body: Option<(&'static str, Value)>,
}

/// What became of a request: its answer, or the refusal's code and message.
type Answer = Result<String, (u16, String)>;

impl Bearer {
    /// A token of the agents' account, made for a pod as the kubelet does it, or for none.
    fn of_agent(scene: &Scene, pod: Option<&str>) -> Result<Self> {
        let mut words = vec!["create", "token", "device-plugin-agent", "-n", NAMESPACE];
        if let Some(pod) = pod {
            words.extend(["--bound-object-kind=Pod", "--bound-object-name", pod]);
        }
        let token = scene.cluster.kubectl(&words)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let client = runtime.block_on(async {
            let mut kubeconfig = Kubeconfig::read_from(scene.cluster.kubeconfig_path())?;
            for user in &mut kubeconfig.auth_infos {
                user.auth_info = Some(AuthInfo {
                    token: Some(token.trim().to_owned().into()),
                    ..AuthInfo::default()
                });
            }
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            config.default_retry = false;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    fn ask(&self, asked: &Asked) -> Result<Answer> {
        let mut request = Request::builder()
            .method(asked.method.clone())
            .uri(&asked.path);
        let mut bytes = Vec::new();
        if let Some((kind, body)) = &asked.body {
            request = request.header(http::header::CONTENT_TYPE, *kind);
            bytes = serde_json::to_vec(body)?;
        }
        self.answer(request.body(bytes)?)
    }

    fn answer(&self, request: Request<Vec<u8>>) -> Result<Answer> {
        match self.runtime.block_on(self.client.request_text(request)) {
            Ok(text) => Ok(Ok(text)),
            Err(kube::Error::Api(status)) => Ok(Err((status.code, status.message.clone()))),
            Err(error) => Err(error.into()),
        }
    }

    /// The message of a refusal; anything else is a failure of the story.
    fn refusal(&self, asked: &Asked) -> Result<String> {
        let what = format!("{} {}", asked.method, asked.path);
        match self.ask(asked).with_context(|| what.clone())? {
            Ok(answer) => bail!("{what} was allowed: {answer}"),
            Err((403, message)) => Ok(message),
            Err((code, message)) => bail!("{what}: code {code}, {message}"),
        }
    }
}

fn get(path: &str) -> Asked {
    Asked {
        method: Method::GET,
        path: path.to_owned(),
        body: None,
    }
}

fn dry(method: Method, path: &str, body: Option<(&'static str, Value)>) -> Asked {
    let join = if path.contains('?') { '&' } else { '?' };
    Asked {
        method,
        path: format!("{path}{join}{DRY}"),
        body,
    }
}

fn merge(path: &str, patch: Value) -> Asked {
    dry(Method::PATCH, path, Some((MERGE, patch)))
}

fn post(path: &str, object: Value) -> Asked {
    dry(Method::POST, path, Some((JSON, object)))
}

fn put(path: &str, object: Value) -> Asked {
    dry(Method::PUT, path, Some((JSON, object)))
}

fn delete(path: &str) -> Asked {
    dry(Method::DELETE, path, None)
}

pub fn agents_token_is_good_for_its_own_status_only(scene: &Scene) -> Result<()> {
    let pod = agent_on(scene, "n1")?;
    let bearer = Bearer::of_agent(scene, Some(&pod))?;
    let own = format!("{}/fuse.n1", path::NODE_OBJECTS);
    let status = json!({"status": {"conditions": []}});

    // What an agent needs.
    for asked in [
        get(&own),
        get(path::NODE_OBJECTS),
        get(&format!(
            "{}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Dfuse.n1",
            path::NODE_OBJECTS
        )),
        merge(&format!("{own}/status"), status.clone()),
        apply_status("fuse.n1"),
    ] {
        let answer = bearer.ask(&asked)?;
        ensure!(
            answer.is_ok(),
            "an agent may not {} {}: {answer:?}",
            asked.method,
            asked.path
        );
    }

    let forbidden: Vec<Asked> = [
        on_node_objects(&scene.api.get(&own)?),
        on_nodes_and_pods(&pod),
        on_what_is_ours(),
        on_the_cluster(),
    ]
    .into_iter()
    .flatten()
    .collect();
    ensure!(forbidden.len() >= 30, "only {} requests", forbidden.len());
    for asked in &forbidden {
        bearer.refusal(asked)?;
    }
    eprintln!("      {} requests were refused", forbidden.len());

    // The policy's own words, for the one thing that RBAC allows.
    let other = merge(
        &format!("{}/fuse.n2/status", path::NODE_OBJECTS),
        status.clone(),
    );
    let message = bearer.refusal(&other)?;
    ensure!(
        message.contains("an agent on node n1 may not report for node n2"),
        "{message}"
    );
    let unbound = Bearer::of_agent(scene, None)?;
    let message = unbound.refusal(&merge(&format!("{own}/status"), status))?;
    ensure!(message.contains("belongs to no pod on a node"), "{message}");

    let disguised = Request::get(path::NODES)
        .header("Impersonate-User", "admin")
        .header("Impersonate-Group", "system:masters")
        .body(Vec::new())?;
    match bearer.answer(disguised)? {
        Err((403, _)) => {}
        other => bail!("an agent became somebody else: {other:?}"),
    }
    scene
        .wait_for_condition("fuse", "Ready", "True", "Complete")
        .map(|_| ())
}

/// The name of an agent's pod on a node.
fn agent_on(scene: &Scene, node: &str) -> Result<String> {
    let pods = scene.api.agent_pods("fuse")?;
    let mut names = pods.into_iter().filter_map(|pod| {
        let on = pod.spec?.node_name?;
        pod.metadata.name.filter(|_| on == node)
    });
    names
        .next()
        .with_context(|| format!("no agent of fuse on {node}"))
}

/// A status applied as agents do it.
fn apply_status(name: &str) -> Asked {
    let object = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginNode",
        "metadata": {"name": name}, "status": {"conditions": []},
    });
    let path = format!(
        "{}/{name}/status?fieldManager=story&force=true",
        path::NODE_OBJECTS
    );
    dry(Method::PATCH, &path, Some((APPLY, object)))
}

fn on_node_objects(own: &Value) -> Vec<Asked> {
    let all = path::NODE_OBJECTS;
    let (mine, other) = (format!("{all}/fuse.n1"), format!("{all}/fuse.n2"));
    let spec = json!({"spec": {"active": "0000000000"}});
    let mut made = json!({
        "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginNode",
        "metadata": {"name": "fuse.n9"},
    });
    made["spec"] = own["spec"].clone();
    vec![
        merge(
            &format!("{other}/status"),
            json!({"status": {"conditions": []}}),
        ),
        merge(
            &format!("{other}/status"),
            json!({"spec": {"nodeName": "n1"}, "status": {"conditions": []}}),
        ),
        apply_status("fuse.n2"),
        put(&format!("{mine}/status"), own.clone()),
        get(&format!("{mine}/status")),
        merge(&mine, spec.clone()),
        merge(&other, spec),
        merge(&mine, json!({"metadata": {"finalizers": ["story/stuck"]}})),
        put(&mine, own.clone()),
        post(all, made),
        delete(&mine),
        delete(&other),
        delete(all),
    ]
}

fn on_nodes_and_pods(pod: &str) -> Vec<Asked> {
    let node = format!("{}/n1", path::NODES);
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let label = crds::names::node_revision_label("fuse");
    let made = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stolen"},
        "spec": {"containers": [{"name": "a", "image": "a"}]},
    });
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod},
    });
    vec![
        get(&node),
        get(path::NODES),
        merge(
            &node,
            json!({"metadata": {"labels": {label.clone(): "0000000000"}}}),
        ),
        merge(&node, json!({"metadata": {"labels": {"story/any": "1"}}})),
        merge(&node, json!({"spec": {"unschedulable": true}})),
        merge(
            &format!("{node}/status"),
            json!({"metadata": {"labels": {label: "0000000000"}}}),
        ),
        delete(&node),
        get(&format!("{node}/proxy/metrics")),
        get("/api/v1/pods"),
        get(&pods),
        get(&format!("{pods}/{pod}")),
        get(&format!("{pods}/{pod}/log")),
        post(&pods, made),
        delete(&format!("{pods}/{pod}")),
        dry(
            Method::POST,
            &format!("{pods}/{pod}/exec?command=sh&stdout=true"),
            None,
        ),
        post(&format!("{pods}/{pod}/eviction"), eviction),
    ]
}

fn on_what_is_ours() -> Vec<Asked> {
    let core = format!("/api/v1/namespaces/{NAMESPACE}");
    let apps = format!("/apis/apps/v1/namespaces/{NAMESPACE}");
    let lease = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{}",
        crds::names::LEASE
    );
    let ledger = format!("{core}/configmaps/{}", crds::names::LEDGER);
    let config = format!("{}/fuse", path::CONFIGS);
    vec![
        get(path::CONFIGS),
        get(&config),
        merge(&config, json!({"spec": {"resources": []}})),
        merge(&format!("{config}/status"), json!({"status": {}})),
        delete(&config),
        get(path::POOLS),
        delete(path::POOLS),
        get(&format!("{core}/configmaps")),
        get(&ledger),
        merge(&ledger, json!({"data": {"ledger.json": "{}"}})),
        delete(&ledger),
        get(&format!("{core}/secrets")),
        get(&format!("{apps}/daemonsets")),
        merge(
            &format!("{apps}/daemonsets/any"),
            json!({"spec": {"template": {"spec": {"hostPID": true}}}}),
        ),
        delete(&format!("{apps}/daemonsets")),
        get(&format!("{apps}/controllerrevisions")),
        delete(&format!("{apps}/controllerrevisions")),
        get(&lease),
        merge(&lease, json!({"spec": {"holderIdentity": ""}})),
    ]
}

fn on_the_cluster() -> Vec<Asked> {
    let accounts = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []},
    });
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "a"},
    });
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "story"},
    });
    let rights = "/apis/rbac.authorization.k8s.io/v1";
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "stolen"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    });
    vec![
        get("/api/v1/secrets"),
        get("/api/v1/namespaces/kube-system/secrets"),
        get("/api/v1/namespaces"),
        post(&format!("{accounts}/{RELEASE}/token"), request.clone()),
        post(&format!("{accounts}/device-plugin-agent/token"), request),
        post("/apis/authentication.k8s.io/v1/tokenreviews", review),
        post("/apis/events.k8s.io/v1/namespaces/default/events", event),
        get(&format!("{rights}/clusterroles")),
        post(&format!("{rights}/clusterrolebindings"), binding),
        get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions"),
        delete(&format!("{BINDINGS}/{RELEASE}-agent-status")),
        delete(&format!("{BINDINGS}/{RELEASE}-node-labels")),
    ]
}

const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

pub fn hand_edited_label_is_refused_and_without_the_policy_repaired(scene: &Scene) -> Result<()> {
    let label = crds::names::node_revision_label("fuse");
    let proven = node_keys(scene, "n1")?
        .remove(&label)
        .context("n1 has a proven revision")?;
    let spoiled = format!("{label}=0000000000");
    for words in [
        [spoiled.as_str(), "--overwrite"],
        [&format!("{label}-"), "--overwrite"],
        [
            &format!("{}=0000000000", crds::names::node_stage_label("fuse")),
            "--overwrite",
        ],
    ] {
        let message = refused_label(scene, &words)?;
        for part in [
            "only system:serviceaccount:device-plugin-system:device-plugin-operator changes labels",
            "kubectl delete validatingadmissionpolicybinding device-plugin-operator-node-labels",
        ] {
            ensure!(message.contains(part), "no {part:?} in: {message}");
        }
    }
    // Other labels are nobody's business.
    label_node(scene, &["story/fence=yes"])?;
    label_node(scene, &["story/fence-"])?;

    // The break-glass of the message.
    let binding = format!("{BINDINGS}/{RELEASE}-node-labels");
    let kept: Value = scene.api.get(&binding)?;
    scene.api.delete(&binding)?;
    let told = spoil_and_wait_for_repair(scene, &label, &proven);
    // Back, whatever came of it: later stories count on it.
    let again = json!({
        "apiVersion": kept["apiVersion"], "kind": kept["kind"], "spec": kept["spec"],
        "metadata": {
            "name": kept["metadata"]["name"], "labels": kept["metadata"]["labels"],
            "annotations": kept["metadata"]["annotations"],
        },
    });
    scene.apply(&again.to_string())?;
    told?;
    wait_until("the policy in force again", PATIENCE, || {
        Ok(
            label_node(scene, &[&spoiled, "--overwrite", "--dry-run=server"])
                .is_err()
                .then_some(()),
        )
    })?;
    scene
        .wait_for_condition("fuse", "Ready", "True", "Complete")
        .map(|_| ())
}

fn spoil_and_wait_for_repair(scene: &Scene, label: &str, proven: &str) -> Result<()> {
    for word in [format!("{label}=0000000000"), format!("{label}-")] {
        // The API server learns of the deleted binding within a moment.
        wait_until("the label changed by hand", PATIENCE, || {
            label_node(scene, &[&word, "--overwrite"]).map(Some)
        })?;
        wait_until("the label as it was", PATIENCE, || {
            let seen = node_keys(scene, "n1")?.remove(label);
            ensure!(seen.as_deref() == Some(proven), "the label is {seen:?}");
            Ok(Some(()))
        })?;
        scene.wait_for_allocatable("n1", "example.com/fuse", 1)?;
    }
    Ok(())
}

fn label_node(scene: &Scene, words: &[&str]) -> Result<String> {
    scene
        .cluster
        .kubectl(&[&["label", "node", "n1"], words].concat())
}

fn refused_label(scene: &Scene, words: &[&str]) -> Result<String> {
    match label_node(scene, words) {
        Ok(said) => bail!("{words:?} was accepted: {said}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}
