//! `local-cluster`: brings the local cluster up and down, and builds what it runs.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results of a command belong on standard output, its failure on standard error"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use e2e::cluster::{Cluster, Options};
use e2e::images;
use e2e::parts::cache::Cache;
use e2e::parts::{catalogue, refresh};
use e2e::progress::Progress;

/// A real Kubernetes on this machine, for tests and the demo.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Bring the cluster up, or find it up already.
    Up {
        /// How many nodes; the newest and the previous kubelet alternate.
        #[arg(long, default_value_t = 2)]
        nodes: u8,
        /// Directory with existing binaries; they win over built ones.
        #[arg(long)]
        assets: Option<PathBuf>,
    },
    /// Remove the cluster and all that it left on this machine.
    Down,
    /// Say what runs and what does not.
    Status,
    /// Build our two images as archives for `ctr`, `kind`, `docker` and `skopeo`.
    Images {
        /// Tag of the images.
        #[arg(long, default_value = images::DEFAULT_TAG)]
        tag: String,
        /// Directory of the archives; by default `target/images` in the workspace.
        #[arg(long)]
        output: Option<PathBuf>,
        /// Cargo profile.
        #[arg(long, default_value = "release")]
        profile: String,
        /// Load them on every node of the running cluster, too.
        #[arg(long)]
        load: bool,
    },
    /// Build what the cluster consists of where it is missing, and print where a program of it is.
    Program {
        /// File name of the program, such as `helm`.
        name: String,
    },
    /// Rewrite the parts' go.mod and go.sum after a version in them was changed.
    PartsRefresh,
}

fn main() -> ExitCode {
    // Printed here and not by the runtime, which would add a stack trace where one is asked for of
    // other programs.
    match run(Arguments::parse().task, &Progress::to_stderr()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task, progress: &Progress) -> Result<()> {
    match task {
        Task::Up { nodes, assets } => {
            let cluster = Cluster::up(&Options { nodes, assets }, progress)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig_path().display());
            println!("export PATH={}:$PATH", cluster.programs_path().display());
            Ok(())
        }
        Task::Program { name } => {
            let program = catalogue::PARTS
                .iter()
                .flat_map(catalogue::Part::programs)
                .find(|program| program.file_name() == name)
                .with_context(|| format!("the cluster has no program {name:?}"))?;
            let binaries = Cluster::prepare(None, progress)?;
            println!("{}", binaries.path(program)?.display());
            Ok(())
        }
        Task::Down => Cluster::down(progress),
        Task::Status => status(),
        Task::Images {
            tag,
            output,
            profile,
            load,
        } => {
            let options = images::Options {
                workspace: workspace()?.to_path_buf(),
                output: match output {
                    Some(output) => output,
                    None => workspace()?.join("target/images"),
                },
                tag,
                profile,
            };
            let archives = images::build(&options, &Cache::of_user()?, progress)?;
            for archive in archives {
                if load {
                    Cluster::attach()?.import_image(&archive.path)?;
                }
                println!("{} {}", archive.reference, archive.path.display());
            }
            Ok(())
        }
        Task::PartsRefresh => refresh::module_files(&workspace()?.join("e2e/parts"), progress),
    }
}

fn status() -> Result<()> {
    let cluster = Cluster::attach()?;
    let complaints = cluster.complaints();
    for complaint in &complaints {
        println!("{complaint}");
    }
    anyhow::ensure!(complaints.is_empty(), "the cluster is not healthy");
    println!("a cluster of {} nodes is up", cluster.nodes().len());
    println!("kubeconfig  {}", cluster.kubeconfig_path().display());
    println!("programs    {}", cluster.programs_path().display());
    println!("logs        {}", cluster.logs_path().display());
    println!("audit log   {}", cluster.audit_log_path().display());
    Ok(())
}

/// Where this crate's workspace was when it was compiled: the program is run by cargo only.
fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the crate has no workspace around it")
}
