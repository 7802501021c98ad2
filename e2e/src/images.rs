//! Our two images, and the two that a local cluster needs besides.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{find_program, run};
use crate::oci::{self, Entry, Image};
use crate::parts::cache::Cache;
use crate::progress::Progress;

/// Tag of our images where nothing else is asked for.
pub const DEFAULT_TAG: &str = env!("CARGO_PKG_VERSION");

/// Image with a shell and the usual small programs, for test workloads.
pub const SHELL_IMAGE: &str = "localhost/busybox:1";

/// What our images are built from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of the workspace.
    pub workspace: PathBuf,
    /// Where the archives go.
    pub output: PathBuf,
    /// Tag of the images.
    pub tag: String,
    /// Cargo profile: `e2e` builds quickly, `release` is what users get.
    pub profile: String,
}

/// One of our programs and its image.
#[derive(Clone, Copy, Debug)]
struct Product {
    package: &'static str,
    binary: &'static str,
    user: &'static str,
    title: &'static str,
}

const PRODUCTS: [Product; 2] = [
    Product {
        package: "operator",
        binary: "device-plugin-operator",
        user: "65532:65532",
        title: "Rolls device plugin configurations out over a cluster",
    },
    // Root, but without capabilities: the kubelet's socket is root's.
    Product {
        package: "node-agent",
        binary: "device-plugin-agent",
        user: "0:0",
        title: "Serves a node's devices to its kubelet",
    },
];

/// An image's archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The image's full name.
    pub reference: String,
    /// Where the archive is.
    pub path: PathBuf,
}

/// Builds our two images.
pub fn build(options: &Options, cache: &Cache, progress: &Progress) -> Result<Vec<Archive>> {
    let steps = progress.steps(PRODUCTS.len());
    let mut archives = Vec::new();
    for product in PRODUCTS {
        steps.step(format_args!(
            "building image {}:{} (profile {})",
            product.binary, options.tag, options.profile
        ));
        let binary = compile(product, options, cache)?;
        let archive = Archive {
            reference: format!("localhost/{}:{}", product.binary, options.tag),
            path: options.output.join(format!("{}.tar", product.binary)),
        };
        oci::write(
            &product.image(&archive.reference, &binary, &options.tag),
            &archive.path,
        )?;
        progress.note(format_args!(
            "{} ({:.1} MB)",
            archive.path.display(),
            archive.path.metadata()?.len() as f64 / 1e6
        ));
        archives.push(archive);
    }
    Ok(archives)
}

/// A static program: the image holds no C library.
/// Packages of the workspace that are in our images.
const WORKSPACE_PACKAGES: [&str; 7] = [
    "crds",
    "daemon",
    "node-agent",
    "node-agent-core",
    "operator",
    "operator-core",
    "proto",
];

/// Throws away what another checkout has built from the workspace: cargo cannot tell two checkouts
/// apart in one target directory, and an image would hold the other one's code. What is built from
/// the registry stays.
fn disown(target_directory: &Path, target: &str, options: &Options) -> Result<()> {
    let workspace = fs::canonicalize(&options.workspace)
        .with_context(|| format!("failed to find {:?}", options.workspace.display()))?;
    // Each profile has artefacts, and so an owner, of its own.
    let owner = target_directory.join(format!("checkout-{}", options.profile));
    let wanted = workspace.display().to_string();
    if fs::read_to_string(&owner).is_ok_and(|present| present == wanted) {
        return Ok(());
    }
    if target_directory.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut clean = Command::new(cargo);
        clean
            .current_dir(&workspace)
            .args(["clean", "--quiet", "--profile", &options.profile])
            .args(["--target", target, "--target-dir"])
            .arg(target_directory);
        for package in WORKSPACE_PACKAGES {
            clean.args(["--package", package]);
        }
        run(&mut clean)?;
    }
    fs::create_dir_all(target_directory)
        .with_context(|| format!("failed to create {:?}", target_directory.display()))?;
    fs::write(&owner, wanted).with_context(|| format!("failed to write {:?}", owner.display()))
}

