//! Attention of one token over the KV cache, in one launch: PTX module `attention`.
//!
//! The cache's positions are split over blocks, and those of a block over its warps (flash-decoding, Dao et al. 2023). Each
//! warp keeps a running maximum of its scores and rescales its sums when that grows (online softmax, Milakov and Gimelshein
//! 2018). A block merges its warps' results, and the last block of a KV head to finish merges the blocks': always in the same
//! order, so that the same input gives the same bits.
//!
//! A KV head's queries (grouped-query attention, Ainslie et al. 2023) are packed into a block, at most `QUERIES` of them, so
//! that keys and values are read once for all. The products are the tensor cores' in TF32, which holds every half exactly. Their
//! matrices have 16 rows: each query is two of those, since TF32 has 11 bits of it and the next 11 are another number. The softmax's
//! weights are split in the same way. Tensor cores sum up to 32 products; those sums are added in F32.
//!
//! Where the GPU has clusters, a KV head's blocks may be one: they merge their results in each other's shared memory, each a share of
//! the dimensions, which saves two of the 7.8 us that a context of 512 took. But they are few, so that is for short contexts
//! ([`DecodeShape::short`]).
//!
//! How many blocks there are does not depend on the position, which is read from device memory: one launch can be recorded
//! and replayed at any. Blocks beyond the positions end at once.

/// Repeats the body for those of the given indices that are below a constant. A loop that is long when it is written out stays a loop
/// otherwise, and the arrays that it walks would lie in local memory.
macro_rules! unrolled {
    ($i:ident in [$($value:literal)*], $body:block) => {
        $({
            let $i: usize = $value;
            $body
        })*
    };
    ($i:ident in [$($value:literal)*] < $n:expr, $body:block) => {
        $(if $value < $n {
            let $i: usize = $value;
            $body
        })*
    };
}

mod merge;
mod query;
mod tiles;

use cuda_std::{
    kernel::{Grid, Kernel, Param},
    prelude::*,
};

use merge::Merge;
use tiles::Warp;

/// [`Decode::pairing`]: dimensions 2i and 2i + 1 rotate together.
pub const ADJACENT: u32 = 0;
/// [`Decode::pairing`]: dimensions i and i + `rope_dims` / 2 rotate together.
pub const HALF: u32 = 1;

/// The largest head that is computed.
pub const MAX_HEAD_DIM: u32 = 256;

/// Queries of a block: with what rounding leaves of them, the 16 rows of a tensor core's matrix.
const QUERIES: usize = 8;
const LANES: usize = 32;
const WARPS: usize = 4;
const THREADS: u32 = (WARPS * LANES) as u32;
/// Blocks beside each other on a multiprocessor, by their registers.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 2;
/// The last block of a KV head has room for the factors of as many.
const MAX_SPLITS: u32 = 256;
/// Blocks of a cluster at most, where there are clusters.
const MAX_CLUSTER: usize = if cfg!(all(target_arch = "nvptx64", not(cuda_sm = "90"))) { 1 } else { 8 };

