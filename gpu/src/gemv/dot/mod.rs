//! Integer dot products of the block formats with quantised activations.
//!
//! Every format says how the bytes of a block become bytes with a scale (and an offset); the product is the same for all,
//! in [`super`].

mod iq4;
mod k;
mod k16;
mod legacy;

use cuda_std::prelude::*;
use quant::Format;

use super::{MAX_WARPS, staged::Staged};

/// `4 W` consecutive weights of a block: weight i is `d * factor * q[i] + offset`, where [`Dot::d`] says d.
#[derive(Clone, Copy)]
pub struct Run<const W: usize> {
    /// The integers as bytes, signed or [`Dot::UNSIGNED`], the first in the lowest byte of the first word. They may be the format's
    /// integers times a power of two, where that saves instructions (a 4-bit integer in the upper half of its byte), as may the factor:
    /// [`Dot::POWER`] says which.
    pub q: [u32; W],
    /// The scale of the sub-block; 1 in formats that have none.
    pub factor: i32,
    /// What the activations' sum is multiplied with; 0 where [`Dot::SUMS`] is 0.
    pub offset: f32,
}

/// A format's integer dot products. The lanes of a warp take consecutive *slices* of a row's blocks; a slice is `PARTS` runs of
/// `4 W` values, which share a scale and an offset.
pub trait Dot: Format {
    /// Words of a run: 4 or 8.
    const W: usize;
    /// Runs of a slice.
    const PARTS: usize;
    /// Slices of a block: 1, 2, 4 or 8.
    const LANES: usize = Self::ELEMS / (4 * Self::W * Self::PARTS);
    /// Activations that share a sum, 16 or 32, for formats with an offset; 0 for the others.
    const SUMS: usize;
    /// As [`Weights::WARPS`](super::Weights::WARPS): a multiple of 4, the warps that issue side by side. Two blocks leave a thread 64 registers with
    /// 16 of them, 80 with 12.
    const WARPS: u32 = MAX_WARPS as u32;
    /// Whether the bytes of a run are unsigned.
    const UNSIGNED: bool = false;
    /// The products of part p are 2^(a + b p) times what they should be, for these a and b. The scales of the activations have the inverse, so
    /// that it takes no instruction where they are multiplied.
    const POWER: (usize, usize) = (0, 0);
    /// A slice as it lies in the block, in registers: no arrays that are indexed by what is not a constant.
    type Bits: Copy;

    /// Reads a slice.
    fn bits(block: Staged, slice: usize) -> Self::Bits;
    /// What the products of all parts of a slice are multiplied with.
    fn d(bits: &Self::Bits) -> f32;
    /// The index in the block of a slice's first value, a multiple of `4 W`; each of its runs begins 32 values behind the one before. Runs of
    /// 32 values follow each other; of those of 16, a slice has the first or the second half of each of the four 32s that share their bytes.
    #[inline(always)]
    fn first(slice: usize) -> usize {
        if Self::W == 8 { 32 * Self::PARTS * slice } else { 128 * (slice / 2) + 16 * (slice % 2) }
    }
    /// A slice's run `part`. `part` is a constant where this is inlined, `slice` is not: the lanes of a warp differ in it, so there
    /// is no branch on it.
    fn run(bits: &Self::Bits, slice: usize, part: usize) -> Run<8>;
    /// The sum of products of the integers of a slice's run `part` with as many activations.
    #[inline(always)]
    fn dot(run: &Run<8>, x: &[u32; 8], _part: usize) -> i32 {
        let product = if Self::UNSIGNED { simd::dp4a_unsigned } else { simd::dp4a };
        let mut sum = 0;
        for i in 0..Self::W {
            sum = product(run.q[i], x[i], sum);
        }
        sum
    }
}

/// Byte `i` of a word. It is one instruction where `i` is a constant or does not change in a loop.
#[inline(always)]
fn unsigned(bytes: u32, i: usize) -> i32 {
    simd::byte_perm(bytes, 0, 0x4440 + i as u32) as i32
}

/// Byte `i` of a word, which has a sign.
#[inline(always)]
fn signed(bytes: u32, i: usize) -> i32 {
    simd::byte_perm(bytes, 0, 0x8880 + 0x1111 * i as u32) as i32
}

/// The half-precision number in the low half of a word, or with `upper` in the high half.
#[inline(always)]
fn half(word: u32, upper: bool) -> f32 {
    F16(if upper { word >> 16 } else { word } as u16).to_f32()
}

#[cfg(test)]
mod tests;