/// The agent as it was compiled last for an image of a profile: a program for this machine too.
pub fn agent_program(cache: &Cache, profile: &str) -> PathBuf {
    program(cache, profile, "device-plugin-agent")
}

fn program(cache: &Cache, profile: &str, binary: &str) -> PathBuf {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let profile_directory = match profile {
        "dev" => "debug",
        other => other,
    };
    let directory = cache.root().join("image-build").join(target);
    directory.join(profile_directory).join(binary)
}

fn compile(product: Product, options: &Options, cache: &Cache) -> Result<PathBuf> {
    // Apart from the developer's own: the flags differ, and each would throw the other's work away.
    let target_directory = cache.root().join("image-build");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    disown(&target_directory, &target, options)?;
    // One package at a time: together, cargo would unite the features of both, and of the tests.
    run(Command::new(cargo)
        .current_dir(&options.workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["build", "--quiet", "--locked"])
        .args(["--profile", &options.profile])
        .args(["--target", &target])
        .args(["--package", product.package])
        .args(["--bin", product.binary])
        .arg("--target-dir")
        .arg(&target_directory))
    .with_context(|| format!("failed to build {:?}", product.binary))?;
    Ok(program(cache, &options.profile, product.binary))
}

impl Product {
    fn image(self, reference: &str, binary: &Path, tag: &str) -> Image {
        Image {
            reference: reference.to_owned(),
            files: vec![Entry::File {
                path: self.binary.to_owned(),
                source: binary.to_path_buf(),
                mode: 0o755,
            }],
            entrypoint: vec![format!("/{}", self.binary)],
            user: self.user.to_owned(),
            environment: Vec::new(),
            labels: BTreeMap::from([
                (
                    "org.opencontainers.image.title".to_owned(),
                    self.binary.to_owned(),
                ),
                (
                    "org.opencontainers.image.description".to_owned(),
                    self.title.to_owned(),
                ),
                (
                    "org.opencontainers.image.version".to_owned(),
                    tag.to_owned(),
                ),
                (
                    "org.opencontainers.image.licenses".to_owned(),
                    "Apache-2.0".to_owned(),
                ),
            ]),
        }
    }
}

/// Writes the images that every node of a local cluster gets: one holds pods open, one has a shell.
pub fn write_cluster_images(pause_reference: &str, directory: &Path) -> Result<()> {
    let plain = |reference: &str, files, entrypoint: &[&str]| Image {
        reference: reference.to_owned(),
        files,
        entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
        user: "0:0".to_owned(),
        environment: vec!["PATH=/bin".to_owned()],
        labels: BTreeMap::new(),
    };
    let installed = |program: &str| {
        find_program(program).with_context(|| format!("{program:?} is not installed"))
    };
    let pause = plain(
        pause_reference,
        vec![Entry::File {
            path: "pause".to_owned(),
            source: installed("catatonit")?,
            mode: 0o755,
        }],
        &["/pause", "-P"],
    );
    oci::write(&pause, &directory.join("pause.tar"))?;
    let busybox = installed("busybox")?;
    let applets = run(Command::new(&busybox).arg("--list"))?;
    let mut files = vec![
        Entry::File {
            path: "bin/busybox".to_owned(),
            source: fs::canonicalize(&busybox)?,
            mode: 0o755,
        },
        Entry::Directory {
            path: "tmp".to_owned(),
            mode: 0o1777,
        },
    ];
    files.extend(
        applets
            .lines()
            .filter(|applet| !applet.is_empty() && *applet != "busybox")
            .map(|applet| Entry::Link {
                path: format!("bin/{applet}"),
                target: "busybox".to_owned(),
            }),
    );
    let shell = plain(SHELL_IMAGE, files, &[]);
    oci::write(&shell, &directory.join("busybox.tar"))
}
