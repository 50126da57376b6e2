//! Q8_0: 32 values `d * q` with 8-bit signed `q`.
//!
//! Bytes: `d` (half precision), then `q[32]`.

use crate::{Bytes, Format, TensorType};

/// 8-bit integers, one scale for 32.
pub struct Q8_0;

const D: usize = 0;
const QS: usize = 2;

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

    #[inline(always)]
    fn run<B: Bytes>(block: B, slice: usize, _run: usize) -> [f32; 4] {
        let d = block.f16(D);
        block.u32(QS + 4 * slice).to_le_bytes().map(|q| f32::from(q as i8) * d)
    }
}
