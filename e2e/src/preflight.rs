//! What a machine must offer before anything on it is changed, and the Debian packages that are
//! then installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{find_program, run, system};
use crate::progress::Progress;

const NOT_ROOT: &str = "not root: namespaces, mounts and network links are needed; run with sudo";

/// One gibibyte.
const GIB: u64 = 1 << 30;

/// Go's build cache reaches 9 GB beside 3 GB of modules and 0.7 GB of programs; with half of it the
/// build ends in the middle.
const DISK_TO_BUILD: u64 = 15 * GIB;

/// Images, layers, etcd and logs of a test run; with half of it the kubelet starts to evict pods.
const DISK_TO_RUN: u64 = 3 * GIB;

/// The linker needs 3 GiB for kube-apiserver while another program compiles; with half of it the
/// kernel kills it.
const MEMORY_TO_BUILD: u64 = 4 * GIB;

/// The control plane needs 0.6 GiB and each node 0.15 at rest; the rest is for pods and the tests
/// themselves.
const MEMORY_TO_RUN: u64 = 3 * GIB / 2;

/// A program or file, and the Debian package that brings it.
const PACKAGES: [(&str, &str); 8] = [
    ("runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("catatonit", "catatonit"),
    ("busybox", "busybox-static"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
];

/// What the machine is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Names of the parts that must be built.
    pub to_build: Vec<String>,
    /// Where they are built.
    pub cache: PathBuf,
    /// Where the cluster's state will be.
    pub state: PathBuf,
}

/// What the machine offers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Machine {
    linux: bool,
    root: bool,
    go: Option<String>,
    cache_space: u64,
    state_space: u64,
    memory: u64,
    apt: bool,
    missing_packages: Vec<&'static str>,
}

/// Refuses a machine that lacks something, one line for each thing, before anything was changed.
pub fn check(needs: &Needs) -> Result<()> {
    let complaints = complaints(&Machine::look(needs)?, needs);
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    Ok(())
}

/// Refuses everybody but root.
pub fn check_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(NOT_ROOT);
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Installs the Debian packages that are missing, and says so.
pub fn install_packages(progress: &Progress) -> Result<()> {
    let packages = missing_packages();
    if packages.is_empty() {
        return Ok(());
    }
    progress.note(format_args!(
        "installing Debian packages: {}",
        packages.join(" ")
    ));
    let apt = |arguments: &[&str]| {
        let mut command = system("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "-o", "DPkg::Lock::Timeout=120"])
            .args(arguments);
        command
    };
    run(&mut apt(&["update"])).context("failed to refresh Debian's package lists")?;
    run(apt(&["install", "--yes", "--no-install-recommends"]).args(&packages))
        .context("failed to install Debian packages")?;
    let still = missing_packages();
    if !still.is_empty() {
        bail!(
            "packages were installed and yet bring nothing: {}",
            still.join(" ")
        );
    }
    Ok(())
}

/// Bytes that an unprivileged process may still write to the file system that holds, or will hold,
/// `path`.
fn space(path: &Path) -> Result<u64> {
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let status = rustix::fs::statvfs(existing).with_context(|| {
        format!(
            "failed to look at the file system of {:?}",
            existing.display()
        )
    })?;
    Ok(status.f_bavail * status.f_frsize)
}

fn missing_packages() -> Vec<&'static str> {
    PACKAGES
        .into_iter()
        .filter(|(file, _)| match file.strip_prefix('/') {
            Some(_) => !Path::new(file).exists(),
            None => find_program(file).is_none(),
        })
        .map(|(_, package)| package)
        .collect()
}

impl Machine {
    fn look(needs: &Needs) -> Result<Self> {
        let meminfo =
            std::fs::read_to_string("/proc/meminfo").context("failed to read \"/proc/meminfo\"")?;
        let go = find_program("go")
            .map(|go| run(Command::new(go).arg("version").env("GOTOOLCHAIN", "local")))
            .transpose()?;
        Ok(Self {
            linux: cfg!(target_os = "linux"),
            root: is_root(),
            go,
            cache_space: space(&needs.cache)?,
            state_space: space(&needs.state)?,
            memory: available_memory(&meminfo),
            apt: find_program("apt-get").is_some(),
            missing_packages: missing_packages(),
        })
    }
}

fn available_memory(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| {
            rest.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kibibytes| kibibytes * 1024)
}

