//! The launches: how a product is cut to what a GPU has.

use cuda_std::{
    async_copy::{LINE, MAX_STAGES},
    kernel::Grid,
};

use super::{COLUMNS_WARPS, MAX_WARPS, Matrix, ROWS, Weights, prologue::squares_bytes};

/// What a launch must know of the GPU, and of its place in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block can have.
    pub block: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub multiprocessor: u32,
    /// Bytes of it that a block takes beside its own.
    pub reserved: u32,
    /// Blocks of a cluster at most; 1 for no clusters.
    pub cluster: u32,
    /// Which launches' blocks are to fit onto a multiprocessor beside each other.
    pub share: Share,
}

/// How launches share the multiprocessors.
///
/// Each kernel has a block for every multiprocessor, and they must be on one each, or the kernel takes up to twice as long. But a
/// kernel's blocks start as soon as there is room, while other multiprocessors are still full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// One of those that take turns with large ones: beside a large one there is room for one small one (and, where the large
    /// one is no larger than it must be, for one of attention, of heads of up to 128). Also a product beside one that is `Whole`, in what room that leaves.
    Small,
    /// One whose blocks take more than half of a multiprocessor: no two large ones fit together.
    Large,
    /// One that has a multiprocessor to itself.
    Whole,
}

impl Share {
    /// The share of the launch behind one of this share.
    pub fn next(self) -> Self {
        match self {
            Share::Small => Share::Large,
            Share::Large => Share::Small,
            Share::Whole => Share::Whole,
        }
    }
}

impl Room {
    /// Bytes of shared memory that a block should have: at least, and at most as far as it can do with that.
    fn share(&self) -> (u32, u32) {
        let least_large = self.multiprocessor / 2 - self.reserved + 16;
        let rest = |taken: u32| self.multiprocessor.saturating_sub(taken + self.reserved + ATTENTION + self.reserved);
        let small = rest(least_large + self.reserved);
        match self.share {
            Share::Small => (0, small),
            Share::Large => (least_large, self.multiprocessor - small - 2 * self.reserved),
            Share::Whole => (least_large, self.block),
        }
    }
}

/// Bytes of shared memory that a block of attention takes beside a large and a small block.
const ATTENTION: u32 = 23 << 10;

/// From this width of the residual stream on, a product has the multiprocessors to itself and the next one starts when it has its
/// activations; below, they overlap. docs/gemv.md has the measurements: of 8B, with 4096, tokens take 0 to 3 % less time when products
/// overlap, of 70B, with 8192, 13 % more. Between these nothing was measured.
pub const WIDE: usize = 5120;

/// From so many columns on, two blocks share the work of quantising a column.
const PAIRED_COLS: u32 = 8192;

/// A launch's geometry, and what the kernel is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks, threads and shared memory.
    pub grid: Grid,
    /// [`super::Product::piece_blocks`]
    pub piece_blocks: u32,
    /// [`super::Product::stage_bytes`]
    pub stage_bytes: u32,
    /// [`super::Product::stages`]
    pub stages: u32,
    /// [`super::Product::align`]
    pub align: u32,
}

/// Groups of rows of the matrices of a `gemv`.
pub fn row_groups(matrices: &[Matrix]) -> u32 {
    matrices.iter().map(|matrix| matrix.rows.div_ceil(ROWS as u32)).sum()
}

