//! Sums over a block.

use cuda_std::prelude::*;

/// The sum of every thread's `value`, in every thread. Once in a kernel: a second call could overwrite the first one's
/// partial sums while another warp still reads them.
///
/// # Safety
/// All threads of the block must be here; it has one dimension and whole warps.
#[inline(always)]
pub(super) unsafe fn sum(value: f32) -> f32 {
    let partial = shared_array!(BLOCK_SUMS: [f32; 32]);
    let (lane, warps) = (warp::lane_id(), thread::block_dim_x() / 32);
    // SAFETY: all threads are here; a block has at most 32 warps, and each writes an element of its own before the barrier.
    unsafe {
        let sum = warp::sum(value);
        if lane == 0 {
            partial.add(warp::warp_id() as usize).write(sum);
        }
        thread::sync_threads();
        warp::sum(if lane < warps { partial.add(lane as usize).read() } else { 0.0 })
    }
}
