//! Blocks of 32 values: a lane takes a whole block.

use quant::formats::Q8_0;

use super::{Dot, Run, Staged};

impl Dot for Q8_0 {
    const W: usize = 8;
    const PARTS: usize = 1;
    const SUMS: usize = 0;
    /// q, d
    type Bits = ([u32; 8], f32);

    #[inline(always)]
    fn bits(block: Staged, _slice: usize) -> Self::Bits {
        (block.words::<8, 2>(2), block.f16(0))
    }

    #[inline(always)]
    fn first(_slice: usize, _part: usize) -> usize {
        0
    }

    #[inline(always)]
    fn run(&(q, scale): &Self::Bits, _slice: usize, _part: usize) -> Run<8> {
        Run { q, scale, offset: 0.0 }
    }
}