/// What [`attention_decode_64`](fn@attention_decode_64) and the others take. Device addresses, and sizes in elements.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Decode {
    /// The token's queries before norm and rotation, `[heads * head_dim]`.
    pub q: *const f32,
    /// Its keys before norm and rotation, `[kv_heads * head_dim]`.
    pub k: *const f32,
    /// Its values, `[kv_heads * head_dim]`.
    pub v: *const f32,
    /// The weight of the queries' RMSNorm, `[head_dim]`, or null for none.
    pub q_norm: *const f32,
    /// The weight of the keys' RMSNorm, `[head_dim]`, or null for none.
    pub k_norm: *const f32,
    /// The cosines of the queries' rotation at the token's position, `[rope_dims / 2]`.
    pub q_cos: *const f32,
    /// The sines.
    pub q_sin: *const f32,
    /// The cosines of the keys' rotation.
    pub k_cos: *const f32,
    /// The sines.
    pub k_sin: *const f32,
    /// The layer's keys, `[kv_heads][context][head_dim]`, 16-byte aligned.
    pub k_cache: *mut F16,
    /// The layer's values, as its keys.
    pub v_cache: *mut F16,
    /// The token's position, below `context`.
    pub position: *const u32,
    /// The result, `[heads * head_dim]`.
    pub y: *mut f32,
    /// [`DecodeShape::workspace_bytes`] bytes, 16-byte aligned, of which the first [`DecodeShape::counter_bytes`] are 0 before the
    /// first launch. A launch leaves them so.
    pub workspace: *mut u32,
    /// Queries.
    pub heads: u32,
    /// Keys and values of a position; a divisor of `heads`.
    pub kv_heads: u32,
    /// Even, at most [`MAX_HEAD_DIM`].
    pub head_dim: u32,
    /// Positions that the caches have room for.
    pub context: u32,
    /// How many dimensions of a head rotate: even, at most `head_dim`, 0 for none.
    pub rope_dims: u32,
    /// [`ADJACENT`] or [`HALF`].
    pub pairing: u32,
    /// How many positions are seen, the token's own among them: `u32::MAX` for all, never 0.
    pub window: u32,
    /// [`DecodeShape::splits`].
    pub splits: u32,
    /// A score is this times q k.
    pub scale: f32,
    /// Scores are cap tanh(score / cap), or as they are where this is 0.
    pub cap: f32,
    /// Of the norms.
    pub eps: f32,
    /// 1: the next kernel may start when this one has. 0: only when this one has the token's vectors.
    pub overlap: u32,
}

// SAFETY: `repr(C)`, 14 addresses and 12 numbers of 4 bytes: no padding.
unsafe impl Param for Decode {}

/// How a model's attention is launched: the same at every position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeShape {
    /// KV heads, several times over where one has more than [`QUERIES`] queries.
    units: u32,
    head_dim: u32,
    splits: u32,
    /// The splits of a unit are a cluster.
    clustered: bool,
}

/// Positions before the token's up to which [`DecodeShape::short`] is faster, where there is one.
pub const SHORT: u32 = 2048;

impl DecodeShape {
    /// For a model of these sizes on a GPU of `multiprocessors`: as many splits as fill it, and no more than the context has use
    /// for.
    pub const fn new(heads: u32, kv_heads: u32, head_dim: u32, context: u32, multiprocessors: u32) -> Self {
        let units = kv_heads * units_per_kv_head(heads / kv_heads);
        let fill = multiprocessors * BLOCKS_PER_MULTIPROCESSOR / units;
        let useful = context.div_ceil(MIN_SHARE);
        let splits = if fill < useful { fill } else { useful };
        Self::with_splits(heads, kv_heads, head_dim, splits)
    }

    /// For few positions, on a GPU with clusters of up to `cluster` blocks: as many splits as one of those has, and as leave a
    /// multiprocessor for each block. `None` where that is one.
    pub const fn short(heads: u32, kv_heads: u32, head_dim: u32, multiprocessors: u32, cluster: u32) -> Option<Self> {
        let units = kv_heads * units_per_kv_head(heads / kv_heads);
        let fill = multiprocessors / units;
        let most = if fill < cluster { fill } else { cluster };
        let most = if most < MAX_CLUSTER as u32 { most } else { MAX_CLUSTER as u32 };
        if most < 2 { None } else { Some(Self::clustered(heads, kv_heads, head_dim, 1 << most.ilog2())) }
    }

    /// With a number of splits, brought into 1 to 256.
    pub const fn with_splits(heads: u32, kv_heads: u32, head_dim: u32, splits: u32) -> Self {
        let splits = match splits {
            0 => 1,
            1..=MAX_SPLITS => splits,
            _ => MAX_SPLITS,
        };
        DecodeShape { units: kv_heads * units_per_kv_head(heads / kv_heads), head_dim, splits, clustered: false }
    }

    /// With clusters of `size` splits: 2, 4 or 8.
    ///
    /// # Panics
    /// With another number.
    pub const fn clustered(heads: u32, kv_heads: u32, head_dim: u32, size: u32) -> Self {
        assert!(matches!(size, 2 | 4 | 8), "clusters of 2, 4 or 8 blocks");
        DecodeShape { clustered: true, ..Self::with_splits(heads, kv_heads, head_dim, size) }
    }

