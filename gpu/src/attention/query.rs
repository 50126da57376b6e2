//! The token's own vectors: norm, rotation, and what the block needs of them in shared memory.

use core::array;

use cuda_std::prelude::*;

use super::{Decode, HALF, LANES, Shared, Task, WARPS};
use crate::math;

/// Floats from one query to the next: 4 more than its dimensions, so that what a warp reads at once lies in different banks.
pub(super) const fn stride(chunks: usize) -> usize {
    64 * chunks + 4
}

/// A vector of the token, with the norm and the rotation of its kind.
struct Vector {
    x: *const f32,
    /// Null for none.
    norm: *const f32,
    cos: *const f32,
    sin: *const f32,
}

impl Vector {
    /// Normalises and rotates it into `out`, `[64 CHUNKS]` in shared memory, with zeros beyond its dimensions.
    ///
    /// # Safety
    /// As for the kernel; all lanes are here, and no other warp uses `out`.
    #[inline(always)]
    unsafe fn prepare<const CHUNKS: usize>(&self, args: &Decode, out: *mut f32) {
        let (lane, dims) = (warp::lane_id() as usize, args.head_dim as usize);
        // SAFETY: dimensions below `dims`, pairs below half of `rope_dims`, each the lane's alone between the warp's barriers.
        unsafe {
            let x = mem::global(self.x);
            let mut chunks: [[f32; 2]; CHUNKS] = array::from_fn(|i| {
                array::from_fn(|h| {
                    let dim = lane + LANES * (2 * i + h);
                    if dim < dims { mem::load(x.add(dim)) } else { 0.0 }
                })
            });
            if !self.norm.is_null() {
                let norm = mem::global(self.norm);
                let mut squares = 0.0;
                for chunk in &chunks {
                    squares = float::fma(chunk[1], chunk[1], float::fma(chunk[0], chunk[0], squares));
                }
                let scale = float::rsqrt(warp::sum(squares) / dims as f32 + args.eps);
                for i in 0..CHUNKS {
                    for h in 0..2 {
                        let dim = lane + LANES * (2 * i + h);
                        let weight = if dim < dims { mem::load(norm.add(dim)) } else { 0.0 };
                        chunks[i][h] = weight * (chunks[i][h] * scale);
                    }
                }
            }
            for i in 0..CHUNKS {
                for h in 0..2 {
                    out.add(lane + LANES * (2 * i + h)).write(chunks[i][h]);
                }
            }
            warp::sync_warp(warp::FULL_MASK);
            let pairs = args.rope_dims as usize / 2;
            let mut pair = lane;
            while pair < pairs {
                let (a, b) = if args.pairing == HALF { (pair, pair + pairs) } else { (2 * pair, 2 * pair + 1) };
                let (cos, sin) =
                    (mem::load(mem::global(self.cos).add(pair)), mem::load(mem::global(self.sin).add(pair)));
                let (u, v) = (out.add(a).read(), out.add(b).read());
                out.add(a).write(u * cos - v * sin);
                out.add(b).write(u * sin + v * cos);
                pair += LANES;
            }
            warp::sync_warp(warp::FULL_MASK);
        }
    }
}

/// Prepares the block's queries, and the token's key and value where they are this block's. Those go to the cache as well.
///
/// # Safety
/// As for the kernel; all threads are here. A barrier must follow.
#[inline(always)]
pub(super) unsafe fn prepare<const CHUNKS: usize>(args: &Decode, task: &Task, shared: &Shared<CHUNKS>) {
    let (warp, dims) = (warp::warp_id() as usize, args.head_dim as usize);
    let queries = task.queries as usize;
    let vectors = queries + if task.has_token() { 2 } else { 0 };
    let mut i = warp;
    while i < vectors {
        // SAFETY: a query of the token, or the KV head's key or value, each prepared by one warp.
        unsafe {
            if i < queries {
                let x = args.q.add((task.first_query as usize + i) * dims);
                let vector = Vector { x, norm: args.q_norm, cos: args.q_cos, sin: args.q_sin };
                let query = shared.queries.add(i * stride(CHUNKS));
                vector.prepare::<CHUNKS>(args, query);
                for chunk in 0..2 * CHUNKS {
                    let at = query.add(warp::lane_id() as usize + LANES * chunk);
                    at.write(at.read() * args.scale);
                }
            } else {
                append::<CHUNKS>(args, task, shared, i == queries);
            }
        }
        i += WARPS;
    }
}

/// The token's key or value: prepared, rounded to F16, kept in shared memory, and written to the cache by the first of its KV
/// head's units.
///
/// # Safety
/// As for [`prepare`], from one warp.
#[inline(always)]
unsafe fn append<const CHUNKS: usize>(args: &Decode, task: &Task, shared: &Shared<CHUNKS>, is_key: bool) {
    let (lane, dims) = (warp::lane_id() as usize, args.head_dim as usize);
    let kv_head = task.kv_head as usize;
    let at = kv_head * dims;
    let first = task.first_query == task.kv_head * (args.heads / args.kv_heads);
    // SAFETY: the row of the token's position, dimensions below `dims`.
    unsafe {
        let (to, cache) = if is_key {
            let vector = Vector { x: args.k.add(at), norm: args.k_norm, cos: args.k_cos, sin: args.k_sin };
            vector.prepare::<CHUNKS>(args, shared.key);
            (shared.key, args.k_cache)
        } else {
            let v = mem::global(args.v.add(at));
            for i in 0..2 * CHUNKS {
                let dim = lane + LANES * i;
                shared.value.add(dim).write(if dim < dims { mem::load(v.add(dim)) } else { 0.0 });
            }
            (shared.value, args.v_cache)
        };
        let row = (kv_head * args.context as usize + task.position as usize) * dims;
        let cache = mem::global(cache.add(row)).cast_mut();
        // A lane reads what it wrote itself, or what a barrier is behind.
        for i in 0..2 * CHUNKS {
            let dim = lane + LANES * i;
            let half = F16::from_f32(to.add(dim).read());
            to.add(dim).write(half.to_f32());
            if first && dim < dims {
                mem::store(cache.add(dim), half);
            }
        }
    }
}

/// The scores of the token's own key.
///
/// # Safety
/// As for [`prepare`], after the barrier.
#[inline(always)]
pub(super) unsafe fn score_token<const CHUNKS: usize>(args: &Decode, task: &Task, shared: &Shared<CHUNKS>) {
    let lane = warp::lane_id() as usize;
    let mut query = warp::warp_id() as usize;
    while query < task.queries as usize {
        // SAFETY: inside the arrays; a score is written by one warp.
        unsafe {
            let q = shared.queries.add(query * stride(CHUNKS));
            let mut dot = 0.0;
            for i in 0..2 * CHUNKS {
                let dim = lane + LANES * i;
                dot = float::fma(q.add(dim).read(), shared.key.add(dim).read(), dot);
            }
            let score = warp::sum(dot);
            if lane == 0 {
                let score = if args.cap != 0.0 { math::soft_cap(score, args.cap) } else { score };
                shared.scores.add(query).write(score);
            }
        }
        query += WARPS;
    }
}
