//! Which values are rendered, and which must be refused.

/// Values that must render, and what comes of them.
pub struct Accepted {
    /// What differs from the defaults: `path=value`, or a flag of `helm template`.
    pub settings: &'static [&'static str],
    /// Text that is then there.
    pub contains: &'static [&'static str],
    /// Text that is then not there.
    pub lacks: &'static [&'static str],
}

/// Each value is set by one case at least.
pub const ACCEPTED: &[Accepted] = &[
    Accepted {
        settings: &[],
        contains: &[
            "localhost/device-plugin-operator:0.1.0",
            "localhost/device-plugin-agent:0.1.0",
            "helm.sh/resource-policy: keep",
            "name: release-device-plugin-operator\n",
            "aggregate-to-view",
            "system:serviceaccount:device-plugin-system:device-plugin-agent",
            "system:serviceaccount:device-plugin-system:release-device-plugin-operator",
            "type: Recreate",
        ],
        lacks: &[
            "kind: PodDisruptionBudget",
            "topologySpreadConstraints",
            "kind: NetworkPolicy",
            "kind: PodMonitor",
            "imagePullSecrets",
        ],
    },
    Accepted {
        settings: &["crds.enabled=false"],
        contains: &["kind: Deployment"],
        lacks: &["kind: CustomResourceDefinition"],
    },
    Accepted {
        settings: &["crds.keep=false", "uninstallCheck.enabled=false"],
        contains: &["kind: CustomResourceDefinition"],
        lacks: &["helm.sh/resource-policy", "helm.sh/hook", "kind: Job"],
    },
    Accepted {
        settings: &[
            "image.registry=registry.example.com:5000/team",
            "image.name=operator",
            "image.tag=v9",
            "image.pullPolicy=Always",
            "image.pullSecrets[0].name=for-operator",
            "agent.image.name=other/agent",
            "agent.image.tag=8.0.0-rc.1",
            "agent.image.pullSecrets[0].name=for-agents",
        ],
        contains: &[
            "image: \"registry.example.com:5000/team/operator:v9\"",
            "value: \"registry.example.com:5000/team/other/agent:8.0.0-rc.1\"",
            "imagePullPolicy: Always",
            "- name: for-operator",
            "- name: for-agents",
        ],
        lacks: &["localhost", "IfNotPresent"],
    },
    Accepted {
        settings: &[
            "image.digest=sha256:0123456789012345678901234567890123456789012345678901234567890123",
            "agent.image.registry=agents.example.com",
            "agent.image.digest=sha256:9876543210987654321098765432109876543210987654321098765432109876",
        ],
        contains: &[
            "localhost/device-plugin-operator@sha256:0123456789",
            "agents.example.com/device-plugin-agent@sha256:9876543210",
        ],
        lacks: &["device-plugin-operator:0.1.0", "device-plugin-agent:0.1.0"],
    },
    Accepted {
        settings: &[
            "devicePluginDir=/var/snap/plugins",
            "kubeletRootDir=/var/snap/kubelet",
            "logLevel=debug",
            "extraArgs[0]=--pins-per-second=2",
        ],
        contains: &[
            "value: \"/var/snap/plugins\"",
            "value: \"/var/snap/kubelet\"",
            "value: \"debug\"",
            "- --pins-per-second=2",
        ],
        lacks: &["/var/lib/kubelet"],
    },
    Accepted {
        settings: &[
            "resources.limits.memory=1Gi",
            "nodeSelector.pool=infra",
            "tolerations[0].key=infra",
            "tolerations[0].operator=Exists",
            "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=zone",
            "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
            "priorityClassName=",
            "podLabels.team=a-team",
            "podAnnotations.note=a-note",
            "serviceAccount.annotations.role=operators",
            "agent.serviceAccount.annotations.role=agents",
        ],
        contains: &[
            "memory: 1Gi",
            "pool: infra",
            "key: infra",
            "key: zone",
            "team: a-team",
            "note: a-note",
            "role: operators",
            "role: agents",
        ],
        lacks: &["priorityClassName"],
    },
    Accepted {
        settings: &["policies.enabled=false"],
        contains: &["kind: Deployment"],
        lacks: &["admissionregistration.k8s.io", "kind: ConfigMap"],
    },
    Accepted {
        settings: &["allowlist.create=false"],
        contains: &[
            "name: release-device-plugin-operator-allowlist\n    namespace: device-plugin-system\n    parameterNotFoundAction: Deny",
        ],
        lacks: &["hostPaths: \"\""],
    },
    Accepted {
        settings: &[
            "allowlist.images={registry.example.com/tools/*,registry.example.com:5000/driver privileged}",
            "allowlist.actions={PciReset,Open}",
            "allowlist.hostPaths={/run/cards/* read-only,/run/b}",
        ],
        contains: &[
            r#"images: "registry.example.com/tools/*\nregistry.example.com:5000/driver privileged""#,
            r#"actions: "PciReset\nOpen""#,
            r#"hostPaths: "/run/cards/* read-only\n/run/b""#,
        ],
        lacks: &[],
    },
    Accepted {
        settings: &["replicas=3", "nodeStatusPeriodSeconds=2"],
        contains: &[
            "replicas: 3",
            "type: RollingUpdate",
            "kind: PodDisruptionBudget",
            "topologySpreadConstraints",
            "name: NODE_STATUS_PERIOD_SECONDS\n          value: \"2\"",
        ],
        lacks: &["type: Recreate"],
    },
    Accepted {
        settings: &["metrics.service.enabled=false"],
        contains: &[],
        lacks: &["kind: Service\n"],
    },
    Accepted {
        settings: &[
            "metrics.service.port=9090",
            "metrics.service.annotations.scrape=yes-please",
            "metrics.podMonitor.enabled=true",
            "metrics.podMonitor.labels.prometheus=main",
            "networkPolicy.enabled=true",
            "networkPolicy.apiServerPorts={16443}",
            "--api-versions monitoring.coreos.com/v1",
        ],
        contains: &[
            "port: 9090",
            "scrape: yes-please",
            "prometheus: main",
            "kind: PodMonitor",
            "port: 16443",
        ],
        lacks: &["port: 6443"],
    },
    Accepted {
        settings: &["fullnameOverride=other", "rbac.aggregate=false"],
        contains: &["name: other\n", "name: other-edit\n"],
        lacks: &["name: release-", "aggregate-to"],
    },
    // As a chart that depends on this one may set them.
    Accepted {
        settings: &["global.anything=goes", "enabled=true"],
        contains: &["kind: Deployment"],
        lacks: &["goes"],
    },
    // The longest release name that helm allows.
    Accepted {
        settings: &["--name-template a2345678901234567890123456789012345678901234567890123"],
        contains: &["kind: Deployment"],
        lacks: &[],
    },
];

