//! Compiles a kernel crate to PTX: Rust-CUDA's [`CudaBuilder`] over rustc's own NVPTX backend.
//!
//! [`DeviceCompiler`] finds a rustc that can (it needs core's source), [`CudaBuilder`] runs it, and [`KernelSet`] knows the
//! PTX that is kept beside a kernel crate, so that most builds need no device compiler at all. `docs/ptx.md` explains the
//! recipe.

mod builder;
mod compiler;
mod kernel_set;
mod sources;

pub use builder::{CudaBuilder, CudaBuilderError, NvvmArch};
pub use compiler::{CompilerError, DeviceCompiler};
pub use kernel_set::{KernelSet, KernelSetError, Manifest, Stale, Variant};
