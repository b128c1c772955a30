//! `smart-worker`: see the library's documentation, and `--help`.
#![forbid(unsafe_code)]

use std::sync::Arc;

use clap::Parser;
use smart_worker::SmartEngine;
use smart_worker::args::Args;

fn main() -> anyhow::Result<()> {
    let (settings, config) = Args::parse().resolve()?;
    dynamo_backend_common::run(Arc::new(SmartEngine::new(settings)), config)
}
