//! One node: its namespaces, containerd and kubelet, and what tests do to it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::layout::{HEALTHZ_PORT, Layout, Place, TEST_DEVICES};
use super::process::Process;
use super::{cgroup, control_plane, namespace, network, node_config, wait};
use crate::command::{Output, output, run};
use crate::parts::Binaries;
use crate::parts::catalogue::Program;

/// containerd and the kubelet need a second each on idle cores.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What a kubelet gets to end by itself; it has nothing to save.
const KUBELET_GRACE: Duration = Duration::from_secs(5);

/// A node of the cluster.
#[derive(Clone, Debug)]
pub struct Node {
    layout: Layout,
    binaries: Binaries,
    place: Place,
    all: Vec<Place>,
}

impl Node {
    pub(super) fn new(layout: Layout, binaries: Binaries, place: Place, all: Vec<Place>) -> Self {
        Self {
            layout,
            binaries,
            place,
            all,
        }
    }

    /// Its name in the cluster.
    pub fn name(&self) -> String {
        self.place.name()
    }

    /// Its address, reachable from this machine.
    pub fn address(&self) -> std::net::Ipv4Addr {
        self.place.address()
    }

    /// Its directory on the host. `var-lib` and `run` below it are `/var/lib` and `/run` on the
    /// node.
    pub fn directory(&self) -> PathBuf {
        self.layout.node(self.place)
    }

    /// Switches it on: namespaces, containerd with the cluster's images, kubelet. The kubelet
    /// registers the node by itself. A node that is on stays as it is.
    pub fn start(&self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        self.stop()?;
        self.start_runtime()?;
        self.start_kubelet()
    }

    /// Everything below the kubelet; needs no API server.
    pub(super) fn start_runtime(&self) -> Result<()> {
        let name = self.name();
        let own = self.directory();
        cgroup::create(&self.place.cgroup())?;
        self.write_files()?;
        let holder = namespace::create(&self.layout, self.place)?;
        network::connect(self.place, holder.pid())?;
        run(namespace::enter(&holder, "sh").arg(own.join("setup.sh")))
            .with_context(|| format!("failed to set up node {name:?}"))?;
        self.start_containerd()?;
        for image in sorted_files(&self.layout.images())? {
            self.import_image(&image)?;
        }
        Ok(())
    }

    /// Starts containerd and waits until it answers. It must not run.
    fn start_containerd(&self) -> Result<()> {
        let own = self.directory();
        let mut containerd = namespace::enter(&self.holder()?, own.join("bin/containerd"));
        containerd
            .arg("--config")
            .arg(own.join("containerd.toml"))
            // The shim is looked for on the search path.
            .env(
                "PATH",
                format!(
                    "{}:/usr/sbin:/usr/bin:/sbin:/bin",
                    own.join("bin").display()
                ),
            );
        let process = Process::start(&self.layout, &self.process("containerd"), &containerd)?;
        wait::until(
            &format!("containerd on {}", self.name()),
            START_DEADLINE,
            &[&process],
            || run(self.ctr()?.arg("version")).map(|_| Some(())),
        )
    }

    /// Kills containerd and starts it again; containers go on.
    pub fn crash_containerd(&self) -> Result<()> {
        if let Some(process) = Process::find(&self.layout, &self.process("containerd"))? {
            process.stop(Duration::ZERO)?;
        }
        self.start_containerd()
    }

    /// Kills the kubelet and starts it again; containers go on.
    pub fn crash_kubelet(&self) -> Result<()> {
        if let Some(process) = Process::find(&self.layout, &self.process("kubelet"))? {
            process.stop(Duration::ZERO)?;
        }
        self.start_kubelet()
    }

    /// Pulls the plug: kubelet, containerd and all containers end at once, `/run` and `/dev` are
    /// empty afterwards.
    pub fn stop(&self) -> Result<()> {
        self.stop_processes()?;
        // What a machine forgets when it is switched off.
        let run_directory = self.directory().join("run");
        remove_if_there(&run_directory)
    }

    pub(super) fn stop_processes(&self) -> Result<()> {
        for name in [
            self.process("kubelet"),
            self.process("containerd"),
            namespace::holder_name(self.place),
        ] {
            if let Some(process) = Process::find(&self.layout, &name)? {
                process.stop(Duration::ZERO)?;
            }
        }
        // Containers first: while a shim lives, it only reports their end.
        cgroup::remove(&self.place.cgroup())?;
        namespace::end_processes(&self.layout, self.place)?;
        cgroup::remove(&self.place.cgroup())?;
        network::disconnect(self.place)
    }

    /// Starts the kubelet, unless it runs, and waits until it says that it is healthy.
    pub fn start_kubelet(&self) -> Result<()> {
        let containerd = Process::expect(&self.layout, &self.process("containerd"))?;
        // A second kubelet would wipe the first one's sockets and pods.
        let running = Process::find(&self.layout, &self.process("kubelet"))?
            .filter(|process| process.is_running());
        let process = match running {
            Some(process) => process,
            None => self.spawn_kubelet()?,
        };
        wait::until(
            &format!("health of the kubelet on {}", self.name()),
            START_DEADLINE,
            &[&process, &containerd],
            || Ok(self.kubelet_ready().then_some(())),
        )
    }

    fn spawn_kubelet(&self) -> Result<Process> {
        let mut kubelet = namespace::enter(&self.holder()?, self.directory().join("bin/kubelet"));
        kubelet.args(node_config::kubelet_arguments(&self.layout, self.place));
        Process::start(&self.layout, &self.process("kubelet"), &kubelet)
    }

    /// Ends the kubelet; containers go on.
    pub fn stop_kubelet(&self) -> Result<()> {
        match Process::find(&self.layout, &self.process("kubelet"))? {
            Some(process) => process.stop(KUBELET_GRACE),
            None => Ok(()),
        }
    }

