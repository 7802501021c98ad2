//! `device-plugin-operator`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use daemon::{Logs, Stop};
use operator::flags::{Command, Flags};
use operator::uninstall::Left;
use operator::{client, driver, uninstall};

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    // First of all: two libraries that bring a provider each would make the client panic.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("failed to install the TLS provider: another one is installed");
    }
    let flags = Flags::parse();
    let _logs = Logs::start(&flags.log_level)?;
    let client = client::connect()
        .await
        .context("failed to set up the Kubernetes client")?;
    match flags.command {
        None => {
            let stop = Stop::on_signals().context("failed to listen for signals")?;
            driver::run(client, flags.run, stop).await?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::CheckUninstall) => Ok(match uninstall::left(client).await? {
            Left::Nothing => ExitCode::SUCCESS,
            Left::Configs(names) => {
                uninstall::refuse(&names)?;
                ExitCode::FAILURE
            }
        }),
    }
}
