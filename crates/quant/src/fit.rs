//! Least-squares quantisation: what the encoders share.
//!
//! A block of 256 values, of a K-quant or IQ4_XS, is cut into sub-blocks. Each gets the scale (and minimum) that fits it
//! best, found by trying steps around the one that just spans its range and refitting each by linear regression; these are
//! rounded to multiples of one scale for the whole block, and the values are then rounded once more, to what will be decoded.
//! IQ4_NL's block is one such sub-block.

use crate::{f16_to_f32, f32_to_f16};

/// Values in a block that is cut into sub-blocks.
const BLOCK: usize = 256;

/// Sums run in this many lanes, so that the compiler can vectorise them.
const LANES: usize = 8;

/// How far a trial's step may be off, in levels: the range is spread over this many more or fewer.
fn trials() -> impl Iterator<Item = f32> {
    (-8..=8).map(|t| t as f32 / 6.0)
}

/// The nearest integer, of a number below 2^22 in magnitude: the sum has no room for a fraction, and `core` has no
/// rounding of floats.
fn nearest(x: f32) -> f32 {
    const NO_FRACTION: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + NO_FRACTION) - NO_FRACTION
}

/// `1 / x`, or 0 for 0: a scale of 0 makes every quotient 0.
pub(crate) fn reciprocal(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// A block of `SUBS` sub-blocks whose values are `d * scale * q - dmin * min`.
pub(crate) struct Affine<const SUBS: usize> {
    /// Half precision.
    pub(crate) d: u16,
    /// Half precision.
    pub(crate) dmin: u16,
    pub(crate) scales: [u8; SUBS],
    pub(crate) mins: [u8; SUBS],
    pub(crate) q: [u8; BLOCK],
}

impl<const SUBS: usize> Affine<SUBS> {
    /// Fits 256 values with `q` in `0..=top` and scales and minima in `0..=scale_top`.
    pub(crate) fn fit(x: &[f32], top: u8, scale_top: u8) -> Self {
        let size = BLOCK / SUBS;
        let (mut scales, mut mins) = ([0.0; SUBS], [0.0; SUBS]);
        for (j, sub) in x.chunks_exact(size).enumerate() {
            (scales[j], mins[j]) = affine_step(sub, top);
        }
        let (d, scales) = quantise_scales(&scales, scale_top);
        let (dmin, mins) = quantise_scales(&mins, scale_top);
        let mut q = [0; BLOCK];
        for (j, (sub, q)) in x.chunks_exact(size).zip(q.chunks_exact_mut(size)).enumerate() {
            let inverse = reciprocal(f16_to_f32(d) * f32::from(scales[j]));
            let min = f16_to_f32(dmin) * f32::from(mins[j]);
            for (q, &x) in q.iter_mut().zip(sub) {
                *q = level(x + min, inverse, top) as u8;
            }
        }
        Self { d, dmin, scales, mins, q }
    }
}

/// `x` in steps, rounded and clamped to `0..=top`.
fn level(x: f32, inverse: f32, top: u8) -> f32 {
    nearest((x * inverse).clamp(0.0, f32::from(top)))
}

/// The `scale` and `min`, neither negative, for which `scale * q - min` with `q` in `0..=top` comes nearest to `x`.
fn affine_step(x: &[f32], top: u8) -> (f32, f32) {
    let low = x.iter().copied().fold(0.0, f32::min);
    let range = x.iter().copied().fold(low, f32::max) - low;
    let (mut best, mut least) = ((0.0, -low), f32::INFINITY);
    if range == 0.0 {
        return best;
    }
    for trial in trials() {
        let (scale, min) = regression(x, (f32::from(top) + trial) / range, -low, top);
        let inverse = reciprocal(scale);
        let error = |x: f32| x + min - scale * level(x + min, inverse, top);
        let error = lane_sum(x, |x| error(x) * error(x));
        if error < least {
            (best, least) = ((scale, min), error);
        }
    }
    best
}

/// The sum of `f` over `x`, whose length is a multiple of `LANES`.
fn lane_sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for x in x.chunks_exact(LANES) {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += f(x);
        }
    }
    sums.iter().sum()
}

