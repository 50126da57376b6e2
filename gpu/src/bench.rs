//! The yardsticks of the benchmarks: a kernel that only reads, which no kernel that reads as much can beat, and two ways to order what all
//! multiprocessors do: kernels one after the other, and a barrier inside one.

use cuda_std::{kernel::Grid, mem::U32x4, prelude::*, system};

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

/// The launch of `boundary` and `barriers`: as a product's, a block for each multiprocessor.
pub const fn meeting_grid(blocks: u32) -> Grid {
    Grid::new(blocks, 1, 512)
}

/// Nothing: from one launch to the next it is what a kernel's end and the next one's start take.
///
/// Launched with [`meeting_grid`].
///
/// # Safety
/// None is needed.
#[kernel("bench")]
pub unsafe fn boundary() {}

/// All blocks wait for each other, `count` times: what one kernel for a whole pass would do where kernels end and start.
///
/// Launched with [`meeting_grid`].
///
/// # Safety
/// `state` is the device address of two words that nobody else accesses: how many blocks have arrived, 0 before the first launch and after
/// each, and how often they all did. All blocks of the grid run at the same time: there are no more than multiprocessors.
#[kernel("bench")]
pub unsafe fn barriers(state: *mut u32, count: u32) {
    let (arrived, met) = (state, state.wrapping_add(1));
    let mut round = 0;
    // SAFETY: words of the state; all threads take as many rounds. Who arrives last is alone with `arrived`: the others wait for `met`.
    unsafe {
        while round < count {
            thread::sync_threads();
            if thread::thread_idx_x() == 0 {
                let before = system::load(met);
                atomic::fence();
                if atomic::add(arrived, 1) + 1 == thread::grid_dim_x() {
                    system::store(arrived, 0);
                    atomic::fence();
                    system::store(met, before.wrapping_add(1));
                } else {
                    while system::load(met) == before {}
                }
                atomic::fence();
            }
            thread::sync_threads();
            round += 1;
        }
    }
}
