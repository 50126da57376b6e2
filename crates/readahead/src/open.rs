//! Which source reads a list of files.

use crate::{Input, OpenError, Source, files::Files, pool};

/// What makes the reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadBy {
    /// io_uring, or threads where that is refused.
    #[default]
    Any,
    /// io_uring, or nothing.
    IoUring,
    /// Threads that call `pread`.
    Threads,
}

/// How files are read.
#[derive(Debug, Clone, Copy)]
pub struct SourceOptions {
    /// Reads in flight. Drives want 8 or more.
    pub depth: usize,
    /// What makes the reads.
    pub by: ReadBy,
    /// Whether files are read past the page cache (`O_DIRECT`) where the filesystem can do that.
    pub direct: bool,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self { depth: 16, by: ReadBy::Any, direct: true }
    }
}

/// A source over `files`, whose indices are those of [`Piece::file`](crate::Piece::file). [`Source::describe`] says which it became,
/// and why.
///
/// # Errors
/// A file that is none, cannot be looked at, or was replaced meanwhile; io_uring that is refused to who wants nothing else. That
/// `O_DIRECT` is refused is no error.
pub fn open(files: Vec<Input>, options: &SourceOptions) -> Result<Box<dyn Source>, OpenError> {
    let files = Files::open(files, options.direct)?;
    let (files, why) = match options.by {
        ReadBy::Threads => (files, "as asked for".to_owned()),
        by => match (uring(files, options.depth), by) {
            (Ok(source), _) => return Ok(source),
            (Err((_, why)), ReadBy::IoUring) => return Err(OpenError::NoIoUring { why }),
            (Err(refused), _) => refused,
        },
    };
    Ok(Box::new(pool::pread(files, options.depth, &why)?))
}

/// A source for [`fill`](crate::fill()): what of a piece is in the page cache is copied from there, which is faster than any drive; the
/// rest is read past it, so that loading a model does not push out what else is cached. Its block is 1: pieces land exactly where they
/// belong. `threads` reads and copies are done at once. Without `direct` the rest is read through the page cache, too, which then has it
/// for the next time.
///
/// # Errors
/// As [`open()`].
pub fn loader(files: Vec<Input>, threads: usize, direct: bool) -> Result<Box<dyn Source>, OpenError> {
    Ok(Box::new(pool::cached(files, threads, direct)?))
}

#[cfg(target_os = "linux")]
fn uring(files: Files, depth: usize) -> Result<Box<dyn Source>, (Files, String)> {
    Ok(Box::new(crate::uring::Uring::new(files, depth)?))
}

#[cfg(not(target_os = "linux"))]
fn uring(files: Files, _: usize) -> Result<Box<dyn Source>, (Files, String)> {
    Err((files, "io_uring is Linux's".to_owned()))
}
