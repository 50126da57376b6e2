//! RMSNorm.

use cuda_std::{kernel::Grid, prelude::*};

use super::block;

const THREADS: u32 = 512;

/// The launch of [`rms_norm`](fn@rms_norm) for `tokens` tokens.
pub const fn rms_norm_grid(tokens: u32) -> Grid {
    Grid::new(tokens, 1, THREADS)
}

/// y\[t\]\[i\] = weight\[i\] x\[t\]\[i\] / sqrt(mean of x\[t\]^2 + eps), with `n` elements a token (Zhang and Sennrich 2019).
///
/// Launched with [`rms_norm_grid`].
///
/// # Safety
/// Device addresses: `x` and `y` of `[tokens][n]`, `weight` of `[n]`. `y` may be `x`.
#[kernel("ops")]
pub unsafe fn rms_norm(x: *const f32, weight: *const f32, y: *mut f32, n: u32, eps: f32) {
    let n = n as usize;
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
            i += THREADS as usize;
        }
        let scale = float::rsqrt(block::sum(squares) / n as f32 + eps);
        let mut i = first;
        while i < n {
            mem::store(y.add(i), mem::load(weight.add(i)) * (mem::load(x.add(i)) * scale));
            i += THREADS as usize;
        }
    }
}
