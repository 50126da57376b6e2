//! Kernels beside all others of a GPU, started from a thread of the caller's own, and memory that they share with the host and with devices.

use std::{
    any::Any,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use cuda_std::kernel::{Grid, Kernel};

use crate::device::DeviceError;

type Result<T> = std::result::Result<T, DeviceError>;

/// A queue of a GPU that is ordered with nothing else on it, and whose kernels get a place on the GPU before others that wait for one.
/// It may be used from any thread, one at a time. Dropping it waits for its kernels.
pub trait Beside: Send + 'static {
    /// The GPU's name for messages.
    fn name(&self) -> &str;
    /// `bytes` bytes of page-locked host memory, zeroed, that begin at a page. `what` names them in errors.
    fn shared(&self, what: &str, bytes: usize) -> Result<SharedMem>;
    /// Starts kernel `K`, behind those that were started before. Does not wait.
    ///
    /// # Safety
    /// As for [`Driver::launch`](super::driver::Driver::launch), until the kernel has ended.
    unsafe fn launch<K: Kernel>(&mut self, grid: Grid, args: K::Args) -> Result<()>
    where
        K::Args: 'static;
    /// Whether all kernels that were started have ended.
    ///
    /// # Errors
    /// One of them failed.
    fn is_idle(&mut self) -> Result<bool>;
}

/// Page-locked memory that a kernel reads and writes while the host does. Clones are the same memory.
///
/// No Rust reference to it is ever made: words are read and written as atomics, which a kernel's loads and stores at system scope are, too.
#[derive(Clone)]
pub struct SharedMem {
    ptr: NonNull<u8>,
    len: usize,
    address: u64,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: an address of memory that the owner keeps, and which is only reached by atomics and raw copies.
unsafe impl Send for SharedMem {}
// SAFETY: as above.
unsafe impl Sync for SharedMem {}

impl SharedMem {
    /// The `len` bytes at `ptr`, which kernels find at `address`.
    ///
    /// # Safety
    /// As long as `owner` is there, the memory is mapped, initialised, page-locked, and no Rust reference to it exists. Both addresses are
    /// those of pages of 4 KiB.
    pub(super) unsafe fn new(ptr: NonNull<u8>, len: usize, address: u64, owner: Arc<dyn Any + Send + Sync>) -> Self {
        SharedMem { ptr, len, address, owner }
    }

    /// The first byte.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// How many bytes.
    #[expect(clippy::len_without_is_empty, reason = "there are some")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// What keeps it.
    pub fn owner(&self) -> Arc<dyn Any + Send + Sync> {
        self.owner.clone()
    }

    /// The address that kernels have for byte `at`. Panics where there is none.
    pub fn address(&self, at: usize) -> u64 {
        assert!(at < self.len, "byte {at} of {}", self.len);
        self.address + at as u64
    }

    /// The word at byte `at`; what its writer did before can be seen behind it. Panics where there is none.
    pub fn load(&self, at: usize) -> u32 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Sets the word at byte `at`, behind everything before. Panics where there is none.
    pub fn store(&self, at: usize, value: u32) {
        self.word(at).store(value, Ordering::Release);
    }

    /// Writes `values` from byte `at` on, which no kernel reads or writes meanwhile. Panics where there is no room.
    pub fn write<T: Copy>(&self, at: usize, values: &[T]) {
        let bytes = size_of_val(values);
        assert!(at <= self.len && bytes <= self.len - at && at.is_multiple_of(align_of::<T>()), "{at} + {bytes}");
        // SAFETY: inside the memory, aligned; `values` is a Rust reference and none of it.
        unsafe { self.ptr.add(at).cast::<T>().as_ptr().copy_from_nonoverlapping(values.as_ptr(), values.len()) }
    }

    /// Copies the bytes from `at` on, which nobody writes meanwhile. Panics where there are none.
    pub fn read(&self, at: usize, out: &mut [u8]) {
        assert!(at <= self.len && out.len() <= self.len - at, "{at} + {} of {}", out.len(), self.len);
        // SAFETY: inside the memory; `out` is a Rust reference and none of it.
        unsafe { self.ptr.add(at).as_ptr().copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) }
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at < self.len && self.len - at >= 4, "word at {at} of {} bytes", self.len);
        // SAFETY: inside, aligned (the memory is to a page), initialised, and kept by the owner.
        unsafe { self.ptr.add(at).cast::<AtomicU32>().as_ref() }
    }
}
