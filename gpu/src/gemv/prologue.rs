//! What a block does before its products: it waits for the kernel before it, and reads, norms and quantises the activations.

use cuda_std::prelude::*;

use super::{BESIDE, NONE, Product, Weights, weights};

/// Groups of four activations of a batch, which a thread reads at once.
const BATCH: usize = 2;
/// Activations of a warp's share of a batch, four of each lane.
const GROUP: u32 = 128;

/// Bytes of shared memory for the sums of squares of `columns` columns of `cols`.
pub(super) const fn squares_bytes(columns: usize, cols: usize) -> usize {
    (4 * columns * cols.div_ceil(GROUP as usize)).next_multiple_of(16)
}

/// The block's activations: columns `first` to `first + C - 1` of x, quantised, in shared memory at `acts`; where there is a norm, as they
/// are before the division by the root of their mean square. What remains to multiply with, for each column, is then at `factors`, the
/// warp's own. Columns beyond the last are that one. Waits for the kernel before this one, unless it runs [`BESIDE`] it. `QUADS` says that the number of columns is a multiple of 4. With
/// `N` = 2 this is one of two blocks of a cluster, which has arrived at its barrier; each does every other step for both, without a norm.
///
/// # Safety
/// As for the kernels; all threads are here.
#[inline(always)]
pub(super) unsafe fn load_activations<W: Weights, const C: usize, const QUADS: bool, const N: usize>(
    p: &Product,
    acts: *mut u8,
    factors: *mut [f32; C],
    first: u32,
) {
    let cols = p.cols;
    let normed = N == 1 && p.norm != NONE;
    // Activations that the threads of a block read at once, each its four; those of a cluster; and those of a batch.
    let block_step = 4 * thread::block_dim_x();
    let step = N as u32 * block_step;
    let batch = BATCH as u32 * step;
    // SAFETY: these are addresses of global memory.
    let norm_weights = unsafe { mem::global(weights(p).wrapping_add(p.norm as usize).cast::<f32>()) };
    let own = if N == 1 { 0 } else { block_step * cluster::rank() } + 4 * thread::thread_idx_x();
    let read = |x: *const f32, start: u32| -> [[f32; 4]; BATCH] {
        core::array::from_fn(|k| {
            // SAFETY: the vector has as many.
            unsafe { four::<QUADS>(x, start + k as u32 * step + own, cols) }
        })
    };
    // Weights of the norm are no kernel's result: they are read while the last kernel still runs.
    let first_norm = if normed { read(norm_weights, 0) } else { [[0.0; 4]; BATCH] };
    if p.overlap == BESIDE {
        // x was there before this kernel started; this drops what the multiprocessor's L1 cache may have of what was there before.
        atomic::fence();
    } else {
        grid::wait();
    }
    if N > 1 {
        // SAFETY: all threads are here. The other block has started: its shared memory may be written.
        unsafe { cluster::wait() };
    }
    let squares = acts.wrapping_add(C * W::acts_bytes(cols as usize)).cast::<f32>();
    let groups = cols.div_ceil(GROUP) as usize;
    for c in 0..C {
        let token = (first + c as u32).min(p.tokens - 1);
        // SAFETY: as above.
        let x = unsafe { mem::global(p.x.wrapping_add(token as usize * cols as usize)) };
        let column = acts.wrapping_add(c * W::acts_bytes(cols as usize));
        let mut columns = [column; N];
        if N > 1 {
            // SAFETY: the other block has its columns where this one has them.
            columns[N - 1] = unsafe { cluster::map(column, cluster::rank() ^ 1) };
        }
        // The same for all threads.
        let mut start = 0;
        let mut values = read(x, start);
        // The norm's weights for `values`; or without a norm what comes behind them, since two batches are one wait.
        let mut other = if normed || cols <= batch { first_norm } else { read(x, batch) };
        let mut second = false;
        loop {
            if normed {
                let mut sums = [0.0; BATCH];
                unrolled!(k < BATCH, {
                    for i in 0..4 {
                        let value = if start + k as u32 * step + own < cols { values[k][i] } else { 0.0 };
                        sums[k] = float::fma(value, value, sums[k]);
                        values[k][i] = other[k][i] * value;
                    }
                });
                // Sums of as many neighbours each, whatever the number of warps: a column's bits depend on nothing else.
                // SAFETY: all lanes are here; each group of columns is one warp's.
                unsafe {
                    warp::sums(&mut sums);
                    unrolled!(k < BATCH, {
                        let at = start + k as u32 * step + own;
                        if warp::lane_id() == 0 && at < cols {
                            squares.add(c * groups + (at / GROUP) as usize).write(sums[k]);
                        }
                    });
                }
            }
            unrolled!(k < BATCH, {
                let at = start + k as u32 * step + own;
                // The same for all lanes of a warp, which has 128 neighbours.
                if at < cols.next_multiple_of(128) {
                    // SAFETY: all lanes are here, the column has room for what is inside, up to a multiple of 4.
                    unsafe { W::put::<N>(columns, cols as usize, at as usize, values[k], at < cols) }
                }
            });
            start += batch;
            if start >= cols {
                break;
            }
            if normed {
                (values, other) = (read(x, start), read(norm_weights, start));
            } else if second {
                (values, other) = (read(x, start), read(x, start + batch));
            } else {
                values = other;
            }
            second = !second;
        }
    }
    // SAFETY: all threads are here, and have written before they read.
    unsafe {
        if N == 1 {
            thread::sync_threads();
        } else {
            cluster::arrive();
            cluster::wait();
        }
        let mut own = [1.0; C];
        if normed {
            unrolled!(c < C, {
                let mut i = warp::lane_id() as usize;
                own[c] = 0.0;
                while i < groups {
                    own[c] += squares.add(c * groups + i).read();
                    i += 32;
                }
            });
            warp::sums(&mut own);
            own = own.map(|sum| float::rsqrt(float::fma(sum, float::reciprocal(cols as f32), p.eps)));
        }
        // Not in registers: products that need most of them would spill some.
        if warp::lane_id() == 0 {
            factors.write(own);
        }
    }
}

/// Numbers `at` to `at + 3` of a vector of `len`. Behind its end: some of its numbers where `QUADS` says that `len` is a multiple of 4, so
/// that there is no branch and loads go out one right after the other; zeros elsewhere.
///
/// # Safety
/// `x` has `len` numbers, 16-byte aligned with `QUADS`.
#[inline(always)]
unsafe fn four<const QUADS: bool>(x: *const f32, at: u32, len: u32) -> [f32; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        if QUADS {
            return mem::load4(x.add(at.min(len - 4) as usize));
        }
        [0, 1, 2, 3].map(|i| if at + i < len { mem::load(x.add((at + i) as usize)) } else { 0.0 })
    }
}
