//! Bytes of weights in shared memory.

use cuda_std::prelude::*;

/// A place in a stage: GGUF's bytes of a row, from there on.
#[derive(Clone, Copy)]
pub struct Staged {
    /// A multiple of 16.
    base: *const u8,
    at: u32,
}

impl Staged {
    /// # Safety
    /// `bytes` points into shared memory that holds what is read through this, and seven bytes more.
    #[inline(always)]
    pub unsafe fn new(base: *const u8, at: u32) -> Self {
        Staged { base, at }
    }

    /// `bytes` further on.
    #[inline(always)]
    pub fn skip(self, bytes: u32) -> Self {
        Staged { at: self.at + bytes, ..self }
    }

    #[inline(always)]
    fn read<T: Copy>(self, at: usize) -> T {
        // SAFETY: `new`'s promise.
        unsafe { self.base.add(self.at as usize).add(at).cast::<T>().read() }
    }

    /// A byte.
    #[inline(always)]
    pub fn u8(self, at: usize) -> u8 {
        self.read(at)
    }

    /// A half-precision number at an even place.
    #[inline(always)]
    pub fn f16(self, at: usize) -> f32 {
        self.read::<F16>(at).to_f32()
    }

    /// `N` words from a place that is a multiple of `ALIGN`: 2, 4, 8 or 16 bytes. `at` is a multiple of 4.
    #[inline(always)]
    pub fn words<const N: usize, const ALIGN: usize>(self, at: usize) -> [u32; N] {
        let mut out = [0; N];
        match ALIGN {
            16 => {
                for i in 0..N / 4 {
                    let quad = self.read::<Quad>(at + 16 * i).0;
                    for k in 0..4 {
                        out[4 * i + k] = quad[k];
                    }
                }
            }
            8 => {
                for i in 0..N / 2 {
                    let pair = self.read::<Pair>(at + 8 * i).0;
                    out[2 * i] = pair[0];
                    out[2 * i + 1] = pair[1];
                }
            }
            4 => {
                for i in 0..N {
                    out[i] = self.read(at + 4 * i);
                }
            }
            _ => out = self.words_from(at, 0),
        }
        out
    }

    /// `N` words from an even place, shifted `bits` to the right, at most 15: at the top of each are bits of the next one. `at` is a multiple
    /// of 4.
    #[inline(always)]
    pub fn words_from<const N: usize>(self, at: usize, bits: u32) -> [u32; N] {
        // Two words that lie across every one of these; one more is read than needed where the place is a multiple of 4. All reads of a
        // block begin at the same word: one register.
        let odd = self.at & 3;
        let aligned = Staged { at: self.at - odd, ..self };
        let mut low: u32 = aligned.read(at);
        let mut out = [0; N];
        for i in 0..N {
            let high = aligned.read(at + 4 * i + 4);
            out[i] = simd::funnel_shift_right(low, high, 8 * odd + bits);
            low = high;
        }
        out
    }

    /// A half-precision number at an even place and the `N` words after it: `N + 1` reads in all.
    #[inline(always)]
    pub fn half_words<const N: usize>(self) -> (f32, [u32; N]) {
        // Whether the place is a multiple of 4 or not, it and all that follows lies in the same number of words.
        let odd = self.at & 2;
        let aligned = Staged { at: self.at - odd, ..self };
        let selector = 0x5432 + 0x1111 * odd;
        let mut low: u32 = aligned.read(0);
        let half = F16((low >> (8 * odd)) as u16).to_f32();
        let mut out = [0; N];
        for i in 0..N {
            let high = aligned.read(4 * i + 4);
            out[i] = simd::byte_perm(low, high, selector);
            low = high;
        }
        (half, out)
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Quad([u32; 4]);

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Pair([u32; 2]);
