//! The engine's tests: one binary, a module per area.

mod gguf;
mod kernels;
mod reference;
mod tokenizer;
mod ptx;
