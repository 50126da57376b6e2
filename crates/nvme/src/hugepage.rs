//! Anonymous memory for devices.

use crate::{BusAddr, Error};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::{fs::File, os::unix::fs::FileExt, ptr::NonNull};

/// Bytes of a huge page. Linux has others too; this size is what every x86-64 has.
pub(crate) const HUGE: usize = 2 << 20;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Memory of zeros.
pub(crate) struct Anonymous {
    pub ptr: NonNull<u8>,
    pub len: usize,
}

// SAFETY: an address and a length; the memory goes with the value, from whatever thread.
unsafe impl Send for Anonymous {}
// SAFETY: shared references give the address alone.
unsafe impl Sync for Anonymous {}

impl Anonymous {
    /// Huge pages that were set aside (hugetlb). The kernel does not move them to make room, as it does with other pages, also with
    /// those that mlock(2) keeps in memory.
    pub fn huge(len: usize) -> Result<Anonymous, Error> {
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB | MapFlags::POPULATE;
        Self::map(len.next_multiple_of(HUGE), flags).map_err(Error::system(
            "taking memory of huge pages",
            "; set some aside (as root: sysctl vm.nr_hugepages=512, which is 1 GiB)",
        ))
    }

    /// Huge pages if there are, other memory otherwise.
    pub fn any(len: usize) -> Result<Anonymous, Error> {
        if len >= HUGE
            && let Ok(memory) = Self::huge(len)
        {
            return Ok(memory);
        }
        let memory = Self::map(len.next_multiple_of(PAGE), MapFlags::PRIVATE);
        let memory = memory.map_err(Error::system("taking memory", "; close other programs"))?;
        // SAFETY: its own memory; the advice changes no bytes. Where there are no huge pages, small ones do.
        let _ = unsafe { madvise(memory.ptr.as_ptr().cast(), memory.len, Advice::LinuxHugepage) };
        Ok(memory)
    }

    fn map(len: usize, flags: MapFlags) -> rustix::io::Result<Anonymous> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let ptr = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let memory = Anonymous { ptr: NonNull::new(ptr.cast()).expect("the kernel maps nothing at 0"), len };
        // A child process would share the pages until one of both writes: then this one could get a copy, elsewhere.
        // SAFETY: its own memory; no bytes change.
        unsafe { madvise(ptr, len, Advice::LinuxDontFork)? };
        Ok(memory)
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping, which nothing refers to any more. It cannot fail.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// Where the page at `ptr` is in physical memory (Documentation/admin-guide/mm/pagemap.rst in Linux).
pub(crate) fn physical(pagemap: &File, ptr: usize) -> Result<BusAddr, Error> {
    let system = |what, cause| Error::System { what, cause, advice: "" };
    let mut entry = [0; 8];
    let read = pagemap.read_exact_at(&mut entry, (ptr / PAGE * 8) as u64);
    read.map_err(|cause| system("reading /proc/self/pagemap", cause))?;
    let entry = u64::from_le_bytes(entry);
    let (present, frame) = (entry >> 63 == 1, entry & ((1 << 55) - 1));
    if !present {
        return Err(system("finding physical memory", std::io::Error::other("the page is not in memory")));
    }
    if frame == 0 {
        return Err(Error::System {
            what: "finding physical memory",
            cause: std::io::Error::other("the kernel hides it from this user"),
            advice: "; start as root (CAP_SYS_ADMIN)",
        });
    }
    Ok(BusAddr(frame * PAGE as u64))
}
