//! The activations of a product, in shared memory: quantised for integer weights, as they are for floats.

use cuda_std::prelude::*;

use super::{dot::Dot, staged::Staged};

/// Bytes of `cols` integers: [`chunk`] moves the last ones within 512.
const fn q_bytes(cols: usize) -> usize {
    cols.next_multiple_of(512)
}

/// Bytes of one column of `cols` quantised activations: a byte each, a scale for each 32, and a sum for each `sums` of them (0: no
/// sums).
#[allow(clippy::manual_checked_ops, reason = "the compiler makes more instructions of a match, and of checked_div")]
pub(super) const fn int8_bytes(cols: usize, sums: usize) -> usize {
    let sums = if sums == 0 { 0 } else { cols / sums };
    (q_bytes(cols) + 4 * (cols / 32) + 4 * sums).next_multiple_of(16)
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

/// Where the `n`th 16 bytes of a column of bytes lie, in units of 16 bytes. Eight lanes beside each other read 16 bytes of their slices at a
/// time, the same ones each of its own: these lie beside each other, so that they are in different banks, and what a lane reads next is
/// always 128 bytes further on. The first of 32 chunks is where it was, so `chunk(32 k + n)` is `32 k + chunk(n)`.
#[inline(always)]
fn chunk<D: Dot>(n: usize) -> usize {
    let of_slice = D::W / 4 * D::PARTS;
    let (group, n) = (n / (8 * of_slice), n % (8 * of_slice));
    let (lane, own) = if D::W == 8 { (n / of_slice, n % of_slice) } else { (n / 8 * 2 + n % 2, n / 2 % 4) };
    8 * (of_slice * group + own) + lane
}

/// The same for columns of floats, of which a lane reads two neighbouring chunks or one.
#[inline(always)]
pub(super) fn float_chunk(n: usize) -> usize {
    n ^ (n >> 3 & 1)
}

/// Where the sum that activation `at` belongs to is in a column's: [`Dot::SUMS`] of 16 are in the order of a slice's parts, so that a lane reads
/// its four at once.
#[inline(always)]
fn sum_place<D: Dot>(at: usize) -> usize {
    let n = at / D::SUMS;
    if D::SUMS == 16 { n & !7 | (n & 1) << 2 | n >> 1 & 3 } else { n }
}

/// What [`Dot::POWER`] leaves to be multiplied with, for the part that activation `at` belongs to.
#[inline(always)]
fn inverse_power<D: Dot>(at: usize) -> f32 {
    let (first, step) = D::POWER;
    f32::from_bits((127 - (first + step * (at / 32 % D::PARTS)) as u32) << 23)
}

impl Int8 {
    #[inline(always)]
    pub fn at(base: *mut u8, cols: usize) -> Self {
        let d = base.wrapping_add(q_bytes(cols));
        Int8 { q: base.cast(), d: d.cast(), sums: d.wrapping_add(cols / 32 * 4).cast() }
    }

    /// Quantises activations `at` to `at + 3`, this lane's, into each of `columns`; the others of the block are those of the seven
    /// lanes beside it.
    ///
    /// # Safety
    /// All lanes are here; `at` is a multiple of 4, for lane l 4 l after lane 0's, which is one of 128; the columns have room for those
    /// that are `inside`.
    #[inline(always)]
    pub unsafe fn put<D: Dot, const N: usize>(columns: [Self; N], at: usize, v: [f32; 4], inside: bool) {
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
            let sum = if D::SUMS == 0 {
                0
            } else {
                let mut sum = simd::dp4a(word, 0x0101_0101, 0);
                sum += warp::warp_shuffle_xor(warp::FULL_MASK, sum, 1);
                sum += warp::warp_shuffle_xor(warp::FULL_MASK, sum, 2);
                if D::SUMS == 32 {
                    sum += warp::warp_shuffle_xor(warp::FULL_MASK, sum, 4);
                }
                sum
            };
            if inside {
                for i in 0..N {
                    let column = columns[i];
                    column.q.add(4 * chunk::<D>(at / 16) + at / 4 % 4).write(word);
                    if at.is_multiple_of(32) {
                        column.d.add(at / 32).write(d * inverse_power::<D>(at));
                    }
                    if D::SUMS != 0 && at.is_multiple_of(D::SUMS) {
                        column.sums.add(sum_place::<D>(at)).write(d * sum as f32);
                    }
                }
            }
        }
    }

    /// The `4 W` integers of part `part` of the slice that begins at `start + at`. `start` is a multiple of 512. They are apart because `at` is
    /// the same in every turn of a lane's loop, and what depends on it alone is computed once.
    ///
    /// # Safety
    /// They are inside the column.
    #[inline(always)]
    pub unsafe fn run<D: Dot>(self, start: usize, at: usize, part: usize) -> [u32; 8] {
        // SAFETY: the caller's promise.
        unsafe {
            let q = self.q.cast::<u8>().cast_const().add(start).add(16 * chunk::<D>(at / 16));
            let read = |n: usize| Staged::new(q.add(128 * (D::W / 4 * part + n)), 0).words::<4, 16>(0);
            let [a, b, c, d] = read(0);
            let [e, f, g, h] = if D::W == 8 { read(1) } else { [0; 4] };
            [a, b, c, d, e, f, g, h]
        }
    }

    /// The scale of the 32 activations that `start + at` is among, times what [`Dot::POWER`] asks for.
    ///
    /// # Safety
    /// It is inside the column.
    #[inline(always)]
    pub unsafe fn scale(self, start: usize, at: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.d.add(start / 32).add(at / 32).read() }
    }

    /// The sum of the [`Dot::SUMS`] activations that `start + at` is among.
    ///
    /// # Safety
    /// It is inside the column.
    #[inline(always)]
    pub unsafe fn sum<D: Dot>(self, start: usize, at: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.sums.add(start / D::SUMS).add(sum_place::<D>(at)).read() }
    }

    /// The scales of the 32s that begin with the one of `start + at`, one for each of a slice's parts.
    ///
    /// # Safety
    /// They are inside the column, and the first one's number is a multiple of `PARTS`.
    #[inline(always)]
    pub unsafe fn scales<D: Dot>(self, start: usize, at: usize) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { neighbours::<D>(self.d.add(start / 32).add(at / 32)) }
    }

    /// The sums of a slice's parts, whose first one begins at `start + at`.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn sums<D: Dot>(self, start: usize, at: usize) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { neighbours::<D>(self.sums.add(start / D::SUMS).add(sum_place::<D>(at))) }
    }
}

/// The first of `PARTS` floats, 1, 2 or 4, in one load.
///
/// # Safety
/// They are in shared memory, from a multiple of as many on.
#[inline(always)]
unsafe fn neighbours<D: Dot>(first: *const f32) -> [f32; 4] {
    // SAFETY: the caller's promise; columns begin at multiples of 16 bytes, and scales and sums at multiples of 128 and of 4 of them.
    let staged = unsafe { Staged::new(first.cast(), 0) };
    let words = match D::PARTS {
        1 => [staged.words::<1, 4>(0)[0], 0, 0, 0],
        2 => {
            let [a, b] = staged.words::<2, 8>(0);
            [a, b, 0, 0]
        }
        _ => staged.words::<4, 16>(0),
    };
    words.map(f32::from_bits)
}
