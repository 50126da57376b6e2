//! Products of small matrices on the tensor cores.

/// The bits of a float that a TF32 number has not.
const BELOW_TF32: u32 = 0x1fff;

/// `x` as two TF32 numbers (F32's exponents, 11 bits of precision): what they have of its bits, and of the rest. Their sum is `x`
/// up to 2^-22 of it. NaN gives NaN in the first.
#[inline(always)]
pub fn split(x: f32) -> [f32; 2] {
    let high = f32::from_bits(x.to_bits() & !BELOW_TF32);
    let rest = (x - high).to_bits();
    [high, f32::from_bits(rest.wrapping_add(BELOW_TF32.div_ceil(2)) & !BELOW_TF32)]
}

/// `mma.sync.m16n8k8` of TF32 with sums in F32: A B + C, for A of 16 x 8, B of 8 x 8, C of 16 x 8. Each lane of the warp holds a
/// part of each; with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k8"):
///
/// - `a`: A\[g\]\[t\], A\[g+8\]\[t\], A\[g\]\[t+4\], A\[g+8\]\[t+4\];
/// - `b`: B\[t\]\[g\], B\[t+4\]\[g\];
/// - `c` and the result: C\[g\]\[2t\], C\[g\]\[2t+1\], C\[g+8\]\[2t\], C\[g+8\]\[2t+1\].
///
/// `a` and `b` are TF32 numbers: parts of a [`split`], or halves. Their products are exact. The sum of those is not rounded as sums
/// in F32 are: the hardware aligns all terms to the largest one and cuts off what lies below (Fasi et al. 2021, "Numerical behavior
/// of NVIDIA tensor cores"), so that the error is relative to the largest term. On the host every term is cut off at 2^-23 of the
/// largest one's power of two, and the sum at 24 bits.
///
/// # Safety
/// All 32 lanes must be running this very call.
///
/// # Panics
/// On the host, where an element of `a` or `b` is no TF32 number.
#[inline(always)]
pub unsafe fn m16n8k8(a: [f32; 4], b: [f32; 2], c: [f32; 4]) -> [f32; 4] {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    return unsafe { crate::nvptx::mma_m16n8k8(a.map(f32::to_bits), b.map(f32::to_bits), c) };
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let all = |x: f32| {
            assert_eq!(x.to_bits() & BELOW_TF32, 0, "{x} is no TF32 number");
            crate::host::machine().warp_exchange(crate::warp::FULL_MASK, x.to_bits())
        };
        let (a, b) = (a.map(all), b.map(all));
        let (g, t) = (crate::host::lane() as usize / 4, crate::host::lane() as usize % 4);
        core::array::from_fn(|i| {
            let (row, column) = (g + 8 * (i / 2), 2 * t + i % 2);
            let products = core::array::from_fn(|k| {
                let a = a[row / 8 + 2 * (k / 4)][row % 8 * 4 + k % 4];
                let b = b[k / 4][column * 4 + k % 4];
                f64::from(f32::from_bits(a)) * f64::from(f32::from_bits(b))
            });
            truncated_sum(products, c[i].into())
        })
    }
}

/// The sum as tensor cores make it, at their least exact.
#[cfg(not(target_arch = "nvptx64"))]
fn truncated_sum(products: [f64; 8], c: f64) -> f32 {
    let largest = products.iter().fold(c.abs(), |largest, product| largest.max(product.abs()));
    let plain: f64 = products.iter().sum::<f64>() + c;
    if largest == 0.0 || !plain.is_finite() {
        return plain as f32;
    }
    // Bits of a double: the largest power of two that is not above.
    let power = f64::from_bits(largest.to_bits() & 0x7ff0_0000_0000_0000);
    let unit = power / f64::from(1 << 23);
    let cut = |term: f64| (term / unit).trunc() * unit;
    let sum: f64 = products.iter().map(|&product| cut(product)).sum::<f64>() + cut(c);
    let rounded = sum as f32;
    if f64::from(rounded).abs() > sum.abs() { f32::from_bits(rounded.to_bits() - 1) } else { rounded }
}
