//! IQ4_NL and IQ4_XS: four bits that choose one of sixteen signed bytes.

use cuda_std::prelude::*;
use quant::{
    IQ4_VALUES,
    formats::{IQ4_NL, IQ4_XS},
};

use super::{Dot, Run, Staged, half, signed};

impl Dot for IQ4_NL {
    const W: usize = 8;
    const PARTS: usize = 1;
    const SUMS: usize = 0;
    /// d, q
    type Bits = (f32, [u32; 4]);

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
        Run { q: values(q), factor: 1, offset: 0.0 }
    }
}

/// A lane takes two sub-blocks, whose scales share their bytes.
impl Dot for IQ4_XS {
    const W: usize = 8;
    const PARTS: usize = 2;
    const SUMS: usize = 0;
    const POWER: (usize, usize) = (2, 0);
    /// d and the scales' upper bits, the scales' lower bits; q of both sub-blocks.
    type Bits = ([u32; 2], [u32; 8]);

    #[inline(always)]
    fn d(&([d, _], _): &Self::Bits) -> f32 {
        half(d, false)
    }

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        (block.words::<2, 8>(0), block.words::<8, 8>(8 + 32 * slice))
    }

    #[inline(always)]
    fn run(&([d, low], q): &Self::Bits, slice: usize, part: usize) -> Run<8> {
        // Four times the six bits: the low four at bits 2 to 5, the high two at 6 and 7, which flipping the top bit makes
        // 4 (scale - 32).
        let low = low >> (8 * slice);
        let low = if part == 0 { low << 2 } else { low >> 2 };
        let high = (d >> (16 + 4 * slice)) << (6 - 2 * part);
        let scale = (low & 0x3c | high & 0xc0) ^ 0x80;
        let q = if part == 0 { [q[0], q[1], q[2], q[3]] } else { [q[4], q[5], q[6], q[7]] };
        Run { q: values(q), factor: signed(scale, 0), offset: 0.0 }
    }
}

/// The values that 32 four-bit numbers stand for, in the order of `quant`'s nibbles: the low halves of all bytes, then the high
/// ones.
#[inline(always)]
fn values(q: [u32; 4]) -> [u32; 8] {
    /// Four values of the table.
    const fn packed(first: usize) -> u32 {
        let [a, b, c, d] = [0, 1, 2, 3];
        u32::from_le_bytes([
            IQ4_VALUES[first + a] as u8,
            IQ4_VALUES[first + b] as u8,
            IQ4_VALUES[first + c] as u8,
            IQ4_VALUES[first + d] as u8,
        ])
    }
    let mut out = [0; 8];
    for i in 0..4 {
        // A selector's four nibbles are two bytes of q, low and high half of each in turn. Every one is looked up in both halves
        // of the table; its top bit then chooses, as bit 2 of a selector whose lower bits are the byte's place.
        let index = q[i] & 0x7777_7777;
        let choice = q[i] >> 1 & 0x4444_4444 | 0x3210_3210;
        let lookup = |index: u32, choice: u32| {
            let lower = simd::byte_perm(const { packed(0) }, const { packed(4) }, index);
            let upper = simd::byte_perm(const { packed(8) }, const { packed(12) }, index);
            simd::byte_perm(lower, upper, choice)
        };
        // The compiler would mask both halves of what it knows to be shifted.
        let upper = |word: u32| simd::funnel_shift_right(word, 0, 16);
        let (a, b) = (lookup(index, choice), lookup(upper(index), upper(choice)));
        out[i] = simd::byte_perm(a, b, 0x6420);
        out[i + 4] = simd::byte_perm(a, b, 0x7531);
    }
    out
}
