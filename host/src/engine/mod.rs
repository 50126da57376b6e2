//! From text to text: sessions, sampling, generation, perplexity.

mod error;
mod generate;
mod grammar;
mod open;
mod perplexity;
mod sampler;
mod session;
pub mod tokenizer;

pub use error::EngineError;
pub use generate::{Event, Generated, Stop, Timing, check_length, generate};
pub use grammar::{GbnfError, GbnfFault, Grammar, GrammarError, GrammarVocabulary, Syntax};
pub use open::{DeviceChoice, open};
pub use perplexity::{Perplexity, check_windows, perplexity};
pub use sampler::{SampleError, Sampler, Sampling, SamplingError};
pub use session::{LoadOptions, MemoryReport, Runner, Session, load_bytes};
pub use tokenizer::{EncodeOptions, Tokenizer, TokenizerError, Utf8Stream};
