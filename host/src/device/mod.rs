//! The stages a forward pass needs of a device, and the transfers the streamer needs.

pub mod cuda;
mod error;

pub use error::DeviceError;

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not in use by anyone.
    pub free: u64,
    /// All there is.
    pub total: u64,
}
