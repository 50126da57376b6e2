//! Where a memory's pages are on the bus, as a table that kernels read.

use ::nvme::{BusAddr, BusMemory, PrpError};

use super::{super::beside::SharedMem, ReadKernel};
use crate::device::DeviceError;

/// The bus addresses of a memory's pages, in memory that kernels read.
pub struct Pages {
    table: SharedMem,
    /// Bytes of the memory.
    len: usize,
    page: usize,
    /// The memory's first byte in its first page.
    first: usize,
}

impl Pages {
    /// The pages of `memory`, of `page` bytes each. Every page is looked up by itself.
    ///
    /// # Errors
    /// The device's, and a page that is none on the bus.
    pub fn new(gpu: &dyn ReadKernel, memory: &BusMemory, page: usize) -> Result<Pages, super::QueueError> {
        let addresses = addresses(memory, page)?;
        let what = "the addresses of a buffer's pages";
        let table = gpu.shared(what, addresses.len() * size_of::<u64>())?;
        table.write(0, &addresses);
        let (BusAddr(bus), _) = memory.resolve(0).expect("there are some bytes");
        Ok(Pages { table, len: memory.len(), page, first: bus as usize % page })
    }

    /// Bytes of a page.
    pub(super) fn page(&self) -> usize {
        self.page
    }

    /// Where kernels find the address of the page that byte `at` is in, and where in that page it is.
    ///
    /// # Errors
    /// If the `len` bytes from there on are not all in the memory, or begin at no multiple of 4.
    pub(super) fn find(&self, at: usize, len: usize) -> Result<(*const u64, u32), PrpError> {
        if len == 0 || at > self.len || len > self.len - at {
            return Err(PrpError::Outside { at, len, of: self.len });
        }
        let (index, offset) = ((self.first + at) / self.page, (self.first + at) % self.page);
        if !offset.is_multiple_of(4) {
            return Err(PrpError::Unaligned { bus: offset as u64 });
        }
        Ok((self.table.address(index * size_of::<u64>()) as *const u64, offset as u32))
    }
}

/// The address of each page.
fn addresses(memory: &BusMemory, page: usize) -> Result<Vec<u64>, PrpError> {
    let resolve = |at: usize| memory.resolve(at).expect("inside");
    let first = resolve(0).0.0 as usize % page;
    let count = (first + memory.len()).div_ceil(page);
    let address = |index: usize| {
        let at = (index * page).saturating_sub(first);
        let end = ((index + 1) * page - first).min(memory.len());
        let (BusAddr(bus), run) = resolve(at);
        let begins = index == 0 || bus.is_multiple_of(page as u64);
        match begins && run >= end - at {
            true => Ok(bus - bus % page as u64),
            false => Err(PrpError::BrokenPage { at: at + run.min(end - at - 1), bus, page }),
        }
    };
    (0..count).map(address).collect()
}

impl From<PrpError> for super::QueueError {
    fn from(error: PrpError) -> Self {
        super::QueueError::Pages(error)
    }
}

impl From<DeviceError> for super::QueueError {
    fn from(error: DeviceError) -> Self {
        super::QueueError::Device(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(extents: &[(u64, usize)], page: usize) -> Result<Vec<u64>, PrpError> {
        // SAFETY: no device is told of these addresses.
        let memory =
            unsafe { BusMemory::new(extents.iter().map(|&(bus, len)| (BusAddr(bus), len)), Box::new(())) }.unwrap();
        addresses(&memory, page)
    }

    #[test]
    fn every_page_is_looked_up_by_itself() {
        assert_eq!(
            pages(&[(0x5000, 0x2000), (0x9000, 0x1000), (0x1000, 4)], 4096),
            Ok(vec![0x5000, 0x6000, 0x9000, 0x1000])
        );
        assert_eq!(pages(&[(0x5e00, 0x200), (0x9000, 0x1000)], 4096), Ok(vec![0x5000, 0x9000]), "within a page");
        assert_eq!(pages(&[(0x5e00, 0x100)], 4096), Ok(vec![0x5000]));
        assert_eq!(pages(&[(0x4000, 0x2000), (0x8000, 0x2000)], 8192), Ok(vec![0x4000, 0x8000]));
        for broken in [
            &[(0x5000, 0x800), (0x9000, 0x800)][..],
            &[(0x5e00, 0x1000), (0x9000, 0x1000)],
            &[(0x5e00, 0x200), (0x9800, 0x10)],
        ] {
            assert!(matches!(pages(broken, 4096), Err(PrpError::BrokenPage { .. })), "{broken:x?}");
        }
        assert!(matches!(
            pages(&[(0x5000, 0x1000), (0x6000, 0x1000), (0x8000, 0x1000)], 8192),
            Err(PrpError::BrokenPage { .. })
        ));
    }
}
