//! From text to text: sessions, sampling, generation, perplexity, speed.

mod bench;
mod error;
mod generate;
mod open;
mod perplexity;
mod sampler;
mod session;
pub mod tokenizer;

pub use bench::{Bench, Measured, Stage, Workload, mean_and_deviation};
pub use error::EngineError;
pub use generate::{Event, Generated, Stop, Timing, check_length, generate};
pub use open::{DeviceChoice, open};
pub use perplexity::{Perplexity, check_windows, perplexity};
pub use sampler::{Sampler, Sampling};
pub use session::{LoadOptions, MemoryReport, Runner, Session, load_bytes};
pub use tokenizer::{EncodeOptions, Tokenizer, TokenizerError, Utf8Stream};
