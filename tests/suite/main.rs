//! The engine's tests: one binary, a module per area.

mod bad_input;
mod batches;
mod commands;
mod cpu;
mod generate;
mod gguf;
mod kernels;
mod models;
mod ptx;
mod readme;
mod reference;
mod setup;
mod streaming;
mod synth;
mod tokenizer;
