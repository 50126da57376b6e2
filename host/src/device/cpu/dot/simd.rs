//! Vectors of 32 bytes, and the few operations on them that the dot products are written in.
//!
//! The kernels are written once, generic over [`Simd`], so every implementation computes the same: integers exactly, and
//! each float operation rounded by itself (no fused multiply-add), in the same order. The bits of a result do not depend on
//! the implementation, except those of a NaN.

/// The operations. A value of an implementing type shows that the CPU has the instructions.
pub trait Simd: Copy {
    /// Several columns at a time are faster than one after the other.
    const TILES: bool;

    /// 32 bytes, `u8` or `i8`.
    type Bytes: Copy;
    /// 16 `i16`.
    type Words: Copy;
    /// 8 `i32`.
    type Ints: Copy;
    /// 8 `f32`.
    type Floats: Copy;

    /// Asks for the cache line at `line`, which may be any address. It is a hint.
    fn prefetch(self, line: *const u8);

    /// The bytes of `v`.
    fn bytes(self, v: &[u8; 32]) -> Self::Bytes;
    /// The bytes of `v` in the lower half, and again in the upper half.
    fn bytes_twice(self, v: &[u8; 16]) -> Self::Bytes;
    /// The bytes of `v` in the lower half, and these shifted right by four bits in the upper half; only the low four bits of
    /// each are meant.
    fn nibbles(self, v: &[u8; 16]) -> Self::Bytes;
    /// Each byte shifted right by `shift` (left where it is negative) and masked. The mask excludes what a shift of 16-bit
    /// words brings in from the neighbouring byte.
    fn field(self, v: Self::Bytes, shift: i32, mask: u8) -> Self::Bytes;
    /// `a | b`
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// `a - b` of each byte, which does not overflow as `i8`.
    fn minus(self, a: Self::Bytes, b: u8) -> Self::Bytes;
    /// Bit `i` of the 32, as `mask` in byte `i`.
    fn bits(self, v: &[u8; 4], mask: u8) -> Self::Bytes;
    /// Byte `index[i]` of `table`, which has the same 16 bytes in both halves; the indices are below 16.
    fn lookup(self, table: Self::Bytes, index: Self::Bytes) -> Self::Bytes;

    /// The signed bytes as words: those at even places, and those at odd ones.
    fn widen(self, v: Self::Bytes) -> (Self::Words, Self::Words);
    /// As [`Simd::widen`], and the words of the lower half multiplied by the signed byte `scales[low]`, those of the upper
    /// half by `scales[high]`. `scales` has the same 16 bytes in both halves.
    fn widen_scaled(self, v: Self::Bytes, scales: Self::Bytes, low: u8, high: u8) -> (Self::Words, Self::Words);
    /// `sums[i] + a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1]`, which does not overflow.
    fn add_products(self, sums: Self::Ints, a: Self::Words, b: &[i16; 16]) -> Self::Ints;
    /// Zeros.
    fn ints(self) -> Self::Ints;

    /// The integers as floats, rounded to nearest even.
    fn floats_of_ints(self, v: Self::Ints) -> Self::Floats;
    /// The unsigned bytes `first`, `first + step`, `first + 2 step`, ... of `v`, eight of 16.
    fn floats_of_bytes(self, v: &[u8; 16], first: usize, step: usize) -> Self::Floats;
    /// Single precision, little endian.
    fn floats_of_f32(self, v: &[u8; 32]) -> Self::Floats;
    /// Half precision, little endian.
    fn floats_of_f16(self, v: &[u8; 16]) -> Self::Floats;
    /// BF16, little endian.
    fn floats_of_bf16(self, v: &[u8; 16]) -> Self::Floats;
    /// Half precision, little endian, to single.
    fn half(self, v: [u8; 2]) -> f32;
    /// The floats of `v`.
    fn floats(self, v: &[f32; 8]) -> Self::Floats;
    /// Eight times `v`.
    fn splat(self, v: f32) -> Self::Floats;
    /// `a + b`
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a - b`
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b`
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The floats as an array.
    fn array(self, v: Self::Floats) -> [f32; 8];
}

/// Code that is compiled for each instruction set. `run` of an implementation is `#[inline(always)]`, as is all that it
/// calls, or the instructions are not used.
pub trait Task {
    /// The result.
    type Out;
    /// Does it.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// An array by its elements. `array::from_fn` would be a call, and not be vectorised.
macro_rules! each {
    ($i:ident => $element:expr) => {{
        let mut array = [Default::default(); _];
        for $i in 0..array.len() {
            array[$i] = $element;
        }
        array
    }};
}

/// Byte `i` of words of two.
#[inline(always)]
fn byte(words: [u16; 16], i: u8) -> u8 {
    words[usize::from(i / 2) % 16].to_le_bytes()[usize::from(i % 2)]
}

/// Plain Rust, for any CPU.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    // The compiler does not vectorise as much code.
    const TILES: bool = false;

