//! `ntransformer perplexity -f TEXT`: how well a model predicts a text.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use super::{interrupt, open::ModelArgs, text};
use crate::engine::check_windows;

/// Arguments of `ntransformer perplexity`.
#[derive(Debug, clap::Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, UTF-8.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens of a window; the second half of each is scored.
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512)]
    context: usize,
}

/// Prints `perplexity: N`, measured by llama.cpp's protocol.
pub fn run(args: &PerplexityArgs) -> anyhow::Result<u8> {
    let text = text::read(&args.file)?;
    let file = args.model.open(Some(args.context))?;
    let tokenizer = file.tokenizer();
    let tokens = tokenizer.prompt(&text)?;
    check_windows(tokens.len(), args.context)?;
    let trace = args.model.trace_file()?;
    let mut engine = args.model.load(file, args.context.div_ceil(2))?;
    let bar = args.model.counter("window {pos}/{len} perplexity {msg}", (tokens.len() / args.context.max(1)) as u64)?;
    let result = engine.perplexity(&tokens, args.context, &mut |so_far| {
        bar.set_position(so_far.windows as u64);
        bar.set_message(format!("{:.4}", so_far.value()));
        !interrupt::requested()
    });
    bar.finish_and_clear();
    let traced = args.model.write_trace(trace, engine.runner());
    let result = result?;
    traced?;
    args.model.say(&format!("{} windows of {}, {} tokens scored", result.windows, args.context, result.scored));
    if result.windows < result.of {
        args.model.say(&match result.windows {
            0 => format!("interrupted in the first window of {}", result.of),
            windows => format!("interrupted after {:.4} over {windows} windows of {}", result.value(), result.of),
        });
        return Ok(interrupt::EXIT_CODE);
    }
    writeln!(io::stdout(), "perplexity: {:.4}", result.value())?;
    Ok(0)
}
