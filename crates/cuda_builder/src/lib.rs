//! Compiles a kernel crate to PTX: Rust-CUDA's CudaBuilder over rustc's NVPTX backend.
