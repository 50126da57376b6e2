//! `ntransformer completions SHELL` and `ntransformer man`: what a package installs beside the command.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;

/// Arguments of `ntransformer completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell that is to complete the command's flags.
    shell: Shell,
}

/// Arguments of `ntransformer man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write the pages of the command and of all subcommands into this folder, instead of the command's to standard output.
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Prints the shell's completion script.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    // By way of memory: the generator panics where writing fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ntransformer", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}

/// Prints or writes manual pages, in roff.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        // `help` would be referred to, and has no page.
        Man::new(Cli::command().disable_help_subcommand(true)).render(&mut page)?;
        return Ok(io::stdout().write_all(&page)?);
    };
    let written = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    written.with_context(|| format!("{}: the manual pages cannot be written", folder.display()))
}
