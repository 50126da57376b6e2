//! How a model's files are read, when it is loaded and while it is streamed.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use readahead::{Input, OpenError, Options, ReadBy, Source, SourceOptions};

use crate::device::DeviceError;

/// What reads a model's files.
pub trait Reads {
    /// Opens them for what every pass reads, some pieces ahead: past the page cache, or by way of it if `cached`.
    ///
    /// # Errors
    /// Files that cannot be read so.
    fn ahead(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError>;

    /// Opens them for what is read once, byte by byte where it belongs (its block is 1): from the page cache as far as that has it, the
    /// rest past it, or by way of it if `cached`.
    ///
    /// # Errors
    /// As [`Self::ahead`].
    fn once(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError>;

    /// The drive that [`Self::ahead`] reads by itself, once it has been opened; none: files are read.
    fn drive(&self) -> Option<&str> {
        None
    }

    /// How faults are dealt with.
    fn options(&self) -> Options {
        Options::default()
    }
}

/// The ways of reading that a user can choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskReads {
    /// The fastest that the system has: io_uring past the page cache, else `pread`.
    #[default]
    Auto,
    /// io_uring past the page cache, where the filesystem lets it.
    IoUring,
    /// Threads that call `pread`, past the page cache, where the filesystem lets them.
    Pread,
    /// Threads that call `pread`, by way of the page cache, which keeps what it has room for.
    PageCache,
}

impl DiskReads {
    const ALL: [(&str, DiskReads); 4] = [
        ("auto", DiskReads::Auto),
        ("io_uring", DiskReads::IoUring),
        ("pread", DiskReads::Pread),
        ("page-cache", DiskReads::PageCache),
    ];
}

impl FromStr for DiskReads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = DiskReads::ALL.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, reads)| reads).ok_or("expected auto, io_uring, pread or page-cache".into())
    }
}

impl fmt::Display for DiskReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = DiskReads::ALL.into_iter().find(|(_, reads)| reads == self).expect("all have a name");
        f.write_str(name)
    }
}

impl Reads for DiskReads {
    fn ahead(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError> {
        let by = match self {
            DiskReads::Auto => ReadBy::Any,
            DiskReads::IoUring => ReadBy::IoUring,
            DiskReads::Pread | DiskReads::PageCache => ReadBy::Threads,
        };
        let direct = !cached && *self != DiskReads::PageCache;
        readahead::open(files, &SourceOptions { by, direct, ..SourceOptions::default() })
    }

    fn once(&self, files: Vec<Input>, cached: bool) -> Result<Box<dyn Source>, OpenError> {
        // Drives want 8 reads at once, and more threads than that copy faster from the page cache where there are processors for them.
        let threads = thread::available_parallelism().map_or(8, |n| n.get().clamp(8, 32));
        readahead::loader(files, threads, !cached && *self != DiskReads::PageCache)
    }
}

/// How weights are read, and when to give up.
#[derive(Clone)]
pub struct Reading<'a> {
    /// What reads them.
    pub reads: &'a dyn Reads,
    /// Set by who does not want them any more.
    pub cancel: Arc<AtomicBool>,
}

impl Default for Reading<'_> {
    fn default() -> Self {
        Reading { reads: &DiskReads::Auto, cancel: Arc::default() }
    }
}

impl Reading<'_> {
    /// An error if nobody wants the weights any more.
    pub(super) fn wanted(&self) -> Result<(), DeviceError> {
        if self.cancel.load(Ordering::Relaxed) { Err(DeviceError::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_have_names() {
        for (name, reads) in DiskReads::ALL {
            assert_eq!((name.parse(), reads.to_string().as_str()), (Ok(reads), name));
        }
        assert!("mmap".parse::<DiskReads>().is_err());
    }
}
