//! 16-bit floating-point numbers, converted in plain integer and `f32` operations: Rust's own `f16` is unstable, and
//! this has to compile for the GPU too.
//!
//! Not the crate `half`: the kernels' sources, and the hash that tells whether gpu/ptx belongs to them, end with the
//! workspace's own crates. The tests compare every number with `half`.

/// 2^112: the difference of the exponent biases of `f32` (127) and half precision (15), as a factor.
const REBIAS: f32 = f32::from_bits((127 + 112) << 23);

/// Half precision to single: exact for every number, and a NaN keeps its sign and payload.
#[inline(always)]
pub const fn f16_to_f32(h: u16) -> f32 {
    let magnitude = (h as u32 & 0x7fff) << 13;
    // The multiplication rebiases the exponent, and normalises a subnormal on the way.
    let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
    let bits = if magnitude < 0x1f << 23 { finite } else { magnitude | 0xff << 23 };
    f32::from_bits(bits | (h as u32 & 0x8000) << 16)
}

/// Single precision to half: nearest, ties to even; too large becomes infinite, and a NaN stays a (quiet) NaN.
#[inline]
pub const fn f32_to_f16(x: f32) -> u16 {
    /// The smallest normal number of half precision, 2^-14.
    const NORMAL: u32 = (127 - 14) << 23;
    /// 2^16: from here on even the exponent does not fit.
    const OVERFLOW: u32 = (127 + 16) << 23;
    const INFINITY: u32 = 0xff << 23;

    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // All cases are computed and one is selected, so that a loop of conversions vectorises.
    // A subnormal counts in units of 2^-24, and so does the mantissa of 0.5: the addition rounds.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    // Rounding may carry into the exponent, up to infinity, as it should.
    let rebiased = magnitude.wrapping_sub(112 << 23);
    let normal = rebiased.wrapping_add(0xfff + (rebiased >> 13 & 1)) >> 13;
    let nan = 0x7e00 | magnitude >> 13 & 0x3ff;
    let small = if magnitude < NORMAL { subnormal } else { normal };
    let large = if magnitude <= INFINITY { 0x7c00 } else { nan };
    let half = if magnitude < OVERFLOW { small } else { large };
    (half | bits >> 16 & 0x8000) as u16
}

/// BF16 to single precision: exact.
#[inline(always)]
pub const fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits((h as u32) << 16)
}

/// Single precision to BF16: nearest, ties to even; a NaN stays a (quiet) NaN.
#[inline]
pub const fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
