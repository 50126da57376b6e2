//! The instructions behind the API.

use core::arch::asm;

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn llvm_shfl_bfly(mask: u32, value: u32, lane_mask: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn llvm_shfl_idx(mask: u32, value: u32, source: u32, clamp: u32) -> u32;
    #[cfg(cuda_sm = "90")]
    #[link_name = "llvm.nvvm.elect.sync"]
    fn llvm_elect(mask: u32) -> (u32, bool);
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
    #[cfg(cuda_sm = "90")]
    #[link_name = "llvm.nvvm.barrier.cluster.arrive"]
    fn llvm_cluster_arrive();
    #[cfg(cuda_sm = "90")]
    #[link_name = "llvm.nvvm.barrier.cluster.wait"]
    fn llvm_cluster_wait();
    #[link_name = "llvm.fma.f32"]
    fn llvm_fma(a: f32, b: f32, c: f32) -> f32;
}

/// A lane's part of a 16 x 8 matrix of floats.
#[repr(C)]
struct Fragment(f32, f32, f32, f32);

/// Whole warps: no sub-warp segments, last lane 31.
const CLAMP: u32 = 0x1f;

/// The lane that was chosen, and whether it is this one, are the results; the second is all that is wanted.
#[cfg(cuda_sm = "90")]
#[inline(always)]
pub unsafe fn elect(mask: u32) -> bool {
    // SAFETY: the caller's promise that the lanes of `mask` are all here.
    unsafe { llvm_elect(mask) }.1
}

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

#[inline(always)]
pub fn dp4a(a: u32, b: u32, c: i32) -> i32 {
    let out: i32;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("dp4a.s32.s32 {0}, {1}, {2}, {3};", out(reg32) out, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
    }
    out
}

#[inline(always)]
pub fn dp4a_unsigned(a: u32, b: u32, c: i32) -> i32 {
    let out: i32;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("dp4a.u32.s32 {0}, {1}, {2}, {3};", out(reg32) out, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
    }
    out
}

#[inline(always)]
pub fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    let out: u32;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("prmt.b32 {0}, {1}, {2}, {3};", out(reg32) out, in(reg32) a, in(reg32) b, in(reg32) selector, options(pure, nomem, nostack));
    }
    out
}

#[inline(always)]
pub fn select_bits(mask: u32, a: u32, b: u32) -> u32 {
    let out: u32;
    // SAFETY: arithmetic on registers. The table is that of `mask ? a : b`, 0xca.
    unsafe {
        asm!("lop3.b32 {0}, {1}, {2}, {3}, 0xca;", out(reg32) out, in(reg32) mask, in(reg32) a, in(reg32) b, options(pure, nomem, nostack));
    }
    out
}

#[inline(always)]
pub fn funnel_shift_right(low: u32, high: u32, bits: u32) -> u32 {
    let out: u32;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("shf.r.wrap.b32 {0}, {1}, {2}, {3};", out(reg32) out, in(reg32) low, in(reg32) high, in(reg32) bits, options(pure, nomem, nostack));
    }
    out
}

#[inline(always)]
pub fn round_to_int(x: f32) -> i32 {
    let out: i32;
    // SAFETY: arithmetic on registers.
    unsafe { asm!("cvt.rni.s32.f32 {0}, {1};", out(reg32) out, in(reg32) x, options(pure, nomem, nostack)) };
    out
}

#[inline(always)]
pub fn pack_i8([a, b, c, d]: [i32; 4]) -> u32 {
    let out: u32;
    // SAFETY: arithmetic on registers. The instruction puts its second operand lowest, and the old word's low half above both.
    unsafe {
        asm!(
            "{{ .reg .b32 t; cvt.pack.sat.s8.s32.b32 t, {4}, {3}, 0; cvt.pack.sat.s8.s32.b32 {0}, {2}, {1}, t; }}",
            out(reg32) out, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d, options(pure, nomem, nostack)
        );
    }
    out
}

#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    let out: f32;
    // SAFETY: arithmetic on registers.
    unsafe { asm!("rcp.approx.ftz.f32 {0}, {1};", out(reg32) out, in(reg32) x, options(pure, nomem, nostack)) };
    out
}

/// The address inside shared memory of a generic one. Barriers and the targets of copies are given so.
#[inline(always)]
pub fn in_shared<T>(pointer: *const T) -> u32 {
    let out: u32;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{{ .reg .u64 t; cvta.to.shared.u64 t, {1}; cvt.u32.u64 {0}, t; }}",
            out(reg32) out, in(reg64) pointer, options(pure, nomem, nostack)
        );
    }
    out
}

#[cfg(not(cuda_sm = "90"))]
#[inline(always)]
pub unsafe fn copy16(target: u32, source: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.cg.shared.global [{0}], [{1}], 16;", in(reg32) target, in(reg64) source, options(nostack))
    };
}

