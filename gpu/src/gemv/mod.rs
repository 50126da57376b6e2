//! Matrix times vector at the memory's speed: one kernel for all tensor types and all products of a layer.
//!
//! **Weights** lie in memory as in the file, and reach a warp through stages of shared memory that asynchronous copies fill
//! ([`async_copy::Stages`]): any alignment of a row or a block is read from there, many bytes are in flight without a register,
//! and the first stages are filled before the kernel before this one has finished ([`grid`]).
//! **Activations** are quantised by each block for itself (`prologue`), after an RMSNorm where the product has one: no kernel and no
//! way through memory of their own. Two neighbouring blocks halve that between them where the matrix is wide and the GPU has clusters.
//! **A warp** takes `ROWS` rows at a time, of which neighbours in the grid take the neighbours, so that the multiprocessors are
//! evenly loaded and walk through the matrix together. The bits of a result depend on its row and column alone.

#[macro_use]
mod unrolled;

mod acts;
mod dot;
mod kernels;
#[cfg(not(target_arch = "nvptx64"))]
mod launch;
mod prologue;
mod staged;
mod weights;

use cuda_std::{
    async_copy::{LINE, MAX_STAGES, Stages},
    prelude::*,
};
pub use dot::Dot;
pub use kernels::*;
#[cfg(not(target_arch = "nvptx64"))]
pub use launch::*;
use prologue::{load_activations, squares_bytes};
use staged::Staged;
pub use weights::Weights;

/// Warps of a block at most.
pub const MAX_WARPS: usize = 16;
/// Warps of a block that multiplies several columns, for each of which a thread needs registers.
const COLUMNS_WARPS: u32 = 8;
/// Rows that a warp computes side by side: activations that were read are used for each.
pub const ROWS: usize = 2;

/// Says that there is no such tensor in the buffer of weights.
pub const NONE: u64 = u64::MAX;

/// One of a launch's matrices.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Matrix {
    /// Where its first row begins in the buffer of weights.
    pub offset: u64,
    /// Where its bias begins, `[rows]` F32; or [`NONE`].
    pub bias: u64,
    /// `[tokens][rows]`
    pub y: *mut f32,
    /// Rows; 0 for no matrix.
    pub rows: u32,
    /// 0
    pub reserved: u32,
}

/// What a launch computes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Product {
    /// Holds the address of the buffer of weights.
    pub home: *const u64,
    /// `[tokens][cols]`
    pub x: *const f32,
    /// Where the weights of the RMSNorm of x begin, `[cols]` F32; or [`NONE`] for x as it is.
    pub norm: u64,
    /// The matrices, of one type and `cols` columns each. `gemv`: all their rows, one after the other; `glu`: the gate and the up
    /// projection, of as many rows.
    pub matrices: [Matrix; 3],
    /// Columns of the matrices that are multiplied, a multiple of the format's block.
    pub cols: u32,
    /// Bytes of so many columns of a row.
    pub row_bytes: u32,
    /// Columns of x.
    pub tokens: u32,
    /// Blocks of a piece of a row, as many as a stage has room for.
    pub piece_blocks: u32,
    /// Bytes of a stage for one row, a multiple of 16.
    pub stage_bytes: u32,
    /// Stages of a warp.
    pub stages: u32,
    /// Results are added to y.
    pub accumulate: u32,
    /// `glu`: the gate's function, [`SILU`] or [`GELU`].
    pub activation: u32,
    /// RMSNorm's epsilon.
    pub eps: f32,
    /// Bytes from a row to the next one: `row_bytes`, or more, where only some columns are multiplied. Both are multiples of 16 for
    /// floats then.
    pub stride: u32,
    /// When this kernel runs beside others: [`APART`], [`OVERLAPPING`] or [`BESIDE`].
    pub overlap: u32,
    /// A row's piece lies in its stage as it lies in the matrix, in these bits of the address: those below a line of 128, or below 16.
    pub align: u32,
}

// SAFETY: plain numbers and addresses without padding: 3 x 8 + 3 x 32 + 12 x 4 bytes.
#[cfg(not(target_arch = "nvptx64"))]
unsafe impl cuda_std::kernel::Param for Product {}
const _: () = assert!(size_of::<Product>() == 168);

