//! The chart, rendered by the helm that users have and checked against the schemas of Kubernetes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::tools::python_programs;
use crate::workspace::{cargo, output, root, run};

/// Values that must render: what differs from the defaults.
const ACCEPTED: &[&[&str]] = &[
    &[],
    &["crds.enabled=false"],
    &["crds.keep=false", "uninstall.refuseWithConfigs=false"],
    &[
        "rbac.create=false",
        "operator.serviceAccount.create=false",
        "agent.serviceAccount.create=false",
    ],
    &[
        "image.registry=registry.example.com/team",
        "image.pullSecrets={one,two}",
        "operator.image.tag=9",
        "agent.image.digest=sha256:0123456789012345678901234567890123456789012345678901234567890123",
    ],
    &[
        "metrics.service.enabled=true",
        "metrics.service.port=9090",
        "operator.extraArgs={--log-level=debug}",
    ],
    &[
        "operator.nodeSelector.pool=infra",
        "operator.tolerations[0].operator=Exists",
        "operator.podLabels.team=a",
        "operator.podAnnotations.note=b",
        "operator.priorityClassName=",
    ],
    &[
        "fullnameOverride=other",
        "devicePluginDir=/var/snap/plugins",
        "kubeletRootDir=/var/snap/kubelet",
        "rbac.aggregate=false",
    ],
    &["global.anything=goes", "enabled=true"],
];

/// Values that must be refused, and a word of the refusal.
const REFUSED: &[(&str, &str)] = &[
    ("replicas=2", "replicas"),
    ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("operator.pinsPerSecond=0", "pinsPerSecond"),
    ("agent.image.digest=latest", "digest"),
    ("devicePluginDir=relative/path", "devicePluginDir"),
    (
        "metrics.podMonitor.enabled=true",
        "monitoring.coreos.com/v1",
    ),
];

/// Lints the chart, renders the accepted values, checks what comes out, and sees the others refused.
pub fn check() -> anyhow::Result<()> {
    let helm = helm()?;
    let chart = root().join("charts/device-plugin-operator");
    output(Command::new(&helm).arg("lint").arg("--strict").arg(&chart))?;
    let rendered = std::env::temp_dir().join(format!(
        "device-plugin-operator-chart-{}",
        std::process::id()
    ));
    std::fs::create_dir_all(&rendered).with_context(|| format!("failed to create {rendered:?}"))?;
    let checked = render_all(&helm, &chart, &rendered);
    std::fs::remove_dir_all(&rendered).with_context(|| format!("failed to remove {rendered:?}"))?;
    checked?;
    for (setting, word) in REFUSED {
        match render(&helm, &chart, &[setting]) {
            Ok(_) => bail!("the chart accepts {setting:?}"),
            Err(error) => {
                let message = format!("{error:#}");
                ensure!(
                    message.contains(word),
                    "the refusal of {setting:?} does not name {word:?}: {message}"
                );
            }
        }
    }
    Ok(())
}

fn render_all(helm: &Path, chart: &Path, directory: &Path) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for (index, settings) in ACCEPTED.iter().enumerate() {
        let text = render(helm, chart, settings)?;
        for forbidden in ["privileged: true", "\"*\"", "- '*'", "secrets]"] {
            ensure!(
                !text.contains(forbidden),
                "{settings:?} renders {forbidden:?}"
            );
        }
        // Definitions are checked by the API server itself in the cluster tests; the checker has
        // no schema for them.
        let documents = text
            .split("\n---\n")
            .filter(|one| !one.contains("kind: CustomResourceDefinition"));
        let file = directory.join(format!("{index}.yaml"));
        std::fs::write(&file, documents.collect::<Vec<_>>().join("\n---\n"))?;
        files.push(file);
    }
    run(Command::new(python_programs()?.join("kubernetes-validate"))
        .arg("--strict")
        .arg("--quiet")
        .args(&files))
}

fn render(helm: &Path, chart: &Path, settings: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(helm);
    command
        .args(["template", "device-plugin-operator"])
        .arg(chart);
    command.args([
        "--namespace",
        "device-plugin-system",
        "--kube-version",
        "1.37.1",
    ]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    output(&mut command)
}

/// The helm of the local cluster, built from its Go module where the cache lacks it.
fn helm() -> anyhow::Result<PathBuf> {
    let printed = output(cargo().args([
        "run",
        "--quiet",
        "--package",
        "e2e",
        "--bin",
        "local-cluster",
        "--",
        "program",
        "helm",
    ]))?;
    Ok(PathBuf::from(printed.trim()))
}
