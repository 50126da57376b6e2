//! The engine's tests: one binary, a module per area.

mod bad_input;
mod gguf;
mod kernels;
mod models;
mod reference;
mod streaming;
mod synth;
mod tokenizer;
mod ptx;
