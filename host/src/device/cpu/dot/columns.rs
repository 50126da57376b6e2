//! Activations in the form that the kernels multiply: padded with zeros to whole steps of 256 values.

use super::STEP;

/// The largest magnitude of a quantised activation. Fifteen bits, so that a block's products add up in 32 bits (see
/// `IntegerFormat::LARGEST`). An activation is off by at most half a unit of its step: the 32766th part of the largest
/// magnitude among its 256.
pub const LARGEST: i16 = 16383;

/// 256 values, quantised: value `i` is `scale * q`.
#[derive(Clone, Copy, Default)]
#[repr(align(32))]
pub struct Quantised {
    /// Of each 32 values the 16 at even places, then the 16 at odd ones: the order in which weights unpack.
    pub q: [[[i16; 16]; 2]; 8],
    /// The sums of `q` over the first 16 of each 32 values, and over the last 16.
    pub sums: [[f32; 8]; 2],
    /// NaN if one of the values is infinite or no number, so that every product is NaN.
    pub scale: f32,
}

/// 256 values as they are.
#[derive(Clone, Copy, Default)]
#[repr(align(32))]
pub struct Floats(pub [[f32; 8]; STEP / 8]);

/// What the kernels of a type take.
pub trait Step: Copy + Default + Send + Sync {
    /// Stores up to 256 values; the others become zeros.
    fn store(&mut self, x: &[f32]);
}

impl Step for Floats {
    #[inline(always)]
    fn store(&mut self, x: &[f32]) {
        let (values, rest) = self.0.as_flattened_mut().split_at_mut(x.len());
        values.copy_from_slice(x);
        rest.fill(0.0);
    }
}

impl Step for Quantised {
    #[inline(always)]
    fn store(&mut self, x: &[f32]) {
        let mut padded = Floats::default();
        padded.store(x);
        // The magnitude's bits, as integers, are in the order of the magnitudes: numbers, infinity, NaN.
        let magnitude = |x: f32| (x.to_bits() & 0x7fff_ffff) as i32;
        let mut largest = [0; 8];
        for x in &padded.0 {
            for (largest, &x) in largest.iter_mut().zip(x) {
                *largest = magnitude(x).max(*largest);
            }
        }
        let largest = f32::from_bits(largest.iter().fold(0, |a, &b| b.max(a)) as u32);
        if !largest.is_finite() {
            *self = Quantised { scale: f32::NAN, ..Self::default() };
            return;
        }
        // No more than the largest float, for steps of zeros and of tiny numbers: these lose precision, as they do anyway.
        let inverse = (f32::from(LARGEST) / largest).min(f32::MAX);
        self.scale = 1.0 / inverse;
        for (i, x) in padded.0.as_flattened().chunks_exact(16).enumerate() {
            let (group, half) = (i / 2, i % 2);
            let mut q = [0i16; 16];
            for (q, &x) in q.iter_mut().zip(x) {
                *q = nearest(x * inverse);
            }
            self.sums[half][group] = q.iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
            for (j, pair) in q.chunks_exact(2).enumerate() {
                self.q[group][0][8 * half + j] = pair[0];
                self.q[group][1][8 * half + j] = pair[1];
            }
        }
    }
}

/// The nearest integer, ties to even, of a number of magnitude below 2^15: in a sum with 1.5 * 2^23 the lowest bit counts one.
#[inline(always)]
fn nearest(x: f32) -> i16 {
    (x + 12_582_912.0).to_bits() as i16
}
