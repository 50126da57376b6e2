//! Files of the kernel's that are mapped: memory and registers of devices.

use crate::Error;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::{os::fd::AsFd, ptr::NonNull};

/// A shared mapping. What is behind it changes by itself, so no Rust reference to it is made.
pub(crate) struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; the mapping goes with the value, from whatever thread.
unsafe impl Send for Mapping {}
// SAFETY: shared references give addresses, which are used for volatile accesses of whole words: devices take those from any thread.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `at` on. `what` and `advice` are for the error.
    pub fn new(
        file: impl AsFd,
        at: u64,
        len: usize,
        protection: ProtFlags,
        (what, advice): (&'static str, &'static str),
    ) -> Result<Mapping, Error> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let ptr = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, at) };
        let ptr = ptr.map_err(Error::system(what, advice))?;
        Ok(Mapping { ptr: NonNull::new(ptr.cast()).expect("the kernel maps nothing at 0"), len })
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The aligned word at `at`, or what begins there. Panics where there is none.
    pub fn at<T>(&self, at: usize) -> NonNull<T> {
        let inside = at < self.len && self.len - at >= size_of::<T>();
        assert!(inside && at.is_multiple_of(align_of::<T>()), "byte {at:#x} of {:#x}", self.len);
        // SAFETY: inside the mapping.
        unsafe { self.ptr.add(at).cast() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping, which nothing refers to any more. It cannot fail.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}
