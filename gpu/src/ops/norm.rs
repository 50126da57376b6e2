//! RMSNorm.

use cuda_std::{kernel::Grid, prelude::*};

use super::block;

const MAX_THREADS: u32 = 512;

/// The launch of [`rms_norm`](fn@rms_norm) for `rows` rows of `n` elements: whole tokens, or the heads of tokens.
pub const fn rms_norm_grid(rows: u32, n: u32) -> Grid {
    let threads = n.next_multiple_of(32);
    Grid::new(rows, 1, if threads < MAX_THREADS { threads } else { MAX_THREADS })
}

/// y\[r\]\[i\] = weight\[i\] x\[r\]\[i\] / sqrt(mean of x\[r\]^2 + eps), with `n` elements a row (Zhang and Sennrich 2019); added
/// to y\[r\]\[i\] where `accumulate` is not 0.
///
/// Launched with [`rms_norm_grid`].
///
/// # Safety
/// Device addresses: `x` and `y` of `[rows][n]`, `weight` of `[n]`. `y` may be `x`.
#[kernel("ops")]
pub unsafe fn rms_norm(x: *const f32, weight: *const f32, y: *mut f32, n: u32, eps: f32, accumulate: u32) {
    let n = n as usize;
    let step = thread::block_dim_x() as usize;
    let row = thread::block_idx_x() as usize * n;
    let first = thread::thread_idx_x() as usize;
    // SAFETY: indices stay below `n`; all threads of the block are at the sum; each element is read and written by one thread.
    unsafe {
        let (x, y) = (x.add(row), y.add(row));
        let mut squares = 0.0;
        let mut i = first;
        while i < n {
            let value = mem::load(x.add(i));
            squares = float::fma(value, value, squares);
            i += step;
        }
        let scale = float::rsqrt(block::sum(squares) / n as f32 + eps);
        let mut i = first;
        while i < n {
            let value = mem::load(weight.add(i)) * (mem::load(x.add(i)) * scale);
            let before = if accumulate != 0 { mem::load(y.add(i)) } else { 0.0 };
            mem::store(y.add(i), before + value);
            i += step;
        }
    }
}
