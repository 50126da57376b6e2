//! The yardstick of the benchmarks: a kernel that only reads. No kernel that reads as much can be faster.

use cuda_std::{kernel::Grid, mem::U32x4, prelude::*};

/// Reads of sixteen bytes that a thread has asked for before it uses the first.
const IN_FLIGHT: usize = 8;

/// The launch of `read`.
pub const fn read_grid(blocks: u32, threads: u32) -> Grid {
    Grid::new(blocks, 1, threads)
}

/// sums\[t\] = XOR of the words of x\[t\], x\[t + threads\], x\[t + 2 threads\], ..., for each of the grid's threads t.
///
/// Launched with [`read_grid`], of any size.
///
/// # Safety
/// `x` is the device address of `vectors` times sixteen bytes, 16-byte aligned, `sums` that of a word for each thread; nobody
/// else writes them.
#[kernel("bench")]
pub unsafe fn read(x: *const U32x4, vectors: u64, sums: *mut u32) {
    let stride = (thread::grid_dim_x() * thread::block_dim_x()) as usize;
    let vectors = vectors as usize;
    let mut at = thread::index_1d() as usize;
    let mut sum = 0;
    let mut rounds = vectors / (IN_FLIGHT * stride);
    // SAFETY: vectors of x; all threads take as many rounds; a thread's sum is its own.
    unsafe {
        while rounds > 0 {
            let mut read = [[0; 4]; IN_FLIGHT];
            for i in 0..IN_FLIGHT {
                read[i] = mem::load_streaming(x.add(at + i * stride));
            }
            // Without a fence, each read may be moved to its use.
            warp::sync_warp(warp::FULL_MASK);
            for i in 0..IN_FLIGHT {
                sum ^= xor(read[i]);
            }
            at += IN_FLIGHT * stride;
            rounds -= 1;
        }
        while at < vectors {
            sum ^= xor(mem::load_streaming(x.add(at)));
            at += stride;
        }
        mem::store(sums.add(thread::index_1d() as usize), sum);
    }
}

#[inline(always)]
fn xor([a, b, c, d]: [u32; 4]) -> u32 {
    a ^ b ^ c ^ d
}
