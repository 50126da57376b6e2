//! Arithmetic that core does not have, or that is one instruction on the GPU; and the half-precision storage type.

/// A half-precision number in memory (IEEE 754 binary16). Arithmetic is done in `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(pub u16);

impl F16 {
    /// Exact.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        #[cfg(target_arch = "nvptx64")]
        return crate::nvptx::f16_to_f32(self.0);
        #[cfg(not(target_arch = "nvptx64"))]
        return half::f16::from_bits(self.0).to_f32();
    }

    /// Rounds to nearest, ties to even.
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        #[cfg(target_arch = "nvptx64")]
        return F16(crate::nvptx::f32_to_f16(value));
        #[cfg(not(target_arch = "nvptx64"))]
        return F16(half::f16::from_f32(value).to_bits());
    }
}

/// `a * b + c` with one rounding. The compiler never contracts a product and a sum by itself.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::fma(a, b, c);
    #[cfg(not(target_arch = "nvptx64"))]
    return a.mul_add(b, c);
}

/// e to the power of `x`: `ex2.approx` of x log2(e), relative error about 2^-21 for |x| < 10.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::ex2(x * core::f32::consts::LOG2_E);
    #[cfg(not(target_arch = "nvptx64"))]
    return x.exp();
}

/// 1 / sqrt(x): `rsqrt.approx`, relative error 2^-22.
#[inline(always)]
pub fn rsqrt(x: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::rsqrt(x);
    #[cfg(not(target_arch = "nvptx64"))]
    return 1.0 / x.sqrt();
}

/// 1 / x: `rcp.approx.ftz`, relative error 2^-23.
#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::nvptx::reciprocal(x);
    #[cfg(not(target_arch = "nvptx64"))]
    return 1.0 / x;
}
