//! From text to text: [`Engine`] and what it is made of: tokenizer, sampling, generation, perplexity.

pub mod chat;
mod error;
mod generate;
mod open;
mod perplexity;
mod sampler;
mod session;
mod stop;
pub mod tokenizer;

pub use error::EngineError;
pub use generate::{Event, GenerateOptions, Generated, Stop, Timing, check_length};
pub use open::{DeviceChoice, Engine, EngineOptions, Loading, ModelFile, open};
pub use perplexity::{Perplexity, check_windows, perplexity};
pub use sampler::{Sampler, Sampling};
pub use session::{LoadOptions, MemoryReport, Runner, Session, load_bytes};
pub use tokenizer::{EncodeOptions, Tokenizer, TokenizerError, Utf8Stream};
