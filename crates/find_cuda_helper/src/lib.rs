//! Stands in for the crate of this name that `cust_raw`'s and `cust`'s build scripts call.
//!
//! The published crate searches for a CUDA toolkit and fails without one. This engine finds the driver at run time
//! (`crates/cuda_dlopen`), so there is nothing to search for and nothing to link.

/// Does nothing: the driver's symbols come from `cuda_dlopen`.
pub fn include_cuda() {}
