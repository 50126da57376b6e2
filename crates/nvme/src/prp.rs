//! Physical Region Pages: how a command says where its data is (NVM Express Base Specification 2.0, section 4.1.1).
//!
//! - PRP1 is the address of the first byte. It is aligned to four bytes and may lie within a page.
//! - If the data ends in a second page, PRP2 is that page. If there are more, PRP2 is a list of all pages but the first.
//! - A list has as many entries as a page has room for. If more remain, the last one is the address of the next list page, and only
//!   then.
//!
//! A page is what CC.MPS says. Every page is looked up by itself: nothing follows from where its neighbours are.

use crate::{BusMemory, DmaBuf};

/// Bytes of an entry.
const ENTRY: usize = 8;

/// Why data cannot be described by PRPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrpError {
    /// The memory has fewer bytes.
    #[error("bytes {at}..{} are outside of memory of {of} bytes", *at as u128 + *len as u128)]
    Outside {
        /// First byte.
        at: usize,
        /// Number of bytes.
        len: usize,
        /// The memory's bytes.
        of: usize,
    },
    /// The first byte is not at a multiple of four.
    #[error("data begins at bus address {bus:#x}, which is no multiple of 4")]
    Unaligned {
        /// Where.
        bus: u64,
    },
    /// A page of the bus holds only a part of what it should.
    #[error(
        "byte {at} of the memory is at bus address {bus:#x}: its pages are not whole pages of {page} bytes on the bus"
    )]
    BrokenPage {
        /// Which byte.
        at: usize,
        /// Where.
        bus: u64,
        /// Bytes of a page.
        page: usize,
    },
    /// The list has no room for so many pages.
    #[error("{need} pages are more than the {room} that a command's list has room for")]
    ListFull {
        /// Entries needed.
        need: usize,
        /// Entries that fit.
        room: usize,
    },
}

/// Memory for one command's list.
#[derive(Debug, Clone)]
pub struct PrpList {
    memory: DmaBuf,
    /// First byte, at a page of the bus.
    at: usize,
    pages: usize,
}

impl PrpList {
    /// Pages of a list for up to `len` bytes of data, wherever it begins.
    pub fn pages_for(len: usize, page: usize) -> usize {
        // Data pages, one more if it begins within one, but the first, which PRP1 has.
        let entries = len.div_ceil(page);
        let per_page = page / ENTRY;
        // All list pages but the last spend one entry on the chain.
        if entries <= per_page { 1 } else { 1 + (entries - per_page).div_ceil(per_page - 1) }
    }

    /// The `pages` pages of `memory` from byte `at` on.
    pub fn new(memory: DmaBuf, at: usize, pages: usize) -> PrpList {
        PrpList { memory, at, pages }
    }

    /// Entries for data that fit, with pages of `page` bytes.
    fn room(&self, page: usize) -> usize {
        self.pages * (page / ENTRY - 1) + 1
    }

    /// Describes the `len` bytes of `data` from `at` on: PRP1 and PRP2. The list is overwritten where one is needed.
    ///
    /// # Errors
    /// If the data is outside of its memory, not aligned, or not in whole pages of `page` bytes, a power of two, or the list is too short.
    pub fn describe(&self, data: &BusMemory, at: usize, len: usize, page: usize) -> Result<[u64; 2], PrpError> {
        if len == 0 || at > data.len() || len > data.len() - at {
            return Err(PrpError::Outside { at, len, of: data.len() });
        }
        let resolve = |at: usize| data.resolve(at).expect("inside, as was checked");
        let (first, run) = resolve(at);
        if first.0 & 3 != 0 {
            return Err(PrpError::Unaligned { bus: first.0 });
        }
        let head = (page - first.0 as usize % page).min(len);
        if run < head {
            return Err(PrpError::BrokenPage { at: at + run, bus: resolve(at + run).0.0, page });
        }
        // The pages behind the first.
        let pages = (len - head).div_ceil(page);
        let address = |index: usize| {
            let start = at + head + index * page;
            let (bus, run) = resolve(start);
            let whole = run >= page.min(at + len - start) && bus.0.is_multiple_of(page as u64);
            whole.then_some(bus.0).ok_or(PrpError::BrokenPage { at: start, bus: bus.0, page })
        };
        match pages {
            0 => Ok([first.0, 0]),
            1 => Ok([first.0, address(0)?]),
            _ => Ok([first.0, self.write(pages, page, address)?]),
        }
    }

    /// Writes a list of `count` addresses and returns its own.
    fn write(
        &self,
        count: usize,
        page: usize,
        address: impl Fn(usize) -> Result<u64, PrpError>,
    ) -> Result<u64, PrpError> {
        if count > self.room(page) {
            return Err(PrpError::ListFull { need: count, room: self.room(page) });
        }
        let per_page = page / ENTRY;
        let list_page = |index: usize| {
            let start = self.at + index * page;
            let (bus, run) = self.memory.bus().resolve(start).expect("a list is inside of its memory");
            let whole = run >= page && bus.0.is_multiple_of(page as u64);
            whole.then_some(bus.0).ok_or(PrpError::BrokenPage { at: start, bus: bus.0, page })
        };
        let (mut index, mut slot) = (0, 0);
        while index < count {
            let at = self.at + slot * ENTRY;
            if slot % per_page == per_page - 1 && count - index > 1 {
                self.memory.write64(at, list_page(slot / per_page + 1)?);
            } else {
                self.memory.write64(at, address(index)?);
                index += 1;
            }
            slot += 1;
        }
        list_page(0)
    }
}
