//! The CUDA device: launches kernels through a driver.

pub mod cust;
pub mod driver;
