//! IQ4_NL: 32 values `d * values[q]` with 4-bit `q` and sixteen fixed values ([`crate::iq4`]).
//!
//! Bytes: `d` (half precision), then `q` ([`crate::nibbles`]).

use crate::fit::{Levels, reciprocal, symmetric_step};
use crate::random::tame_signed;
use crate::{Bytes, Format, TensorType, f16_to_f32, f32_to_f16, iq4, nibbles};

/// 4-bit indices into a table of values, one scale for 32.
pub struct IQ4_NL;

const D: usize = 0;
const QS: usize = 2;

/// What a slice is decoded from.
#[derive(Clone, Copy)]
pub struct Raw {
    d: f32,
    q: u32,
}

impl Format for IQ4_NL {
    const TYPE: TensorType = TensorType::IQ4_NL;
    const ELEMS: usize = 32;
    const BYTES: usize = QS + nibbles::BYTES;
    const SLICES: usize = nibbles::SLICES;
    const RUNS: usize = nibbles::RUNS;

    #[inline(always)]
    fn at(slice: usize, run: usize) -> usize {
        nibbles::at(slice, run)
    }

    type Raw = Raw;

    #[inline(always)]
    fn load<B: Bytes>(block: B, slice: usize) -> Raw {
        Raw { d: block.f16(D), q: block.u32(QS + 4 * slice) }
    }

    #[inline(always)]
    fn decode(raw: Raw, _slice: usize, run: usize) -> [f32; 4] {
        iq4::values(nibbles::run(raw.q, run)).map(|value| raw.d * value)
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        let d = f32_to_f16(symmetric_step(x, &iq4::Values));
        block[D..QS].copy_from_slice(&d.to_le_bytes());
        let inverse = reciprocal(f16_to_f32(d));
        nibbles::pack(
            &core::array::from_fn(|i| iq4::index(iq4::Values.nearest(x[i] * inverse) as i8)),
            &mut block[QS..],
        );
    }

    fn tame(block: &mut [u8], sigma: f32) {
        tame_signed(block, D, sigma / iq4::RANDOM_RMS);
    }
}
