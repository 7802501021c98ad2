//! Runs what is done to a device: what opens or writes is asked of the runner, an attribute in sysfs
//! is read here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crds::health::{HealthCheck, HealthCheckType};
use crds::hooks::{HOOK_TIMEOUT, Hook, HookType, Hooks, RESET_TIMEOUT, RESET_TIMEOUT_MAX};
use crds::names::short_hash;
use node_agent_core::discovery::{Kind, Target, forbidden};
use node_agent_core::health::{Ended, attribute_probe};
use node_agent_core::inventory::Device;
use node_agent_core::work::Work;

use crate::error_chain::chained;
use crate::host_dev::HostDev;
use crate::runner::{Action, ActionRequest, Runner, RunnerError};

/// Longest attribute that is read: the kernel's are of one page.
const ATTRIBUTE_MAX: u64 = 4096;

/// Most reads of attributes that hang. Each keeps a thread; drivers that hang so often need a person.
const HANGING_MAX: usize = 16;

/// What a reset of the longest time leaves for killing it and for the answer to the kubelet.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Runs what the config wants done to the devices of one resource.
#[derive(Clone, Debug)]
pub struct Actions {
    /// The resource.
    pub resource: String,
    /// How devices are probed.
    pub check: HealthCheck,
    /// What else is done to them.
    pub hooks: Hooks,
    /// Where what opens or writes is run.
    pub runner: Runner,
    /// The host's `/dev`.
    pub host_dev: HostDev,
    /// The host's `/sys`.
    pub sysfs_dir: PathBuf,
    /// How long a second of the config is. Only tests change it.
    pub second: Duration,
    /// Devices of which an attribute is being read.
    pub reading: Reading,
}

/// Devices of which an attribute is being read, some perhaps for ever.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    devices: Arc<Mutex<BTreeSet<String>>>,
}

/// One read, over when it is dropped.
struct OneRead {
    devices: Reading,
    id: String,
}

/// What tells one `init` from another: the hook, and the image that its program is from.
pub fn init_hash(hooks: &Hooks) -> Option<String> {
    let hook = hooks.init.as_ref()?;
    let image = (hook.type_ == HookType::Exec).then_some(&hooks.tools_image);
    let content = serde_json::json!([hook, image]);
    Some(short_hash(&content.to_string()))
}

impl Actions {
    /// How long one work may take.
    pub fn limit(&self, work: Work) -> Duration {
        let hook = |hook: &Option<Hook>, default: i32| {
            let given = hook.as_ref().and_then(|hook| hook.timeout_seconds);
            given.unwrap_or(default)
        };
        let seconds = |number: i32| self.second * u32::try_from(number).unwrap_or(1).max(1);
        match work {
            Work::Probe => seconds(self.check.timeout_seconds),
            Work::Init => seconds(hook(&self.hooks.init, HOOK_TIMEOUT)),
            Work::Release => seconds(hook(&self.hooks.release, HOOK_TIMEOUT)),
            Work::Reset => {
                let longest = seconds(RESET_TIMEOUT_MAX).saturating_sub(LAST_WORD);
                seconds(hook(&self.hooks.reset, RESET_TIMEOUT)).min(longest)
            }
        }
    }

    /// Does it. Whoever drops the future stops it.
    pub async fn run(self, work: Work, id: String, device: Device) -> Ended {
        let limit = self.limit(work);
        let hook = match work {
            Work::Probe if self.check.type_ == HealthCheckType::SysfsEquals => {
                return self.read(id, &device, limit).await;
            }
            Work::Probe => None,
            Work::Init => self.hooks.init.as_ref(),
            Work::Reset => self.hooks.reset.as_ref(),
            Work::Release => self.hooks.release.as_ref(),
        };
        let actions = match hook {
            Some(hook) => self.hook(hook, &device),
            None => self.probe(&device),
        };
        match actions {
            Ok(actions) => {
                let env = self.environment(&id, &device);
                self.ask(actions, env, limit).await
            }
            Err(error) => Ended::Failed(error),
        }
    }

    /// One after the other, all within the limit.
    async fn ask(
        &self,
        actions: Vec<Action>,
        env: BTreeMap<String, String>,
        limit: Duration,
    ) -> Ended {
        let start = tokio::time::Instant::now();
        for action in actions {
            let request = ActionRequest {
                action,
                env: env.clone(),
                timeout: limit.saturating_sub(start.elapsed()),
            };
            match self.runner.run(&request).await {
                Ok(outcome) if outcome.success => {}
                Ok(outcome) if !outcome.begun => return Ended::NotRun(outcome.message),
                Ok(outcome) => return Ended::Failed(outcome.message),
                Err(error @ RunnerError::Silent(_)) => return Ended::Failed(error.to_string()),
                Err(error) => return Ended::NotRun(chained(&error)),
            }
        }
        Ended::Passed
    }

