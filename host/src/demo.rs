//! The built-in model: a small storyteller, so that the engine runs before anything was downloaded. How it was made:
//! `tools/demo/README.md`.

use crate::gguf::{Gguf, GgufError};

/// The demo model's file.
pub static BYTES: &[u8] = include_bytes!("../../assets/demo.gguf");

/// The demo model.
///
/// # Errors
/// If it was replaced by something that is not GGUF before the build.
pub fn gguf() -> Result<Gguf, GgufError> {
    Gguf::from_static("the built-in demo model", BYTES)
}
