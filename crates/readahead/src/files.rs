//! Opened files: how each is read, and whether it is still what it was.
//!
//! Direct I/O (open(2), `O_DIRECT`): offset, length and address have to be multiples of a block, the drive's logical one at least.
//! So the blocks around a piece are read. Blocks are 4 KiB here, which every drive of 512-byte or 4-KiB sectors takes, or more where
//! a trial at opening shows that the filesystem wants more.

use crate::{Landed, OpenError, Piece, SourceError, source::HostBuf};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    ptr::NonNull,
};

/// The blocks that are tried, in bytes.
const BLOCKS: [usize; 3] = [4 << 10, 16 << 10, 64 << 10];

/// A file to read from.
#[derive(Debug)]
pub struct Input {
    /// Its path: for messages, and to open it once more where /proc is missing.
    pub path: PathBuf,
    /// The opened file. It is read, not its path: what later has that name does not matter.
    pub file: File,
}

/// What a file looked like when it was opened.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Seen {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Seen {
    fn new(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) }
    }
}

#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) path: PathBuf,
    /// Reads through the page cache.
    pub(crate) cached: File,
    /// Reads past it.
    pub(crate) direct: Option<File>,
    seen: Seen,
}

/// The files of a source, and how they are read.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) list: Vec<OpenFile>,
    /// Bytes of a block for direct reads; 1 if no file is read directly.
    block: usize,
    /// The first file that is not read directly, and why not.
    not_direct: Option<String>,
}

impl Files {
    /// Looks at each file, and opens it once more for direct reads if `direct` asks for that and it is possible.
    pub(crate) fn open(inputs: Vec<Input>, direct: bool) -> Result<Self, OpenError> {
        let mut files = Self { list: Vec::new(), block: 1, not_direct: None };
        for Input { path, file } in inputs {
            let failed = |what| {
                let path = path.clone();
                move |cause| OpenError::Io { path, what, cause }
            };
            let meta = file.metadata().map_err(failed("fstat"))?;
            if !meta.is_file() {
                return Err(OpenError::NotAFile { path });
            }
            let seen = Seen::new(&meta);
            let opened = match direct {
                true => open_direct(&path, &file, &seen)?.map_err(|why| format!("{}: {why}", path.display())),
                false => Err("as asked for".to_owned()),
            };
            let direct = match opened {
                Ok((direct, block)) => {
                    files.block = files.block.max(block);
                    Some(direct)
                }
                Err(why) => {
                    files.not_direct.get_or_insert(why);
                    None
                }
            };
            files.list.push(OpenFile { path, cached: file, direct, seen });
        }
        Ok(files)
    }

    /// Bytes of a block that direct reads consist of; 1 if no file is read directly.
    pub(crate) fn block(&self) -> usize {
        self.block
    }

    /// How the files are read, for [`Source::describe`](crate::Source::describe).
    pub(crate) fn describe(&self) -> String {
        match (&self.not_direct, self.block) {
            (None, _) => "O_DIRECT".to_owned(),
            (Some(why), 1) => format!("through the page cache ({why})"),
            (Some(why), _) => format!("O_DIRECT, but not all files ({why})"),
        }
    }

    pub(crate) fn name(&self, file: usize) -> String {
        self.list.get(file).map_or_else(|| format!("file {file}"), |file| file.path.display().to_string())
    }

    /// The file of a piece that lies inside of it.
    pub(crate) fn of(&self, piece: &Piece) -> Result<&OpenFile, SourceError> {
        let file = self.list.get(piece.file).ok_or(SourceError::NoFile { file: piece.file, files: self.list.len() })?;
        let (size, end) = (file.seen.size, piece.offset.saturating_add(piece.len as u64));
        if end > size {
            return Err(SourceError::OutOfFile { offset: piece.offset, end, size });
        }
        Ok(file)
    }

    /// The read of whole blocks that brings `piece` into `dst`.
    pub(crate) fn plan(&self, piece: &Piece, dst: &HostBuf) -> Result<Progress, SourceError> {
        let direct = self.of(piece)?.direct.is_some();
        let block = if direct { self.block } else { 1 };
        if !dst.address().is_multiple_of(block) {
            return Err(SourceError::Unaligned { address: dst.address(), block });
        }
        let progress = Progress::new(piece, block);
        if progress.want > dst.len() {
            return Err(SourceError::Small { len: dst.len(), need: progress.want, block });
        }
        Ok(progress)
    }

