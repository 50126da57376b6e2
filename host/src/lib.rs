//! ntransformer: runs GGUF language models that are bigger than the GPU's memory.

pub mod device;
