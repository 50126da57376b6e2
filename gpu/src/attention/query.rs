//! The token's own vectors: norm, rotation, and what the block needs of them in shared memory.

use core::array;

use cuda_std::prelude::*;

use super::{Decode, HALF, LANES, Shared, Task, WARPS};
use crate::math;

/// Floats from one query to the next: 4 more than its dimensions, so that what a warp reads at once lies in different banks.
pub(super) const fn stride(chunks: usize) -> usize {
    64 * chunks + 4
}

/// A lane's angles of a rotation: those of pairs `lane`, `lane + 32` and so on.
#[derive(Clone, Copy)]
pub(super) struct Rotation<const CHUNKS: usize> {
    cos: [f32; CHUNKS],
    sin: [f32; CHUNKS],
}

impl<const CHUNKS: usize> Rotation<CHUNKS> {
    /// Of tables of `rope_dims / 2` cosines and sines.
    ///
    /// # Safety
    /// They are there, and nobody writes them.
    #[inline(always)]
    unsafe fn load(args: &Decode, cos: *const f32, sin: *const f32) -> Self {
        let of = |table: *const f32| {
            array::from_fn(|i| {
                // In 32 bits: as `usize`, attention spills registers.
                let pair = warp::lane_id() + (LANES * i) as u32;
                if pair < args.rope_dims / 2 {
                    // SAFETY: the caller's promise.
                    unsafe { mem::load(mem::global(table).add(pair as usize)) }
                } else {
                    0.0
                }
            })
        };
        Rotation { cos: of(cos), sin: of(sin) }
    }
}

/// The rotations of queries and keys at the token's position.
pub(super) type Rotations<const CHUNKS: usize> = [Rotation<CHUNKS>; 2];

/// Starts reading the rotations. They came with the position, so that no kernel has to be waited for.
///
/// # Safety
/// As for the kernel.
#[inline(always)]
pub(super) unsafe fn rotations<const CHUNKS: usize>(args: &Decode) -> Rotations<CHUNKS> {
    // SAFETY: the caller's promise.
    unsafe { [Rotation::load(args, args.q_cos, args.q_sin), Rotation::load(args, args.k_cos, args.k_sin)] }
}

/// A vector of the token: dimensions `lane + 32 i` are the lane's.
#[derive(Clone, Copy)]
struct Vector<const CHUNKS: usize>([[f32; 2]; CHUNKS]);

impl<const CHUNKS: usize> Vector<CHUNKS> {
    /// Zeros beyond its dimensions.
    ///
    /// # Safety
    /// As for the kernel.
    #[inline(always)]
    unsafe fn load(x: *const f32, dims: usize) -> Self {
        Vector(array::from_fn(|i| {
            array::from_fn(|h| {
                let dim = warp::lane_id() as usize + LANES * (2 * i + h);
                // SAFETY: a dimension below `dims`.
                if dim < dims { unsafe { mem::load(mem::global(x).add(dim)) } } else { 0.0 }
            })
        }))
    }

