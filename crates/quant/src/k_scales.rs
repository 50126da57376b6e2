//! The twelve bytes in which Q4_K and Q5_K keep eight 6-bit scales and eight 6-bit minima.
//!
//! Bytes 0-3 hold scales 0-3, bytes 4-7 minima 0-3, each in its low six bits. Bytes 8-11 hold the low halves of scales
//! 4-7 (low nibble) and minima 4-7 (high nibble), whose upper two bits are the top bits of bytes 0-3 and 4-7.

use crate::Bytes;

/// Bytes of the packed scales and minima.
pub(crate) const K_SCALES: usize = 12;

/// The scale and the minimum of sub-block `j` (0 to 7), packed from `at` on.
#[inline(always)]
pub(crate) fn scale_min<B: Bytes>(block: B, at: usize, j: usize) -> (f32, f32) {
    // The lanes of a warp read the same few words, and both runs of a slice share them.
    let byte = |word: usize| block.u32_aligned(at + 4 * word) >> (8 * (j % 4));
    let (scales, minima, upper) = (byte(0), byte(1), byte(2));
    let (scale, min) = if j < 4 {
        (scales & 0x3f, minima & 0x3f)
    } else {
        (upper & 0xf | scales >> 2 & 0x30, upper >> 4 & 0xf | minima >> 2 & 0x30)
    };
    (scale as f32, min as f32)
}
