//! Device memory: host memory with a margin around each allocation, and the list of what is live.

use std::{
    alloc::Layout,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::error::Nearest;

/// Every byte of fresh memory: NaN as `f32` and `f16`, -1 or the largest value as an integer.
const POISON: u8 = 0xFF;
/// Bytes before and after each region that belong to nobody.
const GUARD: usize = 1024;
/// Alignment of every region in bytes, `cuMemAlloc`'s.
pub(crate) const ALIGN: usize = 256;
/// Regions of so many bytes or more begin at a page, and have a page to either side: the driver puts large allocations into pages of
/// their own.
const LARGE: usize = 64 << 10;
const PAGE: usize = 4096;

/// Why memory could not be allocated or copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Zero bytes were asked for, which `cuMemAlloc` refuses too.
    #[error("an allocation of 0 bytes")]
    Empty,
    /// The host has no memory left.
    #[error("out of memory: the host has no {bytes} bytes for an allocation of the emulated GPU")]
    OutOfMemory {
        /// The bytes asked for.
        bytes: usize,
    },
    /// A copy reaches past the end of its allocation.
    #[error("a copy of {bytes} bytes at offset {offset} of an allocation of {size} bytes")]
    OutOfRange {
        /// First byte of the copy.
        offset: usize,
        /// Length of the copy.
        bytes: usize,
        /// Length of the allocation.
        size: usize,
    },
}

/// A stretch of memory with a guard on both sides. Its content is only ever touched through raw pointers.
pub(crate) struct Region {
    /// Start of the first guard.
    block: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: a region is an address and a length. Whoever reads or writes the bytes sees to it that nobody else does:
// host copies by the registry's lock, kernels by the contract of `Emulator::launch`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `len` poisoned bytes, or `None` where the host has no such memory.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let (guard, align) = if len >= LARGE { (PAGE, PAGE) } else { (GUARD, ALIGN) };
        let layout = Layout::from_size_align(len.checked_add(2 * guard)?, align).ok()?;
        // SAFETY: the size is not zero.
        let block = NonNull::new(unsafe { std::alloc::alloc(layout) })?;
        // SAFETY: `layout.size()` bytes were just allocated at `block`.
        unsafe { block.write_bytes(POISON, layout.size()) };
        Some(Region { block, layout, len })
    }

    /// Bytes of each guard.
    fn guard(&self) -> usize {
        (self.layout.size() - self.len) / 2
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        // SAFETY: inside the allocation, whose size is at least two guards.
        unsafe { self.block.add(self.guard()) }.as_ptr()
    }

    /// The address that kernels get. They make pointers of it again.
    pub(crate) fn start(&self) -> usize {
        self.pointer().expose_provenance()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn contains(&self, address: usize, bytes: usize) -> bool {
        within(self.start(), self.len, address, bytes)
    }

    /// Makes the content undefined again.
    pub(crate) fn poison(&mut self) {
        // SAFETY: `len` bytes from `pointer` belong to the region.
        unsafe { self.pointer().write_bytes(POISON, self.len) };
    }

    /// Whether nobody has written past either end.
    pub(crate) fn guards_intact(&self) -> bool {
        // SAFETY: both guards belong to the allocation and were filled in `new`; `&self` is the worker's own region (only
        // shared memory is asked), so that nobody writes meanwhile.
        let (before, after) = unsafe {
            let after = self.pointer().add(self.len);
            let guard = |start: *const u8| std::slice::from_raw_parts(start, self.guard());
            (guard(self.block.as_ptr()), guard(after))
        };
        before.iter().chain(after).all(|&byte| byte == POISON)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.block.as_ptr(), self.layout) };
    }
}

/// Whether `bytes` bytes at `address` lie inside the `len` bytes at `start`.
#[inline]
pub(crate) fn within(start: usize, len: usize, address: usize, bytes: usize) -> bool {
    let offset = address.wrapping_sub(start);
    offset < len && bytes <= len - offset
}

/// The live allocations at one moment, by ascending address. It keeps them alive.
pub(crate) type Snapshot = Arc<Vec<Arc<Region>>>;

/// The live allocations.
#[derive(Default)]
pub(crate) struct Registry(Mutex<Snapshot>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        // No operation leaves the list half changed, so a panic elsewhere while it was held does no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Arc::clone(&self.lock())
    }

    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Allocation, MemoryError> {
        if bytes == 0 {
            return Err(MemoryError::Empty);
        }
        let region = Arc::new(Region::new(bytes).ok_or(MemoryError::OutOfMemory { bytes })?);
        let mut live = self.lock();
        let at = live.partition_point(|other| other.start() < region.start());
        Arc::make_mut(&mut live).insert(at, Arc::clone(&region));
        Ok(Allocation { region, registry: Arc::clone(self) })
    }
}

/// The live region that holds `address`, or else the nearest one.
pub(crate) fn find(live: &[Arc<Region>], address: usize) -> Option<&Region> {
    let after = live.partition_point(|region| region.start() <= address);
    let below = after.checked_sub(1).map(|i| &*live[i]);
    let above = live.get(after).map(|region| &**region);
    match (below, above) {
        (Some(below), Some(above)) => {
            let past = (address - below.start()).saturating_sub(below.len());
            Some(if past <= above.start() - address { below } else { above })
        }
        (below, above) => below.or(above),
    }
}

/// What an error says of the region nearest to `address`.
pub(crate) fn nearest(live: &[Arc<Region>], address: usize) -> Option<Nearest> {
    find(live, address).map(|region| Nearest {
        start: region.start(),
        size: region.len(),
        offset: address.wrapping_sub(region.start()) as isize,
    })
}

/// A live allocation of device memory, freed when dropped (a launch that is under way keeps it until its end).
pub struct Allocation {
    region: Arc<Region>,
    registry: Arc<Registry>,
}

impl Allocation {
    /// Its device address, 256-byte aligned.
    pub fn address(&self) -> u64 {
        self.region.start() as u64
    }

    /// Its length in bytes, never 0.
    #[expect(clippy::len_without_is_empty, reason = "an allocation is never empty")]
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Copies `bytes` to `offset` and what follows.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), MemoryError> {
        let to = self.range(offset, bytes.len())?;
        let _exclusive = self.registry.lock();
        // SAFETY: `range` checked that the bytes lie inside the region, which lives as long as `self`; host copies
        // exclude each other by the lock, and kernels by the contract of `Emulator::launch`. A `&[u8]` outside the
        // region cannot overlap it, and nobody hands out references into it.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies from `offset` and what follows into `bytes`.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.range(offset, bytes.len())?;
        let _exclusive = self.registry.lock();
        // SAFETY: as in `write`; the whole region was initialised when it was poisoned.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn range(&self, offset: usize, bytes: usize) -> Result<*mut u8, MemoryError> {
        let size = self.region.len();
        match offset.checked_add(bytes) {
            // SAFETY: at most one past the region's last byte.
            Some(end) if end <= size => Ok(unsafe { self.region.pointer().add(offset) }),
            _ => Err(MemoryError::OutOfRange { offset, bytes, size }),
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut live = self.registry.lock();
        Arc::make_mut(&mut live).retain(|region| !Arc::ptr_eq(region, &self.region));
    }
}

impl std::fmt::Debug for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Allocation({:#x}, {} bytes)", self.address(), self.len())
    }
}
