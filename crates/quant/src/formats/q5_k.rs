//! Q5_K: 256 values in eight sub-blocks of 32, `d * scale * q - dmin * min` with 5-bit `q` and 6-bit `scale`, `min`.
//!
//! Bytes: `d`, `dmin` (half precision), the packed scales and minima ([`crate::k_scales`]), the fifth bits (bit `j` of
//! byte `i` belongs to value `i` of sub-block `j`), then the low four bits as in Q4_K.

use crate::fit::Affine;
use crate::k_scales::{self, K_SCALES, TAME_SCALE_RMS, pack, tame};
use crate::random::tame_affine;
use crate::{Bytes, Format, TensorType};

/// 5-bit integers, a 6-bit scale and minimum for 32.
pub struct Q5_K;

const D: usize = 0;
const DMIN: usize = 2;
const SCALES: usize = 4;
const QH: usize = SCALES + K_SCALES;
const QS: usize = QH + 32;

/// The largest `q`.
const TOP: u8 = 31;

/// Standard deviation of a random `q`.
const RANDOM_DEVIATION: f32 = 9.233;

/// What a slice is decoded from.
#[derive(Clone, Copy)]
pub struct Raw {
    d: f32,
    dmin: f32,
    scales: [u32; 4],
    low: u32,
    high: u32,
}

impl Format for Q5_K {
    const TYPE: TensorType = TensorType::Q5_K;
    const ELEMS: usize = 256;
    const BYTES: usize = QS + 128;
    const SLICES: usize = 32;
    const RUNS: usize = 2;

    #[inline(always)]
    fn at(slice: usize, run: usize) -> usize {
        64 * (slice / 8) + 32 * run + 4 * (slice % 8)
    }

    type Raw = Raw;

    #[inline(always)]
    fn load<B: Bytes>(block: B, slice: usize) -> Raw {
        Raw {
            d: block.f16(D),
            dmin: block.f16(DMIN),
            scales: k_scales::load(block, SCALES, slice / 8 / 2),
            low: block.u32_aligned(QS + 4 * slice),
            high: block.u32_aligned(QH + 4 * (slice % 8)),
        }
    }

    #[inline(always)]
    fn decode(raw: Raw, slice: usize, run: usize) -> [f32; 4] {
        let sub = 2 * (slice / 8) + run;
        let (scale, min) = k_scales::scale_min(raw.scales, sub);
        let (d, m) = (raw.d * scale, raw.dmin * min);
        let low = raw.low >> (4 * run) & 0x0f0f_0f0f;
        let high = raw.high >> sub & 0x0101_0101;
        (low | high << 4).to_le_bytes().map(|q| d * f32::from(q) - m)
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        let fit = Affine::fit(x, TOP, 63);
        block[D..DMIN].copy_from_slice(&fit.d.to_le_bytes());
        block[DMIN..SCALES].copy_from_slice(&fit.dmin.to_le_bytes());
        block[SCALES..SCALES + K_SCALES].copy_from_slice(&pack(&fit.scales, &fit.mins));
        block[QH..QS].fill(0);
        for slice in 0..Self::SLICES {
            for i in 0..4 {
                let (low, high) = (fit.q[Self::at(slice, 0) + i], fit.q[Self::at(slice, 1) + i]);
                block[QS + 4 * slice + i] = low & 0xf | high << 4;
                block[QH + 4 * (slice % 8) + i] |= (low >> 4 | high >> 4 << 1) << (2 * (slice / 8));
            }
        }
    }

    fn tame(block: &mut [u8], sigma: f32) {
        tame(&mut block[SCALES..SCALES + K_SCALES]);
        tame_affine(block, D, DMIN, sigma / (TAME_SCALE_RMS * RANDOM_DEVIATION), TOP);
    }
}
