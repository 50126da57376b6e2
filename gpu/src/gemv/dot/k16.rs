//! Blocks of 256 values in sub-blocks of 16, of 2 and 3 bits: a lane takes a quarter, 16 bytes of bit pairs.

use cuda_std::prelude::*;
use quant::formats::{Q2_K, Q3_K};

use super::{Dot, Run, Staged, half, k::Factor, signed, unsigned};

impl Dot for Q2_K {
    const W: usize = 4;
    const PARTS: usize = 4;
    const SUMS: usize = 16;
    const UNSIGNED: bool = true;
    const POWER: (usize, usize) = (0, 2);
    /// q; the scales of the parts; 16 times the minima of this half of the block; d; dmin / 16.
    type Bits = ([u32; 4], u32, [u32; 2], f32, Factor);

    #[inline(always)]
    fn d(&(.., d, _): &Self::Bits) -> f32 {
        d
    }

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let [d] = block.words::<1, 4>(80);
        let scale_mins = block.words::<2, 4>(8 * (slice / 2));
        let scales = simd::byte_perm(scale_mins[0], scale_mins[1], 0x6420 + 0x1111 * (slice as u32 % 2));
        (
            block.words::<4, 4>(16 + 16 * slice),
            scales & 0x0f0f_0f0f,
            scale_mins.map(|bytes| bytes & 0xf0f0_f0f0),
            half(d, false),
            Factor::new(half(d, true) * (-1.0 / 16.0)),
        )
    }

    #[inline(always)]
    fn run(&(words, scales, mins, _, dmin): &Self::Bits, slice: usize, part: usize) -> Run<8> {
        let mut q = [0; 8];
        for i in 0..4 {
            // 4^part q, where the bits lie.
            q[i] = words[i] & 0x0303_0303 << (2 * part);
        }
        // Not gathered as the scales are: see `Factor::times`.
        Run { q, factor: unsigned(scales, part), offset: dmin.times(mins[part / 2], slice % 2 + 2 * (part % 2)) }
    }
}

impl Dot for Q3_K {
    const W: usize = 4;
    const PARTS: usize = 4;
    const SUMS: usize = 0;
    const POWER: (usize, usize) = (2, 2);
    /// The low two bits; the third one of part `p` at bit `p` of a byte, and what else lies there above bit 3; four times the scales of
    /// the parts; d.
    type Bits = ([u32; 4], [u32; 4], u32, f32);

    #[inline(always)]
    fn d(&(.., d): &Self::Bits) -> f32 {
        d
    }

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let (upper, odd) = (slice as u32 / 2, slice % 2);
        let high = block.words_from::<4>(16 * odd, 4 * upper);
        let [low, low2, top] = block.words::<3, 2>(96);
        // Parts 0 to 3 have the low four bits in bytes `odd`, 2 + odd, 4 + odd, 6 + odd, the high two in `odd` and 2 + odd, those of parts 2 and
        // 3 two bits above those of 0 and 1. All six go to the top, where flipping the first one subtracts 32, in two's complement.
        let gathered = 0x6420 + 0x1111 * odd as u32;
        let rotated = |word: u32| simd::funnel_shift_right(word, word, (4 * upper).wrapping_sub(2));
        let low = rotated(simd::byte_perm(low, low2, gathered));
        let top = rotated(top);
        let top = simd::byte_perm(top << 4, top << 2, gathered);
        let scales = (low & 0x3c3c_3c3c | top & 0xc0c0_c0c0) ^ 0x8080_8080;
        (block.words::<4, 2>(32 + 16 * slice), high, scales, block.f16(108))
    }

    #[inline(always)]
    fn run(&(low, high, scales, _): &Self::Bits, _slice: usize, part: usize) -> Run<8> {
        let mut q = [0; 8];
        for i in 0..4 {
            // 4^part times the low two bits, and 2^part where the third is missing.
            q[i] = low[i] & 0x0303_0303 << (2 * part);
            q[4 + i] = !high[i] & 0x0101_0101 << part;
        }
        Run { q, factor: signed(scales, part), offset: 0.0 }
    }

    /// A weight is its low two bits, less 4 where the third is missing. Two products take fewer instructions than to put three bits together.
    #[inline(always)]
    fn dot(run: &Run<8>, x: &[u32; 8], part: usize) -> i32 {
        let (mut low, mut missing) = (0, 0);
        for i in 0..4 {
            low = simd::dp4a_unsigned(run.q[i], x[i], low);
            missing = simd::dp4a_unsigned(run.q[4 + i], x[i], missing);
        }
        low - (missing << (2 + part))
    }
}
