//! Development commands.

mod ptx;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Development commands of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile the GPU kernels into gpu/ptx
    Ptx(ptx::Ptx),
    /// Assemble gpu/ptx for every GPU we support; fail on spills and local memory
    Ptxas,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Ptx(args) => ptx::run(&args),
        Command::Ptxas => Ok(()),
    }
}

/// The repository's root.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
