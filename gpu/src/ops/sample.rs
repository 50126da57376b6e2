//! Choosing among logits: the largest one's index.

use cuda_std::{kernel::Grid, prelude::*};

const THREADS: u32 = 512;
const WARPS: usize = (THREADS / 32) as usize;

/// The launch of [`argmax`](fn@argmax) for `rows` rows.
pub const fn argmax_grid(rows: u32) -> Grid {
    Grid::new(rows, 1, THREADS)
}

/// A candidate. No element yet: minus infinity at an index that any element's is below.
#[derive(Clone, Copy)]
struct Best {
    value: f32,
    index: u32,
}

impl Best {
    const NONE: Best = Best { value: f32::NEG_INFINITY, index: u32::MAX };

    /// The better of two: the larger value, or the lower index. A NaN as `other` is never better.
    #[inline(always)]
    fn or(self, other: Best) -> Best {
        if other.value > self.value || (other.value == self.value && other.index < self.index) { other } else { self }
    }

    /// The best of the warp's lanes, in every lane.
    ///
    /// # Safety
    /// All lanes must be here.
    #[inline(always)]
    unsafe fn of_warp(mut self) -> Best {
        let mut step = 16;
        while step > 0 {
            // SAFETY: the caller's promise.
            self = self.or(unsafe {
                Best {
                    value: warp::warp_shuffle_xor(warp::FULL_MASK, self.value, step),
                    index: warp::warp_shuffle_xor(warp::FULL_MASK, self.index, step),
                }
            });
            step /= 2;
        }
        self
    }
}

/// out\[r\] = the index of the largest of row r's `n` elements; the lowest wins a tie, and `u32::MAX` says that all are NaN.
///
/// Launched with [`argmax_grid`].
///
/// # Safety
/// Device addresses: `x` of `[rows][n]`, `out` of `[rows]`.
#[kernel("ops")]
pub unsafe fn argmax(x: *const f32, out: *mut u32, n: u32) {
    let values = shared_array!(ARGMAX_VALUES: [f32; WARPS]);
    let indices = shared_array!(ARGMAX_INDICES: [u32; WARPS]);
    let row = thread::block_idx_x() as usize;
    let (lane, warp) = (warp::lane_id() as usize, warp::warp_id() as usize);
    // SAFETY: indices stay below `n`; all threads are at the collectives and at the barrier, before which each warp writes
    // elements of its own.
    unsafe {
        let x = x.add(row * n as usize);
        let mut best = Best::NONE;
        let mut index = thread::thread_idx_x();
        while index < n {
            best = best.or(Best { value: mem::load(x.add(index as usize)), index });
            index += THREADS;
        }
        let best = best.of_warp();
        if lane == 0 {
            values.add(warp).write(best.value);
            indices.add(warp).write(best.index);
        }
        thread::sync_threads();
        let best = if lane < WARPS {
            Best { value: values.add(lane).read(), index: indices.add(lane).read() }
        } else {
            Best::NONE
        };
        let best = best.of_warp();
        if thread::thread_idx_x() == 0 {
            mem::store(out.add(row), best.index);
        }
    }
}
