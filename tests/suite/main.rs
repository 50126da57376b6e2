//! The engine's tests: one binary, a module per area.

mod commands;
mod gguf;
mod kernels;
mod ptx;
mod readme;
mod reference;
mod setup;
mod tokenizer;
