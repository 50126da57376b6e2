//! From text to text: tokenizer, sampling, generation.

pub mod tokenizer;
