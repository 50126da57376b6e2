//! Page-locked host memory.

use std::{ptr::NonNull, rc::Rc, slice};

use cuda_dlopen::{Code, raw};
use cust::sys::CUdeviceptr;

use super::{
    gpu::Gpu,
    locked::{Locked, out_of_memory},
    memory::check_range,
};
use crate::{
    device::{DeviceError, HostMemory},
    platform,
};

type Result<T> = std::result::Result<T, DeviceError>;

/// Page-locked host memory, or a part of some that is this value's own.
pub struct Pinned {
    region: Rc<Region>,
    /// The first byte, at a page of the region.
    start: NonNull<u8>,
    len: usize,
}

/// Memory whose bytes are those of the [`Pinned`] that it was divided into.
///
/// All of it is one registration: the driver refuses a copy that spans two.
struct Region {
    /// Dropped first, in the context that `drop` has made the thread's.
    _memory: Locked,
    gpu: Rc<Gpu>,
}

/// Parts of a region begin at multiples of this.
const PAGE: usize = 4096;

impl Pinned {
    /// `len` zeros, or why the driver does not lock so many.
    pub(super) fn lock(gpu: &Rc<Gpu>, what: &str, len: usize) -> Result<HostMemory<Pinned>> {
        Ok(match Pinned::lock_parts(gpu, what, len, 1)? {
            Ok(mut parts) => HostMemory::Pinned(parts.remove(0)),
            Err(code) => HostMemory::Pageable { why: refused(gpu, what, len, code) },
        })
    }

    /// `count` times `len` zeros, one region, or the driver's refusal.
    fn lock_parts(
        gpu: &Rc<Gpu>,
        what: &str,
        len: usize,
        count: usize,
    ) -> Result<std::result::Result<Vec<Pinned>, Code>> {
        let step = len.checked_next_multiple_of(PAGE).unwrap_or(usize::MAX);
        // The last part needs no whole pages.
        let (part, len) = (len, step.saturating_mul(count - 1).saturating_add(len));
        gpu.activate()?;
        match Locked::new(what, len, gpu.numa_node)? {
            Ok(memory) => {
                let base = memory.base();
                let region = Rc::new(Region { _memory: memory, gpu: gpu.clone() });
                let parts = (0..count).map(|index| {
                    // SAFETY: the mapping has so many steps.
                    let start = unsafe { base.add(index * step) };
                    Pinned { region: region.clone(), start, len: part }
                });
                Ok(Ok(parts.collect()))
            }
            Err(code @ (Code::OUT_OF_MEMORY | Code::OPERATING_SYSTEM | Code::NOT_SUPPORTED | Code::NOT_PERMITTED)) => {
                Ok(Err(code))
            }
            Err(code) => Err(gpu.error("cuMemHostRegister", code)),
        }
    }

    /// `len` zeros; that the driver refuses them is an error.
    pub(super) fn new(gpu: &Rc<Gpu>, what: &str, len: usize) -> Result<Pinned> {
        Ok(Pinned::parts(gpu, what, len, 1)?.remove(0))
    }

    /// The same `count` times, of one region.
    pub(super) fn parts(gpu: &Rc<Gpu>, what: &str, len: usize, count: usize) -> Result<Vec<Pinned>> {
        match Pinned::lock_parts(gpu, what, len, count)? {
            Ok(parts) => Ok(parts),
            Err(Code::OUT_OF_MEMORY) => {
                let free = platform::memory().map_or(0, |memory| memory.free);
                Err(out_of_memory(what, len.saturating_mul(count), free))
            }
            Err(code) => Err(DeviceError::Unsupported(format!(
                "{}, and copies to the device take some page-locked memory: let this process lock more (ulimit -l, or a container's limit)",
                refused(gpu, what, len, code)
            ))),
        }
    }

    /// The GPU that it was locked for.
    pub(super) fn gpu(&self) -> &Rc<Gpu> {
        &self.region.gpu
    }

    /// Where kernels find it.
    pub(super) fn device_address(&self) -> Result<CUdeviceptr> {
        let gpu = self.gpu();
        gpu.activate()?;
        let mut address = 0;
        // SAFETY: the driver writes the address to a local. The mapping was registered with DEVICEMAP, and is as long as `self` lives.
        let found = unsafe { raw::cuMemHostGetDevicePointer_v2(&mut address, self.start.as_ptr().cast(), 0) };
        gpu.check("cuMemHostGetDevicePointer", found)?;
        Ok(address)
    }

    /// The bytes `start..end`.
    pub(super) fn range(&self, what: &'static str, start: usize, end: usize) -> Result<&[u8]> {
        check_range(what, start, Some(end), self.len)?;
        Ok(&self.as_ref()[start..end])
    }
}

fn refused(gpu: &Gpu, what: &str, len: usize, code: Code) -> String {
    format!("{} refuses to page-lock {len} bytes for {what}: {code}", gpu.name)
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: bytes of a mapping that is there as long as the region is. They are this value's own.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsMut<[u8]> for Pinned {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Copies out of it, on the copy queue or (staging) on the compute queue, and kernels that read it must have ended before the
        // pages go.
        let _ = self.gpu.activate();
        let _ = self.gpu.wait(&self.gpu.copy);
        let _ = self.gpu.wait(&self.gpu.compute);
    }
}
