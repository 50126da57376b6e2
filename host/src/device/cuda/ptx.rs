//! The embedded PTX.

/// The PTX text of the kernel module `name`.
pub fn module(_name: &str) -> Option<&'static str> {
    None
}
