//! Blocks of 256 values: a lane takes a quarter, 64 values that share their bytes.

use cuda_std::prelude::*;
use quant::formats::{Q4_K, Q5_K, Q6_K};

use super::{Dot, Run, Staged, half, unsigned};

/// A factor of minima that are bytes.
///
/// A byte b in the mantissa of a float of exponent 15 makes 32768 + b. Its product with `d` less `32768 d` is `d b`, in one fused
/// instruction and exactly: for a half-precision `d` both `32768 d` and the result fit in the 24 bits of a float.
#[derive(Clone, Copy)]
pub struct Factor {
    d: f32,
    zero: f32,
}

impl Factor {
    #[inline(always)]
    pub(super) fn new(d: f32) -> Self {
        Factor { d, zero: d * -32768.0 }
    }

    /// `d` times byte `i` of `bytes`. It is one instruction less where `i` is not a constant but loop-invariant:
    /// `prmt` takes one constant.
    #[inline(always)]
    pub(super) fn times(self, bytes: u32, i: usize) -> f32 {
        let biased = f32::from_bits(simd::byte_perm(bytes, 0x4700_0000, 0x7604 | (i as u32) << 4));
        float::fma(biased, self.d, self.zero)
    }
}

impl Dot for Q4_K {
    const W: usize = 8;
    const PARTS: usize = 2;
    const SUMS: usize = 32;
    const UNSIGNED: bool = true;
    const POWER: (usize, usize) = (0, 4);
    type Bits = ([u32; 8], ScaleMins);

    #[inline(always)]
    fn d(&(_, scale_mins): &Self::Bits) -> f32 {
        scale_mins.d
    }

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        (block.words::<8, 16>(16 + 32 * slice), ScaleMins::new(block.words::<4, 16>(0), slice))
    }

    #[inline(always)]
    fn run(&(words, scale_mins): &Self::Bits, slice: usize, part: usize) -> Run<8> {
        let (factor, offset) = scale_mins.get(slice, part);
        let mut q = [0; 8];
        for i in 0..8 {
            // 16^part q, where the bits lie.
            q[i] = words[i] & 0x0f0f_0f0f << (4 * part);
        }
        Run { q, factor, offset }
    }
}

impl Dot for Q5_K {
    /// Stages of a step of 8 blocks for 16 warps do not fit beside another kernel's.
    const WARPS: u32 = 12;
    const W: usize = 8;
    const PARTS: usize = 2;
    const SUMS: usize = 32;
    const UNSIGNED: bool = true;
    const POWER: (usize, usize) = (0, 1);
    /// The low bits; the fifth ones, of part 0 at bit 4 and of part 1 at bit 5 of a byte.
    type Bits = ([u32; 8], [u32; 8], ScaleMins);

    #[inline(always)]
    fn d(&(_, _, scale_mins): &Self::Bits) -> f32 {
        scale_mins.d
    }

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let mut high = block.words::<8, 16>(16);
        for i in 0..8 {
            // What a rotation brings from one byte into another does not come to bits 4 and 5.
            high[i] = simd::funnel_shift_right(high[i], high[i], (2 * slice as u32).wrapping_sub(4));
        }
        (block.words::<8, 16>(48 + 32 * slice), high, ScaleMins::new(block.words::<4, 16>(0), slice))
    }

    #[inline(always)]
    fn run(&(low, high, scale_mins): &Self::Bits, slice: usize, part: usize) -> Run<8> {
        let (factor, offset) = scale_mins.get(slice, part);
        let mut q = [0; 8];
        for i in 0..8 {
            // 2^part q.
            q[i] = if part == 0 {
                low[i] & 0x0f0f_0f0f | high[i] & 0x1010_1010
            } else {
                low[i] >> 3 & 0x1e1e_1e1e | high[i] & 0x2020_2020
            };
        }
        Run { q, factor, offset }
    }
}

/// The scales and minima of half a block of Q4_K or Q5_K.
#[derive(Clone, Copy)]
pub struct ScaleMins {
    /// Those of four sub-blocks, a byte each.
    scales: u32,
    mins: u32,
    d: f32,
    dmin: Factor,
}

impl ScaleMins {
    /// Of a block's first four words: `d` and `dmin`, the twelve packed bytes ([`quant`]'s `k_scales`).
    #[inline(always)]
    fn new([d, scales, mins, mixed]: [u32; 4], slice: usize) -> Self {
        // Sub-blocks 0 to 3 have six bits in `scales` and `mins`. The others have four in `mixed`, a nibble each, and the top two
        // in the top bits of `scales` and `mins`.
        let (shift, mask, mixed_mask) = if slice < 2 { (0, 0x3f3f_3f3f, 0) } else { (2, 0x3030_3030, 0x0f0f_0f0f) };
        ScaleMins {
            scales: scales >> shift & mask | mixed & mixed_mask,
            mins: mins >> shift & mask | mixed >> 4 & mixed_mask,
            d: half(d, false),
            dmin: Factor::new(-half(d, true)),
        }
    }

    /// Factor and offset of a part.
    #[inline(always)]
    fn get(self, slice: usize, part: usize) -> (i32, f32) {
        let sub = 2 * (slice % 2) + part;
        (unsigned(self.scales, sub), self.dmin.times(self.mins, sub))
    }
}

impl Dot for Q6_K {
    /// With 12 or 16, which registers allow, stages are short or fit beside no other kernel's: tokens took as long or longer (docs/gemv.md).
    const WARPS: u32 = 8;
    const W: usize = 4;
    const PARTS: usize = 4;
    const SUMS: usize = 0;
    const POWER: (usize, usize) = (2, 0);
    /// The low bits of values 0 to 15 and 64 to 79 after the slice's first, of 32 to 47 and 96 to 111, the high bits of all with
    /// the upper one flipped, the scales, d.
    type Bits = ([u32; 4], [u32; 4], [u32; 4], [i32; 4], f32);

    #[inline(always)]
    fn d(&(.., d): &Self::Bits) -> f32 {
        d
    }

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let (half, part) = (slice / 2, slice % 2);
        let low = 64 * half + 16 * part;
        let mut high = block.words::<4, 2>(128 + 32 * half + 16 * part);
        for i in 0..4 {
            // Flipping the top bit of the six subtracts 32, in two's complement.
            high[i] ^= 0xaaaa_aaaa;
        }
        let scale = |i: usize| i32::from(block.u8(192 + 8 * half + part + 2 * i) as i8);
        (
            block.words::<4, 2>(low),
            block.words::<4, 2>(low + 32),
            high,
            [scale(0), scale(1), scale(2), scale(3)],
            block.f16(208),
        )
    }

    #[inline(always)]
    fn run(&(low, low2, high, scales, _): &Self::Bits, _slice: usize, part: usize) -> Run<8> {
        let low = if part.is_multiple_of(2) { low } else { low2 };
        let mut q = [0; 8];
        for i in 0..4 {
            // 4 (q - 32): the low four bits at 2 to 5, the high two at 6 and 7.
            let nibbles = if part < 2 { low[i] << 2 } else { low[i] >> 2 };
            let top = high[i] << (6 - 2 * part);
            q[i] = nibbles & 0x3c3c_3c3c | top & 0xc0c0_c0c0;
        }
        Run { q, factor: scales[part], offset: 0.0 }
    }
}
