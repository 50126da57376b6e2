//! Rust-CUDA's device API (`#[kernel]`, `thread`, `warp`, `shared`) over rustc's own NVPTX backend.
//!
//! A kernel crate is written against this API alone and is compiled twice: for `nvptx64-nvidia-cuda`, where each function
//! is a PTX instruction or two, and for the host, where the same functions ask the [`host::Machine`] that runs the thread
//! (`crates/cuda_emu`). Code that needs an instruction this crate lacks adds it here, once, for both.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_unadjusted, stdarch_nvptx, asm_experimental_arch, link_llvm_intrinsics),
    // LLVM's intrinsics are reached no other way; the compiler is pinned by the manifest of the PTX.
    allow(internal_features)
)]

#[cfg(target_arch = "nvptx64")]
mod nvptx;

pub mod async_copy;
pub mod atomic;
pub mod cluster;
pub mod float;
pub mod grid;
#[cfg(not(target_arch = "nvptx64"))]
pub mod host;
pub mod kernel;
pub mod mem;
pub mod mma;
pub mod shared;
pub mod simd;
pub mod system;
pub mod thread;
pub mod warp;

pub use cuda_std_macros::kernel;
pub use float::F16;
#[cfg(not(target_arch = "nvptx64"))]
#[doc(hidden)]
pub use inventory;

/// What a kernel file needs.
pub mod prelude {
    pub use crate::{
        F16, async_copy, atomic, cluster, dynamic_shared, float, grid, kernel, mem, mma, shared, shared_array, simd,
        system, thread, warp,
    };
}

/// For [`shared_array!`] alone.
///
/// # Safety
/// `pointer` must be a generic address of shared memory.
#[cfg(target_arch = "nvptx64")]
#[doc(hidden)]
#[inline(always)]
pub unsafe fn in_shared_memory<T>(pointer: *mut T) -> *mut T {
    // SAFETY: the caller's promise.
    unsafe { nvptx::assume_shared(pointer.cast()) };
    pointer
}

/// For [`shared_array!`] alone.
#[cfg(not(target_arch = "nvptx64"))]
#[doc(hidden)]
pub fn host_shared(key: *const u8, bytes: usize, align: usize) -> *mut u8 {
    host::machine().shared(key, bytes, align)
}

/// For [`dynamic_shared!`] alone.
#[cfg(not(target_arch = "nvptx64"))]
#[doc(hidden)]
pub fn host_dynamic_shared() -> *mut u8 {
    host::machine().dynamic_shared()
}
