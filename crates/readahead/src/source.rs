//! What reads: [`Source`], and what it reads from and into.

use crate::{SourceError, files::Aligned, forward};
use std::{any::Any, os::fd::OwnedFd, ptr::NonNull, sync::Arc, thread, time::Duration};

/// A range of a file that is read at once. 1 to 4 MiB is what drives like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which file, as an index into the source's list.
    pub file: usize,
    /// The first byte, from the start of the file. It need not be aligned.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
}

impl Piece {
    /// Cuts `len` bytes of a file into pieces of `max` bytes at most (one at least), at multiples of `max` in the file, so that direct
    /// I/O reads no block twice.
    pub fn cut(file: usize, offset: u64, len: u64, max: usize) -> impl Iterator<Item = Piece> {
        let (end, max) = (offset.saturating_add(len), max.max(1) as u64);
        let mut at = offset;
        std::iter::from_fn(move || {
            let next = (at / max + 1).saturating_mul(max).min(end);
            let piece = (at < end).then(|| Piece { file, offset: at, len: (next - at) as usize });
            at = next;
            piece
        })
    }

    /// Where it begins in the whole blocks of `block` bytes, a power of two, that it lies in, and how many bytes those are.
    pub fn blocks(&self, block: usize) -> (usize, usize) {
        let begin = (self.offset % block as u64) as usize;
        (begin, (begin + self.len).next_multiple_of(block))
    }
}

/// Host memory that is lent to be read into.
#[derive(Debug)]
pub struct HostBuf {
    ptr: NonNull<u8>,
    len: usize,
    owner: Option<Arc<dyn Any + Send + Sync>>,
    page_locked: bool,
}

// SAFETY: `new` has its caller promise that nobody else uses the memory, from whatever thread; the owner is Send and Sync.
unsafe impl Send for HostBuf {}
// SAFETY: through a shared reference only address and length can be read.
unsafe impl Sync for HostBuf {}

impl HostBuf {
    /// Lends the `len` bytes at `ptr`.
    ///
    /// With an `owner`, the memory's life is the owner's: a read that never comes back keeps it, and whoever waits for that read can
    /// give up. Without, they wait for as long as it takes.
    ///
    /// # Safety
    /// Until this value and all reads into it are gone, or until `owner` is dropped if there is one, the bytes are allocated,
    /// initialised, and neither read nor written by anybody else. A read is gone with its completion, or when its source was dropped.
    /// What a [`ReadAhead`](crate::ReadAhead) was given may be read by the consumer between taking it and giving it back.
    pub unsafe fn new(ptr: NonNull<u8>, len: usize, owner: Option<Arc<dyn Any + Send + Sync>>) -> Self {
        Self { ptr, len, owner, page_locked: false }
    }

    /// Memory of its own, `len` bytes (one at least) of zeros at a multiple of `align`, a power of two. It is there as long as this
    /// value and the reads into it are. For who has no page-locked memory.
    pub fn allocate(len: usize, align: usize) -> Self {
        let memory = Arc::new(Aligned::new(len, align));
        let (ptr, len) = (memory.ptr(), memory.len());
        // SAFETY: a new allocation, whose owner goes with it.
        unsafe { Self::new(ptr, len, Some(memory)) }
    }

    /// The same, whose pages stay where they are in physical memory: a device that writes there by physical addresses can be told of
    /// it.
    ///
    /// # Safety
    /// The pages do not move and are not given to anybody else as long as the memory is lent ([`HostBuf::new`]): a device's driver has
    /// page-locked them, or they are huge pages. (mlock(2) is not enough: Linux moves such pages.)
    pub unsafe fn page_locked(self) -> Self {
        Self { page_locked: true, ..self }
    }

    /// Whether the pages stay where they are in physical memory.
    pub fn is_page_locked(&self) -> bool {
        self.page_locked
    }

    /// What keeps the memory, if somebody does: who has a clone may go on using it when this value is gone.
    pub fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.owner.clone()
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// The first byte's address.
    pub fn address(&self) -> usize {
        self.ptr.as_ptr() as usize
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a read into it may outlive who waits for it.
    pub fn is_owned(&self) -> bool {
        self.owner.is_some()
    }

    /// The same memory once more. Who calls this sees to it that one of the two at most is in use.
    pub(crate) fn share(&self) -> Self {
        Self { owner: self.owner.clone(), ..*self }
    }

    /// A part of it. Panics where there is none.
    pub(crate) fn part(&self, start: usize, len: usize) -> Self {
        assert!(start <= self.len && len <= self.len - start, "{start} + {len} of {} bytes", self.len);
        // SAFETY: `start` is inside the allocation, or one past its end.
        Self { ptr: unsafe { self.ptr.add(start) }, len, owner: self.owner.clone(), ..*self }
    }

    /// The bytes, for the source that has the one read in flight that holds this value.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `new`'s caller promised allocated, initialised bytes that nobody else uses while a read has them; `share` and
        // `part` are called so that reads in flight do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }
}

/// Where a read goes.
#[derive(Debug)]
pub enum Dst {
    /// Host memory.
    Host(HostBuf),
    /// The device's memory, for sources that write it by themselves. Others answer [`SourceError::Vram`]. It is inside of what
    /// [`Source::prepare_device`] was told of, and the same is asked of it as of host memory: room for whole blocks.
    Vram {
        /// The device address.
        address: u64,
        /// Bytes from there on.
        len: usize,
    },
}

impl Dst {
    /// The host's memory, for sources that write nothing else.
    pub fn host(self) -> Result<HostBuf, SourceError> {
        match self {
            Dst::Host(buffer) => Ok(buffer),
            Dst::Vram { .. } => Err(SourceError::Vram),
        }
    }
}

/// Memory of a device, as somebody has to know it who is to write it from elsewhere.
pub trait DeviceMemory {
    /// The device address of its first byte.
    fn address(&self) -> u64;

