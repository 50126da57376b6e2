//! How the block formats unpack. Their layouts are described where they are defined, in [`quant::formats`].

use quant::{
    Format, IQ4_VALUES,
    formats::{IQ4_NL, IQ4_XS, Legacy, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0},
};

use super::{bytes, integer::IntegerFormat, simd::Simd};

/// The little-endian word at `at`.
#[inline(always)]
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes(block, at))
}

/// The bytes of `words`, one after the other.
#[inline(always)]
fn concat(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u128::from);
    (a | b << 32 | c << 64 | d << 96).to_le_bytes()
}

impl IntegerFormat for Q8_0 {
    const LARGEST: i32 = 128;

    #[inline(always)]
    fn values<S: Simd>(s: S, block: &[u8], _group: usize) -> S::Bytes {
        s.bytes(bytes(block, 2))
    }
}

/// Sixteen bytes of nibbles: of value `i` the low one of byte `i`, of value `16 + i` the high one.
#[inline(always)]
fn nibbles<S: Simd>(s: S, block: &[u8], at: usize) -> S::Bytes {
    s.field(s.nibbles(bytes(block, at)), 0, 0xf)
}

impl<const BITS: usize, const MIN: bool> IntegerFormat for Legacy<BITS, MIN> {
    const LARGEST: i32 = (1 << BITS) - 1;
    const MINS: bool = MIN;

    #[inline(always)]
    fn values<S: Simd>(s: S, block: &[u8], _group: usize) -> S::Bytes {
        let at = if MIN { 4 } else { 2 };
        let q = match BITS {
            5 => s.or(nibbles(s, block, at + 4), s.bits(bytes(block, at), 0x10)),
            _ => nibbles(s, block, at),
        };
        if MIN { q } else { s.minus(q, 1 << (BITS - 1)) }
    }

    #[inline(always)]
    fn mins<S: Simd>(s: S, blocks: &[u8]) -> [S::Floats; 2] {
        let mut mins = [0.0; 8];
        if MIN {
            for (min, block) in mins.iter_mut().zip(blocks.chunks_exact(Self::BYTES)) {
                *min = -s.half(*bytes(block, 2));
            }
        }
        [s.floats(&mins); 2]
    }
}

/// The values of IQ4_NL's and IQ4_XS's integers, twice.
const IQ4: [u8; 32] = {
    let (mut table, mut i) = ([0; 32], 0);
    while i < 32 {
        table[i] = IQ4_VALUES[i % 16] as u8;
        i += 1;
    }
    table
};

impl IntegerFormat for IQ4_NL {
    const LARGEST: i32 = 127;

    #[inline(always)]
    fn values<S: Simd>(s: S, block: &[u8], _group: usize) -> S::Bytes {
        s.lookup(s.bytes(&IQ4), nibbles(s, block, 2))
    }
}

impl IntegerFormat for IQ4_XS {
    const LARGEST: i32 = 32 * 127;
    const SUBS: usize = 8;

    #[inline(always)]
    fn values<S: Simd>(s: S, block: &[u8], group: usize) -> S::Bytes {
        s.lookup(s.bytes(&IQ4), nibbles(s, block, 8 + 16 * group))
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [u8; 16] {
        let (low, high) = (word(block, 4), u32::from(u16::from_le_bytes(*bytes(block, 2))));
        let mut scales = [0; 16];
        for (j, scale) in (0..8).zip(&mut scales) {
            *scale = ((low >> (4 * j) & 0xf | (high >> (2 * j) & 3) << 4) as u8).wrapping_sub(32);
        }
        scales
    }
}

/// The two bits of Q2_K, and the low two of Q3_K.
#[inline(always)]
fn two_bits<S: Simd>(s: S, block: &[u8], at: usize, group: usize) -> S::Bytes {
    s.field(s.bytes(bytes(block, at + 32 * (group / 4))), 2 * (group % 4) as i32, 3)
}

impl IntegerFormat for Q2_K {
    const LARGEST: i32 = 15 * 3;
    const SUBS: usize = 16;
    const D: usize = 80;
    const MINS: bool = true;

    #[inline(always)]
    fn values<S: Simd>(s: S, block: &[u8], group: usize) -> S::Bytes {
        two_bits(s, block, 16, group)
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [u8; 16] {
        bytes::<16>(block, 0).map(|byte| byte & 0xf)
    }

    #[inline(always)]
    fn mins<S: Simd>(s: S, block: &[u8]) -> [S::Floats; 2] {
        let (mins, dmin) = (bytes::<16>(block, 0).map(|byte| byte >> 4), s.splat(s.half(*bytes(block, 82))));
        [s.mul(dmin, s.floats_of_bytes(&mins, 0, 2)), s.mul(dmin, s.floats_of_bytes(&mins, 1, 2))]
    }
}

impl IntegerFormat for Q3_K {
    const LARGEST: i32 = 32 * 4;
    const SUBS: usize = 16;
    const D: usize = 108;

