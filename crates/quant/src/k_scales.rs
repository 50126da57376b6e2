//! The twelve bytes in which Q4_K and Q5_K keep eight 6-bit scales and eight 6-bit minima.
//!
//! Bytes 0-3 hold scales 0-3, bytes 4-7 minima 0-3, each in its low six bits. Bytes 8-11 hold the low halves of scales
//! 4-7 (low nibble) and minima 4-7 (high nibble), whose upper two bits are the top bits of bytes 0-3 and 4-7.

use crate::Bytes;

/// Bytes of the packed scales and minima.
pub(crate) const K_SCALES: usize = 12;

/// The words, packed from `at` on, that hold the scales and minima of sub-blocks 0 to 3, or with `upper` = 1 those of 4 to
/// 7: the scales' low bits, the minima's, the scales' top bits, the minima's.
#[inline(always)]
pub(crate) fn load<B: Bytes>(block: B, at: usize, upper: usize) -> [u32; 4] {
    // No branch, since the lanes of a warp differ in `upper`; whole words, since those that agree in it share them.
    let word = |i: usize| block.u32_aligned(at + 4 * i);
    [word(2 * upper), word(1 + upper), word(0), word(1)]
}

/// The scale and the minimum of sub-block `j` (0 to 7), of the words that [`load`] gives for it.
#[inline(always)]
pub(crate) fn scale_min(words: [u32; 4], j: usize) -> (f32, f32) {
    let (upper, byte) = (j / 4, 8 * (j % 4));
    let [scale, min, scale_top, min_top] = words;
    let top = |word: u32| (word >> byte >> (4 + 2 * upper) & 3) << 4;
    let scale = scale >> byte & 0xf | top(scale_top);
    let min = min >> byte >> (4 * upper) & 0xf | top(min_top);
    (scale as f32, min as f32)
}

/// Packs eight scales and eight minima, all below 64.
pub(crate) fn pack(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; K_SCALES] {
    let mut packed = [0; K_SCALES];
    for j in 0..4 {
        packed[j] = scales[j] | scales[j + 4] >> 4 << 6;
        packed[4 + j] = mins[j] | mins[j + 4] >> 4 << 6;
        packed[8 + j] = scales[j + 4] & 0xf | mins[j + 4] << 4;
    }
    packed
}

/// Root mean square of the scales that [`tame`] leaves.
pub(crate) const TAME_SCALE_RMS: f32 = 48.39;

/// Makes random bytes into scales of 32 to 63 with equal minima.
pub(crate) fn tame(packed: &mut [u8]) {
    for j in 0..4 {
        packed[j] = packed[j] & 0x5f | 0xa0;
        packed[4 + j] = packed[j];
        packed[8 + j] = (packed[8 + j] & 0xf) * 0x11;
    }
}
