//! The k largest of a row, in two launches: [`top_k_floor`](fn@top_k_floor) finds a number that at least k elements are not
//! below, and [`top_k`](fn@top_k) sorts those that are not.
//!
//! The floor is the k-th largest of the maxima of groups of neighbours. No two elements have the same [`Rank`], so exactly k
//! groups have a maximum that is not below it, and only their elements can be above it: for any input those to be sorted are
//! at most k times as many as a group has elements. Where the largest are spread over the groups, they are hardly more than k.

use cuda_std::{kernel::Grid, prelude::*};

use super::rank::{MAX_BLOCKS, Rank, Row, THREADS, is_last_block, row_grid};

/// The largest k.
pub const MAX_TOP_K: u32 = 1024;

/// Elements that are sorted at once: what has been kept and as many new ones.
const SORTED: u32 = 2 * MAX_TOP_K;

/// What the kernels leave each other, zero at first.
#[repr(C)]
pub struct TopKState {
    floor: u64,
    /// Elements in the list.
    listed: u32,
    arrived: u32,
}

/// The launch of [`top_k_floor`](fn@top_k_floor) and of [`top_k`](fn@top_k) for a row of `n` elements.
pub const fn top_k_grid(n: u32) -> Grid {
    row_grid(1, n, MAX_BLOCKS)
}

/// Lanes of a warp that make a group of 4 elements each: as many as leave twice as many groups as are looked for.
const fn group_lanes(n: u32, k: u32) -> u32 {
    let mut lanes = 32;
    while lanes > 1 && n / 4 < 2 * k * lanes {
        lanes /= 2;
    }
    lanes
}

/// Finds the least rank that [`top_k`](fn@top_k) has to look at.
///
/// Launched with [`top_k_grid`].
///
/// # Safety
/// Device addresses: `x` and `list` of `n` elements, `state` zero or as these kernels leave it; `k` from 1 to [`MAX_TOP_K`].
#[kernel("ops")]
pub unsafe fn top_k_floor(x: *const f32, n: u32, k: u32, list: *mut u32, state: *mut TopKState) {
    let ranks = shared_array!(TOP_K_FLOOR: [u64; SORTED as usize]);
    let row = Row::new(x, n);
    let lanes = group_lanes(n, k);
    let groups = row.quads().div_ceil(lanes);
    // SAFETY: the extents are the caller's promise: only groups whose first quad is one of the row's are listed, and it has no
    // more quads than elements. The loop runs as often in all lanes of a warp, since warps start at multiples of 32 quads, and all
    // threads are at the barriers. The last block is alone when it writes the state.
    unsafe {
        let mut first = thread::block_idx_x() * THREADS + 32 * warp::warp_id();
        while first < row.quads() {
            let q = first + warp::lane_id();
            let best = row.best(q, Rank::of_finite).best_of(lanes);
            if q & (lanes - 1) == 0 && q < row.quads() {
                mem::store(list.add((q / lanes) as usize), best.index());
            }
            first += thread::grid_dim_x() * THREADS;
        }
        if is_last_block(&raw mut (*state).arrived) {
            let found = sort_listed(ranks, x, list, groups, k);
            if thread::thread_idx_x() == 0 {
                let floor = if found < k { Rank::FINITE } else { Rank(ranks.add(k as usize - 1).read()) };
                mem::store(&raw mut (*state).floor, floor.0);
                mem::store(&raw mut (*state).listed, 0);
            }
        }
    }
}

