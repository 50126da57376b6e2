//! Texts that users give in files.

use std::path::Path;

use anyhow::{Context, anyhow};

/// The text in a file.
///
/// # Errors
/// It cannot be read or is not UTF-8.
pub fn read(path: &Path) -> anyhow::Result<String> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).with_context(|| format!("{name}: cannot be read"))?;
    utf8(&name, bytes)
}

/// The text that `bytes` of `name` are.
///
/// # Errors
/// They are not UTF-8.
pub fn utf8(name: &str, bytes: Vec<u8>) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|e| anyhow!("{name}: not UTF-8 at byte {}", e.utf8_error().valid_up_to()))
}
