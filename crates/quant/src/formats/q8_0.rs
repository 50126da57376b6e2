//! Q8_0: 32 values `d * q` with 8-bit signed `q`.
//!
//! Bytes: `d` (half precision), then `q[32]`.

use crate::fit::reciprocal;
use crate::random::tame_signed;
use crate::{Bytes, Format, TensorType, f32_to_f16};

/// 8-bit integers, one scale for 32.
pub struct Q8_0;

const D: usize = 0;
const QS: usize = 2;

/// Root mean square of a random `q`.
const RANDOM_RMS: f32 = 73.90;

/// The nearest integer, halves away from zero, as C's `roundf`; `core` has no rounding of floats.
fn round(x: f32) -> i32 {
    let whole = x as i32;
    let rest = x - whole as f32;
    whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)
}

/// What a slice is decoded from.
#[derive(Clone, Copy)]
pub struct Raw {
    d: f32,
    q: u32,
}

impl Format for Q8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    const ELEMS: usize = 32;
    const BYTES: usize = QS + 32;
    const SLICES: usize = 8;
    const RUNS: usize = 1;

    #[inline(always)]
    fn at(slice: usize, _run: usize) -> usize {
        4 * slice
    }

    type Raw = Raw;

    #[inline(always)]
    fn load<B: Bytes>(block: B, slice: usize) -> Raw {
        Raw { d: block.f16(D), q: block.u32(QS + 4 * slice) }
    }

    #[inline(always)]
    fn decode(raw: Raw, _slice: usize, _run: usize) -> [f32; 4] {
        let Raw { d, q } = raw;
        q.to_le_bytes().map(|q| f32::from(q as i8) * d)
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        let d = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / 127.0;
        let inverse = reciprocal(d);
        block[D..QS].copy_from_slice(&f32_to_f16(d).to_le_bytes());
        for (q, &x) in block[QS..].iter_mut().zip(x) {
            *q = round(x * inverse) as i8 as u8;
        }
    }

    fn tame(block: &mut [u8], sigma: f32) {
        tame_signed(block, D, sigma / RANDOM_RMS);
    }
}
