//! The cluster that all stories share, and what they do on it as a user would.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use crds::{DevicePluginConfig, DevicePluginNode};
use e2e::cluster::node::Node;
use e2e::cluster::{Cluster, Options};
use e2e::images::SHELL_IMAGE;
use e2e::product;
use e2e::progress::Progress;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::api::{Api, path, wait_until};
use crate::stories::OTHER_IMAGE;

/// Longest wait for something that takes a few seconds on an idle machine: eight times that, for
/// two cores shared with other work.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The shared cluster.
pub struct Scene {
    pub cluster: Cluster,
    pub api: Api,
}

impl Scene {
    /// A fresh cluster of two nodes with our images on both; a cluster of this machine that is
    /// running already is replaced.
    pub fn build() -> Result<Self> {
        let progress = Progress::to_stderr();
        Cluster::down(&progress)?;
        let cluster = Cluster::up(&Options::default(), &progress)?;
        product::load_images(&cluster, &progress)?;
        let api = Api::connect(&cluster.kubeconfig_path())?;
        Ok(Self { cluster, api })
    }

    /// Installs the chart or changes the installed one.
    pub fn helm_upgrade(&self, settings: &[&str]) -> Result<()> {
        // Some stories give agents an image of their own.
        let own = format!("allowlist.images={{{OTHER_IMAGE} privileged}}");
        let settings: Vec<&str> = settings.iter().copied().chain([own.as_str()]).collect();
        product::install_chart(&self.cluster, &settings).map(|_| ())
    }

    pub fn node(&self, name: &str) -> Result<&Node> {
        self.cluster.node(name)
    }

    /// Applies manifests as a user does.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.cluster.apply(manifests).map(|_| ())
    }

    /// What a user is told when these manifests are refused.
    pub fn refusal(&self, manifests: &str) -> Result<String> {
        match self.cluster.apply(manifests) {
            Ok(said) => bail!("accepted: {said}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    pub fn config(&self, name: &str) -> Result<DevicePluginConfig> {
        self.api.get(&format!("{}/{name}", path::CONFIGS))
    }

    pub fn node_object(&self, config: &str, node: &str) -> Result<DevicePluginNode> {
        self.api.get(&format!(
            "{}/{}",
            path::NODE_OBJECTS,
            crds::names::node_object(config, node)
        ))
    }

    /// Deletes a config and waits until it is gone.
    pub fn delete_config(&self, name: &str) -> Result<()> {
        let config = format!("{}/{name}", path::CONFIGS);
        self.api.delete(&config)?;
        wait_until(&format!("the end of config {name:?}"), PATIENCE, || {
            Ok(self
                .api
                .find::<DevicePluginConfig>(&config)?
                .is_none()
                .then_some(()))
        })
    }

    /// Waits for a condition of a config with a status and a reason; returns its message.
    pub fn wait_for_condition(
        &self,
        config: &str,
        type_: &str,
        status: &str,
        reason: &str,
    ) -> Result<String> {
        let what = format!("{type_}={status}/{reason} of config {config:?}");
        wait_until(&what, PATIENCE, || {
            let seen = self.config(config)?;
            let conditions = seen
                .status
                .map(|status| status.conditions)
                .unwrap_or_default();
            let found = conditions.iter().find(|c| c.type_ == type_);
            match found {
                Some(c)
                    if c.status == status
                        && c.reason == reason
                        && c.observed_generation == seen.metadata.generation =>
                {
                    Ok(Some(c.message.clone()))
                }
                _ => bail!(
                    "conditions are {}",
                    conditions
                        .iter()
                        .map(|c| format!("{}={}/{} ({})", c.type_, c.status, c.reason, c.message))
                        .collect::<Vec<_>>()
                        .join("; ")
                ),
            }
        })
    }

    /// Waits until pods may use so many devices of a resource on a node.
    pub fn wait_for_allocatable(&self, node: &str, resource: &str, count: i64) -> Result<()> {
        wait_until(
            &format!("{count} allocatable {resource} on {node}"),
            PATIENCE,
            || {
                let seen = self.api.allocatable(node, resource)?;
                ensure!(seen == Some(count), "allocatable is {seen:?}");
                Ok(Some(()))
            },
        )
    }

    /// Starts a pod on a node that asks for one device and runs `script` in it.
    pub fn start_pod(&self, name: &str, node: &str, resource: &str, script: &str) -> Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": node},
                "terminationGracePeriodSeconds": 1,
                "restartPolicy": "Never",
                "containers": [{
                    "name": "main", "image": SHELL_IMAGE, "imagePullPolicy": "Never",
                    "command": ["sh", "-c", script],
                    "resources": {"limits": {resource: "1"}},
                }],
            },
        });
        self.apply(&pod.to_string())
    }

    pub fn wait_for_running_pod(&self, name: &str) -> Result<Pod> {
        wait_until(&format!("pod {name:?} running"), PATIENCE, || {
            let pod = self.api.pod(name)?;
            let status = pod.status.as_ref();
            let phase = status.and_then(|s| s.phase.as_deref());
            ensure!(
                phase == Some("Running"),
                "phase {phase:?}, reason {:?}",
                status.and_then(|s| s.reason.as_deref())
            );
            Ok(Some(pod))
        })
    }

    pub fn delete_pod(&self, name: &str) -> Result<()> {
        let pod = format!("{}/{name}", path::PODS);
        self.api.delete(&pod)?;
        wait_until(&format!("the end of pod {name:?}"), PATIENCE, || {
            Ok(self.api.find::<Pod>(&pod)?.is_none().then_some(()))
        })
    }
}

/// How often something is done, unless the environment says otherwise.
pub fn times(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Err(_) => Ok(default),
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable}={text:?} is not a number")),
    }
}

/// The ids of a pod's containers: they change when a container is started anew.
pub fn container_ids(pod: &Pod) -> Vec<String> {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .filter_map(|status| status.container_id.clone())
        .collect()
}
