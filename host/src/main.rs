//! The command.

use clap::Parser;
use ntransformer::cli::{inspect, tokenize};

#[derive(Parser)]
enum Command {
    /// Show what is in a GGUF file.
    Inspect(inspect::InspectArgs),
    /// Print the token ids of a text.
    Tokenize(tokenize::TokenizeArgs),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Inspect(args) => inspect::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
    }
}