/// [`Product::overlap`]: the next kernel may start when this one has its activations. They would arrive later with the weights that
/// the next one asks for at once.
pub const APART: u32 = 0;
/// [`Product::overlap`]: the next kernel may start when this one has.
pub const OVERLAPPING: u32 = 1;
/// [`Product::overlap`]: as [`APART`], and this kernel does not wait for the one before it until it ends. That is for a kernel whose x
/// and norm are those of the kernel before, a product that is [`APART`] or `BESIDE` itself, and that does not read y.
///
/// It starts once every block of the kernel before has its activations: behind that one's wait, when whoever wrote x had ended. A fence
/// takes the wait's place, so that no older x is read from a cache.
pub const BESIDE: u32 = 2;

/// x / (1 + e^-x)
pub const SILU: u32 = 0;
/// The approximation of GELU with a tanh.
pub const GELU: u32 = 1;

/// Which rows a warp's groups have.
trait Plan {
    /// Whether blocks may be a cluster of two, which share the work on their activations.
    const PAIRED: bool;
    /// Groups in all.
    fn groups(p: &Product) -> u32;
    /// The rows of group `group`: address of the first one, and from there to the second.
    fn rows(p: &Product, group: u32) -> (*const u8, usize);
}

/// Rows of up to three matrices, two by two.
struct Rows;
/// Row i of a gate and of an up projection.
struct Pairs;

impl Plan for Rows {
    const PAIRED: bool = true;

    #[inline(always)]
    fn groups(p: &Product) -> u32 {
        let [a, b, c] = &p.matrices;
        let groups = |matrix: &Matrix| matrix.rows.div_ceil(ROWS as u32);
        groups(a) + groups(b) + groups(c)
    }

    #[inline(always)]
    fn rows(p: &Product, group: u32) -> (*const u8, usize) {
        let (offset, rows, row, _, _) = find(p, group);
        let first = weights(p).wrapping_add(offset as usize + row as usize * p.stride as usize);
        // A last row without a partner is computed twice.
        (first, if row + 1 < rows { p.stride as usize } else { 0 })
    }
}

impl Plan for Pairs {
    // It has a norm, for which each block needs all of x.
    const PAIRED: bool = false;

    #[inline(always)]
    fn groups(p: &Product) -> u32 {
        p.matrices[0].rows
    }

    #[inline(always)]
    fn rows(p: &Product, group: u32) -> (*const u8, usize) {
        let [gate, up, _] = &p.matrices;
        let first = weights(p).wrapping_add(gate.offset as usize + group as usize * p.stride as usize);
        (first, (up.offset as usize).wrapping_sub(gate.offset as usize))
    }
}

/// The matrix that a group of [`Rows`] is in: its offset and rows, the group's first row in it, y and bias.
#[inline(always)]
fn find(p: &Product, group: u32) -> (u64, u32, u32, *mut f32, u64) {
    let [a, b, c] = &p.matrices;
    let of = |m: &Matrix, group: u32| (m.offset, m.rows, ROWS as u32 * group, m.y, m.bias);
    let (first, second) = (a.rows.div_ceil(ROWS as u32), b.rows.div_ceil(ROWS as u32));
    if group < first {
        of(a, group)
    } else if group - first < second {
        of(b, group - first)
    } else {
        of(c, group - first - second)
    }
}

/// The buffer of weights. It is read anew for each group: kept, it would take two registers of each thread.
#[inline(always)]
fn weights(p: &Product) -> *const u8 {
    // SAFETY: nobody writes homes while kernels run.
    unsafe { mem::load(mem::global(p.home)) as *const u8 }
}

/// A row's bytes in pieces, as long as a stage but for the last.
struct Pieces {
    count: u32,
    bytes: u32,
    last: u32,
}

impl Pieces {
    #[inline(always)]
    fn bytes(&self, piece: u32) -> u32 {
        if piece + 1 == self.count { self.last } else { self.bytes }
    }
}

/// What a warp fetches next.
struct Walk {
    group: u32,
    piece: u32,
    at: *const u8,
    delta: usize,
}

impl Walk {
    #[inline(always)]
    fn new<P: Plan>(p: &Product, group: u32) -> Self {
        let (at, delta) = P::rows(p, group);
        Walk { group, piece: 0, at, delta }
    }
}

