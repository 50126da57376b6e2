//! The launches: how a product is cut to what a GPU has.

use cuda_std::kernel::Grid;

use super::{DEPTH, Matrix, ROWS, THREADS, WARPS, Weights};

/// What a launch must know of the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block can have.
    pub block: u32,
    /// Bytes of shared memory of each of two blocks that are on a multiprocessor together.
    pub half: u32,
}

/// Bytes of `shared_array!`s in the kernels.
const STATIC: u32 = 4 * WARPS as u32;

/// A launch's geometry, and what the kernel is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks, threads and shared memory.
    pub grid: Grid,
    /// [`super::Product::piece_blocks`]
    pub piece_blocks: u32,
    /// [`super::Product::stage_bytes`]
    pub stage_bytes: u32,
}

/// Groups of rows of the matrices of a `gemv`.
pub fn row_groups(matrices: &[Matrix]) -> u32 {
    matrices.iter().map(|matrix| matrix.rows.div_ceil(ROWS as u32)).sum()
}

/// The launch of a product with weights in `W`, of `groups` groups of rows ([`row_groups`]; for a `glu` the rows of one of its
/// matrices) of `cols` columns, with `tokens` columns of x, `columns` at a time. `None` when not even the least fits into a
/// block's shared memory.
///
/// As much as half of a multiprocessor's shared memory goes into the stages, so that the next kernel's first stages are filled
/// beside this one's last. Where that is too little, a block takes what it needs.
pub fn launch<W: Weights>(room: Room, groups: u32, cols: u32, tokens: u32, columns: u32) -> Option<Launch> {
    let blocks = cols.div_ceil(W::ELEMS as u32).max(1);
    let acts = columns * W::acts_bytes(cols as usize) as u32 + (8 * DEPTH * WARPS) as u32;
    let rings = (WARPS * DEPTH * ROWS) as u32;
    let step = 32 / W::LANES as u32;
    // A row may begin between two multiples of 16, and reading may look at a word more than it needs.
    let stage = |blocks: u32| (blocks * W::BYTES as u32).next_multiple_of(16) + 32;
    let shared = |blocks: u32| STATIC + acts + rings * stage(blocks);
    let least = step.min(blocks);
    let limit = if shared(least) <= room.half { room.half } else { room.block };
    if shared(least) > limit {
        return None;
    }
    let mut most = least;
    while most < blocks && shared((most + step).min(blocks)) <= limit {
        most = (most + step).min(blocks);
    }
    // Pieces of equal length.
    let pieces = blocks.div_ceil(most);
    let piece_blocks = blocks.div_ceil(pieces).next_multiple_of(step).min(most);
    let width = room.multiprocessors.min(groups.div_ceil(WARPS as u32)).max(1);
    let grid = Grid::new(width, tokens.div_ceil(columns), THREADS).with_shared(shared(piece_blocks) - STATIC);
    Some(Launch { grid, piece_blocks, stage_bytes: stage(piece_blocks) })
}
