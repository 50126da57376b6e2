//! The CUDA driver's C symbols, resolved by dlopen at first use, so that one binary runs with and without a driver.
//!
//! `cust` declares the driver's functions (`cuInit`, `cuMemAlloc_v2`, ...) and leaves them to the linker. Linking
//! `-lcuda` would need a driver or a CUDA toolkit to build, and a driver to start. This crate defines those symbols
//! instead: the first call of each looks it up in `libcuda.so.1`. Without a driver every function answers
//! `CUDA_ERROR_NO_DEVICE`, and one that an old driver doesn't have answers `CUDA_ERROR_NOT_FOUND`.
//!
//! An executable that uses `cust` names this crate (`use cuda_dlopen as _;`), or the linker never sees it.
//!
//! Two ways in, one table:
//! - the C symbols, for `cust`. Their result is a closed Rust enum in `cust`, and a value outside it would be undefined
//!   behaviour, so codes younger than `cust`'s headers become `CUDA_ERROR_UNKNOWN`; [`last_error`] has the real one;
//! - [`raw`], the same functions with the driver's own [`Code`] as the error.
//!
//! The environment variable `NT_LIBCUDA` names another file in place of `libcuda.so.1`: a driver in an unusual place, or a
//! test's stand-in.

mod code;
mod launch;
mod library;
mod symbols;

pub use code::{Code, last_error};
pub use cust_raw as sys;
pub use launch::{LaunchAttribute, LaunchConfig};
pub use symbols::raw;

/// `CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD` of `cuMemGetHandleForAddressRange` (CUDA 11.7): the handle is a file descriptor, an `int`.
pub const DMA_BUF_FD: std::ffi::c_uint = 1;

/// Whether the driver's library could be loaded. There may be no device all the same.
pub fn driver_present() -> bool {
    library::loaded().is_ok()
}

/// Why the driver's library could not be loaded, in the dynamic linker's words; `None` where it was.
pub fn why_absent() -> Option<&'static str> {
    library::loaded().err()
}

/// The newest CUDA version that the driver supports, as 1000 * major + 10 * minor: 12040 is CUDA 12.4.
///
/// # Errors
/// [`Code::NO_DEVICE`] without a driver, else the driver's own.
pub fn driver_version() -> Result<i32, Code> {
    let mut version = 0;
    // SAFETY: the driver writes one int, to a local one; this function needs no initialisation.
    unsafe { raw::cuDriverGetVersion(&mut version) }?;
    Ok(version)
}
