//! The functions of the gate in a gated linear unit (Shazeer 2020).

use cuda_std::prelude::*;

/// x / (1 + e^-x)
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    // With an approximate reciprocal: a division takes a branch, and registers that some products do not have.
    x * float::reciprocal(1.0 + float::exp(-x))
}

/// The approximation of GELU with a tanh (Hendrycks and Gimpel 2016).
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    /// sqrt(2 / pi)
    const INNER: f32 = 0.797_884_6;
    // x (1 + tanh u) / 2 is x / (1 + e^-2u), which loses nothing where tanh is near -1.
    let u = INNER * (x + 0.044_715 * x * x * x);
    x * float::reciprocal(1.0 + float::exp(-2.0 * u))
}