    /// Normalises it where `norm` is not null, and rotates it into `out`, `[64 CHUNKS]` in shared memory.
    ///
    /// # Safety
    /// As for the kernel; all lanes are here, and no other warp uses `out`.
    #[inline(always)]
    unsafe fn prepare(self, args: &Decode, norm: *const f32, rotation: &Rotation<CHUNKS>, out: *mut f32) {
        let (lane, dims) = (warp::lane_id() as usize, args.head_dim as usize);
        let Vector(mut chunks) = self;
        // SAFETY: dimensions below `dims`, pairs below half of `rope_dims`, each the lane's alone between the warp's barriers.
        unsafe {
            if !norm.is_null() {
                let Vector(weights) = Vector::<CHUNKS>::load(norm, dims);
                let mut squares = 0.0;
                for chunk in &chunks {
                    squares = float::fma(chunk[1], chunk[1], float::fma(chunk[0], chunk[0], squares));
                }
                let scale = float::rsqrt(warp::sum(squares) / dims as f32 + args.eps);
                for i in 0..CHUNKS {
                    for h in 0..2 {
                        chunks[i][h] = weights[i][h] * (chunks[i][h] * scale);
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
            for i in 0..CHUNKS {
                let pair = lane + LANES * i;
                if pair < pairs {
                    let (a, b) = if args.pairing == HALF { (pair, pair + pairs) } else { (2 * pair, 2 * pair + 1) };
                    let (cos, sin) = (rotation.cos[i], rotation.sin[i]);
                    let (u, v) = (out.add(a).read(), out.add(b).read());
                    out.add(a).write(u * cos - v * sin);
                    out.add(b).write(u * sin + v * cos);
                }
            }
            warp::sync_warp(warp::FULL_MASK);
        }
    }
}

/// Vectors of a warp at most: of [`super::QUERIES`] queries, a key and a value.
const PER_WARP: usize = (super::QUERIES + 2).div_ceil(WARPS);

/// Prepares the block's queries, and the token's key and value where they are this block's. Those go to the cache as well.
///
/// # Safety
/// As for the kernel; all threads are here. A barrier must follow.
#[inline(always)]
pub(super) unsafe fn prepare<const CHUNKS: usize>(
    args: &Decode,
    task: &Task,
    rotations: &Rotations<CHUNKS>,
    shared: &Shared<CHUNKS>,
) {
    let (warp, dims) = (warp::warp_id() as usize, args.head_dim as usize);
    let queries = task.queries as usize;
    let count = queries + if task.has_token() { 2 } else { 0 };
    let kv = task.kv_head as usize * dims;
    let [q_rotation, k_rotation] = rotations;
    // All of the warp's vectors are on their way at once.
    let mut vectors = [Vector::<CHUNKS>([[0.0; 2]; CHUNKS]); PER_WARP];
    // SAFETY: a query of the token, or the KV head's key or value, each prepared by one warp.
    unsafe {
        unrolled!(n in [0 1 2], {
            let i = warp + WARPS * n;
            if i < count {
                let x = match i.checked_sub(queries) {
                    None => args.q.add((task.first_query as usize + i) * dims),
                    Some(0) => args.k.add(kv),
                    Some(_) => args.v.add(kv),
                };
                vectors[n] = Vector::load(x, dims);
            }
        });
        unrolled!(n in [0 1 2], {
            let i = warp + WARPS * n;
            if i < queries {
                let query = shared.queries.add(i * stride(CHUNKS));
                vectors[n].prepare(args, args.q_norm, q_rotation, query);
                for chunk in 0..2 * CHUNKS {
                    let at = query.add(warp::lane_id() as usize + LANES * chunk);
                    at.write(at.read() * args.scale);
                }
            } else if i == queries && i < count {
                vectors[n].prepare(args, args.k_norm, k_rotation, shared.key);
                append::<CHUNKS>(args, task, shared.key, args.k_cache);
            } else if i < count {
                let Vector(chunks) = vectors[n];
                for i in 0..CHUNKS {
                    for h in 0..2 {
                        let dim = warp::lane_id() as usize + LANES * (2 * i + h);
                        shared.value.add(dim).write(chunks[i][h]);
                    }
                }
                append::<CHUNKS>(args, task, shared.value, args.v_cache);
            }
        });
    }
}

/// Rounds the token's key or value in shared memory to F16, and writes it to its cache from the first of the KV head's units.
///
/// # Safety
/// As for [`prepare`], from one warp: a lane reads what it wrote itself, or what a barrier of the warp is behind.
#[inline(always)]
unsafe fn append<const CHUNKS: usize>(args: &Decode, task: &Task, to: *mut f32, cache: *mut F16) {
    let (lane, dims) = (warp::lane_id() as usize, args.head_dim as usize);
    let first = task.first_query == task.kv_head * (args.heads / args.kv_heads);
    // SAFETY: the row of the token's position, dimensions below `dims`.
    unsafe {
        let row = (task.kv_head as usize * args.context as usize + task.position as usize) * dims;
        let cache = mem::global(cache.add(row)).cast_mut();
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