    /// [`Decode::splits`].
    pub const fn splits(&self) -> u32 {
        self.splits
    }

    /// The launch.
    pub const fn grid(&self) -> Grid {
        let cluster = if self.clustered { self.splits } else { 1 };
        Grid::new(self.units, self.splits, THREADS).with_cluster([1, cluster, 1])
    }

    /// The size of [`Decode::workspace`].
    pub const fn workspace_bytes(&self) -> usize {
        let parts = self.units as usize * self.splits as usize * QUERIES;
        self.counter_bytes() + parts * (2 + row_floats(self.head_dim)) * size_of::<f32>()
    }

    /// How much of [`Decode::workspace`] is 0 between launches.
    pub const fn counter_bytes(&self) -> usize {
        counter_words(self.units) * size_of::<u32>()
    }
}

/// Positions of a block at least, in whole tiles of its warps: a merge of smaller parts would take longer than it saves.
const MIN_SHARE: u32 = 64;

/// Blocks that a KV head's queries take beside each other.
const fn units_per_kv_head(group: u32) -> u32 {
    group.div_ceil(QUERIES as u32)
}

/// A counter for each unit, and what fills 256 bytes.
const fn counter_words(units: u32) -> usize {
    (units as usize).next_multiple_of(64)
}

/// The floats of a query's partial result: those of the kernel's chunks of dimensions.
const fn row_floats(head_dim: u32) -> usize {
    match head_dim {
        0..=64 if head_dim.is_multiple_of(8) => 64,
        65..=128 if head_dim.is_multiple_of(8) => 128,
        _ => 256,
    }
}

/// What is done with the kernel of a size of head.
pub trait DecodeVisitor {
    /// What comes of it.
    type Out;
    /// Does it.
    fn visit<K: Kernel<Args = (Decode,)>>(self) -> Self::Out;
}

/// Calls the visitor with the kernel for heads of `head_dim`.
#[cfg(not(target_arch = "nvptx64"))]
pub fn visit_decode<V: DecodeVisitor>(head_dim: u32, visitor: V) -> V::Out {
    match (head_dim, row_floats(head_dim)) {
        (dims, _) if !dims.is_multiple_of(8) => visitor.visit::<attention_decode_any>(),
        (_, 64) => visitor.visit::<attention_decode_64>(),
        (_, 128) => visitor.visit::<attention_decode_128>(),
        _ => visitor.visit::<attention_decode_256>(),
    }
}

/// Words of shared memory for heads of `chunks` times 64 dimensions.
const fn shared_words(chunks: usize) -> usize {
    let dims = 64 * chunks;
    let queries = QUERIES * query::stride(chunks);
    let parts = WARPS * QUERIES * dims;
    let factors = QUERIES * merge::FACTORS;
    let overlaid = [queries, parts, factors];
    let (mut largest, mut i) = (0, 0);
    while i < overlaid.len() {
        largest = if largest < overlaid[i] { overlaid[i] } else { largest };
        i += 1;
    }
    largest + 2 * dims + inbox_words(chunks) + 2 * WARPS * QUERIES + QUERIES + 4
}

/// Words of what the blocks of a cluster write to each other.
const fn inbox_words(chunks: usize) -> usize {
    if MAX_CLUSTER == 1 { 0 } else { QUERIES * 64 * chunks + 2 * MAX_CLUSTER * QUERIES }
}

/// A block's shared memory. The queries are no longer needed when the warps' results are written, nor those when the factors of
/// the splits are.
#[derive(Clone, Copy)]
struct Shared<const CHUNKS: usize> {
    /// `[QUERIES][query::stride]`: the queries, times the scale of the scores.
    queries: *mut f32,
    /// `[WARPS][QUERIES][64 CHUNKS]`, in the place of the queries: the warps' sums of weighted values.
    parts: *mut f32,
    /// `[QUERIES][merge::FACTORS]`, in the same place: what the splits' sums are multiplied with.
    factors: *mut f32,
    /// `[64 CHUNKS]`: the token's key as the cache has it.
    key: *mut f32,
    /// `[64 CHUNKS]`: the token's value as the cache has it.
    value: *mut f32,
    /// `[cluster][QUERIES][64 CHUNKS / cluster]`: the sums of the cluster's blocks, in this block's dimensions.
    inbox: *mut f32,
    /// `[cluster][QUERIES]`: their largest scores.
    inbox_maxima: *mut f32,
    /// `[cluster][QUERIES]`: their sums of weights.
    inbox_weights: *mut f32,
    /// `[WARPS][QUERIES]`: the warps' largest scores, minus infinity for none.
    maxima: *mut f32,
    /// `[WARPS][QUERIES]`: the warps' sums of weights.
    weights: *mut f32,
    /// `[QUERIES]`: the scores of the token's own key.
    scores: *mut f32,
    /// How many blocks finished before this one.
    finished: *mut u32,
}

