//! The KV cache and attention over it.
//!
//! A layer's caches are F16, `[kv_heads][context][head_dim]`, with an even `head_dim` of at most [`MAX_HEAD_DIM`].

use core::array;

use cuda_std::{kernel::Grid, prelude::*};

use crate::math;

/// The largest head that [`attention`](fn@attention) computes: 4 pairs of dimensions in each lane of a warp.
pub const MAX_HEAD_DIM: u32 = 256;

const LANES: usize = 32;
const WARPS: usize = 4;
const THREADS: u32 = (WARPS * LANES) as u32;
/// Positions that a warp scores together, so that their loads are in flight at once.
const TILE: usize = 8;

/// The launch of [`kv_append`](fn@kv_append) for `tokens` tokens (at most 65535).
pub const fn kv_append_grid(tokens: u32, kv_heads: u32, head_dim: u32) -> Grid {
    Grid::new((kv_heads * head_dim).div_ceil(THREADS), tokens, THREADS)
}

/// The launch of [`attention`](fn@attention) for `tokens` tokens (at most 65535).
pub const fn attention_grid(tokens: u32, heads: u32) -> Grid {
    Grid::new(heads, tokens, THREADS)
}

/// Stores k\[t\] and v\[t\] at `positions[t]` of the caches.
///
/// Launched with [`kv_append_grid`].
///
/// # Safety
/// Device addresses: `k` and `v` of `[tokens][kv_heads * head_dim]`, the caches of `[kv_heads][context][head_dim]`,
/// `positions` of `[tokens]`, different ones below `context`.
#[kernel("ops")]
pub unsafe fn kv_append(
    k: *const f32,
    v: *const f32,
    k_cache: *mut F16,
    v_cache: *mut F16,
    positions: *const u32,
    kv_heads: u32,
    head_dim: u32,
    context: u32,
) {
    let (token, i) = (thread::block_idx_y() as usize, thread::index_1d());
    if i >= kv_heads * head_dim {
        return;
    }
    let (head, dim) = ((i / head_dim) as usize, (i % head_dim) as usize);
    // SAFETY: token, head and dimension are inside the launch's, the position is the caller's promise.
    unsafe {
        let position = mem::load(positions.add(token)) as usize;
        let from = token * (kv_heads * head_dim) as usize + i as usize;
        let to = (head * context as usize + position) * head_dim as usize + dim;
        mem::store(k_cache.add(to), F16::from_f32(mem::load(k.add(from))));
        mem::store(v_cache.add(to), F16::from_f32(mem::load(v.add(from))));
    }
}

/// y\[t\] = softmax(scale q\[t\] K^T) V for each head, over the last `window` of the positions 0 to `positions[t]` (u32::MAX for
/// all). Head h reads the KV head h / (heads / kv_heads) (grouped-query attention, Ainslie et al. 2023). A `cap` that is
/// not 0 bounds the scores: cap tanh(score / cap).
///
/// Launched with [`attention_grid`]: a block for each head and token, whose warps share the positions out. Each keeps a
/// running maximum and rescales its sums when that grows (online softmax, Milakov and Gimelshein 2018).
///
/// # Safety
/// Device addresses: `q` and `y` of `[tokens][heads * head_dim]`, the caches of `[kv_heads][context][head_dim]`, 4-byte
/// aligned, `positions` of `[tokens]`, below `context`; `heads` a multiple of `kv_heads`, `head_dim` as the module says;
/// `window` not 0.
#[kernel("ops")]
pub unsafe fn attention(
    q: *const f32,
    k_cache: *const F16,
    v_cache: *const F16,
    positions: *const u32,
    y: *mut f32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    context: u32,
    scale: f32,
    window: u32,
    cap: f32,
) {
    let parts = Parts {
        sums: shared_array!(ATTENTION_SUMS: [f32; WARPS * MAX_HEAD_DIM as usize]),
        maxima: shared_array!(ATTENTION_MAXIMA: [f32; WARPS]),
        weights: shared_array!(ATTENTION_WEIGHTS: [f32; WARPS]),
    };
    let (head, token) = (thread::block_idx_x(), thread::block_idx_y() as usize);
    let dims = head_dim as usize;
    let at = (token * heads as usize + head as usize) * dims;
    let kv_at = (head / (heads / kv_heads)) as usize * context as usize * dims;
    // SAFETY: the head's vectors, its keys and values up to the position; whole blocks are at the barrier.
    unsafe {
        let last = mem::load(positions.add(token));
        let (k, v) = (k_cache.add(kv_at).cast(), v_cache.add(kv_at).cast());
        let view = View { q: q.add(at), k, v, from: (last + 1).saturating_sub(window), last, dims, scale, cap };
        match head_dim.div_ceil(64) {
            1 => view.attend::<1>(&parts),
            2 => view.attend::<2>(&parts),
            3 => view.attend::<3>(&parts),
            _ => view.attend::<4>(&parts),
        }
        thread::sync_threads();
        let mut dim = thread::thread_idx_x() as usize;
        while dim < dims {
            mem::store(y.add(at + dim), parts.merge(dim));
            dim += THREADS as usize;
        }
    }
}

