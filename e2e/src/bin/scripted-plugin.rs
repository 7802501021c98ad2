//! A device plugin that behaves, or misbehaves in one way: see `e2e::scripted_plugin`.

use clap::Parser;
use e2e::scripted_plugin::{Settings, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    serve(Settings::parse()).await
}
