//! A blocking view of the API server for the stories.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::{Method, Request};
use k8s_openapi::List;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Runtime;

/// Pause between two looks at the API server.
const PAUSE: Duration = Duration::from_millis(200);

/// Paths of what the stories look at.
pub mod path {
    /// All configs.
    pub const CONFIGS: &str = "/apis/deviceplugins.dev/v1alpha1/devicepluginconfigs";
    /// All node objects of configs.
    pub const NODE_OBJECTS: &str = "/apis/deviceplugins.dev/v1alpha1/devicepluginnodes";
    /// All pools.
    pub const POOLS: &str = "/apis/deviceplugins.dev/v1alpha1/devicepluginpools";
    /// All nodes.
    pub const NODES: &str = "/api/v1/nodes";
    /// Pods of the stories.
    pub const PODS: &str = "/api/v1/namespaces/default/pods";
}

/// Talks to the API server as the cluster's administrator.
pub struct Api {
    runtime: Runtime,
    client: Client,
}

impl Api {
    pub fn connect(kubeconfig: &std::path::Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let client = runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
            let mut config =
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            // A refused request is an answer that a story wants to see, not a reason to wait.
            config.default_retry = false;
            config.read_timeout = Some(Duration::from_secs(20));
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Option<Value>> {
        let mut request = Request::builder().method(method).uri(path);
        let body = match body {
            Some((kind, bytes)) => {
                request = request.header(http::header::CONTENT_TYPE, kind);
                bytes
            }
            None => Vec::new(),
        };
        match self
            .runtime
            .block_on(self.client.request::<Value>(request.body(body)?))
        {
            Ok(value) => Ok(Some(value)),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to ask for {path:?}")),
        }
    }

    /// An object, or nothing.
    pub fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        self.call(Method::GET, path, None)?
            .map(|value| {
                serde_json::from_value(value).with_context(|| format!("failed to read {path:?}"))
            })
            .transpose()
    }

    /// An object that must be there.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.find(path)?
            .with_context(|| format!("{path:?} is not there"))
    }

    /// The items of a list; a kind that is not served has none.
    pub fn items(&self, path: &str) -> Result<Vec<Value>> {
        let list = self.find::<Value>(path)?.unwrap_or_default();
        Ok(list
            .get("items")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default())
    }

    pub fn delete(&self, path: &str) -> Result<()> {
        self.call(Method::DELETE, path, None).map(|_| ())
    }

    /// Changes an object by a JSON merge patch.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<()> {
        let body = ("application/merge-patch+json", serde_json::to_vec(patch)?);
        self.call(Method::PATCH, path, Some(body))?
            .with_context(|| format!("{path:?} is not there"))?;
        Ok(())
    }

    /// How many devices of a resource pods may use on a node now.
    pub fn allocatable(&self, node: &str, resource: &str) -> Result<Option<i64>> {
        let node: Node = self.get(&format!("{}/{node}", path::NODES))?;
        let quantity = node
            .status
            .and_then(|s| s.allocatable)
            .and_then(|mut a| a.remove(resource));
        quantity
            .map(|quantity| quantity.0.parse().context("a count of devices"))
            .transpose()
    }

    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.get(&format!("{}/{name}", path::PODS))
    }

    /// Agent pods of a config, in whatever namespace.
    pub fn agent_pods(&self, config: &str) -> Result<Vec<Pod>> {
        let path = format!("/api/v1/pods?labelSelector=deviceplugins.dev/config={config}");
        Ok(self.get::<List<Pod>>(&path)?.items)
    }
}

/// Looks until `look` yields something; an obstacle is told when the deadline has passed.
pub fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        let seen = look();
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        if begun.elapsed() > deadline {
            let waited = format!("{what} did not happen within {} s", deadline.as_secs());
            match seen {
                Err(error) => return Err(error.context(waited)),
                Ok(_) => bail!(waited),
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Looks for the whole time and demands that what `look` demands holds at every look.
pub fn holds_for(what: &str, time: Duration, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        look().with_context(|| format!("{what} held only for {:?}", begun.elapsed()))?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Tells a figure that the release notes want; it decides nothing.
pub fn measured(what: &str, took: Duration) {
    eprintln!("      measured: {what}: {:.2} s", took.as_secs_f64());
}
