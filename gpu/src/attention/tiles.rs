//! A warp's share of the cache, tile by tile.
//!
//! A tile is `STEPS` times 16 positions. A lane reads keys and values as the tensor cores' matrices want them, 16 bytes at a time and
//! straight into registers: the order of the dimensions in a product, and of the positions in a sum, is free. With g = lane / 4 and
//! t = lane % 4, its keys are those of positions g and g + 8, dimensions 32j + 8t to 32j + 8t + 7; its values are those of positions
//! 2t, 2t + 1, 2t + 8 and 2t + 9, dimensions 64c + 8g to 64c + 8g + 7. The scores that it gets are those of query g at the positions
//! of its values, and so the weights are where the second product wants them. Its sums are those of query g, dimensions 64c + 16t to
//! 64c + 16t + 15.

use core::array;

use cuda_std::prelude::*;

use super::{Decode, Shared, Task, WARPS, query};
use crate::math;

/// The values of a tile by chunk of dimensions, step, half of the step, and position of the lane's two in that.
type Values<const CHUNKS: usize, const STEPS: usize> = [[[[[u32; 4]; 2]; 2]; STEPS]; CHUNKS];

/// The weights of a tile by step and half of the step, each in two parts, and what the sums are multiplied with before.
type Weights<const STEPS: usize> = ([[[f32; 4]; 2]; STEPS], f32);

/// A warp on its way through its positions.
pub(super) struct Warp<const CHUNKS: usize, const STEPS: usize, const WIDE: bool> {
    k: *const F16,
    v: *const F16,
    dims: usize,
    /// The first position of the tile, and the end of the block's.
    first: u32,
    end: u32,
    /// The tile's keys by step, half of the step, and chunk of dimensions: two reads each.
    keys: [[[[[u32; 4]; 2]; CHUNKS]; 2]; STEPS],
    /// The largest score of query g.
    maximum: f32,
    /// The sum of the weights of query g that this lane computed.
    weight: f32,
    /// The sums of query g by chunk of dimensions.
    sums: [[[f32; 8]; 2]; CHUNKS],
}

impl<const CHUNKS: usize, const STEPS: usize, const WIDE: bool> Warp<CHUNKS, STEPS, WIDE> {
    const TILE: u32 = (16 * STEPS) as u32;
    /// Whether the next tile's keys are read while this one is computed: there are registers for it.
    const PREFETCH: bool = CHUNKS <= 2;

    /// At the first of its tiles: each warp takes every fourth one of the block's.
    ///
    /// # Safety
    /// As for the kernel.
    #[inline(always)]
    pub(super) unsafe fn new(args: &Decode, task: &Task) -> Self {
        let dims = args.head_dim as usize;
        let head = task.kv_head as usize * args.context as usize * dims;
        Warp {
            // SAFETY: the KV head's part of the caches.
            k: unsafe { mem::global(args.k_cache.add(head)) },
            // SAFETY: as above.
            v: unsafe { mem::global(args.v_cache.add(head)) },
            dims,
            first: task.start + warp::warp_id() * Self::TILE,
            end: task.end,
            keys: [[[[[0; 4]; 2]; CHUNKS]; 2]; STEPS],
            maximum: f32::NEG_INFINITY,
            weight: 0.0,
            sums: [[[0.0; 8]; 2]; CHUNKS],
        }
    }

    /// Eight dimensions of a position, from `dim` on. Positions beyond the last one are that one, and dimensions beyond the head's are
    /// its last ones: where the query has zeros, and where nobody reads the sum. No branch, so that all reads start at once.
    ///
    /// # Safety
    /// There is a tile; all lanes are here.
    #[inline(always)]
    unsafe fn row(&self, cache: *const F16, position: u32, dim: usize) -> [u32; 4] {
        let row = position.min(self.end - 1) as usize * self.dims;
        if WIDE {
            // SAFETY: inside the row, and a multiple of 8 halves, as rows and dimensions are.
            return unsafe { mem::load4_u32(cache.add(row + dim.min(self.dims - 8)).cast()) };
        }
        // SAFETY: all lanes are here. Many narrow reads at once would take more registers for addresses than there are.
        unsafe { warp::sync_warp(warp::FULL_MASK) };
        array::from_fn(|i| {
            // SAFETY: inside the row; an even number of halves, as rows and dimensions are.
            unsafe { mem::load(cache.add((row + dim + 2 * i).min(row + self.dims - 2)).cast::<u32>()) }
        })
    }

    /// Starts reading the keys of the first tile, where the warp will expect it.
    ///
    /// # Safety
    /// All lanes are here.
    #[inline(always)]
    pub(super) unsafe fn begin(&mut self) {
        if Self::PREFETCH {
            // SAFETY: the caller's promise.
            unsafe { self.load_keys() };
        }
    }