/// The launch of a product with weights in `W`, of `groups` groups of rows ([`row_groups`]; for a `glu` the rows of one of its
/// matrices) of `cols` columns, with `tokens` columns of x, `columns` at a time, and with an RMSNorm or without. `None` when not even the least fits into a
/// block's shared memory.
///
/// A launch's share of a multiprocessor's shared memory goes into the stages, so that the next kernel's first stages are filled
/// beside this one's last. Where the share is too little, as it is where a multiprocessor has 100 KiB, a block takes all there is; where that is
/// too little, one of a single column has half of the warps.
pub fn launch<W: Weights>(
    room: Room,
    groups: u32,
    cols: u32,
    tokens: u32,
    columns: u32,
    normed: bool,
) -> Option<Launch> {
    let blocks = cols.div_ceil(W::ELEMS as u32).max(1);
    // What warps have for themselves: a barrier and two starts for each stage, a factor for each column.
    let own = (8 + 4 * ROWS) * MAX_STAGES as usize + 4 * columns as usize;
    // Behind the last stage, reading may look at two words more than it needs.
    let acts = columns as usize * W::acts_bytes(cols as usize) + squares_bytes(columns as usize, cols as usize);
    let acts = u32::try_from(acts + MAX_WARPS * own + LINE + 16).ok().filter(|&acts| acts <= room.block)?;
    let step = 32 / W::LANES as u32;
    // A row may begin between two multiples of 16.
    let bytes = |blocks: u32| (blocks * W::BYTES as u32 + 15).next_multiple_of(16);
    let stage = |lines: bool, blocks: u32| match lines {
        true => (LINE as u32 - 16 + bytes(blocks)).next_multiple_of(LINE as u32),
        false => bytes(blocks) + 16,
    };
    let shared =
        |warps: u32, lines: bool, stages: u32, blocks: u32| acts + warps * stages * ROWS as u32 * stage(lines, blocks);
    let least = step.min(blocks);
    // With so many warps, two stages keep the memory busy; fewer and longer pieces take fewer instructions. Only alone, and with nothing
    // to be done before the products, a third one is of use (docs/gemv.md).
    let most = if room.share == Share::Whole && !normed { MAX_STAGES } else { 2 };
    let fits = |warps: u32, lines: bool, limit: u32| {
        (2..=most).rev().find(|&stages| shared(warps, lines, stages, least) <= limit)
    };
    let (padded, share) = room.share();
    // Whatever several columns fit with, one does: by itself it decides whether a matrix is cut.
    let (warps, least_warps) = if columns == 1 { (W::WARPS, W::WARPS / 2) } else { (COLUMNS_WARPS, COLUMNS_WARPS) };
    let share = share.min(room.block);
    let tries = [(warps, share), (warps, room.block), (least_warps, share), (least_warps, room.block)];
    let (warps, limit, stages) =
        tries.into_iter().find_map(|(warps, limit)| fits(warps, false, limit).map(|stages| (warps, limit, stages)))?;
    // Whole lines where that costs no stage.
    let lines = fits(warps, true, limit) == Some(stages);
    let stage = |blocks: u32| stage(lines, blocks);
    let shared = |blocks: u32| shared(warps, lines, stages, blocks);
    let mut most = least;
    while most < blocks && shared((most + step).min(blocks)) <= limit {
        most = (most + step).min(blocks);
    }
    // Pieces of equal length.
    let pieces = blocks.div_ceil(most);
    let piece_blocks = blocks.div_ceil(pieces).next_multiple_of(step).min(most);
    // A block on each multiprocessor, unless not even each has a group: blocks of the next kernel start beside these, and where one
    // multiprocessor is empty, two of them would go there (measured: products of 4096 rows took up to half as long again).
    let few = groups < room.multiprocessors;
    let width = if few { groups.max(1) } else { room.multiprocessors };
    let shared = shared(piece_blocks).max(padded.min(room.block));
    let wide = cols >= PAIRED_COLS && cols.is_multiple_of(4) && columns == 1 && !normed;
    let pairs = wide && room.cluster > 1 && width.is_multiple_of(2);
    let cluster = [if pairs { 2 } else { 1 }, 1, 1];
    let grid = Grid::new(width, tokens.div_ceil(columns), 32 * warps).with_shared(shared).with_cluster(cluster);
    let align = if lines { LINE as u32 - 1 } else { 15 };
    Some(Launch { grid, piece_blocks, stage_bytes: stage(piece_blocks), stages, align })
}

/// The columns of a piece of a matrix of `cols` columns in `W` whose rows do not fit into a block's shared memory, not even beside
/// one column of x: the matrix is cut into as few pieces as possible, of as many columns each, but for the last one. `None` where no
/// piece fits.
pub fn piece_cols<W: Weights>(room: Room, cols: u32) -> Option<u32> {
    // Whole blocks, of weights and of quantised activations.
    let step = (W::ELEMS as u32).max(32);
    let mut pieces = 2;
    loop {
        let piece = cols.div_ceil(pieces).next_multiple_of(step);
        if launch::<W>(room, 1, piece, 1, 1, false).is_some() {
            return Some(piece);
        }
        if piece == step {
            return None;
        }
        pieces += 1;
    }
}