    #[inline(always)]
    fn values<S: Simd>(s: S, block: &[u8], group: usize) -> S::Bytes {
        let high = s.field(s.bytes(bytes(block, 0)), group as i32 - 2, 4);
        s.minus(s.or(two_bits(s, block, 32, group), high), 4)
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [u8; 16] {
        let [a, b, high] = [96, 100, 104].map(|at| word(block, at));
        let low = [a, b, a >> 4, b >> 4].map(|low| low & 0x0f0f_0f0f);
        let high = [high << 4, high << 2, high, high >> 2].map(|high| high & 0x3030_3030);
        // The subtraction of 32 from six bits, byte by byte: the top bit keeps a byte from borrowing of the next.
        let scale = |i: usize| ((low[i] | high[i] | 0x8080_8080) - 0x2020_2020) ^ 0x8080_8080;
        concat([scale(0), scale(1), scale(2), scale(3)])
    }
}

/// The four bits of Q4_K, and the low four of Q5_K.
#[inline(always)]
fn four_bits<S: Simd>(s: S, block: &[u8], at: usize, group: usize) -> S::Bytes {
    s.field(s.bytes(bytes(block, at + 32 * (group / 2))), 4 * (group % 2) as i32, 0xf)
}

/// The eight scales of Q4_K and Q5_K, then the eight minima.
#[inline(always)]
fn scales_and_mins(block: &[u8]) -> [u8; 16] {
    let [scales, mins, upper] = [4, 8, 12].map(|at| word(block, at));
    concat([
        scales & 0x3f3f_3f3f,
        upper & 0x0f0f_0f0f | scales >> 2 & 0x3030_3030,
        mins & 0x3f3f_3f3f,
        upper >> 4 & 0x0f0f_0f0f | mins >> 2 & 0x3030_3030,
    ])
}

/// The minima of Q4_K and Q5_K.
#[inline(always)]
fn eight_mins<S: Simd>(s: S, block: &[u8]) -> [S::Floats; 2] {
    let dmin = s.splat(s.half(*bytes(block, 2)));
    [s.mul(dmin, s.floats_of_bytes(&scales_and_mins(block), 8, 1)); 2]
}

impl IntegerFormat for Q4_K {
    const LARGEST: i32 = 63 * 15;
    const SUBS: usize = 8;
    const MINS: bool = true;

    #[inline(always)]
    fn values<S: Simd>(s: S, block: &[u8], group: usize) -> S::Bytes {
        four_bits(s, block, 16, group)
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [u8; 16] {
        scales_and_mins(block)
    }

    #[inline(always)]
    fn mins<S: Simd>(s: S, block: &[u8]) -> [S::Floats; 2] {
        eight_mins(s, block)
    }
}

impl IntegerFormat for Q5_K {
    const LARGEST: i32 = 63 * 31;
    const SUBS: usize = 8;
    const MINS: bool = true;

    #[inline(always)]
    fn values<S: Simd>(s: S, block: &[u8], group: usize) -> S::Bytes {
        let high = s.field(s.bytes(bytes(block, 16)), group as i32 - 4, 0x10);
        s.or(four_bits(s, block, 48, group), high)
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [u8; 16] {
        scales_and_mins(block)
    }

    #[inline(always)]
    fn mins<S: Simd>(s: S, block: &[u8]) -> [S::Floats; 2] {
        eight_mins(s, block)
    }
}

impl IntegerFormat for Q6_K {
    const LARGEST: i32 = 128 * 32;
    const SUBS: usize = 16;
    const D: usize = 208;

    #[inline(always)]
    fn values<S: Simd>(s: S, block: &[u8], group: usize) -> S::Bytes {
        let (half, pair) = (group / 4, group % 4);
        let low = s.field(s.bytes(bytes(block, 64 * half + 32 * (pair % 2))), 4 * (pair / 2) as i32, 0xf);
        let high = s.field(s.bytes(bytes(block, 128 + 32 * half)), 2 * pair as i32 - 4, 0x30);
        s.minus(s.or(low, high), 32)
    }

    #[inline(always)]
    fn scales(block: &[u8]) -> [u8; 16] {
        *bytes(block, 192)
    }
}