/// Rounds `x` to levels `q`, then finds the `scale` and `min`, neither negative, that minimise the squares of
/// `x - (scale * q - min)`.
fn regression(x: &[f32], inverse: f32, min: f32, top: u8) -> (f32, f32) {
    let n = x.len() as f32;
    let q = |x: f32| level(x + min, inverse, top);
    let (q1, q2) = (lane_sum(x, q), lane_sum(x, |x| q(x) * q(x)));
    let (x1, qx) = (lane_sum(x, |x| x), lane_sum(x, |x| q(x) * x));
    let determinant = n * q2 - q1 * q1;
    if determinant > 0.0 {
        let scale = (n * qx - q1 * x1) / determinant;
        let min = (scale * q1 - x1) / n;
        if scale >= 0.0 && min >= 0.0 {
            return (scale, min);
        }
    }
    ((qx * reciprocal(q2)).max(0.0), 0.0)
}

/// Scales that are not negative as multiples, up to `top`, of one half-precision number.
fn quantise_scales<const SUBS: usize>(scales: &[f32; SUBS], top: u8) -> (u16, [u8; SUBS]) {
    let d = f32_to_f16(scales.iter().copied().fold(0.0, f32::max) / f32::from(top));
    let inverse = reciprocal(f16_to_f32(d));
    (d, scales.map(|scale| level(scale, inverse, top) as u8))
}

/// The numbers that a symmetric format knows, in units of a scale.
pub(crate) trait Levels {
    /// The lowest.
    const LOW: f32;
    /// The highest.
    const HIGH: f32;
    /// About how far apart they are at both ends.
    const STEP: f32;

    /// The one nearest to `x`.
    fn nearest(&self, x: f32) -> f32;
}

/// The integers from `-N` to `N - 1`.
pub(crate) struct Integers<const N: i16>;

impl<const N: i16> Levels for Integers<N> {
    const LOW: f32 = -(N as f32);
    const HIGH: f32 = N as f32 - 1.0;
    const STEP: f32 = 1.0;

    fn nearest(&self, x: f32) -> f32 {
        nearest(x.clamp(Self::LOW, Self::HIGH))
    }
}

/// A block of `SUBS` sub-blocks whose values are `d * scale * q` with signed integers.
pub(crate) struct Symmetric<const SUBS: usize> {
    /// Half precision.
    pub(crate) d: u16,
    pub(crate) scales: [i8; SUBS],
    pub(crate) q: [i8; BLOCK],
}

impl<const SUBS: usize> Symmetric<SUBS> {
    /// Fits 256 values with `q` of `levels` and scales of `scale_levels`.
    pub(crate) fn fit<L: Levels, S: Levels>(x: &[f32], levels: L, scale_levels: S) -> Self {
        let size = BLOCK / SUBS;
        let mut scales = [0.0f32; SUBS];
        for (scale, sub) in scales.iter_mut().zip(x.chunks_exact(size)) {
            *scale = symmetric_step(sub, &levels);
        }
        // The largest scale becomes the most negative integer, which has no positive counterpart.
        let d = f32_to_f16(largest(&scales) / S::LOW);
        let inverse = reciprocal(f16_to_f32(d));
        let scales = scales.map(|scale| scale_levels.nearest(scale * inverse) as i8);
        let mut q = [0; BLOCK];
        for ((sub, q), &scale) in x.chunks_exact(size).zip(q.chunks_exact_mut(size)).zip(&scales) {
            let inverse = reciprocal(f16_to_f32(d) * f32::from(scale));
            for (q, &x) in q.iter_mut().zip(sub) {
                *q = levels.nearest(x * inverse) as i8;
            }
        }
        Self { d, scales, q }
    }
}

/// The number of the largest magnitude, with its sign.
pub(crate) fn largest(x: &[f32]) -> f32 {
    x.iter().copied().fold(0.0, |a, b| if b.abs() > a.abs() { b } else { a })
}

/// The scale, of either sign, for which `scale * q` with `q` of `levels` comes nearest to `x`.
pub(crate) fn symmetric_step<L: Levels>(x: &[f32], levels: &L) -> f32 {
    let extreme = largest(x);
    let (mut best, mut most) = (0.0, 0.0);
    if extreme == 0.0 {
        return best;
    }
    for trial in trials() {
        for end in [L::LOW + trial * L::STEP, L::HIGH + trial * L::STEP] {
            let q = |x: f32| levels.nearest(x * (end / extreme));
            let (qx, q2) = (lane_sum(x, |x| q(x) * x), lane_sum(x, |x| q(x) * q(x)));
            // With the best scale for these q, qx / q2, the squared error is the sum of x^2 less this.
            let explained = qx * qx * reciprocal(q2);
            if explained > most {
                (best, most) = (qx * reciprocal(q2), explained);
            }
        }
    }
    best
}