    /// Starts reading the keys of the tile, if there is one.
    ///
    /// # Safety
    /// All lanes are here.
    #[inline(always)]
    unsafe fn load_keys(&mut self) {
        if self.first >= self.end {
            return;
        }
        let (g, t) = (warp::lane_id() / 4, warp::lane_id() as usize % 4);
        unrolled!(step in [0 1] < STEPS, {
            unrolled!(half in [0 1], {
                let position = self.first + (16 * step + 8 * half) as u32 + g;
                unrolled!(c in [0 1 2 3] < CHUNKS, {
                    unrolled!(j in [0 1], {
                        // SAFETY: the caller's promise.
                        self.keys[step][half][c][j] = unsafe { self.row(self.k, position, 64 * c + 32 * j + 8 * t) };
                    });
                });
            });
        });
    }

    /// Starts reading the values of the tile.
    ///
    /// # Safety
    /// There is a tile; all lanes are here.
    #[inline(always)]
    unsafe fn values(&self) -> Values<CHUNKS, STEPS> {
        let (g, t) = (warp::lane_id() as usize / 4, warp::lane_id() % 4);
        let mut values = [[[[[0; 4]; 2]; 2]; STEPS]; CHUNKS];
        unrolled!(step in [0 1] < STEPS, {
            unrolled!(half in [0 1], {
                unrolled!(i in [0 1], {
                    let position = self.first + 2 * t + (16 * step + 8 * half + i) as u32;
                    unrolled!(c in [0 1 2 3] < CHUNKS, {
                        // SAFETY: the caller's promise.
                        values[c][step][half][i] = unsafe { self.row(self.v, position, 64 * c + 8 * g) };
                    });
                });
            });
        });
        values
    }

    /// All tiles of the warp, the first one's keys being on their way.
    ///
    /// # Safety
    /// The queries are in shared memory; all lanes are here.
    #[inline(always)]
    pub(super) unsafe fn attend(&mut self, args: &Decode, shared: &Shared<CHUNKS>) {
        while self.first < self.end {
            // SAFETY: `first` and `end` are the warp's, so that all lanes are here. The barriers keep the compiler from moving reads
            // of the cache down to where they are used.
            unsafe {
                if Self::PREFETCH {
                    let values = self.values();
                    warp::sync_warp(warp::FULL_MASK);
                    let scores = self.scores(shared);
                    let weights = self.weigh(args, scores);
                    self.first += WARPS as u32 * Self::TILE;
                    self.load_keys();
                    warp::sync_warp(warp::FULL_MASK);
                    unrolled!(c in [0 1] < CHUNKS, { self.add(c, &values, &weights) });
                } else {
                    // Registers are short: either keys or values are on their way.
                    self.load_keys();
                    warp::sync_warp(warp::FULL_MASK);
                    let scores = self.scores(shared);
                    warp::sync_warp(warp::FULL_MASK);
                    let values = self.values();
                    warp::sync_warp(warp::FULL_MASK);
                    let weights = self.weigh(args, scores);
                    self.first += WARPS as u32 * Self::TILE;
                    unrolled!(c in [0 1 2 3], { self.add(c, &values, &weights) });
                }
            }
        }
    }

    /// q k of query g, by step and half of the step, at positions 2t and 2t + 1 of it.
    ///
    /// # Safety
    /// As for [`Warp::attend`].
    #[inline(always)]
    unsafe fn scores(&self, shared: &Shared<CHUNKS>) -> [[[f32; 2]; 2]; STEPS] {
        let mut scores = [[[0.0; 2]; 2]; STEPS];
        let lane = warp::lane_id() as usize;
        // Query g's row; one that the block does not have gives what nobody reads.
        let row = lane / 4 * query::stride(CHUNKS) + 8 * (lane % 4);
        unrolled!(c in [0 1 2 3] < CHUNKS, {
            if !Self::PREFETCH {
                // SAFETY: all lanes are here. Keeps the compiler from reading the whole query ahead.
                unsafe { warp::sync_warp(warp::FULL_MASK) };
            }
            unrolled!(j in [0 1], {
                let mut sums = [[[0.0; 4]; 2]; STEPS];
                unrolled!(pair in [0 1], {
                    // SAFETY: inside the row; all lanes are here.
                    unsafe {
                        let at = shared.queries.add(row + 64 * c + 32 * j + 4 * pair);
                        let query = at.cast::<mem::F32x4>().read().0.map(mma::split);
                        unrolled!(word in [0 1], {
                            let [[high_0, low_0], [high_1, low_1]] = [query[2 * word], query[2 * word + 1]];
                            unrolled!(step in [0 1] < STEPS, {
                                unrolled!(half in [0 1], {
                                    let keys = halves(self.keys[step][half][c][j][2 * pair + word]);
                                    let sums = &mut sums[step][half];
                                    *sums = mma::m16n8k8([high_0, low_0, high_1, low_1], keys, *sums);
                                });
                            });
                        });
                    }
                });
                unrolled!(step in [0 1] < STEPS, {
                    unrolled!(half in [0 1], {
                        let sums = &sums[step][half];
                        scores[step][half][0] += sums[0] + sums[2];
                        scores[step][half][1] += sums[1] + sums[3];
                    });
                });
            });
        });
        scores
    }

