//! Which parts there are, what each builds, and with which flags.

/// Go that builds the parts. Pinned, so that a cache key needs no Go: another Go fetches this one
/// through the module proxy.
pub const GO_TOOLCHAIN: &str = "go1.26.8";

/// A program of the cluster.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Program {
    /// Holds the cluster's state.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// The newest kubelet.
    Kubelet,
    /// The kubelet of the minor version before: the last with the old registration model.
    PreviousKubelet,
    /// kubectl.
    Kubectl,
    /// Helm.
    Helm,
    /// containerd.
    Containerd,
    /// What stays with each pod when containerd restarts.
    Shim,
    /// containerd's own command line, to import images.
    Ctr,
    /// The kubelet's device manager alone; each version of it is a part.
    DeviceManager,
}

impl Program {
    /// The name of its file in the cache and in directories of existing binaries.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::PreviousKubelet => "kubelet-1.36",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
            Self::Containerd => "containerd",
            Self::Shim => "containerd-shim-runc-v2",
            Self::Ctr => "ctr",
            Self::DeviceManager => "device-manager",
        }
    }
}

/// Programs that one Go module builds.
#[derive(Debug)]
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// The directory of its module files below `e2e/parts`.
    pub directory: &'static str,
    /// The Go module whose version is the part's version.
    pub module: &'static str,
    /// Text of its go.mod.
    pub go_mod: &'static str,
    /// Text of its go.sum.
    pub go_sum: &'static str,
    /// Go files of ours that make its program, by name; without any, its programs are the tools that
    /// its go.mod names.
    pub sources: &'static [(&'static str, &'static str)],
    /// Go build tags.
    pub tags: &'static str,
    /// How long a build takes on two idle cores with an empty cache, for those who wait.
    pub minutes: u8,
    /// How the programs are told their version.
    stamp: Stamp,
    /// The file that Go names after a package's path, and the program it is.
    programs: &'static [(&'static str, Program)],
}

