//! Functions of one number.

use cuda_std::prelude::*;

/// tanh(x): a series near 0, where the other form would cancel. Relative error about 2^-20.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let (square, magnitude) = (x * x, x.abs());
    let series = float::fma(square, -17.0 / 315.0, 2.0 / 15.0);
    let near = x * float::fma(square, float::fma(square, series, -1.0 / 3.0), 1.0);
    let e = float::exp(-2.0 * magnitude);
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    if magnitude < 0.125 { near } else { far }
}

/// cap tanh(x / cap)
#[inline(always)]
pub(crate) fn soft_cap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}