    /// Ends the kubelet and starts it again.
    pub fn restart_kubelet(&self) -> Result<()> {
        self.stop_kubelet()?;
        self.start_kubelet()
    }

    /// Whether the kubelet says at this moment that it is healthy.
    pub fn kubelet_ready(&self) -> bool {
        health(SocketAddr::from((self.address(), HEALTHZ_PORT))).unwrap_or(false)
    }

    /// Whether the node's processes all run.
    pub fn is_running(&self) -> bool {
        [
            namespace::holder_name(self.place),
            self.process("containerd"),
            self.process("kubelet"),
        ]
        .iter()
        .all(|name| {
            Process::find(&self.layout, name)
                .ok()
                .flatten()
                .is_some_and(|process| process.is_running())
        })
    }

    /// Runs a program on the node, in its mount, network and UTS namespaces.
    pub fn run_in_namespace<Word: AsRef<std::ffi::OsStr>>(&self, words: &[Word]) -> Result<Output> {
        let (program, arguments) = words.split_first().context("no program was named")?;
        output(
            namespace::enter(&self.holder()?, program)
                .args(arguments)
                .stdin(Stdio::null()),
        )
    }

    /// Makes the character device `/dev/dpo-test/<name>` on the node and returns its path.
    pub fn make_device(&self, name: &str, major: u32, minor: u32) -> Result<PathBuf> {
        let path = test_device(name)?;
        let shown = path.display().to_string();
        let [major, minor] = [major, minor].map(|number| number.to_string());
        self.demand(&["mknod", "-m", "666", &shown, "c", &major, &minor])?;
        Ok(path)
    }

    /// Removes the device `/dev/dpo-test/<name>` from the node.
    pub fn remove_device(&self, name: &str) -> Result<()> {
        let path = test_device(name)?.display().to_string();
        self.demand(&["rm", &path])
    }

    /// Loads an archive of images into the node's containerd.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        // By standard input: the archive may be where the node cannot see it.
        let file = File::open(archive)
            .with_context(|| format!("failed to open {:?}", archive.display()))?;
        let said = output(
            self.ctr()?
                .args(["image", "import", "--local", "-"])
                .stdin(Stdio::from(file)),
        )?;
        ensure!(
            said.success,
            "failed to import {:?} on {:?}: {}",
            archive.display(),
            self.name(),
            said.stderr.trim()
        );
        Ok(())
    }

    fn ctr(&self) -> Result<Command> {
        let mut command = namespace::enter(&self.holder()?, self.directory().join("bin/ctr"));
        command.arg("--namespace=k8s.io");
        Ok(command)
    }

    fn demand(&self, words: &[&str]) -> Result<()> {
        let said = self.run_in_namespace(words)?;
        ensure!(
            said.success,
            "`{}` on {:?}: {}",
            words.join(" "),
            self.name(),
            said.stderr.trim()
        );
        Ok(())
    }

    fn holder(&self) -> Result<Process> {
        let holder = Process::expect(&self.layout, &namespace::holder_name(self.place))?;
        // Its pid names the namespaces; after its end it might name the host's.
        holder.check()?;
        Ok(holder)
    }

    fn process(&self, program: &str) -> String {
        format!("{}-{program}", self.name())
    }

    fn write_files(&self) -> Result<()> {
        let own = self.directory();
        let (layout, place) = (&self.layout, self.place);
        fs::create_dir_all(own.join("cni"))
            .with_context(|| format!("failed to create {:?}", own.display()))?;
        let programs = [
            (self.binaries.path(place.kubelet())?, "kubelet"),
            (self.binaries.path(Program::Containerd)?, "containerd"),
            (
                self.binaries.path(Program::Shim)?,
                "containerd-shim-runc-v2",
            ),
            (self.binaries.path(Program::Ctr)?, "ctr"),
        ];
        let files = [
            ("kubelet.yaml", node_config::kubelet(layout, place)),
            ("containerd.toml", node_config::containerd(layout, place)),
            ("cni/10-pods.conflist", node_config::network(place)),
            // Another one at every start, as after a reboot.
            ("boot_id", fresh_uuid()?),
            (
                "setup.sh",
                node_config::setup_script(layout, place, &self.all, &programs),
            ),
        ];
        for (name, text) in files {
            let path = own.join(name);
            fs::write(&path, text)
                .with_context(|| format!("failed to write {:?}", path.display()))?;
        }
        let machine_id = own.join("machine-id");
        if !machine_id.exists() {
            fs::write(&machine_id, fresh_uuid()?.replace('-', ""))
                .with_context(|| format!("failed to write {:?}", machine_id.display()))?;
        }
        control_plane::write_kubeconfig(layout, &self.name())
    }
}

fn test_device(name: &str) -> Result<PathBuf> {
    ensure!(
        !name.is_empty() && !name.starts_with('.') && !name.contains('/'),
        "{name:?} is not the name of a device"
    );
    Ok(Path::new(TEST_DEVICES).join(name))
}

fn fresh_uuid() -> Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    fs::read_to_string(path).with_context(|| format!("failed to read {path:?}"))
}

fn sorted_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(directory)
        .with_context(|| format!("failed to list {:?}", directory.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

fn remove_if_there(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {:?}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The answer to `GET /healthz`, which is short and comes in one piece.
fn health(address: SocketAddr) -> Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_stays_in_its_directory() {
        assert_eq!(
            test_device("null0").ok(),
            Some(PathBuf::from("/dev/dpo-test/null0"))
        );
        for name in ["", "..", "../null", "a/b", ".hidden"] {
            assert!(test_device(name).is_err(), "{name:?}");
        }
    }
}
