//! The sixteen values that IQ4_NL's and IQ4_XS's 4-bit integers stand for ("non-linear"): closer together around zero,
//! where most weights are. ggml's `kvalues_iq4nl`.

use crate::fit::Levels;

/// The values of IQ4_NL's and IQ4_XS's 4-bit integers, in ascending order (ggml's `kvalues_iq4nl`).
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Root mean square of a random value.
pub(crate) const RANDOM_RMS: f32 = 67.44;

/// The values of four indices, one in each byte.
#[inline(always)]
pub(crate) fn values(indices: u32) -> [f32; 4] {
    /// Eight values, the first in the lowest byte.
    const fn packed(first: usize) -> u64 {
        let mut word = 0;
        let mut i = 0;
        while i < 8 {
            word |= (VALUES[first + i] as u8 as u64) << (8 * i);
            i += 1;
        }
        word
    }
    // Shifts of constants, not an array: a GPU has no registers to index, and would read it from memory. The instruction
    // that permutes bytes (prmt) would make `gemv_iq4_nl` 480 instructions instead of 640 and `gemv_iq4_xs` 536 instead of
    // 688 on sm_90 (Q4_K's are 672), but in code that the emulator could not run.
    indices.to_le_bytes().map(|i| {
        let half = if i < 8 { const { packed(0) } } else { const { packed(8) } };
        f32::from((half >> (8 * (i & 7))) as i8)
    })
}

/// The index of one of the values.
pub(crate) fn index(value: i8) -> u8 {
    VALUES.partition_point(|&v| v < value) as u8
}

/// The values as what a fit rounds to.
pub(crate) struct Values;

impl Levels for Values {
    const LOW: f32 = VALUES[0] as f32;
    const HIGH: f32 = VALUES[15] as f32;
    const STEP: f32 = 24.0;

    fn nearest(&self, x: f32) -> f32 {
        // A step up at each middle between two values: no branches, so that it vectorises.
        VALUES.array_windows().fold(Self::LOW, |level, &[a, b]| {
            let (a, b) = (f32::from(a), f32::from(b));
            level + if 2.0 * x > a + b { b - a } else { 0.0 }
        })
    }
}
