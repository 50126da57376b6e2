//! Memory that a device reads and writes, which knows where it is on the bus.
//!
//! [`BusMemory`] is memory as the device sees it. It need not be the CPU's: VRAM behind a PCI BAR is none. [`DmaBuf`] is memory that
//! the CPU sees as well.

use crate::Error;
use std::{any::Any, ptr::NonNull, sync::Arc};

/// An address on the bus: what a device puts into its reads and writes. With an IOMMU it is an I/O virtual address, without a
/// physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusAddr(pub u64);

impl BusAddr {
    /// The address `bytes` further.
    pub fn offset(self, bytes: usize) -> BusAddr {
        BusAddr(self.0 + bytes as u64)
    }
}

/// A run of bytes that is contiguous on the bus.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// First byte, from the memory's start.
    start: usize,
    bus: BusAddr,
    len: usize,
}

/// Memory as a device sees it: where each of its bytes is on the bus.
pub struct BusMemory {
    /// In order, without gaps.
    extents: Vec<Extent>,
    len: usize,
    /// Keeps the memory, and its addresses.
    _owner: Box<dyn Any + Send + Sync>,
}

impl BusMemory {
    /// Memory that lies in `extents`, one behind the other, each an address and a number of bytes. Neighbours on the bus are merged.
    ///
    /// # Safety
    /// As long as `owner` is not dropped, the device may write these addresses: they are this memory's and nobody else's, they stay so,
    /// and no Rust reference to the memory is used while the device may write it.
    ///
    /// # Errors
    /// If there are no bytes, or addresses beyond 64 bits.
    pub unsafe fn new(
        extents: impl IntoIterator<Item = (BusAddr, usize)>,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Self, Error> {
        let (mut merged, mut len) = (Vec::<Extent>::new(), 0usize);
        for (bus, bytes) in extents.into_iter().filter(|&(_, bytes)| bytes > 0) {
            let end = bus.0.checked_add(bytes as u64);
            let start = len;
            len = len.checked_add(bytes).filter(|_| end.is_some()).ok_or(Error::BusRange { bus: bus.0, len: bytes })?;
            match merged.last_mut() {
                Some(last) if last.bus.offset(last.len) == bus => last.len += bytes,
                _ => merged.push(Extent { start, bus, len: bytes }),
            }
        }
        if len == 0 {
            return Err(Error::BusRange { bus: 0, len: 0 });
        }
        Ok(BusMemory { extents: merged, len, _owner: owner })
    }

    /// Memories one behind the other, as one.
    ///
    /// # Errors
    /// If there are none.
    pub fn joined(parts: Vec<BusMemory>) -> Result<Self, Error> {
        let extents: Vec<_> =
            parts.iter().flat_map(|part| &part.extents).map(|extent| (extent.bus, extent.len)).collect();
        // SAFETY: the parts are the owner, and what was promised of each is what is promised of all.
        unsafe { BusMemory::new(extents, Box::new(parts)) }
    }

    /// How many bytes.
    #[expect(clippy::len_without_is_empty, reason = "there are some")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where byte `at` is on the bus, and how many bytes from there on are contiguous. None behind the end.
    pub fn resolve(&self, at: usize) -> Option<(BusAddr, usize)> {
        let next = self.extents.partition_point(|extent| extent.start <= at);
        let extent = self.extents[..next].last()?;
        let inside = at - extent.start;
        (inside < extent.len).then(|| (extent.bus.offset(inside), extent.len - inside))
    }

    /// Where the `len` bytes from `at` on are on the bus, if they are contiguous there.
    pub fn contiguous(&self, at: usize, len: usize) -> Option<BusAddr> {
        self.resolve(at).filter(|&(_, run)| run >= len).map(|(bus, _)| bus)
    }
}

impl std::fmt::Debug for BusMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusMemory").field("len", &self.len).field("extents", &self.extents.len()).finish()
    }
}

/// Memory that both the CPU and a device see.
///
/// The device may write it at any time, so no Rust reference to it is ever made: bytes are copied in and out, words are read and
/// written volatile.
#[derive(Debug, Clone)]
pub struct DmaBuf {
    ptr: NonNull<u8>,
    bus: Arc<BusMemory>,
}

