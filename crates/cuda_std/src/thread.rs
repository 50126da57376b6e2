//! Indices of the running thread, and the block's barrier. Names are Rust-CUDA's.

macro_rules! index {
    ($($name:ident, $method:ident, $axis:literal, $intrinsic:ident, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[inline(always)]
        pub fn $name() -> u32 {
            #[cfg(target_arch = "nvptx64")]
            // SAFETY: reads a special register.
            return unsafe { core::arch::nvptx::$intrinsic() } as u32;
            #[cfg(not(target_arch = "nvptx64"))]
            return crate::host::machine().$method()[$axis];
        }
    )*};
}
index! {
    thread_idx_x, thread_idx, 0, _thread_idx_x, "`threadIdx.x`.";
    thread_idx_y, thread_idx, 1, _thread_idx_y, "`threadIdx.y`.";
    thread_idx_z, thread_idx, 2, _thread_idx_z, "`threadIdx.z`.";
    block_idx_x, block_idx, 0, _block_idx_x, "`blockIdx.x`.";
    block_idx_y, block_idx, 1, _block_idx_y, "`blockIdx.y`.";
    block_idx_z, block_idx, 2, _block_idx_z, "`blockIdx.z`.";
    block_dim_x, block_dim, 0, _block_dim_x, "`blockDim.x`.";
    block_dim_y, block_dim, 1, _block_dim_y, "`blockDim.y`.";
    block_dim_z, block_dim, 2, _block_dim_z, "`blockDim.z`.";
    grid_dim_x, grid_dim, 0, _grid_dim_x, "`gridDim.x`.";
    grid_dim_y, grid_dim, 1, _grid_dim_y, "`gridDim.y`.";
    grid_dim_z, grid_dim, 2, _grid_dim_z, "`gridDim.z`.";
}

/// The thread's index in a one-dimensional grid.
#[inline(always)]
pub fn index_1d() -> u32 {
    block_idx_x() * block_dim_x() + thread_idx_x()
}

/// Waits until every thread of the block is here; memory written before is visible after (`bar.sync 0`).
#[inline(always)]
pub fn sync_threads() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: a barrier; the intrinsic is convergent, so the compiler keeps it where every thread reaches it.
    unsafe {
        core::arch::nvptx::_syncthreads()
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::host::machine().sync_threads();
}

/// CUDA's `__launch_bounds__`, at the start of a kernel: it is launched with `THREADS` threads a block, and gets no more
/// registers than let `BLOCKS` blocks share a multiprocessor. In the PTX: `.maxntid` and `.minnctapersm` of the entry.
#[inline(always)]
pub fn launch_bounds<const THREADS: u32, const BLOCKS: u32>() {
    #[cfg(target_arch = "nvptx64")]
    crate::nvptx::launch_bounds::<THREADS, BLOCKS>();
}

/// CUDA's `__maxnreg__`, at the start of a kernel: it is launched with `THREADS` threads a block, each of which gets `REGISTERS`
/// registers at most. In the PTX: `.maxntid` and `.maxnreg` of the entry. For a number between those that [`launch_bounds`] can give.
#[inline(always)]
pub fn max_registers<const THREADS: u32, const REGISTERS: u32>() {
    #[cfg(target_arch = "nvptx64")]
    crate::nvptx::max_registers::<THREADS, REGISTERS>();
}