    fn probe(&self, device: &Device) -> Result<Vec<Action>, String> {
        match self.check.type_ {
            HealthCheckType::Exists | HealthCheckType::SysfsEquals => Ok(Vec::new()),
            HealthCheckType::Exec => Ok(vec![Action::Exec {
                command: self.check.command.clone(),
            }]),
            HealthCheckType::Open => {
                let nodes = self.nodes(device)?;
                let open = nodes.into_iter().map(|path| Action::Open { path });
                Ok(open.collect())
            }
        }
    }

    fn hook(&self, hook: &Hook, device: &Device) -> Result<Vec<Action>, String> {
        let address = || {
            let address = device.hardware.pci_address.clone();
            address.ok_or_else(|| "it is no PCI function".to_owned())
        };
        let missing = |member: &str| format!("the hook has no {member}");
        let action = match hook.type_ {
            HookType::Exec => Action::Exec {
                command: hook.command.clone(),
            },
            HookType::PciReset => Action::PciReset {
                address: address()?,
            },
            HookType::UsbReset => Action::UsbReset {
                path: self.nodes(device)?.swap_remove(0),
            },
            HookType::SysfsWrite => {
                let file = hook.path.as_ref().ok_or_else(|| missing("path"))?;
                let directory = self.directory(device)?;
                Action::SysfsWrite {
                    path: format!("{directory}/{file}"),
                    value: hook.value.clone().ok_or_else(|| missing("value"))?,
                }
            }
            HookType::DriverBind => Action::DriverBind {
                address: address()?,
                driver: hook.driver.clone().ok_or_else(|| missing("driver"))?,
            },
        };
        Ok(vec![action])
    }

    fn environment(&self, id: &str, device: &Device) -> BTreeMap<String, String> {
        let pci_address = device.hardware.pci_address.clone().unwrap_or_default();
        let pairs = [
            ("DEVICE_ID", id.to_owned()),
            ("DEVICE_PATHS", device.paths.join(",")),
            ("PCI_ADDRESS", pci_address),
            ("RESOURCE", self.resource.clone()),
        ];
        let owned = pairs.map(|(name, value)| (name.to_owned(), value));
        owned.into_iter().collect()
    }

    /// The device nodes that its paths lead to now, at least one. What must not be given out must not
    /// be opened either.
    fn nodes(&self, device: &Device) -> Result<Vec<String>, String> {
        let nodes = device.paths.iter().map(|path| {
            let target = self.host_dev.target(path);
            match target {
                Some(Target::Device {
                    path,
                    kind: Kind::Character,
                    major,
                    minor,
                }) if forbidden(major, minor).is_none() => Ok(path),
                _ => Err(format!("{path:?} leads to no device that may be given out")),
            }
        });
        let nodes: Vec<String> = nodes.collect::<Result<_, _>>()?;
        if nodes.is_empty() {
            return Err("it has no device node".to_owned());
        }
        Ok(nodes)
    }

    /// Its directory in the host's sysfs.
    fn directory(&self, device: &Device) -> Result<String, String> {
        let directory = device.hardware.sysfs.clone();
        let directory = directory.or_else(|| self.directory_by_number(device));
        directory.ok_or_else(|| "its directory in sysfs is not known".to_owned())
    }

    /// The directory of what was found by its path.
    fn directory_by_number(&self, device: &Device) -> Option<String> {
        let Some(Target::Device { major, minor, .. }) = self.host_dev.target(device.paths.first()?)
        else {
            return None;
        };
        let root = fs::canonicalize(&self.sysfs_dir).ok()?;
        let link = root.join(format!("dev/char/{major}:{minor}"));
        let directory = fs::canonicalize(link).ok()?;
        let below = directory.strip_prefix(root).ok()?;
        Some(format!("/sys/{}", below.to_str()?))
    }

