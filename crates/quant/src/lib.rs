//! GGUF block formats: layout, size, decode, encode.
//!
//! One definition serves the GPU kernels, the CPU device, the file reader and the writer of synthetic models, so the
//! crate is `no_std`, allocates nothing and depends on nothing.
#![no_std]

mod tensor_type;

pub use tensor_type::TensorType;
