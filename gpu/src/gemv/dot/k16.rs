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
    const W: usize = 4;
    const PARTS: usize = 4;
    const SUMS: usize = 0;
    /// The low two bits; the third one of part `p`, flipped, at bit `4 + p` of a byte; the scales; d / 32.
    type Bits = ([u32; 4], [u32; 4], [u32; 2], Factor);

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let (upper, odd) = (slice as u32 / 2, slice % 2);
        let mut high = block.words::<4, 2>(16 * odd);
        for i in 0..4 {
            // Flipping the top bit of the three subtracts 4, in two's complement. What a shift brings from a byte into the next one
            // stays below bit 4.
            high[i] = !high[i] << (4 - 4 * upper);
        }
        let [low, low2, top] = block.words::<3, 2>(96);
        let scales = low >> (4 * upper) & 0x0f0f_0f0f | top << (4 - 4 * upper) & 0x3030_3030;
        let scales2 = low2 >> (4 * upper) & 0x0f0f_0f0f
            | simd::funnel_shift_right(top, top, (4 * upper).wrapping_sub(2)) & 0x3030_3030;
        (
            block.words::<4, 2>(32 + 16 * slice),
            high,
            [scales, scales2],
            Factor::new::<32>(block.f16(108) * (1.0 / 32.0)),
        )
    }

    #[inline(always)]
    fn run(&(low, high, scales, d): &Self::Bits, slice: usize, part: usize) -> Run<8> {
        let mut q = [0; 8];
        for i in 0..4 {
            // The three bits side by side, then at the top of the byte: 32 (q - 4).
            q[i] = match part {
                0 => (low[i] << 2 & 0x0c0c_0c0c | high[i] & 0x1010_1010) << 3,
                1 => (low[i] << 1 & 0x1818_1818 | high[i] & 0x2020_2020) << 2,
                2 => (low[i] & 0x3030_3030 | high[i] & 0x4040_4040) << 1,
                _ => low[i] >> 1 & 0x6060_6060 | high[i] & 0x8080_8080,
            };
        }
        Run { q, scale: d.times(scales[part / 2], byte(slice, part)), offset: 0.0 }
    }
}

/// Of the word with the scales of parts 0 and 1, or 2 and 3, the byte that belongs to a part.
#[inline(always)]
fn byte(slice: usize, part: usize) -> usize {
    slice % 2 + 2 * (part % 2)
}
