//! Blocks of 256 values in sub-blocks of 16, of 2 and 3 bits: a lane takes a quarter, 16 bytes of bit pairs.

use cuda_std::prelude::*;
use quant::formats::{Q2_K, Q3_K};

use super::{Dot, Run, Staged, half, k::Factor};

impl Dot for Q2_K {
    const W: usize = 4;
    const PARTS: usize = 4;
    const SUMS: usize = 16;
    /// q; the scales and the minima of the parts, a byte each; d and dmin.
    type Bits = ([u32; 4], u32, u32, Factor, Factor);

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let [low, high] = block.words::<2, 4>(8 * (slice / 2));
        let scale_mins = simd::byte_perm(low, high, every_other(slice));
        let [d] = block.words::<1, 4>(80);
        (
            block.words::<4, 4>(16 + 16 * slice),
            scale_mins & 0x0f0f_0f0f,
            scale_mins >> 4 & 0x0f0f_0f0f,
            Factor::new::<0>(half(d, false)),
            Factor::new::<0>(-half(d, true)),
        )
    }

    #[inline(always)]
    fn first(slice: usize, part: usize) -> usize {
        128 * (slice / 2) + 16 * (slice % 2) + 32 * part
    }

    #[inline(always)]
    fn run(&(words, scales, mins, d, dmin): &Self::Bits, _slice: usize, part: usize) -> Run<8> {
        let (scale, offset) = (d.times(scales, part), dmin.times(mins, part));
        let mut q = [0; 8];
        if part < 3 {
            for i in 0..4 {
                q[i] = words[i] & 0x0303_0303 << (2 * part);
            }
            const SCALES: [f32; 3] = [1.0, 0.25, 0.0625];
            Run { q, scale: scale * SCALES[part], offset }
        } else {
            for i in 0..4 {
                // 64 (q - 2), where the bits lie.
                q[i] = words[i] & 0xc0c0_c0c0 ^ 0x8080_8080;
            }
            Run { q, scale: scale * (1.0 / 64.0), offset: float::fma(scale, 2.0, offset) }
        }
    }
}

impl Dot for Q3_K {
    const W: usize = 4;
    const PARTS: usize = 4;
    const SUMS: usize = 0;
    /// The low two bits, the third one of part `p` at bit `4 + p` of a byte, the scales of the parts, d / 32.
    type Bits = ([u32; 4], [u32; 4], u32, Factor);

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let (upper, odd) = (slice / 2, slice % 2);
        let mut high = block.words::<4, 2>(16 * odd);
        for i in 0..4 {
            // What comes over from the byte below stays under the bits that are used.
            high[i] <<= if upper == 0 { 4 } else { 0 };
        }
        let [low_a, low_b, top] = block.words::<3, 2>(96);
        let low = simd::byte_perm(low_a, low_b, every_other(slice)) >> (4 * upper);
        let top = simd::byte_perm(top, top >> 2, every_other(slice)) << if upper == 0 { 4 } else { 0 };
        (
            block.words::<4, 2>(32 + 16 * slice),
            high,
            low & 0x0f0f_0f0f | top & 0x3030_3030,
            Factor::new::<32>(block.f16(108) * (1.0 / 32.0)),
        )
    }

    #[inline(always)]
    fn first(slice: usize, part: usize) -> usize {
        128 * (slice / 2) + 16 * (slice % 2) + 32 * part
    }

    #[inline(always)]
    fn run(&(low, high, scales, d): &Self::Bits, _slice: usize, part: usize) -> Run<8> {
        let mut q = [0; 8];
        for i in 0..4 {
            // The low bits right below the third one, and all to the top of the byte: flipping the top bit makes 32 (q - 4).
            let three = match part {
                0 => (low[i] << 2 & 0x0c0c_0c0c | high[i] & 0x1010_1010) << 3,
                1 => (low[i] << 1 & 0x1818_1818 | high[i] & 0x2020_2020) << 2,
                2 => (low[i] & 0x3030_3030 | high[i] & 0x4040_4040) << 1,
                _ => low[i] >> 1 & 0x6060_6060 | high[i] & 0x8080_8080,
            };
            q[i] = three ^ 0x8080_8080;
        }
        Run { q, scale: d.times(scales, part), offset: 0.0 }
    }
}

/// Of the eight bytes of two words the even ones for an even slice, the odd ones for an odd slice.
#[inline(always)]
fn every_other(slice: usize) -> u32 {
    if slice % 2 == 0 { 0x6420 } else { 0x7531 }
}
