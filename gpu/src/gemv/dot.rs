//! How each format's blocks become integers that are multiplied with quantised activations.

use cuda_std::prelude::*;
use quant::formats::{Q4_K, Q6_K, Q8_0};

use super::staged::Staged;

/// Consecutive weights of a slice that share a scale: scale * q + offset.
#[derive(Clone, Copy)]
pub struct Run<const W: usize> {
    /// `4 W` signed bytes.
    pub q: [u32; W],
    /// What their products are multiplied with.
    pub scale: f32,
    /// What the activations' sum is multiplied with.
    pub offset: f32,
}

/// A format's integer dot products. A lane multiplies a *slice* of a block: `RUNS` runs of `4 W` consecutive values.
pub trait Dot: quant::Format {
    /// Words of a run: 4 or 8.
    const W: usize;
    /// Runs of a slice.
    const PARTS: usize;
    /// Slices of a block.
    const LANES: usize = Self::ELEMS / (4 * Self::W * Self::PARTS);
    /// Weights have an offset.
    const OFFSET: bool;
    /// A slice's bytes.
    type Bits: Copy;

    /// Reads a slice.
    fn bits(block: Staged, slice: usize) -> Self::Bits;
    /// The index in the block of the first value of run `run` of a slice: a multiple of `4 W`.
    fn first(slice: usize, run: usize) -> usize;
    /// Run `run`. Words beyond `W` do not count.
    fn run(bits: &Self::Bits, slice: usize, run: usize) -> Run<8>;
}

impl Dot for Q8_0 {
    const W: usize = 8;
    const PARTS: usize = 1;
    const OFFSET: bool = false;
    type Bits = ([u32; 8], f32);

    #[inline(always)]
    fn bits(block: Staged, _slice: usize) -> Self::Bits {
        (block.words::<8, 2>(2), block.f16(0))
    }

    #[inline(always)]
    fn first(_slice: usize, _run: usize) -> usize {
        0
    }

    #[inline(always)]
    fn run(&(q, scale): &Self::Bits, _slice: usize, _run: usize) -> Run<8> {
        Run { q, scale, offset: 0.0 }
    }
}

/// Half precision in the low or the high half of a word.
#[inline(always)]
fn half(word: u32, upper: bool) -> f32 {
    F16(if upper { word >> 16 } else { word } as u16).to_f32()
}

impl Dot for Q4_K {
    const W: usize = 8;
    const PARTS: usize = 2;
    const OFFSET: bool = true;
    /// Header, 32 bytes of q.
    type Bits = ([u32; 4], [u32; 8]);

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        (block.words::<4, 16>(0), block.words::<8, 16>(16 + 32 * slice))
    }

    #[inline(always)]
    fn first(slice: usize, run: usize) -> usize {
        64 * slice + 32 * run
    }

    #[inline(always)]
    fn run(&(header, q): &Self::Bits, slice: usize, run: usize) -> Run<8> {
        let (scale, min) = k_scale_min([header[1], header[2], header[3]], slice, run);
        Run {
            q: q.map(|q| q >> (4 * run) & 0x0f0f_0f0f),
            scale: half(header[0], false) * scale,
            offset: -half(header[0], true) * min,
        }
    }
}

/// Scale and minimum of sub-block 2 slice + run of the twelve packed bytes that Q4_K and Q5_K share.
#[inline(always)]
fn k_scale_min(packed: [u32; 3], slice: usize, run: usize) -> (f32, f32) {
    // Sub-blocks 0 to 3 and 4 to 7 differ; no branch, since the lanes of a warp do.
    let upper = slice >= 2;
    let shift = 8 * (2 * (slice as u32 & 1) + run as u32);
    let [a, b, c] = [packed[0] >> shift, packed[1] >> shift, packed[2] >> shift];
    let scale = if upper { c & 0xf | a >> 2 & 0x30 } else { a & 0x3f };
    let min = if upper { c >> 4 & 0xf | b >> 2 & 0x30 } else { b & 0x3f };
    (scale as f32, min as f32)
}

impl Dot for Q6_K {
    const W: usize = 4;
    const PARTS: usize = 4;
    const OFFSET: bool = true;
    /// Two times 16 bytes of low bits, 16 bytes of high bits, scales, d.
    type Bits = ([u32; 4], [u32; 4], [u32; 4], [i8; 4], f32);

    #[inline(always)]
    fn bits(block: Staged, slice: usize) -> Self::Bits {
        let (half, part) = (slice / 2, slice % 2);
        let low = 64 * half + 16 * part;
        let scale = 192 + 8 * half + part;
        (
            block.words::<4, 2>(low),
            block.words::<4, 2>(low + 32),
            block.words::<4, 2>(128 + 32 * half + 16 * part),
            [0, 2, 4, 6].map(|i| block.u8(scale + i) as i8),
            block.f16(208),
        )
    }

    #[inline(always)]
    fn first(slice: usize, run: usize) -> usize {
        128 * (slice / 2) + 16 * (slice % 2) + 32 * run
    }

    #[inline(always)]
    fn run(&(low, low2, high, scales, d): &Self::Bits, _slice: usize, run: usize) -> Run<8> {
        let mut q = [0; 8];
        for i in 0..4 {
            let nibbles = (if run % 2 == 0 { low[i] } else { low2[i] }) >> (4 * (run / 2)) & 0x0f0f_0f0f;
            let top = if run < 2 { high[i] << (4 - 2 * run) } else { high[i] >> (2 * run - 4) };
            q[i] = nibbles | top & 0x3030_3030;
        }
        let scale = d * f32::from(scales[run]);
        Run { q, scale, offset: -32.0 * scale }
    }
}