/// Values that must be refused, and a word of the refusal.
pub const REFUSED: &[(&str, &str)] = &[
    ("replicas=0", "replicas"),
    ("replicas=4", "replicas"),
    ("nodeStatusPeriodSeconds=0", "nodeStatusPeriodSeconds"),
    ("policies.enabled=maybe", "policies/enabled"),
    ("allowlist.images={a b}", "images"),
    ("allowlist.images={registry.example.com*}", "images"),
    ("allowlist.actions={Exec}", "actions"),
    ("allowlist.hostPaths={run}", "hostPaths"),
    ("allowlist.hostPaths={/run/*/a}", "hostPaths"),
    ("image.repository=a", "repository"),
    ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("image.registry=https://a b", "registry"),
    ("image.name=", "/image/name"),
    ("image.tag=a:b", "tag"),
    ("image.pullSecrets={a}", "pullSecrets"),
    ("agent.image.digest=latest", "digest"),
    ("agent.image.pullPolicy=Always", "pullPolicy"),
    ("agent.tolerations[0].operator=Exists", "tolerations"),
    ("devicePluginDir=relative/path", "devicePluginDir"),
    ("kubeletRootDir=/var/../etc", "kubeletRootDir"),
    ("kubeletRootDir=", "kubeletRootDir"),
    ("logLevel=loud", "logLevel"),
    ("extraArgs=--a", "extraArgs"),
    ("crds.enabled=maybe", "crds/enabled"),
    ("fullnameOverride=Not_A_Name", "fullnameOverride"),
    (
        "podLabels.app\\.kubernetes\\.io/name=mine",
        "app.kubernetes.io/name",
    ),
    ("metrics.service.port=0", "port"),
    (
        "metrics.podMonitor.enabled=true",
        "monitoring.coreos.com/v1",
    ),
    ("networkPolicy.apiServerPorts=", "apiServerPorts"),
    ("--kube-version 1.32.9", "1.33"),
];

/// The path of a setting, without the indices of lists.
pub fn path(setting: &str) -> String {
    let path = setting.split_once('=').map_or(setting, |(path, _)| path);
    path.split('.')
        .map(|name| name.split_once('[').map_or(name, |(name, _)| name))
        .collect::<Vec<_>>()
        .join(".")
}
