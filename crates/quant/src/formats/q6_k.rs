//! Q6_K: 256 values in sixteen sub-blocks of 16, `d * scale * (q - 32)` with 6-bit `q` and 8-bit signed `scale`.
//!
//! Bytes: the low four bits (`ql`), the high two (`qh`), the scales, then `d` (half precision). Each half of the block,
//! 128 values, has 64 bytes of `ql` and 32 of `qh`: nibble `n` of `ql[i]` belongs to value `64 n + i`, bit pair `p` of
//! `qh[i]` to value `32 p + i`.

use crate::fit::{Integers, Symmetric};
use crate::random::tame_signed;
use crate::{Bytes, Format, TensorType};

/// 6-bit integers, an 8-bit scale for 16.
pub struct Q6_K;

const QL: usize = 0;
const QH: usize = QL + 128;
const SCALES: usize = QH + 64;
const D: usize = SCALES + 16;

/// Root mean square of a random `q - 32`.
const RANDOM_RMS: f32 = 18.48;

/// Root mean square of a random scale of 48 to 63.
const RANDOM_SCALE_RMS: f32 = 55.69;

/// What a slice is decoded from.
#[derive(Clone, Copy)]
pub struct Raw {
    d: f32,
    /// A byte for each run.
    scales: u16,
    low: u32,
    high: u32,
}

impl Format for Q6_K {
    const TYPE: TensorType = TensorType::Q6_K;
    const ELEMS: usize = 256;
    const BYTES: usize = D + 2;
    const SLICES: usize = 32;
    const RUNS: usize = 2;

    #[inline(always)]
    fn at(slice: usize, run: usize) -> usize {
        128 * (slice / 16) + 64 * run + 4 * (slice % 16)
    }

    type Raw = Raw;

    #[inline(always)]
    fn load<B: Bytes>(block: B, slice: usize) -> Raw {
        Raw {
            d: block.f16(D),
            scales: u16::from_le_bytes([0, 1].map(|run| block.u8(SCALES + Self::at(slice, run) / 16))),
            low: block.u32(QL + 4 * slice),
            high: block.u32(QH + 32 * (slice / 16) + 4 * (slice % 8)),
        }
    }

    #[inline(always)]
    fn decode(raw: Raw, slice: usize, run: usize) -> [f32; 4] {
        let d = raw.d * f32::from((raw.scales >> (8 * run)) as i8);
        let low = raw.low >> (4 * run) & 0x0f0f_0f0f;
        let pair = 2 * run + slice % 16 / 8;
        let high = raw.high >> (2 * pair) & 0x0303_0303;
        (low | high << 4).to_le_bytes().map(|q| d * (f32::from(q) - 32.0))
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        let fit = Symmetric::<16>::fit(x, Integers::<32>, Integers::<128>);
        block[QL..SCALES].fill(0);
        for slice in 0..Self::SLICES {
            let (half, word) = (slice / 16, slice % 16);
            for run in 0..Self::RUNS {
                for i in 0..4 {
                    let q = (fit.q[Self::at(slice, run) + i] + 32) as u8;
                    block[QL + 4 * slice + i] |= (q & 0xf) << (4 * run);
                    block[QH + 32 * half + 4 * (word % 8) + i] |= q >> 4 << (2 * (2 * run + word / 8));
                }
            }
        }
        block[SCALES..D].copy_from_slice(&fit.scales.map(|scale| scale as u8));
        block[D..].copy_from_slice(&fit.d.to_le_bytes());
    }

    fn tame(block: &mut [u8], sigma: f32) {
        for scale in &mut block[SCALES..D] {
            let magnitude = *scale & 0xf | 0x30;
            *scale = if *scale & 0x80 == 0 { magnitude } else { magnitude.wrapping_neg() };
        }
        tame_signed(block, D, sigma / (RANDOM_SCALE_RMS * RANDOM_RMS));
    }
}
