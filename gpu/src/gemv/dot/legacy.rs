//! Blocks of 32 values: a lane takes a whole block.

use cuda_std::prelude::*;
use quant::formats::{Legacy, Q8_0};

use super::{Dot, Run, Staged, half};

/// Q4_0, Q4_1, Q5_0, Q5_1. The middle of the integers' range is subtracted from all, and added to the minimum if there is one.
impl<const BITS: usize, const MIN: bool> Dot for Legacy<BITS, MIN> {
    const W: usize = 8;
    const PARTS: usize = 1;
    const SUMS: usize = if MIN { 32 } else { 0 };
    const POWER: (usize, usize) = (if BITS == 4 { 4 } else { 0 }, 0);
    /// d, m or 0, the fifth bits or 0, the low four bits.
    type Bits = (f32, f32, u32, [u32; 4]);

    #[inline(always)]
    fn d(&(d, ..): &Self::Bits) -> f32 {
        d
    }

    #[inline(always)]
    fn bits(block: Staged, _slice: usize) -> Self::Bits {
        match (BITS, MIN) {
            (4, false) => {
                let (d, low) = block.half_words();
                (d, 0.0, 0, low)
            }
            (5, false) => {
                let (d, [high, a, b, c, e]) = block.half_words();
                (d, 0.0, high, [a, b, c, e])
            }
            (4, true) => {
                let [scales, a, b, c, e] = block.words::<5, 4>(0);
                (half(scales, false), half(scales, true), 0, [a, b, c, e])
            }
            _ => {
                let [scales, high, a, b, c, e] = block.words::<6, 8>(0);
                (half(scales, false), half(scales, true), high, [a, b, c, e])
            }
        }
    }

    #[inline(always)]
    fn run(&(d, m, high, low): &Self::Bits, _slice: usize, _part: usize) -> Run<8> {
        let mut q = [0; 8];
        if BITS == 4 {
            for i in 0..4 {
                // Sixteen times the four bits, whose top bit is flipped: 16 (q - 8).
                let flipped = low[i] ^ 0x8888_8888;
                q[i] = flipped << 4 & 0xf0f0_f0f0;
                q[i + 4] = flipped & 0xf0f0_f0f0;
            }
        } else {
            // Above the low four bits goes the complement of the fifth, four times: q - 16.
            let upper = FifthBits::new(!high);
            for i in 0..4 {
                q[i] = simd::select_bits(0x0f0f_0f0f, low[i], upper.word(i));
                q[i + 4] = simd::select_bits(0x0f0f_0f0f, low[i] >> 4, upper.word(i + 4));
            }
        }
        let middle = (1 << (BITS - 1)) as f32;
        Run { q, factor: 1, offset: if MIN { float::fma(middle, d, m) } else { 0.0 } }
    }
}

/// The fifth bits of 32 values: bit 4 k + j belongs to byte j of word k. A permutation that fills bytes with the top bits of
/// others brings them there. It takes them from two registers, so the bits of a word must lie in two bytes at the same two places:
/// bits 2 and 3 of the lower four nibbles have changed places with bits 0 and 1 of the nibbles 16 bits above.
#[derive(Clone, Copy)]
struct FifthBits(u32);

impl FifthBits {
    #[inline(always)]
    fn new(bits: u32) -> Self {
        let swap = (bits ^ bits >> 14) & 0x0000_cccc;
        FifthBits(bits ^ swap ^ swap << 14)
    }

    /// Bytes of word `k`: 0xff where the fifth bit is set, 0 elsewhere.
    #[inline(always)]
    fn word(self, k: usize) -> u32 {
        let place = 4 * (k % 2) + 2 * (k / 4);
        let selector = 0xeac8 + 0x1111 * (k / 2 % 2) as u32;
        simd::byte_perm(self.0 << (7 - place), self.0 << (6 - place), selector)
    }
}

impl Dot for Q8_0 {
    const W: usize = 8;
    const PARTS: usize = 1;
    const SUMS: usize = 0;
    /// d, q
    type Bits = (f32, [u32; 8]);

    #[inline(always)]
    fn d(&(d, _): &Self::Bits) -> f32 {
        d
    }

    #[inline(always)]
    fn bits(block: Staged, _slice: usize) -> Self::Bits {
        block.half_words()
    }

    #[inline(always)]
    fn run(&(_, q): &Self::Bits, _slice: usize, _part: usize) -> Run<8> {
        Run { q, factor: 1, offset: 0.0 }
    }
}