impl<const CHUNKS: usize> Shared<CHUNKS> {
    /// In `shared_words(CHUNKS)` words from `base` on.
    ///
    /// # Safety
    /// They are shared memory.
    #[inline(always)]
    unsafe fn at(base: *mut u32) -> Self {
        let (dims, behind) = (64 * CHUNKS, 2 * WARPS * QUERIES + QUERIES + 4);
        let overlaid = shared_words(CHUNKS) - 2 * dims - inbox_words(CHUNKS) - behind;
        // SAFETY: inside the words, whose number is the sum of these. Where there are no clusters, nobody reads the inbox.
        unsafe {
            let key = base.add(overlaid).cast::<f32>();
            let inbox = key.add(2 * dims);
            let inbox_maxima = inbox.wrapping_add(QUERIES * dims);
            let maxima = inbox.add(inbox_words(CHUNKS));
            let scores = maxima.add(2 * WARPS * QUERIES);
            Shared {
                queries: base.cast(),
                parts: base.cast(),
                factors: base.cast(),
                key,
                value: key.add(dims),
                inbox,
                inbox_maxima,
                inbox_weights: inbox_maxima.wrapping_add(MAX_CLUSTER * QUERIES),
                maxima,
                weights: maxima.add(WARPS * QUERIES),
                scores,
                finished: scores.add(QUERIES).cast(),
            }
        }
    }
}

/// What a block computes: some queries of one KV head, over a share of the positions.
#[derive(Clone, Copy)]
struct Task {
    /// Which of the launch's units this is.
    unit: u32,
    kv_head: u32,
    /// The first query, and how many.
    first_query: u32,
    queries: u32,
    /// The token's position.
    position: u32,
    /// The block's positions in the cache, before the token's: none in a block of a cluster that has no use for it.
    start: u32,
    end: u32,
    split: u32,
    /// Splits that have positions, at least one; in a cluster all of them.
    active: u32,
}

impl Task {
    /// The task of the running block, which has none where `split` is not below `active`.
    ///
    /// # Safety
    /// As for the kernel.
    #[inline(always)]
    unsafe fn new(args: &Decode, tile: u32) -> Self {
        let (unit, split, cluster) = (thread::block_idx_x(), thread::block_idx_y(), cluster::size());
        let group = args.heads / args.kv_heads;
        let per_head = units_per_kv_head(group);
        let per_unit = group.div_ceil(per_head);
        let (kv_head, part) = (unit / per_head, unit % per_head);
        let first = part * per_unit;
        // SAFETY: the caller's promise.
        let position = unsafe { mem::load(mem::global(args.position)) };
        let from = (position + 1).saturating_sub(args.window);
        let cached = position - from;
        // Blocks of a cluster are all there anyway.
        let least = if cluster > 1 { 0 } else { MIN_SHARE.max(WARPS as u32 * tile) };
        let active = if cluster > 1 { args.splits } else { args.splits.min(cached.div_ceil(least)).max(1) };
        // As many tiles for each, but for one more for the first ones.
        let tiles = cached.div_ceil(tile);
        let (each, more) = (tiles / active, tiles % active);
        let start = (from + (split * each + split.min(more)) * tile).min(position);
        Task {
            unit,
            kv_head,
            first_query: kv_head * group + first,
            queries: per_unit.min(group - first),
            position,
            start,
            end: (start + (each + u32::from(split < more)) * tile).min(position),
            split,
            active,
        }
    }

