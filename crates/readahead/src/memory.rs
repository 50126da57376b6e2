//! A source that copies from memory.

use crate::{
    HostBuf, Landed, OpenError, Piece, Source, SourceError, forward,
    pool::{Bounce, Pool, Reader},
};
use std::sync::Arc;

/// A "file" of a [`Memory`] source.
pub struct MemoryRange {
    /// What it is called in errors.
    pub name: String,
    /// Its bytes: a file's map, or RAM that could not be page-locked. The same bytes each time it is asked.
    pub bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
}

/// Copies pieces from memory, on several threads, because one alone does not keep a fast link busy.
///
/// What is mapped from a file ends the process (`SIGBUS`) where the file was truncated: whoever wants an error reads the file.
pub struct Memory(Pool<Ranges>);

impl Memory {
    /// A source over `ranges` with `threads` copies at once.
    pub fn new(ranges: Vec<MemoryRange>, threads: usize) -> Result<Self, OpenError> {
        let description = format!("copies from memory, {} threads", threads.max(1));
        Pool::new(Ranges(ranges), threads, 0, description).map(Self)
    }
}

struct Ranges(Vec<MemoryRange>);

impl Ranges {
    fn bytes(&self, piece: &Piece) -> Result<&[u8], SourceError> {
        let files = self.0.len();
        let all = (*self.0.get(piece.file).ok_or(SourceError::NoFile { file: piece.file, files })?.bytes).as_ref();
        let end = piece.offset.saturating_add(piece.len as u64);
        let outside = || SourceError::OutOfFile { offset: piece.offset, end, size: all.len() as u64 };
        let (Ok(start), Ok(end)) = (usize::try_from(piece.offset), usize::try_from(end)) else { return Err(outside()) };
        all.get(start..end).ok_or_else(outside)
    }
}

impl Reader for Ranges {
    fn check(&self, piece: &Piece, dst: &HostBuf) -> Result<(), SourceError> {
        let need = self.bytes(piece)?.len();
        match dst.len() < need {
            true => Err(SourceError::Small { len: dst.len(), need, block: 1 }),
            false => Ok(()),
        }
    }

    fn read(&self, piece: &Piece, dst: &mut HostBuf, _: &mut Bounce) -> Result<Landed, SourceError> {
        let bytes = self.bytes(piece)?;
        dst.bytes()[..bytes.len()].copy_from_slice(bytes);
        Ok(Landed { begin: 0, len: bytes.len() })
    }

    fn block(&self) -> usize {
        1
    }

    fn name(&self, file: usize) -> String {
        self.0.get(file).map_or_else(|| format!("range {file}"), |range| range.name.clone())
    }
}

impl Source for Memory {
    forward!(self => self.0; submit, wait, depth, is_queued, block, name, describe);
}
