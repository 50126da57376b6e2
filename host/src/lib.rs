//! ntransformer.

pub mod cli;
pub mod gguf;
