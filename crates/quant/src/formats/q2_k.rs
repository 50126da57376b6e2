//! Q2_K: 256 values in sixteen sub-blocks of 16, `d * scale * q - dmin * min` with 2-bit `q` and 4-bit `scale`, `min`.
//!
//! Bytes: a scale (low nibble) and minimum (high nibble) for each sub-block, then `q`, then `d` and `dmin` (half
//! precision). Each half of the block, 128 values, has 32 bytes of `q`: bit pair `p` of byte `i` belongs to value
//! `32 p + i`.

use crate::fit::Affine;
use crate::random::tame_affine;
use crate::{Bytes, Format, TensorType};

/// 2-bit integers, a 4-bit scale and minimum for 16.
pub struct Q2_K;

const SCALES: usize = 0;
const QS: usize = SCALES + 16;
const D: usize = QS + 64;
const DMIN: usize = D + 2;

/// The largest `q`.
const TOP: u8 = 3;

/// Standard deviation of a random `q`.
const RANDOM_DEVIATION: f32 = 1.118;

/// Root mean square of a random scale of 8 to 15.
const RANDOM_SCALE_RMS: f32 = 11.73;

/// What a slice is decoded from.
#[derive(Clone, Copy)]
pub struct Raw {
    d: f32,
    dmin: f32,
    /// The scales and minima of this half of the block.
    scale_mins: u64,
    q: u32,
}

impl Format for Q2_K {
    const TYPE: TensorType = TensorType::Q2_K;
    const ELEMS: usize = 256;
    const BYTES: usize = DMIN + 2;
    const SLICES: usize = 16;
    const RUNS: usize = 4;

    #[inline(always)]
    fn at(slice: usize, run: usize) -> usize {
        128 * (slice / 8) + 32 * run + 4 * (slice % 8)
    }

    type Raw = Raw;

    #[inline(always)]
    fn load<B: Bytes>(block: B, slice: usize) -> Raw {
        Raw {
            d: block.f16(D),
            dmin: block.f16(DMIN),
            scale_mins: block.u64_aligned(SCALES + 8 * (slice / 8)),
            q: block.u32_aligned(QS + 4 * slice),
        }
    }

    #[inline(always)]
    fn decode(raw: Raw, slice: usize, run: usize) -> [f32; 4] {
        let scale_min = (raw.scale_mins >> (16 * run + 8 * (slice % 8 / 4))) as u8;
        let d = raw.d * f32::from(scale_min & 0xf);
        let m = raw.dmin * f32::from(scale_min >> 4);
        let q = raw.q >> (2 * run) & 0x0303_0303;
        q.to_le_bytes().map(|q| d * f32::from(q) - m)
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        let fit = Affine::<16>::fit(x, TOP, 15);
        for j in 0..16 {
            block[SCALES + j] = fit.scales[j] | fit.mins[j] << 4;
        }
        for slice in 0..Self::SLICES {
            for i in 0..4 {
                let q = |run| fit.q[Self::at(slice, run) + i] << (2 * run);
                block[QS + 4 * slice + i] = q(0) | q(1) | q(2) | q(3);
            }
        }
        block[D..DMIN].copy_from_slice(&fit.d.to_le_bytes());
        block[DMIN..].copy_from_slice(&fit.dmin.to_le_bytes());
    }

    fn tame(block: &mut [u8], sigma: f32) {
        for scale_min in &mut block[SCALES..SCALES + 16] {
            *scale_min = (*scale_min & 7 | 8) * 0x11;
        }
        tame_affine(block, D, DMIN, sigma / (RANDOM_SCALE_RMS * RANDOM_DEVIATION), TOP);
    }
}
