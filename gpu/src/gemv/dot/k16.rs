//! Blocks of 256 values in sub-blocks of 16, of 2 and 3 bits: a lane takes a quarter, 16 bytes of bit pairs.

use cuda_std::prelude::*;
use quant::formats::{Q2_K, Q3_K};

use super::{Dot, Run, Staged, half, k::Factor};

impl Dot for Q2_K {
    const W: usize = 4;
    const PARTS: usize = 4;
    const SUMS: usize = 16;
    const UNSIGNED: bool = true;
    /// q; scales and minima of this half of the block; d and dmin / 16.
    type Bits = ([u32; 4], [u32; 2], Factor, Factor);

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let [d] = block.words::<1, 4>(80);
        (
            block.words::<4, 4>(16 + 16 * slice),
            block.words::<2, 4>(8 * (slice / 2)),
            Factor::new::<0>(half(d, false)),
            Factor::new::<0>(half(d, true) * (-1.0 / 16.0)),
        )
    }

    #[inline(always)]
    fn run(&(words, scale_mins, d, dmin): &Self::Bits, slice: usize, part: usize) -> Run<8> {
        let scale_mins = scale_mins[part / 2];
        let scale = d.times(scale_mins & 0x0f0f_0f0f, byte(slice, part));
        let offset = dmin.times(scale_mins & 0xf0f0_f0f0, byte(slice, part));
        let mut q = [0; 8];
        for i in 0..4 {
            // 4^part q, where the bits lie.
            q[i] = words[i] & 0x0303_0303 << (2 * part);
        }
        const POWERS: [f32; 4] = [1.0, 1.0 / 4.0, 1.0 / 16.0, 1.0 / 64.0];
        Run { q, scale: scale * POWERS[part], offset }
    }
}

impl Dot for Q3_K {
    /// With 16 it would spill registers.
    const WARPS: u32 = 12;
    const W: usize = 4;
    const PARTS: usize = 4;
    const SUMS: usize = 0;
    /// The low two bits; the third one of part `p` at bit `p` of a byte, and what else lies there above bit 3; the scales; d.
    type Bits = ([u32; 4], [u32; 4], [u32; 2], f32);

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let (upper, odd) = (slice as u32 / 2, slice % 2);
        let high = block.words_from::<4>(16 * odd, 4 * upper);
        let [low, low2, top] = block.words::<3, 2>(96);
        let scales = low >> (4 * upper) & 0x0f0f_0f0f | top << (4 - 4 * upper) & 0x3030_3030;
        let scales2 = low2 >> (4 * upper) & 0x0f0f_0f0f
            | simd::funnel_shift_right(top, top, (4 * upper).wrapping_sub(2)) & 0x3030_3030;
        (block.words::<4, 2>(32 + 16 * slice), high, [scales, scales2], block.f16(108))
    }

    #[inline(always)]
    fn run(&(low, high, scales, d): &Self::Bits, slice: usize, part: usize) -> Run<8> {
        let mut q = [0; 8];
        for i in 0..4 {
            // 4^part times the low two bits, and 2^part where the third is missing.
            q[i] = low[i] & 0x0303_0303 << (2 * part);
            q[4 + i] = !high[i] & 0x0101_0101 << part;
        }
        const POWERS: [f32; 4] = [1.0, 1.0 / 4.0, 1.0 / 16.0, 1.0 / 64.0];
        Run { q, scale: Factor::new::<32>(d).times(scales[part / 2], byte(slice, part)) * POWERS[part], offset: 0.0 }
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

/// Of the word with the scales of parts 0 and 1, or 2 and 3, the byte that belongs to a part.
#[inline(always)]
fn byte(slice: usize, part: usize) -> usize {
    slice % 2 + 2 * (part % 2)
}