    /// Looks whether the file is still the one that was opened. Called behind each read: what was read before a change is right.
    pub(crate) fn verify(&self, file: usize) -> Result<(), SourceError> {
        let file = &self.list[file];
        let now = Seen::new(&file.cached.metadata()?);
        match now == file.seen {
            true => Ok(()),
            false if now.size < file.seen.size => Err(SourceError::Truncated { was: file.seen.size, is: now.size }),
            false => Err(SourceError::Changed),
        }
    }

    /// Reads a piece as `progress` says, on this thread.
    pub(crate) fn read(&self, piece: &Piece, mut progress: Progress, dst: &mut [u8]) -> Result<Landed, SourceError> {
        let file = self.of(piece)?;
        let from = file.direct.as_ref().unwrap_or(&file.cached);
        let landed = loop {
            match from.read_at(&mut dst[progress.got..progress.want], progress.offset()) {
                Ok(count) => {
                    if let Some(landed) = progress.arrived(count) {
                        break landed;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        };
        self.verify(piece.file)?;
        Ok(landed)
    }
}

/// A second handle of an opened file, for direct reads, and the block that it takes. The inner error says why there is none.
fn open_direct(path: &PathBuf, file: &File, seen: &Seen) -> Result<Result<(File, usize), String>, OpenError> {
    let direct = match direct_handle(path, file) {
        Ok(direct) => direct,
        Err(error) => return Ok(Err(format!("O_DIRECT: {error}"))),
    };
    let meta = direct.metadata().map_err(|cause| OpenError::Io { path: path.clone(), what: "fstat", cause })?;
    let now = Seen::new(&meta);
    if (now.device, now.inode) != (seen.device, seen.inode) {
        return Err(OpenError::Replaced { path: path.clone() });
    }
    // Some filesystems take the flag and refuse the reads.
    let mut refused = String::new();
    for block in BLOCKS {
        let mut buffer = Aligned::new(block, block);
        // The second block, if there is one: the first one's offset is aligned to everything.
        let offset = if seen.size >= 2 * block as u64 { block as u64 } else { 0 };
        match direct.read_at(buffer.bytes(), offset) {
            Ok(_) => return Ok(Ok((direct, block))),
            Err(error) => refused = format!("a direct read was refused: {error}"),
        }
    }
    Ok(Err(refused))
}

#[cfg(target_os = "linux")]
fn direct_handle(path: &PathBuf, file: &File) -> io::Result<File> {
    use std::{fs::OpenOptions, os::fd::AsRawFd, os::unix::fs::OpenOptionsExt};
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECT);
    // Through /proc it is the same file for sure (proc_pid_fd(5)).
    options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => options.open(path),
        _ => Err(error),
    })
}

#[cfg(not(target_os = "linux"))]
fn direct_handle(_: &PathBuf, _: &File) -> io::Result<File> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no O_DIRECT"))
}

/// How far a read of the blocks around a piece has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Where the first block begins in the file.
    start: u64,
    /// The piece's first byte, from there.
    head: usize,
    /// Bytes of the piece.
    len: usize,
    /// Bytes of all blocks.
    pub(crate) want: usize,
    /// Bytes that have come.
    pub(crate) got: usize,
    block: usize,
}

impl Progress {
    pub(crate) fn new(piece: &Piece, block: usize) -> Self {
        let head = (piece.offset % block as u64) as usize;
        let want = (head + piece.len).next_multiple_of(block);
        Self { start: piece.offset - head as u64, head, len: piece.len, want, got: 0, block }
    }

    /// Where the next read begins in the file.
    pub(crate) fn offset(&self) -> u64 {
        self.start + self.got as u64
    }

    /// Takes in the answer to a read: the result, or nothing if the read has to go on behind what came.
    ///
    /// The file's end is in the middle of its last block, so a read may be short and whole. A direct read that ends inside of a
    /// block, or brings nothing, is at the file's end.
    pub(crate) fn arrived(&mut self, count: usize) -> Option<Landed> {
        self.got += count;
        let whole = self.got >= self.head + self.len;
        let at_end = count == 0 || !self.got.is_multiple_of(self.block);
        (whole || at_end).then(|| Landed { begin: self.head, len: self.got.saturating_sub(self.head).min(self.len) })
    }
}

/// Memory of our own that direct I/O takes.
pub(crate) struct Aligned {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is an allocation like a boxed slice, used through its owner alone.
unsafe impl Send for Aligned {}
// SAFETY: as above; a shared reference gives the address only.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// `len` bytes, at least one, at a multiple of `align`, a power of two. They are zero.
    pub(crate) fn new(len: usize, align: usize) -> Self {
        let layout =
            Layout::from_size_align(len.max(1), align).expect("a power of two, and less than the address space");
        // SAFETY: the size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        Self { ptr: NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    pub(crate) fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the allocation is that long, initialised with zeros, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) };
    }
}