    /// How many bytes.
    fn len(&self) -> usize;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of the device's slot, e.g. `0000:3B:00.0`, if it has one.
    fn pci_address(&self) -> Option<String>;

    /// Has the device write `bytes` from byte `offset` on. They are there on return.
    ///
    /// # Errors
    /// In words.
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), String>;

    /// Has the device read from byte `offset` on, as whatever it computes does: also what others have written there by now.
    ///
    /// # Errors
    /// In words.
    fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), String>;

    /// A dma-buf of it (Documentation/driver-api/dma-buf.rst in Linux).
    ///
    /// # Errors
    /// Why the device's driver gives none.
    fn dma_buf(&self) -> Result<OwnedFd, String>;
}

/// Where a piece's bytes are in the buffer that it was read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landed {
    /// The piece's first byte, from the start of the buffer: direct I/O reads the whole blocks around a piece.
    pub begin: usize,
    /// How many bytes of the piece there are. Fewer than the piece has: no more could be read.
    pub len: usize,
}

/// The end of a read.
#[derive(Debug)]
pub struct Completion {
    /// What [`Source::submit`] was given.
    pub id: u64,
    /// What came of it.
    pub result: Result<Landed, SourceError>,
}

/// Something that pieces are read from, several at once.
///
/// A read owns its destination from `submit` until its completion is returned by `wait`. Dropping a source waits for the reads that
/// are in flight: behind it, nothing is written any more.
pub trait Source: Send {
    /// Starts one read. Does not wait for the data.
    ///
    /// # Errors
    /// Nothing was started: the piece is outside of its file, the destination is too small, not aligned or of the wrong kind, or
    /// `depth` reads are in flight.
    fn submit(&mut self, id: u64, piece: &Piece, dst: Dst) -> Result<(), SourceError>;

    /// Waits for completions, for `timeout` at most, and appends all that there are. Returns at once when nothing is in flight.
    ///
    /// A source goes on with a read that came back short, as long as more comes. So fewer bytes than the piece has
    /// ([`Landed::len`]) are a read that makes no progress.
    ///
    /// # Errors
    /// The source as a whole is broken. Reads in flight may still write.
    fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> Result<(), SourceError>;

    /// How many reads may be in flight.
    fn depth(&self) -> usize;

    /// Whether a read in flight waits for others in the source itself, and has not been given to the system: then it is not the
    /// drive's fault that it does not come back.
    fn is_queued(&self, id: u64) -> bool {
        let _ = id;
        false
    }

    /// What reads consist of: whole blocks of so many bytes of the file, a power of two. 1: of exactly the piece, which then
    /// begins at the destination's first byte, and nothing around it is written. Destinations are aligned to blocks.
    fn block(&self) -> usize;

    /// How many bytes a destination needs for a piece of `len` bytes, whatever its offset: with blocks of 4 KiB, 8 KiB more always do.
    fn room(&self, len: usize) -> usize {
        (len + self.block() - 1).next_multiple_of(self.block())
    }

    /// Tells of the buffers that reads will go into, so that the system can be told once (io_uring's registered buffers). They stay
    /// until the source is dropped.
    fn prepare(&mut self, buffers: &[HostBuf]) {
        let _ = buffers;
    }

    /// Whether it might write a device's memory by itself: then it is asked to [`prepare`](Self::prepare_device) for that.
    fn lands_in_device(&self) -> bool {
        false
    }

    /// Makes device memory ready to be read into ([`Dst::Vram`]). It stays until the source is dropped and nobody has a share of `owner`,
    /// and what it holds may be overwritten now. Behind a completion, what came can be seen by whatever the device is asked to compute from then on, once the
    /// device has been told to look ([`DeviceMemory`]'s owner does that).
    ///
    /// # Errors
    /// Why it cannot, in words. The source reads into host memory as before.
    fn prepare_device(&mut self, memory: &dyn DeviceMemory, owner: &Arc<dyn Any + Send + Sync>) -> Result<(), String> {
        let _ = (memory, owner);
        Err("it reads into host memory only".to_owned())
    }

    /// What file `file` is called in errors.
    fn name(&self, file: usize) -> String;

    /// One line for the user: how it reads, and why not better if there is a better way.
    fn describe(&self) -> String;
}

impl<S: Source + ?Sized> Source for Box<S> {
    forward!(
        self => (**self);
        submit, wait, depth, is_queued, block, prepare, lands_in_device, prepare_device, name, describe
    );
}

/// Leaves a source some of whose reads do not come back: dropping it waits for them, so a thread of its own does.
pub(crate) fn leave(source: Box<dyn Source>) {
    let waits = thread::Builder::new().name("stalled reads".to_owned()).spawn(move || drop(source));
    drop(waits);
}