/// The warps' results, in shared memory. A warp without positions has a maximum of minus infinity and nothing else.
struct Parts {
    /// `[WARPS][MAX_HEAD_DIM]`: the sum of e^(score - maximum) v.
    sums: *mut f32,
    /// `[WARPS]`: the largest score.
    maxima: *mut f32,
    /// `[WARPS]`: the sum of e^(score - maximum).
    weights: *mut f32,
}

impl Parts {
    /// Dimension `dim` of the result.
    ///
    /// # Safety
    /// All warps must have written their parts before a barrier.
    #[inline(always)]
    unsafe fn merge(&self, dim: usize) -> f32 {
        // SAFETY: indices inside the arrays.
        unsafe {
            let mut maximum = self.maxima.read();
            for warp in 1..WARPS {
                maximum = maximum.max(self.maxima.add(warp).read());
            }
            let (mut sum, mut weight) = (0.0, 0.0);
            for warp in 0..WARPS {
                let factor = float::exp(self.maxima.add(warp).read() - maximum);
                weight = float::fma(factor, self.weights.add(warp).read(), weight);
                sum = float::fma(factor, self.sums.add(warp * MAX_HEAD_DIM as usize + dim).read(), sum);
            }
            sum / weight
        }
    }
}

/// One head of one token: its query, and its KV head's cache as pairs of halves.
struct View {
    q: *const f32,
    k: *const u32,
    v: *const u32,
    /// The first and last position that are seen.
    from: u32,
    last: u32,
    dims: usize,
    scale: f32,
    /// 0 for none.
    cap: f32,
}

impl View {
    /// This warp's positions: tiles of `TILE`, each warp every fourth tile. Lane l has the dimension pairs l, l + 32, ….
    ///
    /// # Safety
    /// As for the kernel; all lanes must be here.
    #[inline(always)]
    unsafe fn attend<const PAIRS: usize>(&self, parts: &Parts) {
        let (lane, warp) = (warp::lane_id() as usize, warp::warp_id() as usize);
        let pairs = self.dims / 2;
        let query: [[f32; 2]; PAIRS] = array::from_fn(|i| {
            let pair = lane + LANES * i;
            if pair >= pairs {
                return [0.0; 2];
            }
            // SAFETY: inside the query.
            unsafe { [mem::load(self.q.add(2 * pair)) * self.scale, mem::load(self.q.add(2 * pair + 1)) * self.scale] }
        });
        let row = |cache: *const u32, position: u32| -> [u32; PAIRS] {
            array::from_fn(|i| {
                let pair = lane + LANES * i;
                if pair >= pairs {
                    return 0;
                }
                // SAFETY: inside the head's row of a position that the token sees.
                unsafe { mem::load(cache.add(position as usize * pairs + pair)) }
            })
        };

        let (mut maximum, mut weight) = (f32::NEG_INFINITY, 0.0);
        let mut sums = [[0.0; 2]; PAIRS];
        let mut first = self.from + (warp * TILE) as u32;
        while first <= self.last {
            // The last tile repeats the last position where it has none left.
            let positions: [u32; TILE] = array::from_fn(|t| (first + t as u32).min(self.last));
            let keys = positions.map(|position| row(self.k, position));
            let values = positions.map(|position| row(self.v, position));
            let mut scores = keys.map(|key| {
                let mut dot = 0.0;
                for i in 0..PAIRS {
                    let [a, b] = halves(key[i]);
                    dot = float::fma(query[i][1], b, float::fma(query[i][0], a, dot));
                }
                dot
            });
            // SAFETY: `first` and `last` are the warp's, so that all lanes are here.
            unsafe { warp::sums(&mut scores) };

            let mut new_maximum = maximum;
            if self.cap != 0.0 {
                scores = scores.map(|score| math::soft_cap(score, self.cap));
            }
            for (t, score) in scores.iter_mut().enumerate() {
                if first + t as u32 > self.last {
                    *score = f32::NEG_INFINITY;
                }
                new_maximum = new_maximum.max(*score);
            }
            let correction = float::exp(maximum - new_maximum);
            maximum = new_maximum;
            weight *= correction;
            for sum in &mut sums {
                *sum = sum.map(|s| s * correction);
            }
            for t in 0..TILE {
                let p = float::exp(scores[t] - maximum);
                weight += p;
                for i in 0..PAIRS {
                    let value = halves(values[t][i]);
                    for k in 0..2 {
                        sums[i][k] = float::fma(p, value[k], sums[i][k]);
                    }
                }
            }
            first += (WARPS * TILE) as u32;
        }

        // SAFETY: this warp's own elements.
        unsafe {
            for (i, sum) in sums.iter().enumerate() {
                let pair = lane + LANES * i;
                if pair < pairs {
                    let to = parts.sums.add(warp * MAX_HEAD_DIM as usize + 2 * pair);
                    to.write(sum[0]);
                    to.add(1).write(sum[1]);
                }
            }
            if lane == 0 {
                parts.maxima.add(warp).write(maximum);
                parts.weights.add(warp).write(weight);
            }
        }
    }
}

/// The two half-precision numbers of a word, the first in its low half.
#[inline(always)]
fn halves(word: u32) -> [f32; 2] {
    [F16(word as u16).to_f32(), F16((word >> 16) as u16).to_f32()]
}
