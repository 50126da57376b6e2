//! Blocks of 256 values: a lane takes a quarter, 64 values that share their bytes.

use quant::formats::{Q4_K, Q6_K};

use super::{Dot, Run, Staged, half};

impl Dot for Q4_K {
    const W: usize = 8;
    const PARTS: usize = 2;
    const SUMS: usize = 32;
    /// d and dmin, packed scales and minima; 32 bytes of q.
    type Bits = ([u32; 4], [u32; 8]);

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        (block.words::<4, 16>(0), block.words::<8, 16>(16 + 32 * slice))
    }

    #[inline(always)]
    fn first(slice: usize, part: usize) -> usize {
        64 * slice + 32 * part
    }

    #[inline(always)]
    fn run(&([d, a, b, c], q): &Self::Bits, slice: usize, part: usize) -> Run<8> {
        let (scale, min) = scale_min([a, b, c], slice, part);
        Run { q: q.map(|q| q >> (4 * part) & 0x0f0f_0f0f), scale: half(d, false) * scale, offset: -half(d, true) * min }
    }
}

/// Scale and minimum of sub-block `2 slice + part` of the twelve packed bytes that Q4_K and Q5_K share (`quant`'s k_scales).
#[inline(always)]
fn scale_min([a, b, c]: [u32; 3], slice: usize, part: usize) -> (f32, f32) {
    let upper = slice >= 2;
    let shift = 8 * (2 * (slice as u32 & 1) + part as u32);
    let (a, b, c) = (a >> shift, b >> shift, c >> shift);
    let scale = if upper { c & 0xf | a >> 2 & 0x30 } else { a & 0x3f };
    let min = if upper { c >> 4 & 0xf | b >> 2 & 0x30 } else { b & 0x3f };
    (scale as f32, min as f32)
}

impl Dot for Q6_K {
    const W: usize = 4;
    const PARTS: usize = 4;
    const SUMS: usize = 0;
    /// The low bits of values 0 to 15 and 64 to 79 after the slice's first, of 32 to 47 and 96 to 111, the high bits of all, the
    /// scales in the bytes of a word, d.
    type Bits = ([u32; 4], [u32; 4], [u32; 4], u32, f32);

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let (half, part) = (slice / 2, slice % 2);
        let low = 64 * half + 16 * part;
        let scale = |i: usize| u32::from(block.u8(192 + 8 * half + part + 2 * i)) << (8 * i);
        (
            block.words::<4, 2>(low),
            block.words::<4, 2>(low + 32),
            block.words::<4, 2>(128 + 32 * half + 16 * part),
            scale(0) | scale(1) | scale(2) | scale(3),
            block.f16(208),
        )
    }

    #[inline(always)]
    fn first(slice: usize, part: usize) -> usize {
        128 * (slice / 2) + 16 * (slice % 2) + 32 * part
    }

    #[inline(always)]
    fn run(&(low, low2, high, scales, d): &Self::Bits, _slice: usize, part: usize) -> Run<8> {
        let mut q = [0; 8];
        for i in 0..4 {
            // Four times the six bits: the low four at bits 2 to 5, the high two at 6 and 7, which flipping the top bit makes
            // 4 (q - 32).
            let low = if part % 2 == 0 { low[i] } else { low2[i] };
            let nibbles = if part < 2 { low << 2 } else { low >> 2 };
            let top = high[i] << (6 - 2 * part);
            q[i] = (nibbles & 0x3c3c_3c3c | top & 0xc0c0_c0c0) ^ 0x8080_8080;
        }
        let scale = (scales >> (8 * part)) as u8 as i8;
        Run { q, scale: 0.25 * d * f32::from(scale), offset: 0.0 }
    }
}