/// A block's share of the product with columns `first` to `first + C - 1`. Passes on what each group gives, by row and column:
/// `finish(group, sums)`, on all lanes of the warp, which have the same.
///
/// # Safety
/// As for the kernels; all threads are here.
#[inline(always)]
unsafe fn multiply<W: Weights, P: Plan, const C: usize>(
    p: &Product,
    first: u32,
    finish: impl Fn(u32, [[f32; C]; ROWS]),
) {
    // The shuffle tells the compiler that all lanes have the same.
    // SAFETY: all lanes are here.
    let warp = unsafe { warp::warp_shuffle_idx(warp::FULL_MASK, warp::warp_id(), 0) };
    let cols = p.cols as usize;
    let acts = dynamic_shared!(GEMV_SHARED: [u8]);
    let barriers = acts.wrapping_add(C * W::acts_bytes(cols) + squares_bytes(C, cols)).cast::<u64>();
    let starts = barriers.wrapping_add(MAX_STAGES as usize * MAX_WARPS).cast::<[u32; ROWS]>();
    let factors = starts.wrapping_add(MAX_STAGES as usize * MAX_WARPS).cast::<[f32; C]>();
    let rings = factors.wrapping_add(MAX_WARPS).cast::<u8>();
    let factors = factors.wrapping_add(warp as usize);
    let rings = rings.wrapping_add(rings.addr().wrapping_neg() % LINE);
    let ring = (rings.addr() - acts.addr()) as u32 + warp * p.stages * ROWS as u32 * p.stage_bytes;
    // SAFETY: barriers, starts and ring are this warp's.
    let stages = unsafe {
        let barriers = barriers.wrapping_add(warp as usize * MAX_STAGES as usize);
        let starts = starts.wrapping_add(warp as usize * MAX_STAGES as usize);
        Stages::<ROWS>::new(acts, ring, p.stage_bytes, p.stages, p.align, barriers, starts)
    };

    let pieces = {
        let bytes = p.piece_blocks * W::BYTES as u32;
        let count = p.row_bytes.div_ceil(bytes);
        Pieces { count, bytes, last: p.row_bytes - (count - 1) * bytes }
    };
    // Neighbouring groups are in neighbouring blocks.
    let groups = P::groups(p);
    let start = warp * thread::grid_dim_x() + thread::block_idx_x();
    let step = thread::grid_dim_x() * (thread::block_dim_x() / 32);

    let turns = groups.saturating_sub(start).div_ceil(step);
    let mut next = Walk::new::<P>(p, start);
    let mut fetch = |stage: u32| {
        if next.group >= groups {
            return stages.skip();
        }
        // SAFETY: all lanes are here. The rows are the tensor's, and memory is readable from the multiple of 16 before it to the
        // one behind it.
        unsafe { stages.fill(stage, [next.at, next.at.wrapping_add(next.delta)], pieces.bytes(next.piece)) };
        next.piece += 1;
        if next.piece == pieces.count {
            next = Walk::new::<P>(p, next.group + step);
        } else {
            next.at = next.at.wrapping_add(pieces.bytes as usize);
        }
    };
    if p.overlap == OVERLAPPING {
        grid::launch_dependents();
    }
    let paired = P::PAIRED && C == 1 && cluster::size() > 1;
    if paired {
        // SAFETY: all threads are here, and wait in `load_activations`.
        unsafe { cluster::arrive() };
    }
    let mut stage = 0;
    while stage < p.stages {
        fetch(stage);
        stage += 1;
    }
    // SAFETY: all threads are here.
    unsafe {
        if paired {
            load_activations::<W, C, true, 2>(p, acts, factors, first)
        } else if W::ANY_END && !p.cols.is_multiple_of(4) {
            load_activations::<W, C, false, 1>(p, acts, factors, first)
        } else {
            load_activations::<W, C, true, 1>(p, acts, factors, first)
        }
    }
    grid::launch_dependents();

    // Which of its groups the warp is at. Counting groups themselves takes a register more.
    let (mut turn, mut stage, mut round) = (0, 0, 0);
    while turn < turns {
        let mut sums = [[0.0f32; C]; ROWS];
        for piece in 0..pieces.count {
            // SAFETY: all lanes are here.
            unsafe { stages.wait(stage, round) };
            // SAFETY: the stage's bytes have arrived.
            let rows = unsafe { stages.runs(stage).map(|at| Staged::new(acts, at)) };
            let (bytes, first) = (pieces.bytes(piece), piece * p.piece_blocks * W::ELEMS as u32);
            // SAFETY: the blocks are in the piece.
            unsafe {
                if W::ANY_END && !cols.is_multiple_of(W::ELEMS) {
                    multiply_piece::<W, C, false>(rows, bytes, acts, cols, first, &mut sums);
                } else {
                    multiply_piece::<W, C, true>(rows, bytes, acts, cols, first, &mut sums);
                }
            }
            // SAFETY: all lanes are here; they have read the stage.
            unsafe { warp::sync_warp(warp::FULL_MASK) };
            fetch(stage);
            stage += 1;
            if stage == p.stages {
                (stage, round) = (0, round + 1);
            }
        }
        // SAFETY: all lanes are here.
        unsafe { warp::sums(sums.as_flattened_mut()) };
        // SAFETY: lane 0 has written it, and all lanes have been at a barrier of the warp since, behind a piece.
        let factors = unsafe { factors.read() };
        for sums in &mut sums {
            for c in 0..C {
                sums[c] *= factors[c];
            }
        }
        finish(start + turn * step, sums);
        turn += 1;
    }
    if p.overlap == BESIDE {
        // Whoever waits for this kernel waits for the one before it, too.
        grid::wait();
    }
}