/// Where a program keeps its version.
#[derive(Debug)]
enum Stamp {
    /// Nowhere that needs stamping.
    None,
    /// One variable holds `vX.Y.Z`.
    Variable(&'static str),
    /// Kubernetes: without it, version skew checks and Helm see `v0.0.0-master`.
    Kubernetes,
}

/// The control plane, kubectl and the newest kubelet.
pub const KUBERNETES: Part = Part {
    name: "kubernetes-1.37",
    directory: "kubernetes-1.37",
    module: "k8s.io/kubernetes",
    go_mod: include_str!("../../parts/kubernetes-1.37/go.mod"),
    go_sum: include_str!("../../parts/kubernetes-1.37/go.sum"),
    sources: &[],
    tags: "",
    minutes: 6,
    stamp: Stamp::Kubernetes,
    programs: &[
        ("kube-apiserver", Program::ApiServer),
        ("kube-controller-manager", Program::ControllerManager),
        ("kube-scheduler", Program::Scheduler),
        ("kubectl", Program::Kubectl),
        ("kubelet", Program::Kubelet),
    ],
};

/// The kubelet with the old registration model.
pub const PREVIOUS_KUBERNETES: Part = Part {
    name: "kubernetes-1.36",
    directory: "kubernetes-1.36",
    module: "k8s.io/kubernetes",
    go_mod: include_str!("../../parts/kubernetes-1.36/go.mod"),
    go_sum: include_str!("../../parts/kubernetes-1.36/go.sum"),
    sources: &[],
    tags: "",
    minutes: 3,
    stamp: Stamp::Kubernetes,
    programs: &[("kubelet", Program::PreviousKubelet)],
};

/// etcd; Go names the program after the last path element before the major version.
pub const ETCD: Part = Part {
    name: "etcd",
    directory: "etcd",
    module: "go.etcd.io/etcd/server/v3",
    go_mod: include_str!("../../parts/etcd/go.mod"),
    go_sum: include_str!("../../parts/etcd/go.sum"),
    sources: &[],
    tags: "",
    minutes: 1,
    stamp: Stamp::None,
    programs: &[("server", Program::Etcd)],
};

/// Helm.
pub const HELM: Part = Part {
    name: "helm",
    directory: "helm",
    module: "helm.sh/helm/v4",
    go_mod: include_str!("../../parts/helm/go.mod"),
    go_sum: include_str!("../../parts/helm/go.sum"),
    sources: &[],
    tags: "",
    minutes: 2,
    stamp: Stamp::Variable("helm.sh/helm/v4/internal/version.version"),
    programs: &[("helm", Program::Helm)],
};

/// containerd without the snapshotters that need C libraries.
pub const CONTAINERD: Part = Part {
    name: "containerd",
    directory: "containerd",
    module: "github.com/containerd/containerd/v2",
    go_mod: include_str!("../../parts/containerd/go.mod"),
    go_sum: include_str!("../../parts/containerd/go.sum"),
    sources: &[],
    tags: "no_btrfs no_devmapper no_zfs",
    minutes: 1,
    stamp: Stamp::Variable("github.com/containerd/containerd/v2/version.Version"),
    programs: &[
        ("containerd", Program::Containerd),
        ("containerd-shim-runc-v2", Program::Shim),
        ("ctr", Program::Ctr),
    ],
};

/// Every part, in the order of building: the short ones last but etcd, so that a broken set-up
/// shows early.
pub const PARTS: [Part; 5] = [ETCD, CONTAINERD, KUBERNETES, PREVIOUS_KUBERNETES, HELM];

/// Our program around the kubelet's device manager.
const DEVICE_MANAGER: &[(&str, &str)] = &[
    ("main.go", include_str!("../../oracle/main.go")),
    ("node.go", include_str!("../../oracle/node.go")),
    ("pod.go", include_str!("../../oracle/pod.go")),
    (
        "signatures_1_34.go",
        include_str!("../../oracle/signatures_1_34.go"),
    ),
    (
        "signatures_1_36.go",
        include_str!("../../oracle/signatures_1_36.go"),
    ),
    (
        "signatures_1_37.go",
        include_str!("../../oracle/signatures_1_37.go"),
    ),
];

/// A version of the device manager; its module files are those of the kubelet.
const fn device_manager(
    name: &'static str,
    tags: &'static str,
    directory: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
) -> Part {
    Part {
        name,
        directory,
        module: "k8s.io/kubernetes",
        go_mod,
        go_sum,
        sources: DEVICE_MANAGER,
        tags,
        minutes: 3,
        stamp: Stamp::Kubernetes,
        // Go names the program after its module.
        programs: &[("kubernetes", Program::DeviceManager)],
    }
}

/// The device managers that the oracle checks meet: no part of a cluster. The first comes from
/// before the kubelet's loggers, the others are those of the cluster's kubelets.
pub const DEVICE_MANAGERS: [Part; 3] = [
    device_manager(
        "device-manager-1.34",
        "kubelet_1_34",
        "kubernetes-1.34",
        include_str!("../../parts/kubernetes-1.34/go.mod"),
        include_str!("../../parts/kubernetes-1.34/go.sum"),
    ),
    device_manager(
        "device-manager-1.36",
        "kubelet_1_36",
        PREVIOUS_KUBERNETES.directory,
        PREVIOUS_KUBERNETES.go_mod,
        PREVIOUS_KUBERNETES.go_sum,
    ),
    device_manager(
        "device-manager-1.37",
        "kubelet_1_37",
        KUBERNETES.directory,
        KUBERNETES.go_mod,
        KUBERNETES.go_sum,
    ),
];

impl Part {
    /// The programs that it builds.
    pub fn programs(&self) -> impl Iterator<Item = Program> + use<> {
        self.programs.iter().map(|(_, program)| *program)
    }

    /// What Go calls each program's file, and what it is called here.
    pub fn built_files(&self) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
        self.programs
            .iter()
            .map(|(file, program)| (*file, program.file_name()))
    }

