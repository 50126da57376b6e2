//! How a decoder reads a block, wherever the block lies.

use crate::f16_to_f32;

/// Read access to the bytes of one block. Offsets count from the block's start.
///
/// Host code reads slices; the kernels implement it for a pointer into device memory. Multi-byte values are little
/// endian. Blocks of 34, 110 and 210 bytes are only 2-byte aligned in a row, hence two kinds of 32-bit reads.
pub trait Bytes: Copy {
    /// The byte at `at`.
    fn u8(self, at: usize) -> u8;

    /// The 16-bit word at the even offset `at`.
    fn u16(self, at: usize) -> u16;

    /// The 32-bit word at the even offset `at`, in a block of any alignment.
    #[inline(always)]
    fn u32(self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    /// The 32-bit word at the offset `at`, a multiple of 4, in a format whose blocks are a multiple of 4 bytes.
    #[inline(always)]
    fn u32_aligned(self, at: usize) -> u32 {
        self.u32(at)
    }

    /// The 64-bit word at the even offset `at`, in a block of any alignment.
    #[inline(always)]
    fn u64(self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    /// The 64-bit word at the offset `at`, a multiple of 4, in a format whose blocks are a multiple of 4 bytes.
    #[inline(always)]
    fn u64_aligned(self, at: usize) -> u64 {
        u64::from(self.u32_aligned(at)) | u64::from(self.u32_aligned(at + 4)) << 32
    }

    /// The half-precision number at the even offset `at`. A device with a conversion instruction overrides this.
    #[inline(always)]
    fn f16(self, at: usize) -> f32 {
        f16_to_f32(self.u16(at))
    }
}

/// Panics where the slice is too short; [`crate::decode_row`] checks lengths first.
impl Bytes for &[u8] {
    #[inline(always)]
    fn u8(self, at: usize) -> u8 {
        self[at]
    }

    #[inline(always)]
    fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes([self[at], self[at + 1]])
    }

    #[inline(always)]
    fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes([self[at], self[at + 1], self[at + 2], self[at + 3]])
    }
}
