//! What choosing among logits is made of: an order of numbers, a row read in wide loads, and the last block.

use cuda_std::{kernel::Grid, prelude::*};

/// Threads of a block.
pub(super) const THREADS: u32 = 512;
/// Warps of a block.
pub(super) const WARPS: u32 = THREADS / 32;
/// Blocks that read one row at most. Fewer where each thread would not have a wide load to do.
pub(super) const MAX_BLOCKS: u32 = 128;

/// `blocks` blocks at most for each of `rows` rows of `n` elements.
pub(super) const fn row_grid(rows: u32, n: u32, blocks: u32) -> Grid {
    let wanted = n.div_ceil(4 * THREADS);
    let blocks = if wanted < blocks { wanted } else { blocks };
    Grid::new(if blocks == 0 { 1 } else { blocks }, rows, THREADS)
}

/// A number and its index as one integer, which is the larger, the larger the number is, and of equal numbers the lower the
/// index. No two elements of a row have the same.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Rank(pub u64);

impl Rank {
    /// Of no number: below all others.
    pub const NONE: Rank = Rank(0);
    /// Not above any finite number's rank.
    pub const FINITE: Rank = Rank(1 << 32);

    /// The rank of any number, the infinities too. None for a NaN.
    #[inline(always)]
    pub fn of_number(value: f32, index: u32) -> Rank {
        // Of the zeros, which are equal, this sum makes one.
        let bits = (value + 0.0).to_bits();
        // The bits of floats are ordered as those of integers with sign and magnitude.
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        if value.is_nan() { Rank::NONE } else { Rank(u64::from(ordered) << 32 | u64::from(!index)) }
    }

    /// The rank of a finite number. None for any other.
    #[inline(always)]
    pub fn of_finite(value: f32, index: u32) -> Rank {
        if value.is_finite() { Rank::of_number(value, index) } else { Rank::NONE }
    }

    /// The index of the element; `u32::MAX` where there is none.
    #[inline(always)]
    pub fn index(self) -> u32 {
        !(self.0 as u32)
    }

    /// The larger of two.
    #[inline(always)]
    pub fn or(self, other: Rank) -> Rank {
        if other.0 > self.0 { other } else { self }
    }

    /// The largest among each `lanes` neighbours of the warp, a power of two, in each of them.
    ///
    /// # Safety
    /// All lanes must be here.
    #[inline(always)]
    pub unsafe fn best_of(mut self, lanes: u32) -> Rank {
        let mut step = lanes / 2;
        while step > 0 {
            // SAFETY: the caller's promise.
            let (high, low) = unsafe {
                (
                    warp::warp_shuffle_xor(warp::FULL_MASK, (self.0 >> 32) as u32, step),
                    warp::warp_shuffle_xor(warp::FULL_MASK, self.0 as u32, step),
                )
            };
            self = self.or(Rank(u64::from(high) << 32 | u64::from(low)));
            step /= 2;
        }
        self
    }
}

/// A row, cut at the 16-byte boundaries of memory, which need not be those of its elements.
#[derive(Clone, Copy)]
pub(super) struct Row {
    x: *const f32,
    n: u32,
    /// Floats between the boundary and the first element.
    lead: u32,
}

impl Row {
    /// The `n` floats at `x`.
    #[inline(always)]
    pub fn new(x: *const f32, n: u32) -> Row {
        Row { x, n, lead: (x as usize / size_of::<f32>() % 4) as u32 }
    }

    /// How many pieces of 16 bytes the row is part of.
    #[inline(always)]
    pub fn quads(self) -> u32 {
        (self.lead + self.n).div_ceil(4)
    }

    /// The largest of what `rank` makes of the elements of quad `q`; [`Rank::NONE`] past the end.
    ///
    /// # Safety
    /// The row must be readable.
    #[inline(always)]
    pub unsafe fn best(self, q: u32, rank: impl Fn(f32, u32) -> Rank) -> Rank {
        let mut best = Rank::NONE;
        // SAFETY: the caller's promise.
        unsafe { self.each(q, |value, index| best = best.or(rank(value, index))) };
        best
    }

    /// Calls `f` with the elements of quad `q` and their indices, none past the end.
    ///
    /// # Safety
    /// The row must be readable.
    #[inline(always)]
    pub unsafe fn each(self, q: u32, mut f: impl FnMut(f32, u32)) {
        // Before the row's first element, it wraps to far beyond its last one.
        let first = (4 * q).wrapping_sub(self.lead);
        if first < self.n && self.n - first >= 4 {
            // SAFETY: four elements of the row, at a boundary of 16 bytes.
            let values = unsafe { mem::load4(self.x.add(first as usize)) };
            for i in 0..4 {
                f(values[i], first + i as u32);
            }
        } else {
            for i in 0..4 {
                let index = first.wrapping_add(i);
                if index < self.n {
                    // SAFETY: an element of the row.
                    f(unsafe { mem::load(self.x.add(index as usize)) }, index);
                }
            }
        }
    }
}

/// Whether this block is the last one along x that gets here, and sees all that the others have written before. Once in a
/// kernel; `arrived`, one counter for all blocks of a row, is 0 before and after.
///
/// # Safety
/// All threads of the block must be here, and `arrived` must be the address of such a counter.
#[inline(always)]
pub(super) unsafe fn is_last_block(arrived: *mut u32) -> bool {
    let last = shared_array!(LAST_BLOCK: [u32; 1]);
    // SAFETY: the caller's promises; one thread writes `last`, between two barriers.
    unsafe {
        thread::sync_threads();
        if thread::thread_idx_x() == 0 {
            atomic::fence();
            let is_last = atomic::add(arrived, 1) == thread::grid_dim_x() - 1;
            if is_last {
                atomic::fence();
                mem::store(arrived, 0);
            }
            last.write(u32::from(is_last));
        }
        thread::sync_threads();
        last.read() == 1
    }
}
