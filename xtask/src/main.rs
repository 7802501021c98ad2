//! What cargo alone cannot say: generation, checks, tests, images, the local cluster and the demo.
//!
//! It knows nothing of clusters itself: what needs one is a program of the crate `e2e`, which is
//! too heavy to be built before the first word is printed.

mod bench;
mod chart;
mod check;
mod forward;
mod fuzz;
mod generate;
mod steps;
mod suite;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Write what is generated: crds/manifests, parts of the chart, docs/api.md.
    Gen {
        /// Write nothing; fail and name what differs.
        #[arg(long)]
        check: bool,
    },
    /// Check formatting, lints, dependencies, purity of the cores, generated files, chart, spelling.
    Check {
        /// Only steps whose name contains this word, such as `chart`.
        word: Option<String>,
    },
    /// Run everything: the checks, unit and shell tests, and the tests on a real local cluster.
    Test {
        /// Run these parts only.
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<suite::Part>,
    },
    /// Start, stop or look at the local cluster: `up [--nodes N] [--assets DIR]`, `down`, `status`.
    Cluster {
        /// Handed to the cluster program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
    /// Build the two images as OCI archives: `[--tag TAG] [--output DIR] [--profile NAME] [--load]`.
    Image {
        /// Handed to the image builder.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure beside others, in one run: `agent [--peer 'NAME=COMMAND LINE'] [--rounds N]`.
    Bench {
        /// What is measured.
        #[arg(value_enum)]
        what: bench::What,
        /// Handed to the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Show the product on a local cluster: helm install, an applied config, a pod with its device.
    Demo,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            steps::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Gen { check: false } => generate::write(),
        Task::Gen { check: true } => generate::compare(),
        Task::Check { word } => suite::check(word.as_deref().unwrap_or_default()),
        Task::Test { only } => suite::run(&only),
        Task::Cluster { arguments } => forward::to("local-cluster", &[], &arguments),
        Task::Image { arguments } => forward::to("local-cluster", &["images"], &arguments),
        Task::Bench { what, arguments } => bench::run(what, &arguments),
        Task::Demo => forward::to("demo", &[], &[]),
    }
}
