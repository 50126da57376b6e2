//! The CUDA device: launches kernels through a driver.

pub mod driver;
