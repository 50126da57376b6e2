//! The instructions behind the API.

use core::arch::asm;

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn llvm_shfl_bfly(mask: u32, value: u32, lane_mask: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn llvm_shfl_idx(mask: u32, value: u32, source: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn llvm_bar_warp(mask: u32);
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn llvm_vote_ballot(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.isspacep.shared"]
    fn llvm_isspacep_shared(pointer: *const u8) -> bool;
    #[link_name = "llvm.nvvm.isspacep.global"]
    fn llvm_isspacep_global(pointer: *const u8) -> bool;
    #[link_name = "llvm.nvvm.mma.m16n8k8.row.col.tf32"]
    fn llvm_mma_m16n8k8(
        a0: u32,
        a1: u32,
        a2: u32,
        a3: u32,
        b0: u32,
        b1: u32,
        c0: f32,
        c1: f32,
        c2: f32,
        c3: f32,
    ) -> Fragment;
    #[link_name = "llvm.fma.f32"]
    fn llvm_fma(a: f32, b: f32, c: f32) -> f32;
}

/// A lane's part of a 16 x 8 matrix of floats.
#[repr(C)]
struct Fragment(f32, f32, f32, f32);

/// Whole warps: no sub-warp segments, last lane 31.
const CLAMP: u32 = 0x1f;

#[inline(always)]
pub unsafe fn shfl_bfly(mask: u32, value: u32, lane_mask: u32) -> u32 {
    // SAFETY: the caller's promise that the lanes of `mask` are all here.
    unsafe { llvm_shfl_bfly(mask, value, lane_mask, CLAMP) }
}

#[inline(always)]
pub unsafe fn shfl_idx(mask: u32, value: u32, source: u32) -> u32 {
    // SAFETY: the caller's promise that the lanes of `mask` are all here.
    unsafe { llvm_shfl_idx(mask, value, source, CLAMP) }
}

#[inline(always)]
pub unsafe fn bar_warp(mask: u32) {
    // SAFETY: the caller's promise that the lanes of `mask` are all here.
    unsafe { llvm_bar_warp(mask) }
}

#[inline(always)]
pub unsafe fn vote_ballot(mask: u32, predicate: bool) -> u32 {
    // SAFETY: the caller's promise that the lanes of `mask` are all here.
    unsafe { llvm_vote_ballot(mask, predicate) }
}

/// Tells the compiler that `pointer` points into shared memory, so that accesses become `ld.shared` and `st.shared`.
#[inline(always)]
pub unsafe fn assume_shared(pointer: *const u8) {
    // SAFETY: the caller's promise.
    unsafe { core::hint::assert_unchecked(llvm_isspacep_shared(pointer)) }
}

/// Sixteen bytes of global memory, aligned as many, past the L1 cache.
#[inline(always)]
pub unsafe fn load_streaming(pointer: *const u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise; a generic address of global memory is its address there too.
    unsafe {
        asm!(
            "ld.global.nc.L1::no_allocate.v4.u32 {{{0}, {1}, {2}, {3}}}, [{4}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) pointer,
            options(pure, readonly, nostack),
        )
    };
    [a, b, c, d]
}

/// Tells the compiler that `pointer` points into global memory, so that accesses become `ld.global` and `st.global`.
#[inline(always)]
pub unsafe fn assume_global(pointer: *const u8) {
    // SAFETY: the caller's promise.
    unsafe { core::hint::assert_unchecked(llvm_isspacep_global(pointer)) }
}

#[inline(always)]
pub unsafe fn mma_m16n8k8(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    // SAFETY: the caller's promise that all lanes are here.
    let Fragment(d0, d1, d2, d3) =
        unsafe { llvm_mma_m16n8k8(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]) };
    [d0, d1, d2, d3]
}

#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { llvm_fma(a, b, c) }
}

#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let out: f32;
    // SAFETY: arithmetic on registers.
    unsafe { asm!("cvt.f32.f16 {0}, {1};", out(reg32) out, in(reg16) bits, options(pure, nomem, nostack)) };
    out
}

#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let out: u16;
    // SAFETY: arithmetic on registers.
    unsafe { asm!("cvt.rn.f16.f32 {0}, {1};", out(reg16) out, in(reg32) value, options(pure, nomem, nostack)) };
    out
}

#[inline(always)]
pub fn ex2(x: f32) -> f32 {
    let out: f32;
    // SAFETY: arithmetic on registers.
    unsafe { asm!("ex2.approx.ftz.f32 {0}, {1};", out(reg32) out, in(reg32) x, options(pure, nomem, nostack)) };
    out
}

#[inline(always)]
pub fn rsqrt(x: f32) -> f32 {
    let out: f32;
    // SAFETY: arithmetic on registers.
    unsafe { asm!("rsqrt.approx.f32 {0}, {1};", out(reg32) out, in(reg32) x, options(pure, nomem, nostack)) };
    out
}
