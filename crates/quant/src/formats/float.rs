//! F32, F16 and BF16: numbers as they are, blocks of one.

use crate::{Bytes, Format, TensorType, bf16_to_f32, f32_to_bf16, f32_to_f16};

/// IEEE single precision.
pub struct F32;

/// IEEE half precision.
pub struct F16;

/// The upper half of a single.
pub struct BF16;

/// How a number is stored.
pub trait Number {
    /// The format as a value.
    const TYPE: TensorType;
    /// Its bytes.
    const BYTES: usize;

    /// Reads it.
    fn read<B: Bytes>(block: B) -> f32;

    /// Writes it, rounded to nearest even.
    fn write(x: f32, block: &mut [u8]);
}

impl Number for F32 {
    const TYPE: TensorType = TensorType::F32;
    const BYTES: usize = 4;

    #[inline(always)]
    fn read<B: Bytes>(block: B) -> f32 {
        f32::from_bits(block.u32_aligned(0))
    }

    fn write(x: f32, block: &mut [u8]) {
        block.copy_from_slice(&x.to_le_bytes());
    }
}

impl Number for F16 {
    const TYPE: TensorType = TensorType::F16;
    const BYTES: usize = 2;

    #[inline(always)]
    fn read<B: Bytes>(block: B) -> f32 {
        block.f16(0)
    }

    fn write(x: f32, block: &mut [u8]) {
        block.copy_from_slice(&f32_to_f16(x).to_le_bytes());
    }
}

impl Number for BF16 {
    const TYPE: TensorType = TensorType::BF16;
    const BYTES: usize = 2;

    #[inline(always)]
    fn read<B: Bytes>(block: B) -> f32 {
        bf16_to_f32(block.u16(0))
    }

    fn write(x: f32, block: &mut [u8]) {
        block.copy_from_slice(&f32_to_bf16(x).to_le_bytes());
    }
}

impl<N: Number> Format for N {
    const TYPE: TensorType = N::TYPE;
    const ELEMS: usize = 1;
    const BYTES: usize = N::BYTES;
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
        N::read(block)
    }

    #[inline(always)]
    fn decode(raw: f32, _slice: usize, _run: usize) -> [f32; 4] {
        [raw, 0.0, 0.0, 0.0]
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        N::write(x[0], block);
    }

    fn tame(block: &mut [u8], sigma: f32) {
        // Of a random integer, 2^31 / sqrt(3); the bits are its upper ones.
        const RANDOM_RMS: f32 = 1.239_850_3e9;
        let random = block.iter().fold(0, |bits: u32, &byte| bits >> 8 | u32::from(byte) << 24);
        N::write(random as i32 as f32 * (sigma / RANDOM_RMS), block);
    }
}