    /// Whether the token's own key and value are this block's: the first split's, which always has a task, or the last one's of a
    /// cluster, which has the fewest positions.
    #[inline(always)]
    fn has_token(&self) -> bool {
        self.split == cluster::size() - 1
    }
}

/// A block's work. `WIDE`: `head_dim` is a multiple of 8, so that rows are read 16 bytes at a time.
///
/// # Safety
/// As for the kernels; all threads of the block are here, and `shared` is `shared_words(CHUNKS)` words of shared memory.
#[inline(always)]
unsafe fn decode<const CHUNKS: usize, const STEPS: usize, const WIDE: bool>(args: &Decode, shared: *mut u32) {
    // SAFETY: the caller's promise. Barriers are reached by all threads: `split`, `active`, `cluster` and the ticket are the block's.
    unsafe {
        let shared = Shared::<CHUNKS>::at(shared);
        if args.overlap != 0 {
            grid::launch_dependents();
        }
        let task = Task::new(args, (16 * STEPS) as u32);
        if task.split >= task.active {
            grid::wait();
            return;
        }
        if cluster::size() > 1 {
            cluster::arrive();
        }
        let mut warp = Warp::<CHUNKS, STEPS, WIDE>::new(args, &task);
        warp.begin();
        let rotations = query::rotations::<CHUNKS>(args);
        // What was read so far, position, rotations and the cache before it, is of earlier passes, all of whose kernels had finished when
        // this pass's position was copied to the device.
        grid::wait();
        query::prepare(args, &task, &rotations, &shared);
        thread::sync_threads();
        grid::launch_dependents();
        if task.has_token() {
            query::score_token(args, &task, &shared);
        }
        warp.attend(args, &shared);
        thread::sync_threads();
        warp.write(&shared);
        thread::sync_threads();
        let merge = Merge { args, task: &task, shared: &shared };
        let clustered = cluster::size() > 1;
        if clustered {
            // All blocks of the cluster have started: their shared memory may be written.
            cluster::wait();
        }
        merge.warps();
        if clustered {
            cluster::arrive();
            cluster::wait();
            merge.cluster();
        } else if task.active > 1 && merge.is_last() {
            merge.splits();
        }
    }
}

macro_rules! kernels {
    ($($module:literal $name:ident $shared:ident $chunks:literal $steps:literal $wide:literal $registers:literal $dims:literal;)*) => {$(
        #[doc = concat!(
            "y = softmax(scale q K^T) V of one token, for heads of ", $dims, "; \
             see [`Decode`] for what else it does: norms of q and k, their rotation, and the append of k and v to the cache."
        )]
        ///
        /// Launched with [`DecodeShape::grid`]; [`visit_decode`] chooses it.
        ///
        /// Reads the position and the cache before it, which are earlier passes', before it waits for the kernel before it.
        ///
        /// # Safety
        /// `args` is as its fields say. No other launch uses the workspace at the same time.
        #[cfg(feature = $module)]
        #[kernel($module, prefetch)]
        pub unsafe fn $name(args: Decode) {
            #[cfg(cuda_sm = "90")]
            thread::max_registers::<THREADS, $registers>();
            let shared = shared_array!($shared: [u32; shared_words($chunks)]);
            // SAFETY: the caller's promise.
            unsafe { decode::<$chunks, $steps, $wide>(&args, shared) }
        }
    )*};
}

// A block has to fit beside one of a product, or beside another: 256 registers a thread. With 176, as fewer left room for two beside the
// products of eight warps, a context of 32768 took 2 % longer; with 168 and three blocks 3 % (docs/gemv.md). Older GPUs run one kernel after
// the other.
//
// A module each: a model has heads of one size, and the driver, which compiles one module after the other, takes a second and more for all
// four (docs/performance.md).
kernels! {
    "attention_64" attention_decode_64 DECODE_64 1 2 true 208 "at most 64 dimensions, a multiple of 8";
    "attention_128" attention_decode_128 DECODE_128 2 1 true 208 "72 to 128 dimensions, a multiple of 8";
    "attention_256" attention_decode_256 DECODE_256 4 1 true 255 "136 to 256 dimensions, a multiple of 8";
    "attention_any" attention_decode_any DECODE_ANY 4 1 false 255 "at most 256 dimensions, an even number";
}
