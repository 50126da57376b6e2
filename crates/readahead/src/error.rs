//! What can go wrong, from opening a file to taking a piece.

use std::{io, path::PathBuf, sync::Arc};

/// A file cannot be read from at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A system call failed.
    #[error("{}: {what} failed: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's words.
        cause: io::Error,
    },
    /// Not a regular file.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// What it is.
        path: PathBuf,
    },
    /// The path names another file than the one that was opened.
    #[error("{}: the file was replaced by another one meanwhile; start again", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// Nothing but io_uring was wanted.
    #[error("{why}; another way of reading works without")]
    NoIoUring {
        /// Why there is none.
        why: String,
    },
    /// The threads of a pool could not be started.
    #[error("starting {threads} threads that read failed: {cause}")]
    Threads {
        /// How many there should be.
        threads: usize,
        /// The system's words.
        cause: io::Error,
    },
    /// A source of another kind cannot be opened, in its own words.
    #[error("{0}")]
    Device(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why one read failed. It does not say which: [`ReadError`] does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The system's answer.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Fewer bytes came than the piece has.
    #[error("only {got} of {len} bytes came")]
    Short {
        /// Bytes that came.
        got: usize,
        /// Bytes of the piece.
        len: usize,
    },
    /// The file is shorter than when it was opened.
    #[error("the file was truncated while in use, from {was} to {is} bytes; restore it and start again")]
    Truncated {
        /// Bytes when it was opened.
        was: u64,
        /// Bytes now.
        is: u64,
    },
    /// The file was written to since it was opened.
    #[error("the file was changed while in use (its size or time of modification is another one); start again")]
    Changed,
    /// The piece is not in the file.
    #[error("bytes {offset}..{end} are outside of the file's {size} bytes")]
    OutOfFile {
        /// First byte.
        offset: u64,
        /// One past the last byte, as far as 64 bits go.
        end: u64,
        /// The file's bytes.
        size: u64,
    },
    /// There is no file with this index.
    #[error("there is no file {file}: the source has {files}")]
    NoFile {
        /// The index.
        file: usize,
        /// How many files there are.
        files: usize,
    },
    /// The buffer cannot take the piece and the blocks around it.
    #[error("a buffer of {len} bytes is too small: this read needs {need}, because whole blocks of {block} are read")]
    Small {
        /// Bytes of the buffer.
        len: usize,
        /// Bytes needed.
        need: usize,
        /// Bytes of a block.
        block: usize,
    },
    /// The buffer begins in the middle of a block.
    #[error("a buffer at address {address:#x} is not aligned to blocks of {block} bytes, as direct I/O needs it")]
    Unaligned {
        /// The buffer's address.
        address: usize,
        /// Bytes of a block.
        block: usize,
    },
    /// Asked to write VRAM.
    #[error("this source reads into host memory only, not into VRAM")]
    Vram,
    /// A piece does not begin where its place was made for it.
    #[error("the piece came to byte {got} of its place in device memory instead of byte {want}")]
    Misplaced {
        /// Where it begins.
        got: usize,
        /// Where it should.
        want: usize,
    },
    /// More reads than [`Source::depth`](crate::Source::depth).
    #[error("{depth} reads are in flight already, and this source has no more at once")]
    Full {
        /// Reads in flight at most.
        depth: usize,
    },
    /// What reads by itself has failed, in its own words. It has tried again as often as that makes sense.
    #[error("{0}")]
    Device(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A source's thread is gone.
    #[error("the threads that read have ended")]
    Ended,
}

impl SourceError {
    /// Whether the same read may succeed if it is tried again.
    pub fn is_transient(&self) -> bool {
        matches!(self, SourceError::Io(_) | SourceError::Short { .. })
    }
}

/// Why a piece cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Reading failed, also when it was tried again.
    #[error("{name}: reading {len} bytes at offset {offset} failed (attempt {attempts}): {cause}")]
    Failed {
        /// The file, or what the source calls it.
        name: String,
        /// The piece's first byte in the file.
        offset: u64,
        /// The piece's bytes.
        len: usize,
        /// How often it was tried.
        attempts: u32,
        /// The last attempt's error.
        cause: Arc<SourceError>,
    },
    /// A read has not come back.
    #[error(
        "{name}: reading {len} bytes at offset {offset} has not come back for {seconds:.0} s: the drive does not answer"
    )]
    Stalled {
        /// The file, or what the source calls it.
        name: String,
        /// The piece's first byte in the file.
        offset: u64,
        /// The piece's bytes.
        len: usize,
        /// How long ago it was begun.
        seconds: f64,
    },
    /// The consumer holds all buffers: what it waits for cannot come.
    #[error("all {buffers} buffers are taken: one has to be given back before another piece is taken")]
    AllTaken {
        /// How many there are.
        buffers: usize,
    },
    /// A piece was asked for that nobody has let be read.
    #[error("piece {piece} was asked for before its place was free")]
    NotPermitted {
        /// Which piece.
        piece: usize,
    },
    /// A piece was asked for that is not the next one.
    #[error("piece {asked} was asked for, but piece {next} is next: seek first")]
    OutOfOrder {
        /// The piece asked for.
        asked: usize,
        /// The piece that is next.
        next: usize,
    },
    /// The list of pieces or of buffers is empty, or a piece does not fit into a buffer.
    #[error("reading ahead cannot start: {0}")]
    Start(String),
    /// The reading thread has ended, because the source panicked.
    #[error("the thread that reads ahead has ended")]
    Ended,
    /// Asked to stop.
    #[error("reading was cancelled")]
    Cancelled,
}

impl ReadError {
    /// What the source calls the file that could not be read, and the first byte there.
    pub fn place(&self) -> Option<(&str, u64)> {
        match self {
            ReadError::Failed { name, offset, .. } | ReadError::Stalled { name, offset, .. } => Some((name, *offset)),
            _ => None,
        }
    }
}