// SAFETY: the memory is only reached by raw copies, and `BusMemory` keeps it. Racing copies give mixed bytes, as a racing device would.
unsafe impl Send for DmaBuf {}
// SAFETY: as above.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// The memory `bus`, which the CPU sees at `ptr`.
    ///
    /// # Safety
    /// From `ptr` on, `bus.len()` bytes are mapped, readable and writable, as long as `bus` is there; `ptr` is aligned to 8 bytes.
    pub unsafe fn new(ptr: NonNull<u8>, bus: BusMemory) -> Self {
        DmaBuf { ptr, bus: Arc::new(bus) }
    }

    /// The memory as the device sees it.
    pub fn bus(&self) -> &Arc<BusMemory> {
        &self.bus
    }

    /// How many bytes.
    #[expect(clippy::len_without_is_empty, reason = "there are some")]
    pub fn len(&self) -> usize {
        self.bus.len
    }

    /// The first byte, for who shares the memory with something else (a GPU's kernel).
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Copies the bytes from `at` on into `out`. Panics where there are none.
    pub fn copy_to(&self, at: usize, out: &mut [u8]) {
        self.check(at, out.len());
        // SAFETY: inside the memory; `out` is a Rust reference, so it is none of this memory.
        unsafe { self.ptr.add(at).copy_to_nonoverlapping(NonNull::from(&mut *out).cast(), out.len()) }
    }

    /// Copies `bytes` to `at`. Panics where there is no room.
    pub fn copy_from(&self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: inside the memory; `bytes` is a Rust reference, so it is none of this memory.
        unsafe { self.ptr.add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) }
    }

    /// Sets `len` bytes from `at` on to `byte`. Panics where there are none.
    pub fn fill(&self, at: usize, len: usize, byte: u8) {
        self.check(at, len);
        // SAFETY: inside the memory.
        unsafe { self.ptr.add(at).write_bytes(byte, len) }
    }

    /// Reads the aligned word at `at`, once and now. Panics where there is none.
    pub fn read32(&self, at: usize) -> u32 {
        // SAFETY: `word` checks range and alignment.
        u32::from_le(unsafe { self.word::<u32>(at).read_volatile() })
    }

    /// Writes the aligned word at `at`, once and now. Panics where there is none.
    pub fn write32(&self, at: usize, value: u32) {
        // SAFETY: `word` checks range and alignment.
        unsafe { self.word::<u32>(at).write_volatile(value.to_le()) }
    }

    /// Writes the aligned 64-bit word at `at`. Panics where there is none.
    pub fn write64(&self, at: usize, value: u64) {
        // SAFETY: `word` checks range and alignment.
        unsafe { self.word::<u64>(at).write_volatile(value.to_le()) }
    }

    fn word<T>(&self, at: usize) -> NonNull<T> {
        self.check(at, size_of::<T>());
        assert!(at.is_multiple_of(align_of::<T>()), "{at} is not aligned");
        // SAFETY: inside the memory, as was checked.
        unsafe { self.ptr.add(at).cast() }
    }

    fn check(&self, at: usize, len: usize) {
        let all = self.len();
        assert!(at <= all && len <= all - at, "bytes {at} + {len} of {all}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(extents: &[(u64, usize)]) -> Result<BusMemory, Error> {
        // SAFETY: no device is told of these addresses.
        unsafe { BusMemory::new(extents.iter().map(|&(bus, len)| (BusAddr(bus), len)), Box::new(())) }
    }

    #[test]
    fn extents_are_merged_and_found() {
        let memory = memory(&[(0x1000, 0x1000), (0x2000, 0x1000), (0, 0), (0x8000, 0x1000), (0x4000, 0x800)]).unwrap();
        assert_eq!((memory.extents.len(), memory.len()), (3, 0x3800));
        assert_eq!(memory.resolve(0), Some((BusAddr(0x1000), 0x2000)));
        assert_eq!(memory.resolve(0x1fff), Some((BusAddr(0x2fff), 1)));
        assert_eq!(memory.resolve(0x2004), Some((BusAddr(0x8004), 0xffc)));
        assert_eq!(memory.resolve(0x37ff), Some((BusAddr(0x47ff), 1)));
        assert_eq!(memory.resolve(0x3800), None);
        assert_eq!(memory.contiguous(0x800, 0x1800), Some(BusAddr(0x1800)));
        assert_eq!(memory.contiguous(0x800, 0x1801), None);
    }

    #[test]
    fn memories_are_joined_in_order() {
        let parts = [&[(0x8000, 0x1000), (0x2000, 0x1000)][..], &[(0x3000, 0x2000)], &[(0x1000, 0x1000)]];
        let joined = BusMemory::joined(parts.map(|part| memory(part).unwrap()).into()).unwrap();
        assert_eq!((joined.len(), joined.extents.len()), (0x5000, 3));
        let at = [0, 0x1000, 0x2000, 0x3fff, 0x4000].map(|at| joined.resolve(at).unwrap().0.0);
        assert_eq!(at, [0x8000, 0x2000, 0x3000, 0x4fff, 0x1000]);
        assert!(BusMemory::joined(vec![]).is_err());
    }

    #[test]
    fn impossible_addresses_are_refused() {
        assert!(memory(&[]).is_err() && memory(&[(0x1000, 0)]).is_err());
        assert!(memory(&[(u64::MAX - 10, 4096)]).is_err());
    }

    #[test]
    #[should_panic(expected = "bytes 8 + 4 of 8")]
    fn words_outside_are_not_read() {
        let mut word = Box::new(0u64);
        let ptr = NonNull::from(word.as_mut()).cast();
        // SAFETY: the word lives longer than the buffer, and no device knows of it.
        let buf = unsafe { DmaBuf::new(ptr, memory(&[(0x1000, 8)]).unwrap()) };
        buf.read32(8);
    }
}
