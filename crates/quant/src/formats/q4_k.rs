//! Q4_K: 256 values in eight sub-blocks of 32, `d * scale * q - dmin * min` with 4-bit `q` and 6-bit `scale`, `min`.
//!
//! Bytes: `d`, `dmin` (half precision), the packed scales and minima ([`crate::k_scales`]), then `q` in four groups of
//! 64 values: a group's 32 bytes hold its first 32 values in the low nibbles, its last 32 in the high ones.

use crate::k_scales::{K_SCALES, scale_min};
use crate::{Bytes, Format, TensorType};

/// 4-bit integers, a 6-bit scale and minimum for 32.
pub struct Q4_K;

const D: usize = 0;
const DMIN: usize = 2;
const SCALES: usize = 4;
const QS: usize = SCALES + K_SCALES;

impl Format for Q4_K {
    const TYPE: TensorType = TensorType::Q4_K;
    const ELEMS: usize = 256;
    const BYTES: usize = QS + 128;
    const SLICES: usize = 32;
    const RUNS: usize = 2;

    #[inline(always)]
    fn at(slice: usize, run: usize) -> usize {
        64 * (slice / 8) + 32 * run + 4 * (slice % 8)
    }

    #[inline(always)]
    fn run<B: Bytes>(block: B, slice: usize, run: usize) -> [f32; 4] {
        let (scale, min) = scale_min(block, SCALES, 2 * (slice / 8) + run);
        let (d, m) = (block.f16(D) * scale, block.f16(DMIN) * min);
        let q = block.u32_aligned(QS + 4 * slice) >> (4 * run) & 0x0f0f_0f0f;
        q.to_le_bytes().map(|q| d * f32::from(q) - m)
    }
}
