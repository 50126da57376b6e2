//! Dot products of F32, F16 and BF16 weights with activations as they are.

use std::marker::PhantomData;

use quant::{Format, formats};

use super::{Kernel, STEP, columns::Floats, simd::Simd};

/// A format of numbers without blocks.
pub trait FloatFormat: Format {
    /// Eight values.
    fn values<S: Simd>(s: S, w: &[u8]) -> S::Floats;
}

impl FloatFormat for formats::F32 {
    #[inline(always)]
    fn values<S: Simd>(s: S, w: &[u8]) -> S::Floats {
        s.floats_of_f32(super::bytes(w, 0))
    }
}

impl FloatFormat for formats::F16 {
    #[inline(always)]
    fn values<S: Simd>(s: S, w: &[u8]) -> S::Floats {
        s.floats_of_f16(super::bytes(w, 0))
    }
}

impl FloatFormat for formats::BF16 {
    #[inline(always)]
    fn values<S: Simd>(s: S, w: &[u8]) -> S::Floats {
        s.floats_of_bf16(super::bytes(w, 0))
    }
}

/// The kernel of a [`FloatFormat`].
pub struct Float<F>(PhantomData<F>);

impl<F: FloatFormat> Kernel for Float<F> {
    type Step = Floats;
    const STEP_BYTES: usize = STEP * F::BYTES;

    #[inline(always)]
    fn add<S: Simd, const N: usize>(s: S, w: &[u8], x: [&Floats; N], sums: &mut [S::Floats; N]) {
        // The longest of the formats' steps; the columns go on with zeros where the row ends.
        let mut padded = [0; 4 * STEP];
        let w = if w.len() < Self::STEP_BYTES {
            padded[..w.len()].copy_from_slice(w);
            &padded[..Self::STEP_BYTES]
        } else {
            w
        };
        // Two sums, because an addition takes longer than it takes until the next one may begin.
        let mut total = [[s.splat(0.0); 2]; N];
        for (i, w) in w.chunks_exact(16 * F::BYTES).enumerate() {
            for half in 0..2 {
                let w = F::values(s, &w[8 * half * F::BYTES..]);
                for c in 0..N {
                    total[c][half] = s.add(total[c][half], s.mul(w, s.floats(&x[c].0[2 * i + half])));
                }
            }
        }
        for (sum, [a, b]) in sums.iter_mut().zip(total) {
            *sum = s.add(*sum, s.add(a, b));
        }
    }
}
