//! [`Simd`] in AVX2 and F16C instructions.

use std::arch::x86_64::*;

use super::simd::{Simd, Task};

/// Shows that the CPU has AVX2 and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// Looks whether the CPU has them.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }

    /// Runs `task` compiled for them.
    pub fn run<T: Task>(self, task: T) -> T::Out {
        #[target_feature(enable = "avx2,f16c")]
        fn run<T: Task>(s: Avx2, task: T) -> T::Out {
            task.run(s)
        }
        // SAFETY: the CPU has the instructions, or there would be no `self`.
        unsafe { run(self, task) }
    }
}

/// Evaluates intrinsics.
macro_rules! avx2 {
    ($intrinsics:expr) => {
        // SAFETY: the CPU has the instructions, or there would be no `Avx2`, of which each of these is a method. Pointers
        // come from references to arrays of the length that is read, and the loads want no alignment.
        unsafe { $intrinsics }
    };
}

impl Simd for Avx2 {
    const TILES: bool = true;

    type Bytes = __m256i;
    type Words = __m256i;
    type Ints = __m256i;
    type Floats = __m256;

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: a prefetch accesses nothing that the program could see, and any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }

    #[inline(always)]
    fn bytes(self, v: &[u8; 32]) -> __m256i {
        avx2!(_mm256_loadu_si256(v.as_ptr().cast()))
    }

    #[inline(always)]
    fn bytes_twice(self, v: &[u8; 16]) -> __m256i {
        avx2!(_mm256_broadcastsi128_si256(_mm_loadu_si128(v.as_ptr().cast())))
    }

    #[inline(always)]
    fn nibbles(self, v: &[u8; 16]) -> __m256i {
        avx2!({
            let v = _mm_loadu_si128(v.as_ptr().cast());
            _mm256_set_m128i(_mm_srli_epi16::<4>(v), v)
        })
    }

    #[inline(always)]
    fn field(self, v: __m256i, shift: i32, mask: u8) -> __m256i {
        avx2!({
            // `shift` is constant where this is inlined, so it becomes part of the instruction.
            let count = _mm_cvtsi32_si128(shift.abs());
            let v = if shift >= 0 { _mm256_srl_epi16(v, count) } else { _mm256_sll_epi16(v, count) };
            _mm256_and_si256(v, _mm256_set1_epi8(mask as i8))
        })
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        avx2!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn minus(self, a: __m256i, b: u8) -> __m256i {
        avx2!(_mm256_sub_epi8(a, _mm256_set1_epi8(b as i8)))
    }

    #[inline(always)]
    fn bits(self, v: &[u8; 4], mask: u8) -> __m256i {
        avx2!({
            // The byte that has bit `i`, and that bit in it.
            let places = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
            let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(*v)), places);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
            _mm256_and_si256(set, _mm256_set1_epi8(mask as i8))
        })
    }

    #[inline(always)]
    fn lookup(self, table: __m256i, index: __m256i) -> __m256i {
        avx2!(_mm256_shuffle_epi8(table, index))
    }

    #[inline(always)]
    fn widen(self, v: __m256i) -> (__m256i, __m256i) {
        avx2!((_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v)), _mm256_srai_epi16::<8>(v)))
    }

    #[inline(always)]
    fn widen_scaled(self, v: __m256i, scales: __m256i, low: u8, high: u8) -> (__m256i, __m256i) {
        avx2!({
            // The scale in the upper byte of each word, 0 in the lower one. With the value in the upper byte as well, the upper
            // half of the product is scale times value.
            let low = _mm_set1_epi16(i16::from_le_bytes([0x80, low]));
            let high = _mm_set1_epi16(i16::from_le_bytes([0x80, high]));
            let scale = _mm256_shuffle_epi8(scales, _mm256_set_m128i(high, low));
            let (even, odd) = (_mm256_slli_epi16::<8>(v), _mm256_and_si256(v, _mm256_set1_epi16(!0xff)));
            (_mm256_mulhi_epi16(even, scale), _mm256_mulhi_epi16(odd, scale))
        })
    }

    #[inline(always)]
    fn add_products(self, sums: __m256i, a: __m256i, b: &[i16; 16]) -> __m256i {
        avx2!(_mm256_add_epi32(sums, _mm256_madd_epi16(a, _mm256_loadu_si256(b.as_ptr().cast()))))
    }

    #[inline(always)]
    fn ints(self) -> __m256i {
        avx2!(_mm256_setzero_si256())
    }

    #[inline(always)]
    fn floats_of_ints(self, v: __m256i) -> __m256 {
        avx2!(_mm256_cvtepi32_ps(v))
    }

    #[inline(always)]
    fn floats_of_bytes(self, v: &[u8; 16], first: usize, step: usize) -> __m256 {
        // Byte `first + step * i` at the bottom of integer `i`; an index of 0x80 gives 0.
        let places: [i32; 8] =
            std::array::from_fn(|i| i32::from_le_bytes([(first + step * i) as u8, 0x80, 0x80, 0x80]));
        avx2!({
            let places = _mm256_loadu_si256(places.as_ptr().cast());
            _mm256_cvtepi32_ps(_mm256_shuffle_epi8(self.bytes_twice(v), places))
        })
    }

    #[inline(always)]
    fn floats_of_f32(self, v: &[u8; 32]) -> __m256 {
        avx2!(_mm256_loadu_ps(v.as_ptr().cast()))
    }

    #[inline(always)]
    fn floats_of_f16(self, v: &[u8; 16]) -> __m256 {
        avx2!(_mm256_cvtph_ps(_mm_loadu_si128(v.as_ptr().cast())))
    }

    #[inline(always)]
    fn floats_of_bf16(self, v: &[u8; 16]) -> __m256 {
        avx2!({
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(v.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        })
    }

    #[inline(always)]
    fn half(self, v: [u8; 2]) -> f32 {
        avx2!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(v).into()))))
    }

    #[inline(always)]
    fn floats(self, v: &[f32; 8]) -> __m256 {
        avx2!(_mm256_loadu_ps(v.as_ptr()))
    }

    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        avx2!(_mm256_set1_ps(v))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn array(self, v: __m256) -> [f32; 8] {
        let mut array = [0.0; 8];
        avx2!(_mm256_storeu_ps(array.as_mut_ptr(), v));
        array
    }
}
