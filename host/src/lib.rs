//! ntransformer: runs GGUF language models that are bigger than the GPU's memory.

pub mod cli;
pub mod demo;
pub mod device;
pub mod engine;
pub mod gguf;
pub mod model;
pub mod pack;
pub mod platform;
pub mod ptx;
pub mod stream;
