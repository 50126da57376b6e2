//! The activations of a product, in shared memory: quantised for integer weights, as they are for floats.

use cuda_std::prelude::*;

use super::staged::Staged;

/// Bytes of one column of `cols` quantised activations: a byte each, a scale for each 32, and a sum for each `sums` of them (0: no
/// sums).
pub(super) const fn int8_bytes(cols: usize, sums: usize) -> usize {
    let sums = if sums == 0 { 0 } else { cols / sums };
    (cols + 4 * (cols / 32) + 4 * sums).next_multiple_of(16)
}

/// A column of activations, quantised to signed bytes in blocks of 32: x\[i\] is about d q\[i\], d = max |x| / 127.
#[derive(Clone, Copy)]
pub(super) struct Int8 {
    /// `[cols]`
    q: *mut u32,
    /// `[cols / 32]`
    d: *mut f32,
    /// `[cols / sums]`: d times the sum of q.
    sums: *mut f32,
}

impl Int8 {
    #[inline(always)]
    pub fn at(base: *mut u8, cols: usize) -> Self {
        let d = base.wrapping_add(cols);
        Int8 { q: base.cast(), d: d.cast(), sums: d.wrapping_add(cols / 8).cast() }
    }

    /// Quantises activations `at` to `at + 3`, this lane's; the others of the block are those of the seven lanes beside it.
    ///
    /// # Safety
    /// All lanes are here; `at` is a multiple of 4, for lane l 4 l after lane 0's, which is one of 128; the column has room for those that are
    /// `inside`.
    #[inline(always)]
    pub unsafe fn put<const SUMS: usize>(self, at: usize, v: [f32; 4], inside: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            // As integers, magnitudes compare like floats, and NaN is the largest: it becomes the scale, and so the result.
            let [a, b, c, d] = v.map(|v| v.to_bits() & 0x7fff_ffff);
            let mut most = a.max(b).max(c.max(d));
            most = most.max(warp::warp_shuffle_xor(warp::FULL_MASK, most, 1));
            most = most.max(warp::warp_shuffle_xor(warp::FULL_MASK, most, 2));
            most = most.max(warp::warp_shuffle_xor(warp::FULL_MASK, most, 4));
            let most = f32::from_bits(most);
            // So small a block counts as zeros: the reciprocal of less would not be finite.
            let inverse = if most > 1e-34 { 127.0 * float::reciprocal(most) } else { 0.0 };
            let d = most * (1.0 / 127.0);
            let word = simd::pack_i8(v.map(|v| simd::round_to_int(v * inverse)));
            let sum = if SUMS == 0 {
                0
            } else {
                let mut sum = simd::dp4a(word, 0x0101_0101, 0);
                sum += warp::warp_shuffle_xor(warp::FULL_MASK, sum, 1);
                sum += warp::warp_shuffle_xor(warp::FULL_MASK, sum, 2);
                if SUMS == 32 {
                    sum += warp::warp_shuffle_xor(warp::FULL_MASK, sum, 4);
                }
                sum
            };
            if inside {
                self.q.add(at / 4).write(word);
                if at % 32 == 0 {
                    self.d.add(at / 32).write(d);
                }
                if SUMS != 0 && at % SUMS == 0 {
                    self.sums.add(at / SUMS).write(d * sum as f32);
                }
            }
        }
    }

    /// The `4 W` activations from `at` on, a multiple of as many: integers, scale, sum (0 without sums).
    ///
    /// # Safety
    /// They are inside the column.
    #[inline(always)]
    pub unsafe fn run<const W: usize, const SUMS: usize>(self, at: usize) -> ([u32; 8], f32, f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let place = Staged::new(self.q.cast::<u8>().cast_const().add(at));
            let mut q = [0; 8];
            if W == 8 {
                q = place.words::<8, 16>(0);
            } else {
                let words = place.words::<4, 16>(0);
                for i in 0..4 {
                    q[i] = words[i];
                }
            }
            let sum = if SUMS == 0 { 0.0 } else { self.sums.add(at / SUMS).read() };
            (q, self.d.add(at / 32).read(), sum)
        }
    }
}
