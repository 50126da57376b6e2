//! `ntransformer tokenize`: the token ids of a text.

use super::text;
use crate::{
    engine::tokenizer::{EncodeOptions, Tokenizer},
    gguf::Gguf,
};
use anyhow::Context;
use std::{
    io::{self, Read, Write},
    path::PathBuf,
};

/// Arguments of `ntransformer tokenize`.
#[derive(Debug, clap::Args)]
pub struct TokenizeArgs {
    /// The GGUF file with the vocabulary.
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// Turn control tokens written in the text, such as <|eot_id|>, into those tokens.
    #[arg(long)]
    pub special: bool,
    /// Start with the BOS token.
    #[arg(long)]
    pub bos: bool,
    /// Read the text from this file instead of standard input.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Prints the ids of a text, which is taken as it is, on one line of standard output, separated by blanks.
///
/// # Errors
/// If the file has no sound vocabulary, the text cannot be read or is not UTF-8, or the output cannot be written.
pub fn run(args: &TokenizeArgs) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&args.model)?)?;
    let text = match &args.file {
        Some(path) => text::read(path)?,
        None => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).context("standard input: cannot be read")?;
            text::utf8("standard input", bytes)?
        }
    };
    let ids = tokenizer.encode(&text, EncodeOptions { bos: args.bos, special: args.special })?;
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    writeln!(io::stdout().lock(), "{}", ids.join(" "))?;
    Ok(())
}
