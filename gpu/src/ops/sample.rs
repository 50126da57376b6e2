//! Choosing among logits: the largest one's index, and the largest few.

use cuda_std::{kernel::Grid, prelude::*};

use super::rank::{MAX_BLOCKS, Rank, Row, THREADS, WARPS, is_last_block, row_grid};

/// The launch of [`argmax`](fn@argmax) for `rows` rows of `n` elements.
pub const fn argmax_grid(rows: u32, n: u32) -> Grid {
    // Many rows fill the GPU by themselves.
    row_grid(rows, n, if rows < MAX_BLOCKS { MAX_BLOCKS / rows } else { 1 })
}

/// The length of `parts` that [`argmax`](fn@argmax) needs for up to `rows` rows.
pub const fn argmax_parts(rows: usize) -> usize {
    if rows < MAX_BLOCKS as usize { MAX_BLOCKS as usize } else { rows }
}

/// out\[r\] = the index of the largest of row r's `n` elements; the lowest wins a tie, and `u32::MAX` says that all are NaN.
///
/// Launched with [`argmax_grid`].
///
/// # Safety
/// Device addresses: `x` of `[rows][n]`, `out` of `[rows]`, `parts` of [`argmax_parts`] elements, `arrived` of `[rows]`, all 0,
/// as the kernel leaves them.
#[kernel("ops")]
pub unsafe fn argmax(x: *const f32, out: *mut u32, n: u32, parts: *mut u64, arrived: *mut u32) {
    let of_warps = shared_array!(ARGMAX_WARPS: [u64; WARPS as usize]);
    let (t, lane, warp) = (thread::thread_idx_x(), warp::lane_id(), warp::warp_id());
    let (block, blocks) = (thread::block_idx_x(), thread::grid_dim_x());
    let row = thread::block_idx_y() as usize;
    // SAFETY: the extents are the caller's promise. All threads are at the collectives and at the barriers, before which each
    // warp, and each block, writes an element of its own.
    unsafe {
        let parts = parts.add(row * blocks as usize);
        let x = Row::new(x.add(row * n as usize), n);
        let mut best = Rank::NONE;
        let mut q = block * THREADS + t;
        while q < x.quads() {
            best = best.or(x.best(q, Rank::of_number));
            q += blocks * THREADS;
        }
        let best = best.best_of(32);
        if lane == 0 {
            of_warps.add(warp as usize).write(best.0);
        }
        thread::sync_threads();
        let best = if lane < WARPS { Rank(of_warps.add(lane as usize).read()) } else { Rank::NONE };
        let best = best.best_of(32);
        if t == 0 {
            mem::store(parts.add(block as usize), best.0);
        }
        if is_last_block(arrived.add(row)) && warp == 0 {
            let mut best = Rank::NONE;
            let mut part = lane;
            while part < blocks {
                best = best.or(Rank(mem::load(parts.add(part as usize))));
                part += 32;
            }
            let best = best.best_of(32);
            if lane == 0 {
                mem::store(out.add(row), best.index());
            }
        }
    }
}