    /// The weights of the scores: the left matrix of the second product, each in two parts. Rescales the sum of the weights, and returns what the sums are to be multiplied with.
    ///
    /// # Safety
    /// As for [`Warp::attend`].
    #[inline(always)]
    unsafe fn weigh(&mut self, args: &Decode, mut scores: [[[f32; 2]; 2]; STEPS]) -> Weights<STEPS> {
        let t = warp::lane_id() % 4;
        let mut maximum = self.maximum;
        unrolled!(step in [0 1] < STEPS, {
            unrolled!(half in [0 1], {
                unrolled!(i in [0 1], {
                    let position = self.first + 2 * t + (16 * step + 8 * half + i) as u32;
                    let score = &mut scores[step][half][i];
                    if args.cap != 0.0 {
                        *score = math::soft_cap(*score, args.cap);
                    }
                    if position >= self.end {
                        *score = f32::NEG_INFINITY;
                    }
                    maximum = maximum.max(*score);
                });
            });
        });
        for lane_mask in 1..3 {
            // SAFETY: all lanes are here.
            maximum = maximum.max(unsafe { warp::warp_shuffle_xor(warp::FULL_MASK, maximum, lane_mask) });
        }
        let correction = float::exp(self.maximum - maximum);
        self.maximum = maximum;
        self.weight *= correction;
        let mut weights = [[[0.0; 4]; 2]; STEPS];
        unrolled!(step in [0 1] < STEPS, {
            unrolled!(half in [0 1], {
                let [a, b] = scores[step][half].map(|score| float::exp(score - maximum));
                self.weight += a + b;
                let ([high_a, low_a], [high_b, low_b]) = (mma::split(a), mma::split(b));
                weights[step][half] = [high_a, low_a, high_b, low_b];
            });
        });
        (weights, correction)
    }

    /// Adds a chunk of the tile's weighted values to the sums.
    ///
    /// # Safety
    /// As for [`Warp::attend`].
    #[inline(always)]
    unsafe fn add(&mut self, chunk: usize, values: &Values<CHUNKS, STEPS>, (weights, correction): &Weights<STEPS>) {
        if !Self::PREFETCH {
            // SAFETY: all lanes are here. Keeps the compiler from converting all values ahead.
            unsafe { warp::sync_warp(warp::FULL_MASK) };
        }
        unrolled!(word in [0 1 2 3], {
            let mut sums = [[0.0; 4]; 2];
            unrolled!(step in [0 1] < STEPS, {
                unrolled!(half in [0 1], {
                    let rows = &values[chunk][step][half];
                    let (a, b) = (halves(rows[0][word]), halves(rows[1][word]));
                    unrolled!(i in [0 1], {
                        // SAFETY: all lanes are here.
                        sums[i] = unsafe { mma::m16n8k8(weights[step][half], [a[i], b[i]], sums[i]) };
                    });
                });
            });
            let [low, high] = &mut self.sums[chunk];
            unrolled!(i in [0 1], {
                let dim = 2 * word + i;
                low[dim] = float::fma(low[dim], *correction, sums[i][0] + sums[i][2]);
                high[dim] = float::fma(high[dim], *correction, sums[i][1] + sums[i][3]);
            });
        });
    }

    /// Writes the warp's result to shared memory.
    ///
    /// # Safety
    /// All threads have passed a barrier since the queries were used; all lanes are here.
    #[inline(always)]
    pub(super) unsafe fn write(&mut self, shared: &Shared<CHUNKS>) {
        let (warp, lane) = (warp::warp_id() as usize, warp::lane_id() as usize);
        let row = warp * super::QUERIES + lane / 4;
        // SAFETY: query g's row of this warp; each lane has dimensions of its own.
        unsafe {
            let mut weight = self.weight;
            for lane_mask in 1..3 {
                weight += warp::warp_shuffle_xor(warp::FULL_MASK, weight, lane_mask);
            }
            if lane.is_multiple_of(4) {
                shared.maxima.add(row).write(self.maximum);
                shared.weights.add(row).write(weight);
            }
            let to = shared.parts.add(row * 64 * CHUNKS + 16 * (lane % 4));
            unrolled!(c in [0 1 2 3] < CHUNKS, {
                unrolled!(part in [0 1], {
                    let [e0, e1, e2, e3, e4, e5, e6, e7] = self.sums[c][part];
                    let to = to.add(64 * c + 8 * part).cast::<mem::F32x4>();
                    to.write(mem::F32x4([e0, e1, e2, e3]));
                    to.add(1).write(mem::F32x4([e4, e5, e6, e7]));
                });
            });
        }
    }
}

/// The two half-precision numbers of a word, the first in its low half.
#[inline(always)]
fn halves(word: u32) -> [f32; 2] {
    [F16(word as u16).to_f32(), F16((word >> 16) as u16).to_f32()]
}
