//! The engine's tests: one binary, a module per area.

mod allocations;
mod bad_input;
mod batches;
mod bench;
mod big_metadata;
mod chat;
mod commands;
mod completions;
mod cpu;
mod engine;
mod generate;
mod gguf;
mod kernels;
mod models;
mod mutations;
mod ptx;
mod readme;
mod reference;
mod replay;
mod sampling;
mod setup;
mod split;
mod streaming;
mod synth;
mod tokenizer;
mod untrusted;
