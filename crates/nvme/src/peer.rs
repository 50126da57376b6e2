//! Another device's memory, such as a GPU's, as far as it is behind a PCI BAR or in a dma-buf: a way for a drive to write it.

use crate::{BusAddr, BusMemory, Door, Error, PciAddress, System, mapping::Mapping};
use rustix::mm::ProtFlags;
use std::{
    any::Any,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bytes of a page: what can be mapped for a drive by itself.
pub const PEER_PAGE: usize = 4096;

/// A window through which the bus gets at memory of a device. Where in it a certain buffer is, if it is there at all, is another
/// question: [`prove()`](crate::prove()) answers it.
pub trait Window: Send + Sync {
    /// How many bytes.
    fn bytes(&self) -> u64;

    /// The aligned 8 bytes at `at`, read now. What others have written to the device behind this window before, anywhere, is in its memory
    /// then: a read does not pass writes (PCI Express Base Specification, section 2.4.1, "Transaction Ordering Rules").
    fn read64(&self, at: u64) -> u64;

    /// Makes `len` bytes from `at` on reachable for the device of `door`, whole pages.
    ///
    /// # Safety
    /// As long as `owner` is not dropped, what is there may be written by the device.
    ///
    /// # Errors
    /// If there is no way, and why.
    unsafe fn map(
        &self,
        door: &dyn Door,
        at: u64,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<BusMemory, Error>;
}

/// Maps memory of another device.
fn map(file: impl AsFd, at: u64, len: usize, protection: ProtFlags, advice: &'static str) -> Result<Mapping, Error> {
    Mapping::new(file, at, len, protection, ("mapping the other device's memory", advice))
}

fn read64(mapping: &Mapping, at: u64) -> u64 {
    // SAFETY: `at` checks range and alignment.
    u64::from_le(unsafe { mapping.at::<u64>(at as usize).read_volatile() })
}

/// A BAR of another device. The CPU only reads it.
pub struct PeerBar {
    device: String,
    file: File,
    bytes: u64,
    /// The first byte's physical address.
    bus: u64,
    /// The part that is mapped, and where it begins.
    part: Mutex<Option<(u64, Mapping)>>,
}

/// Bytes of a part that is mapped at once. All of a BAR of 256 GiB would take half a gibibyte of page tables; a part takes 128 KiB and
/// a fifth of a millisecond.
const PART: u64 = 64 << 20;

/// A BAR's flags in sysfs (include/linux/ioport.h in Linux): memory, which may be read ahead, so that reading it has no effect.
const MEMORY: u64 = 0x200;
const PREFETCHABLE: u64 = 0x2000;

impl PeerBar {
    /// BAR `index` of the device at `address`. Registers are refused: to read them may have effects.
    ///
    /// # Errors
    /// If there is no such memory, or this user may not map it.
    pub fn open(system: &System, address: PciAddress, index: usize) -> Result<PeerBar, Error> {
        let refuse = |reason: String| Error::Refused { device: address.to_string(), reason };
        let Some((range, flags)) = system.resource(address, index) else {
            return Err(refuse(format!("it has no BAR{index}")));
        };
        if flags & MEMORY == 0 || flags & PREFETCHABLE == 0 {
            return Err(refuse(format!("its BAR{index} is no memory but registers (flags {flags:#x})")));
        }
        let bytes = range.end - range.start;
        let path = system.pci_folder(address).join(format!("resource{index}"));
        // Writing is what the mapping for a drive takes; this process's own is read-only.
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(|cause| Error::Io { path, what: "opening", cause })?;
        let bar = PeerBar { device: address.to_string(), file, bytes, bus: range.start, part: Mutex::new(None) };
        *bar.part() = Some((0, bar.map_part(0)?));
        Ok(bar)
    }

    fn part(&self) -> MutexGuard<'_, Option<(u64, Mapping)>> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps the part that begins at `start`.
    fn map_part(&self, start: u64) -> Result<Mapping, Error> {
        let advice = "; a kernel with CONFIG_IO_STRICT_DEVMEM refuses that while a driver has the device, unless it is \
                      started with iomem=relaxed";
        map(&self.file, start, PART.min(self.bytes - start) as usize, ProtFlags::READ, advice)
    }
}

impl Window for PeerBar {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ones where a part cannot be mapped, as where nobody answers.
    fn read64(&self, at: u64) -> u64 {
        assert!(at.is_multiple_of(8) && at < self.bytes, "byte {at:#x} of {:#x}", self.bytes);
        let mut part = self.part();
        let start = at / PART * PART;
        if part.as_ref().is_none_or(|(mapped, _)| *mapped != start) {
            *part = self.map_part(start).ok().map(|mapping| (start, mapping));
        }
        part.as_ref().map_or(u64::MAX, |(start, mapping)| read64(mapping, at - start))
    }

    unsafe fn map(
        &self,
        door: &dyn Door,
        at: u64,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<BusMemory, Error> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.bytes()) {
            let reason = format!("bytes {at:#x} + {len:#x} are not in its BAR");
            return Err(Error::Refused { device: self.device.clone(), reason });
        }
        if !door.holds() {
            // No IOMMU: the drive puts physical addresses on the bus, and the bridges know whose they are. Not every architecture's
            // bridges have the same addresses as its processors.
            if !cfg!(target_arch = "x86_64") {
                let reason = "without an IOMMU nobody knows its addresses on the bus on this architecture".to_owned();
                return Err(Error::Refused { device: self.device.clone(), reason });
            }
            // SAFETY: the caller's promise.
            return unsafe { BusMemory::new([(BusAddr(self.bus + at), len)], owner) };
        }
        // VFIO maps what this process has mapped, also if it is no RAM (`follow_fault_pfn` in drivers/vfio/vfio_iommu_type1.c), and
        // for writing only what this process could write.
        let mapping = map(&self.file, at, len, ProtFlags::READ | ProtFlags::WRITE, "")?;
        let ptr = mapping.at(0);
        // SAFETY: the mapping goes with the owner, a BAR does not move, and no reference to it is made.
        unsafe { door.map(ptr, len, Box::new((mapping, owner))) }
    }
}

/// A dma-buf (Documentation/driver-api/dma-buf.rst in Linux) whose exporter lets programs map it. What is in it is one buffer, in order.
pub struct DmaBufWindow {
    mapping: Arc<Mapping>,
}

impl DmaBufWindow {
    /// Maps `len` bytes of a dma-buf.
    ///
    /// # Errors
    /// If its exporter does not let programs map it.
    pub fn open(dma_buf: &OwnedFd, len: usize) -> Result<DmaBufWindow, Error> {
        let advice = "; its exporter lets only drivers of the kernel map it";
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let mapping = map(dma_buf, 0, len.next_multiple_of(PEER_PAGE), protection, advice)?;
        Ok(DmaBufWindow { mapping: mapping.into() })
    }
}

impl Window for DmaBufWindow {
    fn bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    fn read64(&self, at: u64) -> u64 {
        read64(&self.mapping, at)
    }

    unsafe fn map(
        &self,
        door: &dyn Door,
        at: u64,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<BusMemory, Error> {
        if !door.holds() {
            let reason = "a dma-buf tells no physical addresses, and there is no IOMMU to map it for the drive".into();
            return Err(Error::Refused { device: door.name().to_owned(), reason });
        }
        assert!(at + len as u64 <= self.bytes(), "{at} + {len} of {} bytes", self.bytes());
        let ptr = self.mapping.at(at as usize);
        // SAFETY: the mapping goes with the owner; its exporter keeps the memory in its place as long as it is mapped; no reference to it
        // is made.
        unsafe { door.map(ptr, len, Box::new((self.mapping.clone(), owner))) }
    }
}
