//! What a block format is.

use crate::{Bytes, TensorType};

/// A block format: how `ELEMS` values of a row lie in `BYTES` bytes.
///
/// A block is cut into `SLICES` equal pieces, one for each lane of a GPU: a warp's lanes take consecutive slices of
/// consecutive blocks. A slice is `RUNS` runs of `RUN` consecutive values that share the bytes they are decoded from,
/// and consecutive slices read consecutive bytes, so that a warp's loads coalesce.
pub trait Format {
    /// The format as a value.
    const TYPE: TensorType;
    /// Values in a block.
    const ELEMS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Slices of a block.
    const SLICES: usize;
    /// Runs of a slice.
    const RUNS: usize;
    /// Values of a run, at most 4.
    const RUN: usize = 4;

    /// The index in the block of a run's first value.
    fn at(slice: usize, run: usize) -> usize;

    /// Decodes a run; only the first `RUN` values count.
    ///
    /// The result is bit for bit that of `gguf.quants.dequantize` (PyPI `gguf`), where multiplication and addition are
    /// not contracted.
    fn run<B: Bytes>(block: B, slice: usize, run: usize) -> [f32; 4];
}

/// Decodes one block into `F::ELEMS` values.
///
/// # Panics
/// If `block` or `out` is shorter than a block. [`crate::decode_row`] checks.
#[inline]
pub fn decode<F: Format>(block: &[u8], out: &mut [f32]) {
    // Exact lengths let the compiler drop the bounds checks below.
    let (block, out) = (&block[..F::BYTES], &mut out[..F::ELEMS]);
    for slice in 0..F::SLICES {
        for run in 0..F::RUNS {
            let at = F::at(slice, run);
            out[at..at + F::RUN].copy_from_slice(&F::run(block, slice, run)[..F::RUN]);
        }
    }
}
