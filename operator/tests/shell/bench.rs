//! A running operator and its API server.

use std::sync::Arc;
use std::time::Duration;

use crate::server::Server;
use daemon::{Readiness, Stop};
use operator::client::configure;
use operator::driver::{self, Planner};
use operator::flags::RunFlags;
use operator::lease::decision::Timing;
use operator::metrics::Metrics;
use operator_core::plan::plan;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::task::JoinHandle;

/// Both.
pub struct Bench {
    pub server: Server,
    pub client: kube::Client,
    pub readiness: Readiness,
    stop: Stop,
}

/// One operator of several.
pub struct Operator {
    pub stop: Stop,
    pub readiness: Readiness,
    pub metrics: Registry,
    pub ended: JoinHandle<anyhow::Result<()>>,
}

impl Operator {
    /// The value of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        let mut text = String::new();
        encode(&mut text, &self.metrics).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().parse().unwrap_or(f64::NAN)
    }

    pub fn leads(&self) -> bool {
        self.metric("device_plugin_operator_leader") > 0.0
    }

    /// Why it has ended by itself.
    pub async fn end(&mut self) -> String {
        let ended = tokio::time::timeout(Duration::from_secs(30), &mut self.ended);
        match ended.await.expect("the operator goes on").unwrap() {
            Ok(()) => String::new(),
            Err(error) => format!("{error:#}"),
        }
    }
}

/// A tenth of what production has.
pub const TIMING: Timing = Timing {
    lease: Duration::from_millis(1_500),
    deadline: Duration::from_millis(1_000),
    retry: Duration::from_millis(200),
};

pub fn flags(pod: &str, rate: u32) -> RunFlags {
    RunFlags {
        namespace: "dps".to_owned(),
        pod_name: pod.to_owned(),
        agent_image: "registry.example.com/agent:1".to_owned(),
        agent_service_account: "device-plugin-agent".to_owned(),
        device_plugin_dir: "/var/lib/kubelet/device-plugins".to_owned(),
        kubelet_root_dir: "/var/lib/kubelet".to_owned(),
        node_status_period_seconds: 10,
        http_address: "127.0.0.1:0".parse().unwrap(),
        node_writes_per_second: rate,
        pins_per_second: rate,
    }
}

impl Bench {
    /// An operator on an empty cluster, whose watches have not started.
    pub async fn prepared() -> Self {
        let (server, address) = Server::start().await;
        let mut config = kube::Config::new(format!("http://{address}").parse().unwrap());
        configure(&mut config);
        Self {
            server,
            client: config.try_into().unwrap(),
            readiness: Readiness::new("starts"),
            stop: Stop::default(),
        }
    }

    pub fn run(&self) {
        self.run_with(1_000);
    }

    /// Runs the operator with a rate of node writes.
    pub fn run_with(&self, rate: u32) {
        let (stop, readiness) = (self.stop.clone(), self.readiness.clone());
        let flags = flags("operator", rate);
        drop(self.operator(flags, TIMING, Arc::new(plan), (stop, readiness)));
    }

    /// Runs one more operator, in a pod of this name.
    pub fn another(&self, pod: &str) -> Operator {
        self.another_with(pod, TIMING, Arc::new(plan))
    }

    /// Runs one more operator that decides so.
    pub fn another_with(&self, pod: &str, timing: Timing, plan: Planner) -> Operator {
        let parts = (Stop::default(), Readiness::new("starts"));
        self.operator(flags(pod, 1_000), timing, plan, parts)
    }

    fn operator(
        &self,
        flags: RunFlags,
        timing: Timing,
        plan: Planner,
        (stop, readiness): (Stop, Readiness),
    ) -> Operator {
        let mut registry = Registry::default();
        let operator = driver::Operator {
            client: self.client.clone(),
            flags,
            timing,
            plan,
            metrics: Metrics::registered(&mut registry),
            readiness: readiness.clone(),
        };
        let given = stop.clone();
        let ended = tokio::spawn(async move { operator.run(&given).await });
        Operator {
            stop,
            readiness,
            metrics: registry,
            ended,
        }
    }

    pub async fn started() -> Self {
        let bench = Self::prepared().await;
        bench.run();
        bench
    }

    pub fn add_node(&self, name: &str) {
        self.server.create(
            "nodes",
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": name, "labels": { "kubernetes.io/os": "linux" } },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            }),
        );
    }

    pub fn add_config(&self, name: &str) {
        self.server.create(
            "devicepluginconfigs",
            json!({
                "apiVersion": "deviceplugins.dev/v1alpha1", "kind": "DevicePluginConfig",
                "metadata": { "name": name },
                "spec": {
                    "nodeSelector": { "matchLabels": { "kubernetes.io/os": "linux" } },
                    "resources": [{ "name": format!("example.com/{name}"), "discovery": { "simulated": { "count": 1 } } }],
                },
            }),
        );
    }

    /// What the DaemonSet controller, the kubelet and the agent do on one node.
    pub async fn serve(&self, config: &str, node: &str) {
        let object = format!("{config}.{node}");
        let label = format!("deviceplugins.node-restriction.kubernetes.io~1{config}");
        let mut revision = String::new();
        self.server
            .until("the label", |cluster| {
                let node = cluster.get("nodes", node);
                let value = node
                    .and_then(|one| one.pointer(&format!("/metadata/labels/{label}"))?.as_str());
                revision = value.unwrap_or_default().to_owned();
                !revision.is_empty()
            })
            .await;
        let pod = format!("{config}-{revision}-{node}");
        self.server.create(
            "pods",
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": pod, "namespace": "dps",
                    "labels": { "deviceplugins.dev/config": config, "deviceplugins.dev/revision": revision },
                    "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d", "controller": true }],
                },
                "spec": { "nodeName": node, "containers": [] },
                "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
            }),
        );
        let uid = self
            .server
            .change(|cluster| cluster.get("pods", &pod).unwrap()["metadata"]["uid"].clone());
        self.server.patch(
            "devicepluginnodes",
            &object,
            &json!({ "status": { "active": {
                "revision": revision, "podUID": uid, "agentVersion": "1", "bootID": "b",
                "summary": { "registered": "1/1", "healthy": 1, "allocated": 0 },
                "resources": [{ "name": format!("example.com/{config}"), "registered": true, "registrations": 1, "total": 1, "healthy": 1, "allocated": 0 }],
            }}}),
        );
    }
}

/// Waits until something outside of the cluster is so.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let wait = async {
        while !is_so() {
            look.tick().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
    assert!(waited.is_ok(), "{what} did not come about");
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.request();
    }
}
