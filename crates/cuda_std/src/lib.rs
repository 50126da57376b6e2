//! Rust-CUDA's device API over rustc's own NVPTX backend.