#[cfg(not(cuda_sm = "90"))]
#[inline(always)]
pub fn copy_commit() {
    // SAFETY: closes a group of this thread's copies.
    unsafe { asm!("cp.async.commit_group;", options(nostack)) };
}

/// Waits for all groups of this thread's copies but the last `PENDING`.
#[cfg(not(cuda_sm = "90"))]
#[inline(always)]
pub fn copy_wait<const PENDING: u32>() {
    // SAFETY: waits.
    unsafe { asm!("cp.async.wait_group {0};", const PENDING, options(nostack)) };
}

#[cfg(cuda_sm = "90")]
#[inline(always)]
pub unsafe fn barrier_init(barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mbarrier.init.shared::cta.b64 [{0}], 1;", in(reg32) barrier, options(nostack)) };
}

/// Makes barriers known to the engine that copies.
#[cfg(cuda_sm = "90")]
#[inline(always)]
pub fn barrier_init_fence() {
    // SAFETY: orders accesses.
    unsafe { asm!("fence.mbarrier_init.release.cluster;", "fence.proxy.async.shared::cta;", options(nostack)) };
}

/// This phase of `barrier` ends when `bytes` bytes have arrived.
#[cfg(cuda_sm = "90")]
#[inline(always)]
pub unsafe fn barrier_expect(barrier: u32, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{0}], {1};", in(reg32) barrier, in(reg32) bytes, options(nostack));
    }
}

#[cfg(cuda_sm = "90")]
#[inline(always)]
pub unsafe fn bulk_copy(target: u32, source: *const u8, bytes: u32, barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{",
            ".reg .u64 g;",
            "cvta.to.global.u64 g, {1};",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [g], {2}, [{3}];",
            "}}",
            in(reg32) target, in(reg64) source, in(reg32) bytes, in(reg32) barrier, options(nostack)
        );
    }
}

/// Has the phase of this parity ended? Waits a while for it.
#[cfg(cuda_sm = "90")]
#[inline(always)]
pub unsafe fn barrier_try_wait(barrier: u32, parity: u32) -> bool {
    let ended: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [{1}], {2}; selp.u32 {0}, 1, 0, p; }}",
            out(reg32) ended, in(reg32) barrier, in(reg32) parity, options(nostack)
        );
    }
    ended != 0
}

#[cfg(cuda_sm = "90")]
#[inline(always)]
pub unsafe fn cluster_arrive() {
    // SAFETY: the caller's promise.
    unsafe { llvm_cluster_arrive() }
}

#[cfg(cuda_sm = "90")]
#[inline(always)]
pub unsafe fn cluster_wait() {
    // SAFETY: the caller's promise.
    unsafe { llvm_cluster_wait() }
}

/// Blocks of the cluster, and this one's number among them.
#[cfg(cuda_sm = "90")]
#[inline(always)]
pub fn cluster() -> (u32, u32) {
    let (size, rank);
    // SAFETY: reads constants of the block. Not `pure`: reading once more is better than a register for as long as the kernel runs.
    unsafe {
        asm!("mov.u32 {0}, %cluster_nctarank;", out(reg32) size, options(nomem, nostack));
        asm!("mov.u32 {0}, %cluster_ctarank;", out(reg32) rank, options(nomem, nostack));
    }
    (size, rank)
}

/// The generic address in block `rank`'s shared memory of what `pointer` points to in this block's.
#[cfg(cuda_sm = "90")]
#[inline(always)]
pub fn cluster_map(pointer: *mut u8, rank: u32) -> *mut u8 {
    let mapped: u64;
    // SAFETY: arithmetic on addresses.
    unsafe {
        asm!("mapa.u64 {0}, {1}, {2};", out(reg64) mapped, in(reg64) pointer, in(reg32) rank, options(pure, nomem, nostack))
    };
    mapped as *mut u8
}

// No `nomem` in these two: the compiler must not move an access to memory across them.

#[cfg(cuda_sm = "90")]
#[inline(always)]
pub fn launch_dependents() {
    // SAFETY: touches no memory, and changes only when another kernel starts.
    unsafe { asm!("griddepcontrol.launch_dependents;", options(nostack)) };
}

#[cfg(cuda_sm = "90")]
#[inline(always)]
pub fn grid_wait() {
    // SAFETY: waits, each thread for itself: where the compiler puts copies of it, threads wait all the same.
    unsafe { asm!("griddepcontrol.wait;", options(nostack)) };
}

#[inline(always)]
pub fn launch_bounds<const THREADS: u32, const BLOCKS: u32>() {
    // SAFETY: a comment, which crates/cuda_builder makes into directives of the entry.
    unsafe { asm!("// launch_bounds {0} {1}", const THREADS, const BLOCKS, options(nomem, nostack, preserves_flags)) };
}

#[inline(always)]
pub fn max_registers<const THREADS: u32, const REGISTERS: u32>() {
    // SAFETY: as above.
    unsafe {
        asm!("// max_registers {0} {1}", const THREADS, const REGISTERS, options(nomem, nostack, preserves_flags))
    };
}
