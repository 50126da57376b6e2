//! The command.

use clap::Parser;
use ntransformer::cli::inspect;

#[derive(Parser)]
enum Command {
    /// Show what is in a GGUF file.
    Inspect(inspect::InspectArgs),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Inspect(args) => inspect::run(&args),
    }
}
