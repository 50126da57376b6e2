//! Rotary position embedding (Su et al. 2021).

use cuda_std::{kernel::Grid, prelude::*};

const THREADS: u32 = 128;

/// The launch of [`rope_adjacent`](fn@rope_adjacent) and [`rope_half`](fn@rope_half) for `tokens` tokens (at most 65535) of `heads` heads, of which `rot`
/// dimensions rotate.
pub const fn rope_grid(tokens: u32, heads: u32, rot: u32) -> Grid {
    Grid::new((heads * (rot / 2)).div_ceil(THREADS), tokens, THREADS)
}

/// Rotates pairs (2i, 2i+1) of each head's first `rot` dimensions (even) in place.
///
/// Launched with [`rope_grid`].
///
/// # Safety
/// Device addresses: `x` of `[tokens][heads * head_dim]`, `cos` and `sin` of `[tokens][rot / 2]`; `rot` <= `head_dim`.
#[kernel("ops")]
pub unsafe fn rope_adjacent(x: *mut f32, cos: *const f32, sin: *const f32, heads: u32, head_dim: u32, rot: u32) {
    // SAFETY: the caller's promise; both dimensions of a pair are below `rot`.
    unsafe { rotate(x, cos, sin, heads, head_dim, rot, |pair| (2 * pair, 2 * pair + 1)) }
}

/// Rotates pairs (i, i + rot/2) of each head's first `rot` dimensions (even) in place.
///
/// Launched with [`rope_grid`].
///
/// # Safety
/// Device addresses: `x` of `[tokens][heads * head_dim]`, `cos` and `sin` of `[tokens][rot / 2]`; `rot` <= `head_dim`.
#[kernel("ops")]
pub unsafe fn rope_half(x: *mut f32, cos: *const f32, sin: *const f32, heads: u32, head_dim: u32, rot: u32) {
    // SAFETY: the caller's promise; both dimensions of a pair are below `rot`.
    unsafe { rotate(x, cos, sin, heads, head_dim, rot, |pair| (pair, pair + rot / 2)) }
}

/// One pair a thread; `dims` tells where in the head a pair lies.
///
/// # Safety
/// As for the kernels, with `dims` below `rot` for every pair below `rot / 2`.
#[inline(always)]
unsafe fn rotate(
    x: *mut f32,
    cos: *const f32,
    sin: *const f32,
    heads: u32,
    head_dim: u32,
    rot: u32,
    dims: impl Fn(u32) -> (u32, u32),
) {
    let (token, i) = (thread::block_idx_y() as usize, thread::index_1d());
    let pairs = rot / 2;
    if i >= heads * pairs {
        return;
    }
    let (head, pair) = (i / pairs, i % pairs);
    let (a, b) = dims(pair);
    // SAFETY: token and head are inside the launch's, and the pair is this thread's alone.
    unsafe {
        let angle = token * pairs as usize + pair as usize;
        let (cos, sin) = (mem::load(cos.add(angle)), mem::load(sin.add(angle)));
        let x = x.add((token * heads as usize + head as usize) * head_dim as usize);
        let (a, b) = (x.add(a as usize), x.add(b as usize));
        let (u, v) = (mem::load(a), mem::load(b));
        mem::store(a, u * cos - v * sin);
        mem::store(b, u * sin + v * cos);
    }
}
