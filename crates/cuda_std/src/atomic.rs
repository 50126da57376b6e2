//! What threads of different blocks share: counters, and the order in which they see memory.
//!
//! A grid has no barrier, but its last block can finish what all began. Each block writes its part and meets at its
//! barrier; then one of its threads calls [`fence`] and [`add`]s 1 to a counter. Who finds all other blocks there calls
//! [`fence`] again, and after another barrier its block may read all parts. No block may wait for another: that one may
//! not have started, and in the emulator it never would.

use core::sync::atomic::{AtomicU32, Ordering};

/// Adds `value` to a number, wrapping, and returns what it was before (`atom.add`). Orders no other memory.
///
/// # Safety
/// `pointer` must be an aligned address of a `u32` in global or shared memory that no thread accesses otherwise meanwhile.
#[inline(always)]
pub unsafe fn add(pointer: *mut u32, value: u32) -> u32 {
    #[cfg(not(target_arch = "nvptx64"))]
    crate::host::machine().access(pointer as usize, size_of::<u32>(), align_of::<u32>(), true);
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(pointer) }.fetch_add(value, Ordering::Relaxed)
}

/// What the thread has seen and written before this is, for all threads of the grid, before what it does after
/// (`fence.acq_rel.gpu`).
#[inline(always)]
pub fn fence() {
    // Core's fence would be one for the whole system, host included.
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: it only orders memory; the compiler, too, moves no access across it.
    unsafe {
        core::arch::asm!("fence.acq_rel.gpu;", options(nostack))
    }
    #[cfg(not(target_arch = "nvptx64"))]
    core::sync::atomic::fence(Ordering::AcqRel);
}
