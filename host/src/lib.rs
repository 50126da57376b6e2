//! ntransformer: runs GGUF language models that are bigger than the GPU's memory.
//!
//! The library behind the `ntransformer` command. [`Engine`] is a model that is loaded; it continues texts:
//!
//! ```
//! use ntransformer::{DeviceChoice, Engine, EngineOptions, Event, GenerateOptions, Sampling};
//! use std::ops::ControlFlow;
//!
//! // Or, with a file: `Engine::open("model.gguf", &options)`.
//! let options = EngineOptions { device: DeviceChoice::Cpu, ..Default::default() };
//! let mut engine = Engine::demo(&options)?;
//!
//! let prompt = engine.tokenize("Once upon a time")?;
//! let options = GenerateOptions { max_new: Some(8), sampling: Sampling::greedy(), ..Default::default() };
//! let answer = engine.generate(&prompt, &options, |event| {
//!     if let Event::Text(text) = event {
//!         print!("{text}");
//!     }
//!     ControlFlow::Continue(()) // Break(()) ends the text here
//! })?;
//! assert_eq!(answer.tokens.len(), 8);
//! assert!(answer.text.starts_with(" there lived"));
//!
//! // The tokens that both prompts start with are in the KV cache: this costs three tokens of prompt, not twelve.
//! let more = [&prompt[..], &answer.tokens, &engine.tokenizer().encode(" One day", Default::default())?].concat();
//! let next = engine.generate(&more, &options, |_| ControlFlow::Continue(()))?;
//! assert_eq!(next.reused, prompt.len() + 7);
//! # Ok::<(), ntransformer::EngineError>(())
//! ```
//!
//! - Layers that do not fit into the GPU's memory: [`LoadOptions::streaming`].
//! - What loading takes, before it is done: [`ModelFile`], which reads a file's structure only, and [`Loading`].
//! - Conversations, with the template that the model was trained on: [`engine::chat`].
//! - Errors name the file, tensor, device or flag, and say what to do: [`EngineError`].
//!
//! That is the library. The hidden modules are what the engine is made of; they are public for the command, the tests and the
//! benches of this repository, and change as it changes. `docs/architecture.md` says how they hang together.

#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod demo;
#[doc(hidden)]
pub mod device;
pub mod engine;
#[doc(hidden)]
pub mod gguf;
#[doc(hidden)]
pub mod model;
#[doc(hidden)]
pub mod pack;
#[doc(hidden)]
pub mod platform;
#[doc(hidden)]
pub mod ptx;
#[doc(hidden)]
pub mod stream;

pub use engine::chat::{Chat, ChatError, Message, Role, TemplateSource};
pub use engine::{
    Budget, Buffers, DeviceChoice, DiskReads, DriveChoice, EncodeOptions, Engine, EngineError, EngineOptions, Event,
    GenerateOptions, Generated, Grammar, GrammarVocabulary, LoadOptions, Loading, MemoryReport, ModelFile, NvmeError,
    NvmeOptions, PciAddress, Sampling, Stop, Syntax, Timing, Tokenizer, TokenizerError,
};
pub use model::Config;
