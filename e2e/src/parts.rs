//! The programs that a cluster consists of: where they come from, where they are kept, how they are
//! built.
//!
//! A program is looked for in the directories of existing binaries first (`--assets`,
//! `KUBEBUILDER_ASSETS`), then in the cache; what is in neither is built from a pinned Go module.
//! This module knows nothing of running them.

pub mod cache;
pub mod catalogue;
pub mod refresh;

mod build;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::cache::Cache;
use self::catalogue::{Part, Program};
use crate::command::is_executable;
use crate::progress::Progress;

/// Where each program is.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Binaries {
    paths: BTreeMap<Program, PathBuf>,
}

impl Binaries {
    /// The file of `program`.
    pub fn path(&self, program: Program) -> Result<&Path> {
        self.paths
            .get(&program)
            .map(PathBuf::as_path)
            .with_context(|| format!("no binary for {:?} was prepared", program.file_name()))
    }
}

/// What is on the machine already and what has to be built.
#[derive(Clone, Debug)]
pub struct Survey {
    found: BTreeMap<Program, PathBuf>,
    missing: Vec<&'static Part>,
}

impl Survey {
    /// Looks for every program in the directories `assets`, then in `cache`.
    pub fn of(assets: &[PathBuf], cache: &Cache) -> Self {
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for part in &catalogue::PARTS {
            let built = cache.part_directory(part);
            let mut complete = true;
            for program in part.programs() {
                let file = assets
                    .iter()
                    .chain([&built])
                    .map(|directory| directory.join(program.file_name()))
                    .find(|file| is_executable(file));
                match file {
                    Some(file) => {
                        found.insert(program, file);
                    }
                    None => complete = false,
                }
            }
            if !complete {
                missing.push(part);
            }
        }
        Self { found, missing }
    }

    /// The parts that must be built.
    pub fn missing(&self) -> &[&'static Part] {
        &self.missing
    }

    /// Which of `directories` bring programs.
    pub fn used<'place>(&self, directories: &'place [PathBuf]) -> Vec<&'place PathBuf> {
        directories
            .iter()
            .filter(|place| {
                self.found
                    .values()
                    .any(|file| file.parent() == Some(place.as_path()))
            })
            .collect()
    }

    /// Builds what is missing and says where everything is.
    pub fn complete(self, cache: &Cache, progress: &Progress) -> Result<Binaries> {
        let mut paths = self.found;
        if !self.missing.is_empty() {
            let _lock = cache.lock(progress)?;
            build::parts(&with_device_managers(&self.missing), cache, progress)?;
        }
        for part in self.missing {
            let directory = cache.part_directory(part);
            for program in part.programs() {
                paths
                    .entry(program)
                    .or_insert_with(|| directory.join(program.file_name()));
            }
        }
        let absent: BTreeSet<_> = paths.values().filter(|path| !is_executable(path)).collect();
        if let Some(path) = absent.first() {
            bail!(
                "{:?} is not there although its part was built",
                path.display()
            );
        }
        Ok(Binaries { paths })
    }
}

/// `parts` and the device managers whose packages are compiled with them: linked now they cost
/// seconds, on their own minutes.
fn with_device_managers(parts: &[&'static Part]) -> Vec<&'static Part> {
    let shared = catalogue::DEVICE_MANAGERS
        .iter()
        .filter(|manager| parts.iter().any(|part| part.directory == manager.directory));
    parts.iter().copied().chain(shared).collect()
}

/// The device managers of all versions, built where they are missing: the version of each, and its
/// file.
pub fn device_managers(cache: &Cache, progress: &Progress) -> Result<Vec<(&'static str, PathBuf)>> {
    let file = |part: &Part| {
        let name = Program::DeviceManager.file_name();
        cache.part_directory(part).join(name)
    };
    let parts = &catalogue::DEVICE_MANAGERS;
    let missing: Vec<&Part> = parts.iter().filter(|part| !file(part).exists()).collect();
    if !missing.is_empty() {
        let _lock = cache.lock(progress)?;
        build::parts(&missing, cache, progress)?;
    }
    Ok(parts
        .iter()
        .map(|part| (part.version(), file(part)))
        .collect())
}

/// The directories of existing binaries: the one asked for, then the one that envtest users have
/// set.
pub fn asset_directories(asked: Option<&Path>) -> Vec<PathBuf> {
    let environment = std::env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty());
    asked
        .map(Path::to_path_buf)
        .into_iter()
        .chain(environment.map(PathBuf::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place(directory: &Path, program: Program) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        let file = directory.join(program.file_name());
        std::fs::write(&file, "")?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    #[test]
    fn existing_binaries_win_over_cached_ones_and_complete_a_part() -> Result<()> {
        let scratch = tempfile::tempdir()?;
        let assets = scratch.path().join("assets");
        let cache = Cache::at(scratch.path().join("cache"));
        place(&assets, Program::Etcd)?;
        place(&assets, Program::Ctr)?;
        for program in [Program::Containerd, Program::Shim, Program::Ctr] {
            place(&cache.part_directory(&catalogue::CONTAINERD), program)?;
        }
        let survey = Survey::of(std::slice::from_ref(&assets), &cache);
        let missing: Vec<_> = survey.missing().iter().map(|part| part.name).collect();
        assert_eq!(missing, ["kubernetes-1.37", "kubernetes-1.36", "helm"]);
        assert_eq!(survey.used(std::slice::from_ref(&assets)), [&assets]);
        assert_eq!(survey.found.get(&Program::Ctr), Some(&assets.join("ctr")));
        assert_ne!(
            survey
                .found
                .get(&Program::Shim)
                .and_then(|file| file.parent()),
            Some(assets.as_path())
        );
        Ok(())
    }

    #[test]
    fn device_managers_are_built_with_the_kubelet_of_their_version() {
        let names = |parts: &[&'static Part]| -> Vec<_> {
            let all = with_device_managers(parts);
            all.iter().map(|part| part.name).collect()
        };
        assert_eq!(
            names(&[&catalogue::PREVIOUS_KUBERNETES, &catalogue::HELM]),
            ["kubernetes-1.36", "helm", "device-manager-1.36"]
        );
        assert_eq!(names(&[&catalogue::ETCD]), ["etcd"]);
    }
}
