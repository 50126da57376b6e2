//! Bytes that several threads bring to where they are wanted.

use rayon::prelude::*;

use super::Result;

/// Fills a slice with the bytes from a position on. Several threads call it, for pieces in any order.
pub type ReadAt<'a> = &'a (dyn Fn(usize, &mut [u8]) -> Result<()> + Sync);

/// What one thread brings at a time: short enough that the last ones do not wait long for each other.
const PIECE: usize = 256 << 10;

/// Fills `to` with the bytes of `source` from `at` on. With several threads where that pays: one moves some 5 to 10 GB/s, a link
/// up to ten times that.
///
/// # Errors
/// One of the source's.
pub fn fill(to: &mut [u8], at: usize, source: ReadAt<'_>) -> Result<()> {
    if to.len() <= PIECE {
        return source(at, to);
    }
    to.par_chunks_mut(PIECE).enumerate().try_for_each(|(i, piece)| source(at + i * PIECE, piece))
}
