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

    /// What a slice is decoded from, as it lies in the block. No arrays indexed by the run: a GPU has no registers to index.
    type Raw: Copy;

    /// Reads a slice. Apart from [`Format::decode`], so that a GPU can read several slices before it needs the first.
    fn load<B: Bytes>(block: B, slice: usize) -> Self::Raw;

    /// Decodes a run of a slice that was read; only the first `RUN` values count.
    ///
    /// The result is bit for bit that of `gguf.quants.dequantize` (PyPI `gguf`), where multiplication and addition are
    /// not contracted.
    fn decode(raw: Self::Raw, slice: usize, run: usize) -> [f32; 4];

    /// Encodes `ELEMS` finite values into the `BYTES` bytes of `block`; others give a block of unspecified values.
    ///
    /// # Panics
    /// If a slice is too short. [`crate::encode_row`] checks.
    fn encode(x: &[f32], block: &mut [u8]);

    /// Makes a block of random bytes into a valid one whose values have mean zero and a standard deviation of about
    /// `sigma`: it keeps the bits of the values and forces those of the scales into a range. See
    /// [`crate::fill_random`].
    fn tame(block: &mut [u8], sigma: f32);
}

/// Decodes one block into `F::ELEMS` values.
///
/// # Panics
/// If `block` or `out` is shorter than a block. [`crate::decode_row`] checks.
#[inline]
#[expect(clippy::manual_memcpy, reason = "the compiler vectorises it better than a copy: Q2_K runs 1.6 times as fast")]
pub fn decode<F: Format>(block: &[u8], out: &mut [f32]) {
    // Exact lengths let the compiler drop most bounds checks below.
    let (block, out) = (&block[..F::BYTES], &mut out[..F::ELEMS]);
    // Eight neighbouring slices share scales and shifts in every format. Walking them together, run by run, lets the
    // compiler take these out of the inner loop: up to three times as fast as slice by slice.
    let group = F::SLICES.min(8);
    for index in 0..F::SLICES / group {
        for run in 0..F::RUNS {
            for word in 0..group {
                let slice = group * index + word;
                let at = F::at(slice, run);
                let values = F::decode(F::load(block, slice), slice, run);
                for i in 0..F::RUN {
                    out[at + i] = values[i];
                }
            }
        }
    }
}