    /// The version of its module, `v1.37.1`.
    pub fn version(&self) -> &'static str {
        required_version(self.go_mod, self.module).unwrap_or("v0.0.0")
    }

    /// The arguments of `go build`, without the output directory.
    pub fn build_flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = ["-trimpath", "-buildvcs=false", "-mod=readonly"]
            .map(str::to_owned)
            .into();
        if !self.tags.is_empty() {
            flags.push("-tags".to_owned());
            flags.push(self.tags.to_owned());
        }
        flags.push("-ldflags".to_owned());
        flags.push(self.linker_flags());
        flags
    }

    fn linker_flags(&self) -> String {
        let version = self.version();
        let mut flags = "-s -w".to_owned();
        let mut set = |variable: &str, value: &str| {
            flags.push_str(&format!(" -X {variable}={value}"));
        };
        match self.stamp {
            Stamp::None => {}
            Stamp::Variable(variable) => set(variable, version),
            Stamp::Kubernetes => {
                let mut numbers = version.trim_start_matches('v').split('.');
                let major = numbers.next().unwrap_or("0");
                let minor = numbers.next().unwrap_or("0");
                for package in [
                    "k8s.io/component-base/version",
                    "k8s.io/client-go/pkg/version",
                ] {
                    set(&format!("{package}.gitVersion"), version);
                    set(&format!("{package}.gitMajor"), major);
                    set(&format!("{package}.gitMinor"), minor);
                    set(&format!("{package}.gitTreeState"), "clean");
                    // A real date would give every build another key.
                    set(&format!("{package}.buildDate"), "1970-01-01T00:00:00Z");
                }
            }
        }
        flags
    }
}

/// The version that `go_mod` requires of `module`.
pub fn required_version<'text>(go_mod: &'text str, module: &str) -> Option<&'text str> {
    go_mod.lines().find_map(|line| {
        let mut words = line
            .split_whitespace()
            .skip_while(|word| *word == "require");
        (words.next() == Some(module))
            .then(|| words.next())
            .flatten()
            .filter(|version| version.starts_with('v'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_module_files() {
        let versions: Vec<_> = PARTS
            .iter()
            .map(|part| (part.name, part.version()))
            .collect();
        assert_eq!(
            versions,
            [
                ("etcd", "v3.6.16"),
                ("containerd", "v2.4.2"),
                ("kubernetes-1.37", "v1.37.1"),
                ("kubernetes-1.36", "v1.36.3"),
                ("helm", "v4.3.1"),
            ]
        );
    }

    #[test]
    fn a_replace_line_is_not_taken_for_a_requirement() {
        let go_mod =
            "replace (\n\tk8s.io/api => k8s.io/api v0.37.1\n)\nrequire k8s.io/api v0.0.0\n";
        assert_eq!(required_version(go_mod, "k8s.io/api"), Some("v0.0.0"));
        assert_eq!(required_version(go_mod, "k8s.io/apiserver"), None);
    }

    #[test]
    fn a_longer_name_is_another_module() {
        let go_mod = "require (\n\tk8s.io/apiserver v0.1.0\n\tk8s.io/api v0.2.0 // indirect\n)\n";
        assert_eq!(required_version(go_mod, "k8s.io/api"), Some("v0.2.0"));
    }

    #[test]
    fn kubernetes_is_told_its_version_twice() {
        let flags = KUBERNETES.linker_flags();
        for expected in [
            "-X k8s.io/component-base/version.gitVersion=v1.37.1",
            "-X k8s.io/client-go/pkg/version.gitMinor=37",
        ] {
            assert!(flags.contains(expected), "{flags}");
        }
    }

    #[test]
    fn device_managers_have_their_versions_and_tags() {
        for part in &DEVICE_MANAGERS {
            let minor = part.version().split('.').nth(1).unwrap_or_default();
            assert_eq!(part.name, format!("device-manager-1.{minor}"));
            let constraint = format!("//go:build {}", part.tags);
            let signatures = part.sources.iter().filter(|(_, text)| {
                text.lines()
                    .next()
                    .is_some_and(|line| line.contains(&constraint))
            });
            assert_eq!(signatures.count(), 1, "{}", part.name);
        }
    }

    #[test]
    fn every_program_has_a_tool_line() {
        for part in &PARTS {
            for (file, _) in part.built_files() {
                let named = part.go_mod.lines().any(|line| {
                    let path = line.trim().trim_start_matches("tool ");
                    !path.contains(' ') && path.split('/').any(|element| element == file)
                });
                assert!(named, "{}: no tool line for {file}", part.name);
            }
        }
    }
}
