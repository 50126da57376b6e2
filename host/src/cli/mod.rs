//! The command line.

mod bench;
mod chat;
mod completions;
mod flowed;
mod generate;
pub mod inspect;
pub mod interrupt;
pub mod nvme;
mod open;
mod perplexity;
mod plan;
mod sampling;
pub mod synth;
mod text;
mod tokenize;
mod trace;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::engine::EngineError;

/// Bytes of a worker thread's stack: what the main thread usually has.
const STACK: usize = 8 << 20;

/// Runs GGUF language models that are bigger than the GPU's memory.
///
/// Without a subcommand, continues a prompt: `ntransformer -m model.gguf -p "Once upon a time"`. Without -m, a small
/// built-in model tells a story.
#[derive(Debug, Parser)]
#[command(name = "ntransformer", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    generate: generate::GenerateArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure how fast a model processes prompts and generates.
    Bench(bench::BenchArgs),
    /// Show what is in a GGUF file.
    Inspect(inspect::InspectArgs),
    /// Turn text into token ids.
    Tokenize(tokenize::TokenizeArgs),
    /// Measure how well a model predicts a text.
    Perplexity(perplexity::PerplexityArgs),
    /// Write a model with random weights and the shape of a real one, to measure speed with.
    Synth(synth::SynthArgs),
    /// Drives that are read without the kernel's block layer.
    Nvme(nvme::NvmeArgs),
    /// Print a shell's completion script.
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write those of all subcommands.
    Man(completions::ManArgs),
}

impl Cli {
    /// Runs what was asked for, and gives the exit code of a run that worked.
    ///
    /// # Errors
    /// What the user is to be told, once.
    pub fn run(self) -> anyhow::Result<u8> {
        // Made here because rayon, making it by itself at first use, would panic where threads cannot be started.
        let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK).build_global();
        pool.context("the worker threads cannot be started; raise the limits on processes and memory (ulimit -u, -v)")?;
        // In the pool, because a product on the CPU that is begun outside of it sleeps until the pool has woken up and is done:
        // 10 to 20 us for each of a token's matrices.
        match rayon::scope(|_| self.dispatch()) {
            Err(e) if e.downcast_ref::<EngineError>().is_some_and(EngineError::is_cancelled) => {
                Ok(interrupt::EXIT_CODE)
            }
            result => result,
        }
    }

    fn dispatch(self) -> anyhow::Result<u8> {
        match self.command {
            None => generate::run(&self.generate),
            Some(Command::Bench(args)) => bench::run(&args).map(|()| 0),
            Some(Command::Inspect(args)) => inspect::run(&args).map(|()| 0),
            Some(Command::Tokenize(args)) => tokenize::run(&args).map(|()| 0),
            Some(Command::Perplexity(args)) => perplexity::run(&args),
            Some(Command::Synth(args)) => synth::run(&args).map(|()| 0),
            Some(Command::Nvme(args)) => nvme::run(&args).map(|()| 0),
            Some(Command::Completions(args)) => completions::completions(&args).map(|()| 0),
            Some(Command::Man(args)) => completions::man(&args).map(|()| 0),
        }
    }
}
