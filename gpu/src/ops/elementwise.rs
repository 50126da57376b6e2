//! Kernels without a reduction: gated activations, scaling and capping, picking rows.

use cuda_std::{kernel::Grid, prelude::*};

use crate::{gated, math};

const THREADS: u32 = 256;
/// Blocks beyond this take more than one turn: enough for any GPU of today to be full.
const BLOCKS: u32 = 4096;

/// The launch of [`swiglu`](fn@swiglu), [`geglu`](fn@geglu), [`scale`](fn@scale) and [`soft_cap`](fn@soft_cap) for `n`
/// elements.
pub const fn elementwise_grid(n: u32) -> Grid {
    let blocks = n.div_ceil(THREADS);
    Grid::new(if blocks < BLOCKS { blocks } else { BLOCKS }, 1, THREADS)
}

/// The launch of [`gather_rows`](fn@gather_rows) for `rows` rows of the result.
pub const fn gather_rows_grid(rows: u32) -> Grid {
    Grid::new(rows, 1, THREADS)
}

/// Calls `f` with this thread's share of the indices below `n`.
#[inline(always)]
fn grid_stride(n: u32, f: impl Fn(usize)) {
    let stride = thread::grid_dim_x() as usize * thread::block_dim_x() as usize;
    let mut i = thread::index_1d() as usize;
    while i < n as usize {
        f(i);
        i += stride;
    }
}

/// gate\[i\] = silu(gate\[i\]) up\[i\] for `n` elements, where silu(g) = g / (1 + e^-g) (Shazeer 2020).
///
/// Launched with [`elementwise_grid`].
///
/// # Safety
/// `gate` and `up` are device addresses of `n` floats.
#[kernel("ops")]
pub unsafe fn swiglu(gate: *mut f32, up: *const f32, n: u32) {
    grid_stride(n, |i| {
        // SAFETY: `i` is below `n`, and this thread's alone.
        unsafe {
            let g = mem::load(gate.add(i));
            mem::store(gate.add(i), gated::silu(g) * mem::load(up.add(i)));
        }
    });
}

/// gate\[i\] = gelu(gate\[i\]) up\[i\] for `n` elements (Shazeer 2020), where gelu is the approximation with a tanh (Hendrycks and
/// Gimpel 2016).
///
/// Launched with [`elementwise_grid`].
///
/// # Safety
/// `gate` and `up` are device addresses of `n` floats.
#[kernel("ops")]
pub unsafe fn geglu(gate: *mut f32, up: *const f32, n: u32) {
    grid_stride(n, |i| {
        // SAFETY: `i` is below `n`, and this thread's alone.
        unsafe {
            let g = mem::load(gate.add(i));
            mem::store(gate.add(i), gated::gelu(g) * mem::load(up.add(i)));
        }
    });
}

/// x\[i\] = factor x\[i\] for `n` elements.
///
/// Launched with [`elementwise_grid`].
///
/// # Safety
/// `x` is the device address of `n` floats.
#[kernel("ops")]
pub unsafe fn scale(x: *mut f32, n: u32, factor: f32) {
    // SAFETY: `i` is below `n`, and this thread's alone.
    grid_stride(n, |i| unsafe { mem::store(x.add(i), factor * mem::load(x.add(i))) });
}

/// x\[i\] = cap tanh(x\[i\] / cap) for `n` elements: inside -cap..cap, and nearly x where that is small (Gemma 2, 2024).
///
/// Launched with [`elementwise_grid`].
///
/// # Safety
/// `x` is the device address of `n` floats.
#[kernel("ops")]
pub unsafe fn soft_cap(x: *mut f32, n: u32, cap: f32) {
    // SAFETY: `i` is below `n`, and this thread's alone.
    grid_stride(n, |i| unsafe { mem::store(x.add(i), math::soft_cap(mem::load(x.add(i)), cap)) });
}

/// y\[i\] = x\[rows\[i\]\], rows of `n` elements.
///
/// Launched with [`gather_rows_grid`].
///
/// # Safety
/// Device addresses: `x` with every row that `rows` names, `rows` and `y` of as many rows as the launch has blocks.
#[kernel("ops")]
pub unsafe fn gather_rows(x: *const f32, rows: *const u32, y: *mut f32, n: u32) {
    let (to, n) = (thread::block_idx_x() as usize, n as usize);
    // SAFETY: `i` is below `n`, the rows are the caller's promise.
    unsafe {
        let from = mem::load(rows.add(to)) as usize;
        let mut i = thread::thread_idx_x() as usize;
        while i < n {
            mem::store(y.add(to * n + i), mem::load(x.add(from * n + i)));
            i += THREADS as usize;
        }
    }
}
