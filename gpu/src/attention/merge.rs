//! The merge of partial results: of a block's warps, and of a KV head's blocks.

use core::array;

use cuda_std::prelude::*;

use super::{Decode, LANES, MAX_SPLITS, QUERIES, Shared, THREADS, Task, WARPS, counter_words};

/// Splits whose results are read at once: half of the 33 that fill 132 multiprocessors with eight KV heads.
const READS: usize = 17;
/// Factors of a query: of all splits, and of what is read beyond the last one.
pub(super) const FACTORS: usize = (MAX_SPLITS as usize + READS - 1).next_multiple_of(LANES);
/// Factors that a lane computes.
const PER_LANE: usize = FACTORS / LANES;

/// A block that has computed its share.
pub(super) struct Merge<'a, const CHUNKS: usize> {
    pub(super) args: &'a Decode,
    pub(super) task: &'a Task,
    pub(super) shared: &'a Shared<CHUNKS>,
}

/// A result of some positions for a query, in four of its dimensions.
#[derive(Clone, Copy)]
struct Partial {
    /// The largest score, minus infinity for none.
    maximum: f32,
    /// The sum of weights.
    weight: f32,
    /// The sums of weighted values.
    sums: [f32; 4],
}

impl Partial {
    /// This one and `count` others, of which `at` says where number i has its maximum, its weight and its sums in shared memory.
    ///
    /// # Safety
    /// They are there.
    #[inline(always)]
    unsafe fn and(self, count: usize, at: impl Fn(usize) -> (*const f32, *const f32, *const f32)) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let mut maximum = self.maximum;
            for i in 0..count {
                maximum = maximum.max(at(i).0.read());
            }
            // Where there are no scores at all, not the difference of two infinities.
            let base = maximum.max(f32::MIN);
            let factor = float::exp(self.maximum - base);
            let (mut weight, mut sums) = (factor * self.weight, self.sums.map(|sum| factor * sum));
            for i in 0..count {
                let (maximum, its_weight, part) = at(i);
                let factor = float::exp(maximum.read() - base);
                weight = float::fma(factor, its_weight.read(), weight);
                let part = part.cast::<mem::F32x4>().read().0;
                for k in 0..4 {
                    sums[k] = float::fma(factor, part[k], sums[k]);
                }
            }
            Partial { maximum, weight, sums }
        }
    }

    /// The values' mean by their weights: the result, where there are no other positions.
    #[inline(always)]
    fn mean(self) -> [f32; 4] {
        let inverse = float::reciprocal(self.weight);
        self.sums.map(|sum| sum * inverse)
    }
}

/// No positions.
const NOTHING: Partial = Partial { maximum: f32::NEG_INFINITY, weight: 0.0, sums: [0.0; 4] };

/// The parts of the workspace. A unit's rows are `[splits][QUERIES]`.
struct Workspace {
    /// `[units]`: how many blocks have finished.
    counter: *mut u32,
    /// `[rows]`: the splits' largest scores.
    maxima: *mut f32,
    /// `[rows]`: their sums of weights.
    weights: *mut f32,
    /// `[rows][64 CHUNKS]`: their sums of weighted values.
    sums: *mut f32,
}