/// Adds the products of a piece of both rows, of `bytes` bytes, to `sums`: that of the lane's slices. `first` is the piece's first column,
/// a multiple of a step's. `WHOLE` says that a row ends with a block.
///
/// # Safety
/// As for [`Weights::multiply`].
#[inline(always)]
unsafe fn multiply_piece<W: Weights, const C: usize, const WHOLE: bool>(
    rows: [Staged; ROWS],
    bytes: u32,
    acts: *mut u8,
    cols: usize,
    mut first: u32,
    sums: &mut [[f32; C]; ROWS],
) {
    let lane = warp::lane_id() as usize;
    let slice = lane % W::LANES;
    // The lane's block in a step, by its first value.
    let at = lane / W::LANES * W::ELEMS;
    let mut offset = (lane / W::LANES * W::BYTES) as u32;
    while offset < bytes {
        let blocks = rows.map(|row| row.skip(offset));
        // SAFETY: the caller's promise.
        unsafe { W::multiply::<ROWS, C, WHOLE>(blocks, slice, acts, cols, first as usize, at, sums) };
        offset += (32 / W::LANES * W::BYTES) as u32;
        first += (32 / W::LANES * W::ELEMS) as u32;
    }
}

/// Element `row` of the bias at `offset` of the buffer of weights.
///
/// # Safety
/// It is there.
#[inline(always)]
unsafe fn load_bias(p: &Product, offset: u64, row: u32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { mem::load(mem::global(weights(p).wrapping_add(offset as usize).cast::<f32>().wrapping_add(row as usize))) }
}

/// y (+)= W x + bias.
///
/// # Safety
/// As for the kernels.
#[inline(always)]
unsafe fn gemv<W: Weights, const C: usize>(p: &Product) {
    let first = thread::block_idx_y() * C as u32;
    let lane = warp::lane_id();
    // SAFETY: the caller's promise; each result is written by one lane.
    unsafe {
        multiply::<W, Rows, C>(p, first, |group, sums| {
            let (_, rows, row, y, bias) = find(p, group);
            // Result (r, c) is lane r C + c's.
            let mut result = 0.0;
            for r in 0..ROWS {
                for c in 0..C {
                    if lane as usize == r * C + c {
                        result = sums[r][c];
                    }
                }
            }
            let (row, token) = (row + lane / C as u32, first + lane % C as u32);
            if lane < (ROWS * C) as u32 && row < rows && token < p.tokens {
                let y = mem::global(y.wrapping_add(token as usize * rows as usize + row as usize)).cast_mut();
                if bias != NONE {
                    result += load_bias(p, bias, row);
                }
                mem::store(y, if p.accumulate != 0 { mem::load(y) + result } else { result });
            }
        });
    }
}

/// y = activation(gate x + bias) (up x + bias), one column.
///
/// # Safety
/// As for the kernels.
#[inline(always)]
unsafe fn glu<W: Weights>(p: &Product) {
    // SAFETY: the caller's promise; each result is written by one lane.
    unsafe {
        multiply::<W, Pairs, 1>(p, 0, |row, [[mut gate], [mut up]]| {
            if warp::lane_id() == 0 {
                let [a, b, _] = &p.matrices;
                if a.bias != NONE {
                    gate += load_bias(p, a.bias, row);
                }
                if b.bias != NONE {
                    up += load_bias(p, b.bias, row);
                }
                let gated = if p.activation == GELU { crate::gated::gelu(gate) } else { crate::gated::silu(gate) };
                mem::store(mem::global(a.y.wrapping_add(row as usize)).cast_mut(), gated * up);
            }
        });
    }
}
