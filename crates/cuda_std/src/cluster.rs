//! Clusters: blocks that run at the same time and reach each other's shared memory (CUDA programming guide, "Thread Block
//! Clusters" and "Distributed Shared Memory"; PTX ISA 7.8, `mapa` and `barrier.cluster`).
//!
//! A launch asks for them with [`Grid::with_cluster`](crate::kernel::Grid::with_cluster). PTX for GPUs before sm_90 has none: a block
//! is a cluster of its own there, as it is in a launch without clusters.
//!
//! A block may start after another one, and its shared memory lives as long as it does. So a block writes into another's only
//! after a barrier that all threads have passed since their start, and none exits before the last write to its own has come: that
//! is one more barrier, behind which each block reads what the others have written to it.

/// Blocks of this block's cluster.
#[inline(always)]
pub fn size() -> u32 {
    cluster().0
}

/// This block's number among them, along x first.
#[inline(always)]
pub fn rank() -> u32 {
    cluster().1
}

#[inline(always)]
fn cluster() -> (u32, u32) {
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    return crate::nvptx::cluster();
    #[cfg(all(target_arch = "nvptx64", not(cuda_sm = "90")))]
    return (1, 0);
    #[cfg(not(target_arch = "nvptx64"))]
    crate::host::machine().cluster()
}

/// Where block `rank` of the cluster has what `pointer` points to in this block's shared memory.
///
/// # Safety
/// `pointer` points into this block's shared memory, `rank` is below [`size`], and block `rank` has started.
#[inline(always)]
#[cfg_attr(all(target_arch = "nvptx64", not(cuda_sm = "90")), allow(unused_variables))]
pub unsafe fn map<T>(pointer: *mut T, rank: u32) -> *mut T {
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    return crate::nvptx::cluster_map(pointer.cast(), rank).cast();
    #[cfg(all(target_arch = "nvptx64", not(cuda_sm = "90")))]
    return pointer;
    #[cfg(not(target_arch = "nvptx64"))]
    crate::host::machine().cluster_map(pointer.cast(), rank).cast()
}

/// The first half of a barrier of all threads of the cluster. What was written before can be seen by all behind [`wait`].
///
/// # Safety
/// Each thread of the cluster calls `arrive` and [`wait`] in turn, as often as the others, or exits.
#[inline(always)]
pub unsafe fn arrive() {
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    // SAFETY: the caller's promise.
    unsafe {
        crate::nvptx::cluster_arrive()
    };
    #[cfg(not(target_arch = "nvptx64"))]
    crate::host::machine().cluster_arrive();
    // A block that is a cluster of its own still has a barrier here.
    #[cfg(all(target_arch = "nvptx64", not(cuda_sm = "90")))]
    // SAFETY: the caller's promise.
    unsafe {
        crate::thread::sync_threads()
    };
}

/// The second half: waits until all have arrived.
///
/// # Safety
/// As for [`arrive`].
#[inline(always)]
pub unsafe fn wait() {
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    // SAFETY: the caller's promise.
    unsafe {
        crate::nvptx::cluster_wait()
    };
    #[cfg(not(target_arch = "nvptx64"))]
    crate::host::machine().cluster_wait();
}