fn complaints(machine: &Machine, needs: &Needs) -> Vec<String> {
    let mut lines = Vec::new();
    let building = !needs.to_build.is_empty();
    if !machine.linux {
        lines.push("this machine does not run Linux: namespaces and cgroups are needed".to_owned());
    }
    if !machine.root {
        lines.push(NOT_ROOT.to_owned());
    }
    if building {
        lines.extend(go_complaint(machine.go.as_deref(), &needs.to_build));
        lines.extend(space_complaint(
            "disk",
            &needs.cache,
            machine.cache_space,
            DISK_TO_BUILD,
        ));
    }
    lines.extend(space_complaint(
        "disk",
        &needs.state,
        machine.state_space,
        DISK_TO_RUN,
    ));
    let memory = if building {
        MEMORY_TO_BUILD
    } else {
        MEMORY_TO_RUN
    };
    if machine.memory < memory {
        lines.push(format!(
            "too little memory: {} available, {} needed",
            in_gib(machine.memory),
            in_gib(memory)
        ));
    }
    if !machine.missing_packages.is_empty() && !machine.apt {
        lines.push(format!(
            "no apt-get to install what is missing with; install these yourself (Debian's names): {}",
            machine.missing_packages.join(" ")
        ));
    }
    lines
}

fn go_complaint(version: Option<&str>, to_build: &[String]) -> Option<String> {
    let wanted = format!("needed to build {}", to_build.join(", "));
    let Some(version) = version else {
        return Some(format!(
            "Go is not installed ({wanted}); see https://go.dev/dl"
        ));
    };
    let word = version.split_whitespace().nth(2).unwrap_or(version);
    let mut numbers = word
        .trim_start_matches("go")
        .split('.')
        .map(|number| number.parse::<u32>().unwrap_or(0));
    // Since 1.21 Go fetches the version that it is asked for.
    let old = (numbers.next(), numbers.next()) < (Some(1), Some(21));
    old.then(|| format!("{word} is too old ({wanted}): 1.21 or later is needed"))
}

fn space_complaint(what: &str, place: &Path, has: u64, needed: u64) -> Option<String> {
    (has < needed).then(|| {
        format!(
            "too little {what} space for {:?}: {} free, {} needed",
            place.display(),
            in_gib(has),
            in_gib(needed)
        )
    })
}

fn in_gib(bytes: u64) -> String {
    let tenths = bytes / (GIB / 10);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Machine {
        Machine {
            linux: true,
            root: true,
            go: Some("go version go1.26.8 linux/amd64\n".to_owned()),
            cache_space: 20 * GIB,
            state_space: 20 * GIB,
            memory: 8 * GIB,
            apt: true,
            missing_packages: vec!["runc"],
        }
    }

    fn needs(to_build: &[&str]) -> Needs {
        Needs {
            to_build: to_build.iter().map(|part| (*part).to_owned()).collect(),
            cache: "/cache".into(),
            state: "/state".into(),
        }
    }

    fn check(change: impl FnOnce(&mut Machine), to_build: &[&str], expected: &[&str]) {
        let mut machine = good();
        change(&mut machine);
        assert_eq!(complaints(&machine, &needs(to_build)), expected);
    }

    #[test]
    fn a_good_machine_gets_no_complaint() {
        check(|_| {}, &["etcd"], &[]);
        check(|_| {}, &[], &[]);
    }

    #[test]
    fn each_lack_is_one_line() {
        check(
            |machine| {
                machine.root = false;
                machine.go = None;
                machine.cache_space = 4 * GIB + GIB / 2;
                machine.memory = GIB;
            },
            &["etcd", "helm"],
            &[
                "not root: namespaces, mounts and network links are needed; run with sudo",
                "Go is not installed (needed to build etcd, helm); see https://go.dev/dl",
                "too little disk space for \"/cache\": 4.5 GiB free, 15.0 GiB needed",
                "too little memory: 1.0 GiB available, 4.0 GiB needed",
            ],
        );
    }

    #[test]
    fn a_warm_start_needs_no_go_and_little_disk() {
        check(
            |machine| {
                machine.go = None;
                machine.cache_space = GIB;
                machine.memory = 2 * GIB;
            },
            &[],
            &[],
        );
    }

    #[test]
    fn an_old_go_is_refused() {
        check(
            |machine| machine.go = Some("go version go1.19.8 linux/amd64".to_owned()),
            &["etcd"],
            &["go1.19.8 is too old (needed to build etcd): 1.21 or later is needed"],
        );
    }

    #[test]
    fn missing_packages_without_apt_are_named() {
        check(
            |machine| machine.apt = false,
            &[],
            &[
                "no apt-get to install what is missing with; install these yourself (Debian's names): runc",
            ],
        );
    }

    #[test]
    fn available_memory_is_read_in_bytes() {
        assert_eq!(
            available_memory("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"),
            2 << 20
        );
        assert_eq!(available_memory(""), 0);
    }
}
