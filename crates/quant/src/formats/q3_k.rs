//! Q3_K: 256 values in sixteen sub-blocks of 16, `d * (scale - 32) * (q - 4)` with 3-bit `q` and 6-bit `scale`.
//!
//! Bytes: the third bits (bit `b` of byte `i` belongs to value `32 b + i`), the low two bits as in Q2_K, twelve bytes
//! of scales, then `d` (half precision). Of scale `j` the low four bits are nibble `j / 8` of byte `j % 8`, the upper
//! two are bit pair `j / 4` of byte `8 + j % 4`.

use crate::fit::{Integers, Symmetric};
use crate::random::tame_signed;
use crate::{Bytes, Format, TensorType};

/// 3-bit integers, a 6-bit scale for 16.
pub struct Q3_K;

const HMASK: usize = 0;
const QS: usize = HMASK + 32;
const SCALES: usize = QS + 64;
const D: usize = SCALES + 12;

/// Root mean square of a random `q - 4`.
const RANDOM_RMS: f32 = 2.345;

/// Root mean square of a random `scale - 32` of 16 to 31 or -32 to -17.
const RANDOM_SCALE_RMS: f32 = 24.44;

/// What a slice is decoded from.
#[derive(Clone, Copy)]
pub struct Raw {
    d: f32,
    /// The low four bits of all scales.
    scales_low: u64,
    /// Their upper two.
    scales_high: u32,
    low: u32,
    high: u32,
}

impl Format for Q3_K {
    const TYPE: TensorType = TensorType::Q3_K;
    const ELEMS: usize = 256;
    const BYTES: usize = D + 2;
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
            scales_low: block.u64(SCALES),
            scales_high: block.u32(SCALES + 8),
            low: block.u32(QS + 4 * slice),
            high: block.u32(HMASK + 4 * (slice % 8)),
        }
    }

    #[inline(always)]
    fn decode(raw: Raw, slice: usize, run: usize) -> [f32; 4] {
        let j = Self::at(slice, run) / 16;
        let scale_low = (raw.scales_low >> (8 * (j % 8) + 4 * (j / 8))) as u8 & 0xf;
        let scale_high = (raw.scales_high >> (8 * (j % 4) + 2 * (j / 4))) as u8 & 3;
        let d = raw.d * (f32::from(scale_low | scale_high << 4) - 32.0);
        let low = raw.low >> (2 * run) & 0x0303_0303;
        let high = raw.high >> (4 * (slice / 8) + run) & 0x0101_0101;
        (low | high << 2).to_le_bytes().map(|q| d * (f32::from(q) - 4.0))
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        let fit = Symmetric::<16>::fit(x, Integers::<4>, Integers::<32>);
        block.fill(0);
        for (j, &scale) in fit.scales.iter().enumerate() {
            let scale = (scale + 32) as u8;
            block[SCALES + j % 8] |= (scale & 0xf) << (4 * (j / 8));
            block[SCALES + 8 + j % 4] |= scale >> 4 << (2 * (j / 4));
        }
        for slice in 0..Self::SLICES {
            let (half, word) = (slice / 8, slice % 8);
            for run in 0..Self::RUNS {
                for i in 0..4 {
                    let q = (fit.q[Self::at(slice, run) + i] + 4) as u8;
                    block[QS + 4 * slice + i] |= (q & 3) << (2 * run);
                    block[HMASK + 4 * word + i] |= q >> 2 << (4 * half + run);
                }
            }
        }
        block[D..].copy_from_slice(&fit.d.to_le_bytes());
    }

    fn tame(block: &mut [u8], sigma: f32) {
        // The upper bits of a scale become 00 or 11: large, of either sign.
        for upper in &mut block[SCALES + 8..D] {
            *upper = (*upper & 0x55) * 3;
        }
        tame_signed(block, D, sigma / (RANDOM_SCALE_RMS * RANDOM_RMS));
    }
}
