//! Development commands.

mod ci;
mod fuzz;
mod golden;
mod gpu_bundle;
mod header;
mod initramfs;
mod ptx;
mod ptxas;
mod qemu;
mod sh;

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
    /// Everything that a change has to pass
    Ci(ci::Ci),
    /// Fuzz the reading of files for a while
    Fuzz(fuzz::Fuzz),
    /// Write the C API's header from its Rust sources
    Header(header::Header),
    /// Pack what scripts/gpu-check.sh needs on a machine without Rust
    GpuBundle(gpu_bundle::GpuBundle),
    /// Check the NVMe driver in virtual machines with QEMU's drives
    Qemu(qemu::Qemu),
    /// Remake the test data that other implementations define
    Golden,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Ptx(args) => ptx::run(&args),
        Command::Ptxas => ptxas::run(),
        Command::Ci(args) => ci::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Header(args) => header::run(&args),
        Command::GpuBundle(args) => gpu_bundle::run(&args),
        Command::Qemu(args) => qemu::run(&args),
        Command::Golden => golden::run(),
    }
}

/// The repository's root.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
