//! What namespaces hold: no two 8 bytes of a machine are the same.

use anyhow::{Result, ensure};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

/// The 8 bytes at `offset`, a multiple of 8.
fn word(offset: u64, drive: u8, namespace: u8) -> [u8; 8] {
    let number = (offset / 8) | u64::from(drive) << 56 | u64::from(namespace) << 48;
    (number ^ 0x5555_5555_5555_5555).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

/// The bytes from `offset` on, a multiple of 8.
pub fn fill(out: &mut [u8], offset: u64, drive: u8, namespace: u8) {
    for (index, bytes) in (0..).zip(out.as_chunks_mut::<8>().0) {
        *bytes = word(offset + 8 * index, drive, namespace);
    }
}

/// Compares.
pub fn check(bytes: &[u8], offset: u64, drive: u8, namespace: u8) -> Result<()> {
    let wrong =
        (0..).zip(bytes.as_chunks::<8>().0).find(|&(index, &got)| got != word(offset + 8 * index, drive, namespace));
    if let Some((index, got)) = wrong {
        let at = offset + 8 * index;
        ensure!(
            false,
            "byte {at} of drive {drive}, namespace {namespace} is {got:x?}, not {:x?}",
            word(at, drive, namespace)
        );
    }
    Ok(())
}

/// Writes a namespace of `bytes` bytes.
pub fn write(file: &Path, bytes: u64, drive: u8, namespace: u8) -> Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    (0..bytes).step_by(8).try_for_each(|offset| out.write_all(&word(offset, drive, namespace)))?;
    Ok(out.flush()?)
}