/// out\[i\] = the index, and the bits, of the i-th largest of `n` elements, for the first `k`. Of equal elements the one with the
/// lower index comes first. Only finite numbers count: where there are fewer, the other indices are `u32::MAX`.
///
/// Launched with [`top_k_grid`] after [`top_k_floor`](fn@top_k_floor) with the same arguments.
///
/// # Safety
/// As for [`top_k_floor`](fn@top_k_floor), and `out` is a device address of `[k][2]`.
#[kernel("ops")]
pub unsafe fn top_k(x: *const f32, n: u32, k: u32, list: *mut u32, state: *mut TopKState, out: *mut u32) {
    let ranks = shared_array!(TOP_K: [u64; SORTED as usize]);
    let row = Row::new(x, n);
    // SAFETY: the extents are the caller's promise, and every element is listed at most once. Nobody writes the floor here, and
    // the length only by atomic additions, until the last block reads it. All threads are at the barriers.
    unsafe {
        let floor = Rank(mem::load(&raw const (*state).floor));
        let mut q = thread::block_idx_x() * THREADS + thread::thread_idx_x();
        while q < row.quads() {
            row.each(q, |value, index| {
                if Rank::of_finite(value, index) >= floor {
                    let place = atomic::add(&raw mut (*state).listed, 1);
                    mem::store(list.add(place as usize), index);
                }
            });
            q += thread::grid_dim_x() * THREADS;
        }
        if is_last_block(&raw mut (*state).arrived) {
            let found = sort_listed(ranks, x, list, mem::load(&raw const (*state).listed), k);
            let mut i = thread::thread_idx_x();
            while i < k {
                let index = if i < found { Rank(ranks.add(i as usize).read()).index() } else { u32::MAX };
                let value = if index == u32::MAX { 0.0 } else { mem::load(x.add(index as usize)) };
                mem::store(out.add(2 * i as usize), index);
                mem::store(out.add(2 * i as usize + 1), value.to_bits());
                i += THREADS;
            }
        }
    }
}

/// The `k` largest ranks of the elements of `x` that `list` has the indices of, or all where it has fewer, at the start of
/// `ranks`, the largest first; returns how many they are. `u32::MAX` is the index of no element, and [`Rank::NONE`].
///
/// # Safety
/// All threads of the block must be here, with the same arguments; `ranks` is shared memory of [`SORTED`] elements; the list
/// has `listed` indices of elements of `x`; `k` is at most [`MAX_TOP_K`].
#[inline(always)]
unsafe fn sort_listed(ranks: *mut u64, x: *const f32, list: *const u32, listed: u32, k: u32) -> u32 {
    let (mut kept, mut taken) = (0, 0);
    // SAFETY: the caller's promises. Behind the `kept` best there is room for `SORTED - kept` ranks, each written by one thread
    // before the barrier.
    unsafe {
        while taken < listed {
            let new = (listed - taken).min(SORTED - kept);
            // Sorting needs a power of two.
            let length = (kept + new).next_power_of_two();
            let mut i = thread::thread_idx_x();
            while i < length - kept {
                let index = if i < new { mem::load(list.add((taken + i) as usize)) } else { u32::MAX };
                let rank = match index {
                    u32::MAX => Rank::NONE,
                    index => Rank::of_finite(mem::load(x.add(index as usize)), index),
                };
                ranks.add((kept + i) as usize).write(rank.0);
                i += THREADS;
            }
            thread::sync_threads();
            sort(ranks, length);
            taken += new;
            kept = (kept + new).min(k);
        }
    }
    kept
}

/// Sorts `length` ranks, a power of two, the largest first: a bitonic network (Batcher 1968).
///
/// # Safety
/// All threads of the block must be here; `ranks` is shared memory of that length.
#[inline(always)]
unsafe fn sort(ranks: *mut u64, length: u32) {
    let mut size = 2;
    while size <= length {
        let mut stride = size / 2;
        while stride > 0 {
            let mut pair = thread::thread_idx_x();
            while pair < length / 2 {
                // The pair's number, with a zero put in where its elements' numbers differ.
                let low = 2 * pair - (pair & (stride - 1));
                let descending = low & size == 0;
                // SAFETY: both are below `length`, and no two threads have the same pair.
                unsafe {
                    let (first, second) = (ranks.add(low as usize), ranks.add((low + stride) as usize));
                    let (a, b) = (first.read(), second.read());
                    if (a < b) == descending {
                        first.write(b);
                        second.write(a);
                    }
                }
                pair += THREADS;
            }
            let next = if stride > 1 { stride / 2 } else { size };
            // A warp's pairs are of 64 ranks that no other warp touches while strides are 32 at most.
            if stride <= 32 && next <= 32 {
                // SAFETY: all lanes are here.
                unsafe { warp::sync_warp(warp::FULL_MASK) };
            } else {
                thread::sync_threads();
            }
            stride /= 2;
        }
        size *= 2;
    }
    thread::sync_threads();
}
