//! Q4_0, Q4_1, Q5_0 and Q5_1: 32 values `d * (q - 2^(BITS - 1))`, or with a minimum `d * q + m`, with `BITS`-bit `q`.
//!
//! Bytes: `d`, then `m` if there is one (half precision), then the fifth bits if there are five (bit `i` of the word
//! belongs to value `i`), then the low four bits ([`crate::nibbles`]).

use crate::fit::{largest, reciprocal};
use crate::random::{tame_affine, tame_signed};
use crate::{Bytes, Format, TensorType, f32_to_f16, nibbles};

/// One of ggml's first formats, by the bits of its integers and whether it has a minimum.
pub struct Legacy<const BITS: usize, const MIN: bool>;

/// 4-bit integers, one scale for 32.
pub type Q4_0 = Legacy<4, false>;

/// 4-bit integers, one scale and minimum for 32.
pub type Q4_1 = Legacy<4, true>;

/// 5-bit integers, one scale for 32.
pub type Q5_0 = Legacy<5, false>;

/// 5-bit integers, one scale and minimum for 32.
pub type Q5_1 = Legacy<5, true>;

const D: usize = 0;
const M: usize = 2;

/// What a slice is decoded from.
#[derive(Clone, Copy)]
pub struct Raw {
    d: f32,
    /// 0 in a format without.
    m: f32,
    low: u32,
    /// The fifth bits of all values, 0 in a format without.
    high: u32,
}

impl<const BITS: usize, const MIN: bool> Legacy<BITS, MIN> {
    const QH: usize = if MIN { M + 2 } else { M };
    const QS: usize = if BITS == 5 { Self::QH + 4 } else { Self::QH };

    /// The largest `q`.
    const TOP: u8 = (1 << BITS) - 1;

    /// What is taken from `q` in a format without a minimum.
    const ZERO: f32 = (1 << (BITS - 1)) as f32;

    /// Standard deviation of a random `q`, or its root mean square from [`Self::ZERO`].
    const RANDOM_DEVIATION: f32 = match (BITS, MIN) {
        (4, false) => 4.637,
        (4, true) => 4.610,
        (5, false) => 9.247,
        (5, true) => 9.233,
        _ => unreachable!(),
    };

    /// A word of a block: only with a minimum are blocks a multiple of four bytes.
    #[inline(always)]
    fn word<B: Bytes>(block: B, at: usize) -> u32 {
        if MIN { block.u32_aligned(at) } else { block.u32(at) }
    }
}

impl<const BITS: usize, const MIN: bool> Format for Legacy<BITS, MIN> {
    const TYPE: TensorType = match (BITS, MIN) {
        (4, false) => TensorType::Q4_0,
        (4, true) => TensorType::Q4_1,
        (5, false) => TensorType::Q5_0,
        (5, true) => TensorType::Q5_1,
        _ => unreachable!(),
    };
    const ELEMS: usize = 32;
    const BYTES: usize = Self::QS + nibbles::BYTES;
    const SLICES: usize = nibbles::SLICES;
    const RUNS: usize = nibbles::RUNS;

    #[inline(always)]
    fn at(slice: usize, run: usize) -> usize {
        nibbles::at(slice, run)
    }

    type Raw = Raw;

    #[inline(always)]
    fn load<B: Bytes>(block: B, slice: usize) -> Raw {
        Raw {
            d: block.f16(D),
            m: if MIN { block.f16(M) } else { 0.0 },
            low: Self::word(block, Self::QS + 4 * slice),
            high: if BITS == 5 { Self::word(block, Self::QH) } else { 0 },
        }
    }

    #[inline(always)]
    fn decode(raw: Raw, slice: usize, run: usize) -> [f32; 4] {
        // Four bits, spread by a product to bit 4 of a byte each.
        let high = ((raw.high >> Self::at(slice, run) & 0xf) * 0x0204_0810) & 0x1010_1010;
        let q = (nibbles::run(raw.low, run) | high).to_le_bytes();
        if MIN { q.map(|q| raw.d * f32::from(q) + raw.m) } else { q.map(|q| raw.d * (f32::from(q) - Self::ZERO)) }
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        // Without a minimum the number of the largest magnitude becomes the lowest integer, which has no counterpart.
        let (d, offset, zero) = if MIN {
            let min = x.iter().copied().fold(f32::INFINITY, f32::min);
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            block[M..M + 2].copy_from_slice(&f32_to_f16(min).to_le_bytes());
            ((max - min) / f32::from(Self::TOP), min, 0.0)
        } else {
            (largest(x) / -Self::ZERO, 0.0, Self::ZERO)
        };
        block[D..D + 2].copy_from_slice(&f32_to_f16(d).to_le_bytes());
        let inverse = reciprocal(d);
        let mut q = [0; 32];
        let mut high = 0u32;
        for (i, (q, &x)) in q.iter_mut().zip(x).enumerate() {
            // Halves round up.
            *q = (((x - offset) * inverse + (zero + 0.5)) as u8).min(Self::TOP);
            high |= u32::from(*q >> 4) << i;
        }
        if BITS == 5 {
            block[Self::QH..Self::QS].copy_from_slice(&high.to_le_bytes());
        }
        nibbles::pack(&q, &mut block[Self::QS..]);
    }

    fn tame(block: &mut [u8], sigma: f32) {
        let d = sigma / Self::RANDOM_DEVIATION;
        if MIN {
            tame_affine(block, D, M, d, Self::TOP);
            // This minimum is added, not subtracted.
            block[M + 1] ^= 0x80;
        } else {
            tame_signed(block, D, d);
        }
    }
}
