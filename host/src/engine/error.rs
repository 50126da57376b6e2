//! What can go wrong between a text and its continuation.

use super::{SampleError, SamplingError, TokenizerError, chat::ChatError};
use crate::{device::DeviceError, gguf::GgufError, model::ModelError, stream::nvme::NvmeError};

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The device or its driver.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// What the file holds.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The chat template.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The vocabulary.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The choice of a drive.
    #[error(transparent)]
    Nvme(#[from] NvmeError),
    /// Settings of the sampler.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// No token can be chosen.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The model does not fit on the device.
    #[error(
        "{device}: the model needs {need} and {limit} are available ({weights} of weights, {kv} of KV cache for {context} \
         tokens, {activations} of activations); {advice}"
    )]
    DoesNotFit {
        /// The device's name.
        device: String,
        /// All that has to be on the device at once.
        need: bytesize::ByteSize,
        /// What is free there, or the budget.
        limit: bytesize::ByteSize,
        /// Its weights.
        weights: bytesize::ByteSize,
        /// Its KV cache.
        kv: bytesize::ByteSize,
        /// Its activations.
        activations: bytesize::ByteSize,
        /// Positions in the cache.
        context: usize,
        /// The way out.
        advice: String,
    },
    /// A slower link is asked for, and that what is in RAM is read without copies.
    #[error(
        "--link-limit slows copies to the device down, and not what kernels read in RAM: leave out --link-limit or --ram-access zero-copy"
    )]
    LinkLimit,
    /// An environment variable that is no number.
    #[error("{variable} is {value:?}: expected a number of layers, such as 20")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it is set to.
        value: String,
    },
    /// More tokens than the context holds.
    #[error(
        "a prompt of {prompt} tokens and up to {max_new} new ones do not fit into the context of {context}; shorten the text or \
         lower -n{}", if context < limit { format!(", or raise -c (the model allows {limit})") } else { String::new() }
    )]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to be generated.
        max_new: usize,
        /// The context of this run.
        context: usize,
        /// The model's own limit.
        limit: usize,
    },
    /// A pass of a size that was not prepared for: a mistake of the program that uses the engine.
    #[error(
        "a pass over {tokens} tokens with {wanted} rows of logits; it takes 1 to {max_batch}, and at most {max_wanted} rows"
    )]
    Pass {
        /// Tokens asked for.
        tokens: usize,
        /// Rows of logits asked for.
        wanted: usize,
        /// Tokens of a pass at most.
        max_batch: usize,
        /// Rows of logits at most.
        max_wanted: usize,
    },
    /// Nothing to continue.
    #[error("the prompt is empty: give a text with -p or -f (this model adds no BOS token)")]
    EmptyPrompt,
    /// A token that the model has no row for.
    #[error(
        "{file}: token {token} is outside the model's vocabulary of {vocab}: the file's tokenizer and its weights do not match"
    )]
    Vocabulary {
        /// The model file.
        file: String,
        /// The token's id.
        token: u32,
        /// Rows of the embedding table.
        vocab: usize,
    },
    /// Infinite or undefined logits.
    #[error(
        "{file}: the model's logits at position {position} are not numbers: its weights are damaged; get the file again"
    )]
    NotANumber {
        /// The model file.
        file: String,
        /// Position of the token they follow.
        position: usize,
    },
    /// A profile of what is no series of generated tokens.
    #[error("{0} cannot be profiled: a profile is one of generated tokens; use -n without --pg")]
    ProfiledPrompt(String),
    /// A window too small to measure with.
    #[error("a window of {0} tokens is too small; use -c 4 or more")]
    Window(usize),
    /// A text too short to measure.
    #[error("the text has {tokens} tokens and one window takes {window}: give a longer text or a smaller -c")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
}

impl EngineError {
    /// It is no fault: somebody set [`LoadOptions::cancel`](super::LoadOptions::cancel).
    pub fn is_cancelled(&self) -> bool {
        matches!(self, EngineError::Device(e) if e.is_cancelled())
    }
}
