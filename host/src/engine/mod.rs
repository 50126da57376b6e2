//! From text to text: [`Engine`] and what it is made of: tokenizer, sampling, generation, perplexity, speed.

mod bench;
mod budget;
pub mod chat;
mod error;
mod generate;
mod grammar;
mod open;
mod perplexity;
mod placement;
mod profile;
mod sampler;
mod session;
mod stop;
pub mod tokenizer;

pub use crate::stream::{
    DiskReads,
    nvme::{DriveChoice, NvmeError, NvmeOptions, PciAddress, Submit},
    ring::Buffers,
};
pub use bench::{Bench, Measured, Stage, Workload, mean_and_deviation};
pub use budget::Budget;
pub use error::EngineError;
pub use generate::{Event, GenerateOptions, Generated, Stop, Timing, check_length};
pub use grammar::{GbnfError, GbnfFault, Grammar, GrammarError, GrammarVocabulary, Syntax};
pub use open::{DeviceChoice, Engine, EngineOptions, Loading, ModelFile, open};
pub use perplexity::{Perplexity, check_windows, perplexity};
pub use placement::{Placement, plan_for};
pub use profile::{KernelTime, Profile};
pub use sampler::{SampleError, Sampler, Sampling, SamplingError, Wanted};
pub use session::{LoadOptions, MemoryReport, Runner, Session, load_bytes};
pub use tokenizer::{EncodeOptions, Tokenizer, TokenizerError, Utf8Stream};
