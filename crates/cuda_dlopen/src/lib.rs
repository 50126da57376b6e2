//! The CUDA driver's C symbols, resolved by dlopen at first use.
