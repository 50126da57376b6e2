//! Host memory that the driver has page-locked.

use std::{mem::ManuallyDrop, ptr::NonNull};

use cuda_dlopen::{Code, raw};
use cust::sys::{CU_MEMHOSTREGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_PORTABLE};
use memmap2::{MmapMut, MmapOptions};

use crate::{device::DeviceError, platform};

/// An anonymous mapping near the GPU, in huge pages where the system has them, that is registered with the driver. Nobody makes a reference
/// to the whole of it.
///
/// It is unlocked when it is dropped: its owner has seen to it by then that nothing uses it, and that the context is the thread's.
pub(super) struct Locked {
    base: NonNull<u8>,
    map: ManuallyDrop<MmapMut>,
}

// SAFETY: a mapping belongs to no thread, and the address is all that is told of it.
unsafe impl Send for Locked {}
// SAFETY: as above.
unsafe impl Sync for Locked {}

impl Locked {
    /// `len` zeros for `what`, in the current context, or the driver's refusal.
    pub fn new(what: &str, len: usize, numa_node: Option<u32>) -> Result<Result<Locked, Code>, DeviceError> {
        // Page-locking makes every page real, so a mapping that only overcommits would end in the OOM killer.
        // Where the system doesn't tell, the driver decides.
        let available = platform::memory().map_or(u64::MAX, |memory| memory.free);
        if len as u64 > available {
            return Err(out_of_memory(what, len, available));
        }
        let map = MmapOptions::new().len(len.max(1)).map_anon();
        let mut map = map.map_err(|_| out_of_memory(what, len, available))?;
        platform::prepare(&mut map, numa_node);
        let base = NonNull::from(&mut *map).cast::<u8>();
        let flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the mapping is live, and `drop` unregisters it before it ends.
        let registered = unsafe { raw::cuMemHostRegister_v2(base.as_ptr().cast(), map.len(), flags) };
        Ok(registered.map(|()| Locked { base, map: ManuallyDrop::new(map) }))
    }

    /// The first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: registered by `new`; unregistered once.
        let unlocked = unsafe { raw::cuMemHostUnregister(self.base.as_ptr().cast()) };
        // What the driver still takes for locked stays mapped: other memory at its addresses would be refused in copies.
        if unlocked.is_ok() {
            // SAFETY: once, and nobody uses it any more.
            unsafe { ManuallyDrop::drop(&mut self.map) };
        }
    }
}

/// That there is not enough memory to lock.
pub(super) fn out_of_memory(what: &str, len: usize, free: u64) -> DeviceError {
    DeviceError::OutOfMemory {
        device: "page-locked host memory".into(),
        what: what.into(),
        need: len as u64,
        free,
        advice: "close other programs or use a smaller model",
    }
}