    /// Words of two bytes each, as the other implementations compute them: compilers vectorise that better than bytes.
    type Bytes = [u16; 16];
    type Words = [i16; 16];
    type Ints = [i32; 8];
    type Floats = [f32; 8];

    #[inline(always)]
    fn prefetch(self, _line: *const u8) {}

    #[inline(always)]
    fn bytes(self, v: &[u8; 32]) -> [u16; 16] {
        each!(i => u16::from_le_bytes([v[2 * i], v[2 * i + 1]]))
    }

    #[inline(always)]
    fn bytes_twice(self, v: &[u8; 16]) -> [u16; 16] {
        each!(i => u16::from_le_bytes([v[2 * i % 16], v[2 * i % 16 + 1]]))
    }

    #[inline(always)]
    fn nibbles(self, v: &[u8; 16]) -> [u16; 16] {
        each!(i => u16::from_le_bytes([v[2 * i % 16], v[2 * i % 16 + 1]]) >> (4 * (i / 8)))
    }

    #[inline(always)]
    fn field(self, v: [u16; 16], shift: i32, mask: u8) -> [u16; 16] {
        let mask = u16::from_le_bytes([mask; 2]);
        if shift >= 0 { each!(i => v[i] >> shift & mask) } else { each!(i => v[i] << -shift & mask) }
    }

    #[inline(always)]
    fn or(self, a: [u16; 16], b: [u16; 16]) -> [u16; 16] {
        each!(i => a[i] | b[i])
    }

    #[inline(always)]
    fn minus(self, a: [u16; 16], b: u8) -> [u16; 16] {
        let (low, high) = (u16::from(b), u16::from(b) << 8);
        each!(i => a[i].wrapping_sub(low) & 0xff | (a[i] & 0xff00).wrapping_sub(high))
    }

    #[inline(always)]
    fn bits(self, v: &[u8; 4], mask: u8) -> [u16; 16] {
        let (v, mask) = (u32::from_le_bytes(*v), u32::from(mask));
        each!(i => (((v >> (2 * i) & 1) * mask) | ((v >> (2 * i + 1) & 1) * mask) << 8) as u16)
    }

    #[inline(always)]
    fn lookup(self, table: [u16; 16], index: [u16; 16]) -> [u16; 16] {
        each!(i => {
            let [a, b] = index[i].to_le_bytes();
            u16::from_le_bytes([byte(table, a), byte(table, b)])
        })
    }

    #[inline(always)]
    fn widen(self, v: [u16; 16]) -> ([i16; 16], [i16; 16]) {
        (each!(i => (v[i] << 8) as i16 >> 8), each!(i => v[i] as i16 >> 8))
    }

    #[inline(always)]
    fn widen_scaled(self, v: [u16; 16], scales: [u16; 16], low: u8, high: u8) -> ([i16; 16], [i16; 16]) {
        let (low, high) = (i16::from(byte(scales, low) as i8), i16::from(byte(scales, high) as i8));
        let scale = |i: usize| if i < 8 { low } else { high };
        let (even, odd) = self.widen(v);
        (each!(i => even[i] * scale(i)), each!(i => odd[i] * scale(i)))
    }

    #[inline(always)]
    fn add_products(self, sums: [i32; 8], a: [i16; 16], b: &[i16; 16]) -> [i32; 8] {
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        each!(i => sums[i] + (product(2 * i) + product(2 * i + 1)))
    }

    #[inline(always)]
    fn ints(self) -> [i32; 8] {
        [0; 8]
    }

    #[inline(always)]
    fn floats_of_ints(self, v: [i32; 8]) -> [f32; 8] {
        each!(i => v[i] as f32)
    }

    #[inline(always)]
    fn floats_of_bytes(self, v: &[u8; 16], first: usize, step: usize) -> [f32; 8] {
        each!(i => f32::from(v[first + step * i]))
    }

    #[inline(always)]
    fn floats_of_f32(self, v: &[u8; 32]) -> [f32; 8] {
        each!(i => f32::from_le_bytes([v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]]))
    }

    #[inline(always)]
    fn floats_of_f16(self, v: &[u8; 16]) -> [f32; 8] {
        each!(i => self.half([v[2 * i], v[2 * i + 1]]))
    }

    #[inline(always)]
    fn floats_of_bf16(self, v: &[u8; 16]) -> [f32; 8] {
        each!(i => quant::bf16_to_f32(u16::from_le_bytes([v[2 * i], v[2 * i + 1]])))
    }

    #[inline(always)]
    fn half(self, v: [u8; 2]) -> f32 {
        quant::f16_to_f32(u16::from_le_bytes(v))
    }

    #[inline(always)]
    fn floats(self, v: &[f32; 8]) -> [f32; 8] {
        *v
    }

    #[inline(always)]
    fn splat(self, v: f32) -> [f32; 8] {
        [v; 8]
    }

    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each!(i => a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each!(i => a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each!(i => a[i] * b[i])
    }

    #[inline(always)]
    fn array(self, v: [f32; 8]) -> [f32; 8] {
        v
    }
}
