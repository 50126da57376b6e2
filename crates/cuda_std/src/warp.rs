//! Collectives of the 32 lanes of a warp. Names are Rust-CUDA's.
//!
//! All lanes that `mask` names must call the same function together. On the GPU these are LLVM intrinsics, which are
//! convergent; an `asm!` would not be, and the compiler may move or copy it into divergent code.

/// All 32 lanes.
pub const FULL_MASK: u32 = u32::MAX;

/// The lane of the running thread, for one-dimensional blocks.
#[inline(always)]
pub fn lane_id() -> u32 {
    crate::thread::thread_idx_x() % 32
}

/// The warp of the running thread inside its block, for one-dimensional blocks.
#[inline(always)]
pub fn warp_id() -> u32 {
    crate::thread::thread_idx_x() / 32
}

/// Whether this lane is the one of its warp that does something for all. On sm_90 the hardware chooses it (`elect.sync`), so that ptxas knows that
/// it is one lane: for any other condition it makes a loop over lanes of each bulk copy.
///
/// # Safety
/// All lanes are here.
#[inline(always)]
pub unsafe fn elect() -> bool {
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    // SAFETY: the caller's promise.
    unsafe {
        crate::nvptx::elect(FULL_MASK)
    }
    #[cfg(not(all(target_arch = "nvptx64", cuda_sm = "90")))]
    {
        lane_id() == 0
    }
}

/// A 32-bit value that lanes can exchange.
pub trait Lane: Copy {
    /// As bits.
    fn to_bits32(self) -> u32;
    /// From bits.
    fn from_bits32(bits: u32) -> Self;
}
impl Lane for u32 {
    #[inline(always)]
    fn to_bits32(self) -> u32 {
        self
    }
    #[inline(always)]
    fn from_bits32(bits: u32) -> Self {
        bits
    }
}
impl Lane for i32 {
    #[inline(always)]
    fn to_bits32(self) -> u32 {
        self as u32
    }
    #[inline(always)]
    fn from_bits32(bits: u32) -> Self {
        bits as i32
    }
}
impl Lane for f32 {
    #[inline(always)]
    fn to_bits32(self) -> u32 {
        self.to_bits()
    }
    #[inline(always)]
    fn from_bits32(bits: u32) -> Self {
        f32::from_bits(bits)
    }
}

/// `bar.warp.sync`: waits for the lanes of `mask`. The compilers move no access to memory across it.
///
/// # Safety
/// Every lane of `mask` must be running this very call.
#[inline(always)]
pub unsafe fn sync_warp(mask: u32) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        crate::nvptx::bar_warp(mask)
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::host::machine().warp_exchange(mask, 0);
}

/// `shfl.sync.bfly`: the value of the lane whose number differs in the bits of `lane_mask`.
///
/// # Safety
/// Every lane of `mask` must be running this very call.
#[inline(always)]
pub unsafe fn warp_shuffle_xor<T: Lane>(mask: u32, value: T, lane_mask: u32) -> T {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    return T::from_bits32(unsafe { crate::nvptx::shfl_bfly(mask, value.to_bits32(), lane_mask) });
    #[cfg(not(target_arch = "nvptx64"))]
    return T::from_bits32(
        crate::host::machine().warp_exchange(mask, value.to_bits32())
            [((crate::host::lane() ^ lane_mask) % 32) as usize],
    );
}

/// `shfl.sync.idx`: the value of lane `source`.
///
/// # Safety
/// Every lane of `mask` must be running this very call.
#[inline(always)]
pub unsafe fn warp_shuffle_idx<T: Lane>(mask: u32, value: T, source: u32) -> T {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    return T::from_bits32(unsafe { crate::nvptx::shfl_idx(mask, value.to_bits32(), source) });
    #[cfg(not(target_arch = "nvptx64"))]
    return T::from_bits32(crate::host::machine().warp_exchange(mask, value.to_bits32())[(source % 32) as usize]);
}

/// `vote.sync.ballot`: bit i is lane i's `predicate`.
///
/// # Safety
/// Every lane of `mask` must be running this very call.
#[inline(always)]
pub unsafe fn warp_vote_ballot(mask: u32, predicate: bool) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    return unsafe { crate::nvptx::vote_ballot(mask, predicate) };
    #[cfg(not(target_arch = "nvptx64"))]
    return crate::host::machine()
        .warp_exchange(mask, u32::from(predicate))
        .iter()
        .enumerate()
        .fold(0, |bits, (lane, &p)| bits | p << lane);
}

/// The sum over all 32 lanes, in every lane, in an order that does not depend on the lane (so that all get the same bits).
///
/// # Safety
/// All 32 lanes must be running this very call.
#[inline(always)]
pub unsafe fn sum(mut value: f32) -> f32 {
    let mut step = 16;
    while step > 0 {
        // SAFETY: the caller's promise.
        value += unsafe { warp_shuffle_xor(FULL_MASK, value, step) };
        step /= 2;
    }
    value
}

/// Replaces each value by its [`sum`], with the same bits; the exchanges of different values overlap.
///
/// # Safety
/// All 32 lanes must be running this very call.
#[inline(always)]
pub unsafe fn sums(values: &mut [f32]) {
    let mut step = 16;
    while step > 0 {
        for value in &mut *values {
            // SAFETY: the caller's promise.
            *value += unsafe { warp_shuffle_xor(FULL_MASK, *value, step) };
        }
        step /= 2;
    }
}

/// The largest value over all 32 lanes, in every lane.
///
/// # Safety
/// All 32 lanes must be running this very call.
#[inline(always)]
pub unsafe fn max(mut value: f32) -> f32 {
    let mut step = 16;
    while step > 0 {
        // SAFETY: the caller's promise.
        value = value.max(unsafe { warp_shuffle_xor(FULL_MASK, value, step) });
        step /= 2;
    }
    value
}
