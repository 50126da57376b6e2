//! F32, F16 and BF16: numbers without a block structure, or blocks of one.

use crate::{Bytes, Format, TensorType, bf16_to_f32, f32_to_bf16, f32_to_f16};

/// Root mean square of a uniformly random `i32`: 2^31 / sqrt(3).
const RANDOM_32_RMS: f32 = 1.239_850_3e9;

/// Root mean square of a uniformly random `i16`.
const RANDOM_16_RMS: f32 = 18_918.6;

/// IEEE single precision.
pub struct F32;

/// IEEE half precision.
pub struct F16;

/// The upper half of a single.
pub struct BF16;

impl Format for F32 {
    const TYPE: TensorType = TensorType::F32;
    const ELEMS: usize = 1;
    const BYTES: usize = 4;
    const SLICES: usize = 1;
    const RUNS: usize = 1;
    const RUN: usize = 1;

    #[inline(always)]
    fn at(_slice: usize, _run: usize) -> usize {
        0
    }

    type Raw = f32;

    #[inline(always)]
    fn load<B: Bytes>(block: B, _slice: usize) -> f32 {
        f32::from_bits(block.u32_aligned(0))
    }

    #[inline(always)]
    fn decode(raw: f32, _slice: usize, _run: usize) -> [f32; 4] {
        [raw, 0.0, 0.0, 0.0]
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&x[0].to_le_bytes());
    }

    fn tame(block: &mut [u8], sigma: f32) {
        let random = (&*block).u32_aligned(0) as i32;
        block.copy_from_slice(&(random as f32 * (sigma / RANDOM_32_RMS)).to_le_bytes());
    }
}

impl Format for F16 {
    const TYPE: TensorType = TensorType::F16;
    const ELEMS: usize = 1;
    const BYTES: usize = 2;
    const SLICES: usize = 1;
    const RUNS: usize = 1;
    const RUN: usize = 1;

    #[inline(always)]
    fn at(_slice: usize, _run: usize) -> usize {
        0
    }

    type Raw = f32;

    #[inline(always)]
    fn load<B: Bytes>(block: B, _slice: usize) -> f32 {
        block.f16(0)
    }

    #[inline(always)]
    fn decode(raw: f32, _slice: usize, _run: usize) -> [f32; 4] {
        [raw, 0.0, 0.0, 0.0]
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&f32_to_f16(x[0]).to_le_bytes());
    }

    fn tame(block: &mut [u8], sigma: f32) {
        let random = (&*block).u16(0) as i16;
        Self::encode(&[f32::from(random) * (sigma / RANDOM_16_RMS)], block);
    }
}

impl Format for BF16 {
    const TYPE: TensorType = TensorType::BF16;
    const ELEMS: usize = 1;
    const BYTES: usize = 2;
    const SLICES: usize = 1;
    const RUNS: usize = 1;
    const RUN: usize = 1;

    #[inline(always)]
    fn at(_slice: usize, _run: usize) -> usize {
        0
    }

    type Raw = f32;

    #[inline(always)]
    fn load<B: Bytes>(block: B, _slice: usize) -> f32 {
        bf16_to_f32(block.u16(0))
    }

    #[inline(always)]
    fn decode(raw: f32, _slice: usize, _run: usize) -> [f32; 4] {
        [raw, 0.0, 0.0, 0.0]
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&f32_to_bf16(x[0]).to_le_bytes());
    }

    fn tame(block: &mut [u8], sigma: f32) {
        let random = (&*block).u16(0) as i16;
        Self::encode(&[f32::from(random) * (sigma / RANDOM_16_RMS)], block);
    }
}
