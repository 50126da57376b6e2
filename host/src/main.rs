//! The command.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use ntransformer::cli::{Cli, interrupt};

fn main() -> ExitCode {
    let code = match Cli::parse().run() {
        Ok(code) => code,
        // A reader that went away (`| head`) has seen enough: that is no error.
        Err(e) if e.chain().any(is_broken_pipe) => 0,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e:#}");
            1
        }
    };
    if code == interrupt::EXIT_CODE || interrupt::requested() {
        let _ = std::io::stdout().flush();
        interrupt::exit(code);
    }
    code.into()
}

fn is_broken_pipe(e: &(dyn std::error::Error + 'static)) -> bool {
    let kind = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    e.downcast_ref().is_some_and(kind)
        || e.downcast_ref::<serde_json::Error>()
            .is_some_and(|e| e.io_error_kind() == Some(std::io::ErrorKind::BrokenPipe))
}
