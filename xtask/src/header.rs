//! `cargo xtask header`: the C API's header, from its Rust sources.

use anyhow::Result;

use crate::sh;

/// The flags of `cargo xtask header`.
#[derive(clap::Args)]
pub struct Header {
    /// Only compare the kept header with what the sources give
    #[arg(long)]
    check: bool,
}

/// The crate's own test makes the header, and compares it, so that `cargo test` does without this command.
pub fn run(args: &Header) -> Result<()> {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--quiet", "--release", "--package", "capi", "--test", "header"]);
    if !args.check {
        cargo.env("NT_HEADER", "write");
    }
    sh::run(&mut cargo)
}