impl<const CHUNKS: usize> Merge<'_, CHUNKS> {
    const DIMS: usize = 64 * CHUNKS;

    /// This unit's part of the workspace.
    ///
    /// # Safety
    /// As for the kernel.
    #[inline(always)]
    unsafe fn workspace(&self) -> Workspace {
        let (units, splits) = (thread::grid_dim_x(), self.args.splits as usize);
        let (rows, row) = (units as usize * splits * QUERIES, self.task.unit as usize * splits * QUERIES);
        // SAFETY: inside the workspace, as `DecodeShape::workspace_bytes` adds it up.
        unsafe {
            let base = mem::global(self.args.workspace).cast_mut();
            let maxima = base.add(counter_words(units)).cast::<f32>();
            Workspace {
                counter: base.add(self.task.unit as usize),
                maxima: maxima.add(row),
                weights: maxima.add(rows + row),
                sums: maxima.add(2 * rows + row * Self::DIMS),
            }
        }
    }

    /// How many dimensions a block of the cluster has, as a power of two.
    #[inline(always)]
    fn share_bits(&self) -> u32 {
        Self::DIMS.ilog2() - cluster::size().ilog2()
    }

    /// Calls `f` with each query and each four of `1 << bits` dimensions that are this thread's.
    #[inline(always)]
    fn each(&self, bits: u32, f: impl Fn(usize, usize)) {
        let mut i = thread::thread_idx_x() as usize;
        while i < (self.task.queries as usize) << (bits - 2) {
            f(i >> (bits - 2), (4 * i) & ((1 << bits) - 1));
            i += THREADS as usize;
        }
    }

    /// Writes four dimensions of the result, as many of them as there are.
    ///
    /// # Safety
    /// As for the kernel.
    #[inline(always)]
    unsafe fn store(&self, query: usize, dim: usize, values: [f32; 4]) {
        let dims = self.args.head_dim as usize;
        // SAFETY: inside the head's row; `dims` is even.
        unsafe {
            let y = mem::global(self.args.y.add((self.task.first_query as usize + query) * dims)).cast_mut();
            for i in 0..4 {
                if dim + i < dims {
                    mem::store(y.add(dim + i), values[i]);
                }
            }
        }
    }

    /// Merges the warps' results and the token's own key and value: for the other blocks of the cluster, or into `y` or the
    /// workspace.
    ///
    /// # Safety
    /// As for the kernel; the warps' results and the token's scores are in shared memory, behind a barrier; all blocks of the cluster
    /// have started.
    #[inline(always)]
    pub(super) unsafe fn warps(&self) {
        let (shared, token) = (self.shared, self.task.has_token());
        self.each(Self::DIMS.ilog2(), |query, dim| {
            // SAFETY: inside the arrays; the thread's own elements of the results.
            unsafe {
                let mut first = NOTHING;
                if token {
                    let value = shared.value.add(dim).cast::<mem::F32x4>().read().0;
                    first = Partial { maximum: shared.scores.add(query).read(), weight: 1.0, sums: value };
                }
                let partial = first.and(WARPS, |warp| {
                    let row = warp * QUERIES + query;
                    (shared.maxima.add(row), shared.weights.add(row), shared.parts.add(row * Self::DIMS + dim))
                });
                if cluster::size() > 1 {
                    self.send(query, dim, partial);
                } else {
                    self.keep(query, dim, partial);
                }
            }
        });
    }

    /// Writes a result of this block to the block of the cluster that has these dimensions.
    ///
    /// # Safety
    /// As for [`Merge::warps`].
    #[inline(always)]
    unsafe fn send(&self, query: usize, dim: usize, partial: Partial) {
        let (shared, bits) = (self.shared, self.share_bits());
        let (rank, dim) = ((dim >> bits) as u32, dim & ((1 << bits) - 1));
        let row = self.task.split as usize * QUERIES + query;
        // SAFETY: inside the inbox, a place of this block's; the other block has started.
        unsafe {
            let to = cluster::map(shared.inbox.add((row << bits) + dim), rank);
            to.cast::<mem::F32x4>().write(mem::F32x4(partial.sums));
            if dim == 0 {
                cluster::map(shared.inbox_maxima.add(row), rank).write(partial.maximum);
                cluster::map(shared.inbox_weights.add(row), rank).write(partial.weight);
            }
        }
    }

    /// Writes a result of this block to `y`, or into the workspace where there are other blocks.
    ///
    /// # Safety
    /// As for the kernel.
    #[inline(always)]
    unsafe fn keep(&self, query: usize, dim: usize, partial: Partial) {
        // SAFETY: the block's own rows; the thread's own elements.
        unsafe {
            if self.task.active == 1 {
                return self.store(query, dim, partial.mean());
            }
            let Partial { maximum, weight, sums } = partial;
            let workspace = self.workspace();
            let row = self.task.split as usize * QUERIES + query;
            mem::store4(workspace.sums.add(row * Self::DIMS + dim), sums);
            if dim == 0 {
                mem::store(workspace.maxima.add(row), maximum);
                mem::store(workspace.weights.add(row), weight);
            }
        }
    }

    /// Merges what the blocks of the cluster have sent to this one into `y`.
    ///
    /// # Safety
    /// As for the kernel, behind a barrier of the cluster.
    #[inline(always)]
    pub(super) unsafe fn cluster(&self) {
        let (shared, bits) = (self.shared, self.share_bits());
        self.each(bits, |query, dim| {
            // SAFETY: inside the inbox.
            unsafe {
                let merged = NOTHING.and(cluster::size() as usize, |rank| {
                    let row = rank * QUERIES + query;
                    let sums = shared.inbox.add((row << bits) + dim);
                    (shared.inbox_maxima.add(row), shared.inbox_weights.add(row), sums)
                });
                self.store(query, ((self.task.split as usize) << bits) + dim, merged.mean());
            }
        });
    }

    /// Whether all other blocks of the unit have written their results; then those can be read.
    ///
    /// # Safety
    /// As for the kernel; all threads are here, once.
    #[inline(always)]
    pub(super) unsafe fn is_last(&self) -> bool {
        // SAFETY: the unit's counter, which nobody accesses otherwise while blocks are counted. The last one puts it back to 0 for the
        // next launch.
        unsafe {
            thread::sync_threads();
            if thread::thread_idx_x() == 0 {
                let counter = self.workspace().counter;
                atomic::fence();
                let finished = atomic::add(counter, 1);
                atomic::fence();
                if finished + 1 == self.task.active {
                    mem::store(counter, 0);
                }
                self.shared.finished.write(finished);
            }
            thread::sync_threads();
            self.shared.finished.read() + 1 == self.task.active
        }
    }

    /// Merges the blocks' results into `y`.
    ///
    /// # Safety
    /// As for the kernel, after [`Merge::is_last`]; all threads are here.
    #[inline(always)]
    pub(super) unsafe fn splits(&self) {
        let (active, lane) = (self.task.active as usize, warp::lane_id() as usize);
        let factors = self.shared.factors;
        // SAFETY: rows of splits below `active`, which are written; factors of queries that are each one warp's, read behind a barrier.
        unsafe {
            let workspace = self.workspace();
            let mut query = warp::warp_id() as usize;
            while query < self.task.queries as usize {
                let of = |from: *mut f32, nothing: f32| -> [f32; PER_LANE] {
                    array::from_fn(|i| {
                        let split = lane + LANES * i;
                        if split < active { mem::load(from.add(split * QUERIES + query)) } else { nothing }
                    })
                };
                let (maxima, weights) = (of(workspace.maxima, f32::NEG_INFINITY), of(workspace.weights, 0.0));
                let mut maximum = f32::NEG_INFINITY;
                for part in &maxima {
                    maximum = maximum.max(*part);
                }
                let maximum = warp::max(maximum);
                let scales = maxima.map(|part| float::exp(part - maximum));
                let mut weight = 0.0;
                for i in 0..PER_LANE {
                    weight = float::fma(scales[i], weights[i], weight);
                }
                // A division goes a long way round where the dividend is 0, as it is for splits that are not there: 1.2 us in all.
                let inverse = float::reciprocal(warp::sum(weight));
                for i in 0..PER_LANE {
                    factors.add(query * FACTORS + lane + LANES * i).write(scales[i] * inverse);
                }
                query += WARPS;
            }
            thread::sync_threads();
            self.each(Self::DIMS.ilog2(), |query, dim| {
                let mut sums = [0.0; 4];
                let mut split = 0;
                while split < active {
                    // A split that is not there has the factor 0; the last one's values stand in for its.
                    let mut parts = [[0.0; 4]; READS];
                    unrolled!(i in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], {
                        let row = (split + i).min(active - 1) * QUERIES + query;
                        parts[i] = mem::load4(workspace.sums.add(row * Self::DIMS + dim));
                    });
                    unrolled!(i in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], {
                        let factor = factors.add(query * FACTORS + split + i).read();
                        unrolled!(k in [0 1 2 3], {
                            sums[k] = float::fma(factor, parts[i][k], sums[k]);
                        });
                    });
                    split += READS;
                }
                self.store(query, dim, sums);
            });
        }
    }
}
