//! IQ4_XS: 256 values in eight sub-blocks of 32, `d * (scale - 32) * values[q]` with 4-bit `q`, sixteen fixed values
//! ([`crate::iq4`]) and 6-bit `scale`.
//!
//! Bytes: `d` (half precision), the scales' upper bits (bit pair `j` of the 16-bit word is sub-block `j`'s), their low four
//! bits (nibble `j % 2` of byte `j / 2`), then `q`, 16 bytes for each sub-block ([`crate::nibbles`]).

use crate::fit::{Integers, Symmetric};
use crate::random::tame_signed;
use crate::{Bytes, Format, TensorType, iq4, nibbles};

/// 4-bit indices into a table of values, a 6-bit scale for 32.
pub struct IQ4_XS;

const D: usize = 0;
const SCALES_HIGH: usize = 2;
const SCALES_LOW: usize = 4;
const QS: usize = SCALES_LOW + 4;

/// Root mean square of a random `scale - 32` of 16 to 31 or -32 to -17.
const RANDOM_SCALE_RMS: f32 = 24.44;

/// What a slice is decoded from.
#[derive(Clone, Copy)]
pub struct Raw {
    d: f32,
    /// The low four bits of all scales.
    scales_low: u32,
    /// Their upper two.
    scales_high: u16,
    q: u32,
}

impl Format for IQ4_XS {
    const TYPE: TensorType = TensorType::IQ4_XS;
    const ELEMS: usize = 256;
    const BYTES: usize = QS + 8 * nibbles::BYTES;
    const SLICES: usize = 8 * nibbles::SLICES;
    const RUNS: usize = nibbles::RUNS;

    #[inline(always)]
    fn at(slice: usize, run: usize) -> usize {
        32 * (slice / nibbles::SLICES) + nibbles::at(slice % nibbles::SLICES, run)
    }

    type Raw = Raw;

    #[inline(always)]
    fn load<B: Bytes>(block: B, slice: usize) -> Raw {
        Raw {
            d: block.f16(D),
            scales_low: block.u32_aligned(SCALES_LOW),
            scales_high: block.u16(SCALES_HIGH),
            q: block.u32_aligned(QS + 4 * slice),
        }
    }

    #[inline(always)]
    fn decode(raw: Raw, slice: usize, run: usize) -> [f32; 4] {
        let j = slice / nibbles::SLICES;
        let scale_low = (raw.scales_low >> (4 * j)) as u8 & 0xf;
        let scale_high = (raw.scales_high >> (2 * j)) as u8 & 3;
        let d = raw.d * (f32::from(scale_low | scale_high << 4) - 32.0);
        iq4::values(nibbles::run(raw.q, run)).map(|value| d * value)
    }

    fn encode(x: &[f32], block: &mut [u8]) {
        let fit = Symmetric::<8>::fit(x, iq4::Values, Integers::<32>);
        block[D..SCALES_HIGH].copy_from_slice(&fit.d.to_le_bytes());
        block[SCALES_HIGH..QS].fill(0);
        for (j, &scale) in fit.scales.iter().enumerate() {
            let scale = (scale + 32) as u8;
            block[SCALES_HIGH + j / 4] |= scale >> 4 << (2 * (j % 4));
            block[SCALES_LOW + j / 2] |= (scale & 0xf) << (4 * (j % 2));
        }
        for (q, out) in fit.q.as_chunks().0.iter().zip(block[QS..].chunks_exact_mut(nibbles::BYTES)) {
            nibbles::pack(&q.map(iq4::index), out);
        }
    }

    fn tame(block: &mut [u8], sigma: f32) {
        // The upper bits of a scale become 00 or 11: large, of either sign.
        for upper in &mut block[SCALES_HIGH..SCALES_LOW] {
            *upper = (*upper & 0x55) * 3;
        }
        tame_signed(block, D, sigma / (RANDOM_SCALE_RMS * iq4::RANDOM_RMS));
    }
}