    async fn read(&self, id: String, device: &Device, limit: Duration) -> Ended {
        let attribute = self.check.attribute.clone().unwrap_or_default();
        let directory = match self.directory(device) {
            Ok(directory) => directory,
            Err(error) => return Ended::Failed(error),
        };
        let read = match self.reading.begin(id) {
            Ok(read) => read,
            Err(ended) => return ended,
        };
        let (root, relative) = (self.sysfs_dir.clone(), attribute.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let text = read_attribute(&root, &directory, &relative);
            drop(read);
            text
        });
        let text = match tokio::time::timeout(limit, reading).await {
            Ok(Ok(text)) => text.map_err(|error| error.to_string()),
            Ok(Err(panicked)) => Err(panicked.to_string()),
            Err(_) => Err(format!("it did not answer within {limit:?}")),
        };
        let text = text.as_deref().map_err(String::as_str);
        attribute_probe(&attribute, &self.check.values, text)
    }
}

impl Reading {
    fn begin(&self, id: String) -> Result<OneRead, Ended> {
        let mut devices = self.lock();
        if devices.contains(&id) {
            let hangs = "an earlier read of its attribute has not ended yet";
            return Err(Ended::Failed(hangs.to_owned()));
        }
        if devices.len() >= HANGING_MAX {
            let many = format!("{HANGING_MAX} reads of attributes hang");
            return Err(Ended::NotRun(many));
        }
        devices.insert(id.clone());
        Ok(OneRead {
            devices: self.clone(),
            id,
        })
    }

    /// The set is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OneRead {
    fn drop(&mut self) {
        self.devices.lock().remove(&self.id);
    }
}

/// Reads an attribute, relative to a directory of the host's sysfs such as `/sys/devices/x`. Links
/// are followed, but not out of sysfs.
fn read_attribute(root: &Path, directory: &str, attribute: &str) -> io::Result<String> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
    let below = directory
        .strip_prefix("/sys/")
        .ok_or_else(|| refused("its directory is not below /sys"))?;
    let is_plain = |path: &Path| {
        path.components()
            .all(|c| !matches!(c, Component::ParentDir))
    };
    if !is_plain(Path::new(below)) || Path::new(attribute).is_absolute() {
        return Err(refused("the path leads out of sysfs"));
    }
    let root = fs::canonicalize(root)?;
    let path = fs::canonicalize(root.join(below).join(attribute))?;
    if !path.starts_with(&root) {
        return Err(refused("the path leads out of sysfs"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(ATTRIBUTE_MAX)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn attributes_are_read_within_sysfs_only() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("sys");
        fs::create_dir_all(root.join("devices/card/tty/ttyA")).unwrap();
        fs::write(root.join("devices/card/state"), "live\n").unwrap();
        fs::write(root.join("devices/card/binary"), [0xff, b'x']).unwrap();
        fs::write(root.join("devices/card/long"), vec![b'x'; 10_000]).unwrap();
        fs::write(home.path().join("secret"), "x").unwrap();
        symlink("../..", root.join("devices/card/tty/device")).unwrap();
        symlink("../../../secret", root.join("devices/card/out")).unwrap();
        let read = |directory: &str, attribute: &str| {
            read_attribute(&root, directory, attribute).map_err(|error| error.to_string())
        };
        let card = "/sys/devices/card";
        assert_eq!(read(card, "state"), Ok("live\n".to_owned()));
        assert_eq!(
            read("/sys/devices/card/tty/ttyA", "../../state"),
            Ok("live\n".to_owned())
        );
        assert_eq!(read(card, "binary"), Ok("\u{fffd}x".to_owned()));
        assert_eq!(read(card, "long").map(|text| text.len()), Ok(4096));
        for (directory, attribute, told) in [
            (card, "out", "out of sysfs"),
            (card, "../../../secret", "out of sysfs"),
            (card, "/etc/passwd", "out of sysfs"),
            ("/sys/../etc", "passwd", "out of sysfs"),
            ("/etc", "passwd", "not below /sys"),
            (card, "absent", "No such file"),
            (card, "tty", "directory"),
        ] {
            let error = read(directory, attribute).unwrap_err();
            assert!(error.contains(told), "{attribute:?}: {error}");
        }
    }

    #[test]
    fn a_read_that_hangs_is_not_begun_again() {
        let reading = Reading::default();
        let first = reading.begin("a".to_owned());
        assert!(matches!(
            reading.begin("a".to_owned()),
            Err(Ended::Failed(_))
        ));
        assert!(reading.begin("b".to_owned()).is_ok());
        drop(first);
        let many: Vec<_> = (0..HANGING_MAX)
            .map(|n| reading.begin(n.to_string()))
            .collect();
        assert!(many.iter().all(Result::is_ok));
        assert!(matches!(
            reading.begin("z".to_owned()),
            Err(Ended::NotRun(_))
        ));
    }
}
