//! Page-locked host memory.

use std::rc::Rc;

use cuda_dlopen::{Code, raw};
use cust::sys::{CU_MEMHOSTREGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_PORTABLE, CUdeviceptr};
use memmap2::{MmapMut, MmapOptions};

use super::{gpu::Gpu, memory::check_range};
use crate::{
    device::{DeviceError, HostMemory},
    platform,
};

type Result<T> = std::result::Result<T, DeviceError>;

/// Page-locked host memory: an anonymous mapping near the GPU, in huge pages where the system has them.
///
/// All of it is one registration: the driver refuses a copy that spans two.
pub struct Pinned {
    gpu: Rc<Gpu>,
    map: MmapMut,
    len: usize,
}

impl Pinned {
    /// `len` zeros, or why the driver does not lock so many.
    pub(super) fn lock(gpu: &Rc<Gpu>, what: &str, len: usize) -> Result<HostMemory<Pinned>> {
        gpu.activate()?;
        // Page-locking makes every page real, so a mapping that only overcommits would end in the OOM killer.
        // Where the system doesn't tell, the driver decides.
        let available = platform::memory().map_or(u64::MAX, |memory| memory.free);
        let out_of_memory = || out_of_memory(what, len, available);
        if len as u64 > available {
            return Err(out_of_memory());
        }
        let mut map = MmapOptions::new().len(len.max(1)).map_anon().map_err(|_| out_of_memory())?;
        platform::prepare(&mut map, gpu.numa_node);
        let flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the mapping is live, and `drop` unregisters it before it ends.
        match unsafe { raw::cuMemHostRegister_v2(map.as_mut_ptr().cast(), map.len(), flags) } {
            Ok(()) => Ok(HostMemory::Pinned(Pinned { gpu: gpu.clone(), map, len })),
            Err(code @ (Code::OUT_OF_MEMORY | Code::OPERATING_SYSTEM | Code::NOT_SUPPORTED | Code::NOT_PERMITTED)) => {
                let why = format!("{} refuses to page-lock {len} bytes for {what}: {code}", gpu.name);
                Ok(HostMemory::Pageable { why })
            }
            Err(code) => Err(gpu.error("cuMemHostRegister", code)),
        }
    }

    /// `len` zeros; that the driver refuses them is an error.
    pub(super) fn new(gpu: &Rc<Gpu>, what: &str, len: usize) -> Result<Pinned> {
        match Pinned::lock(gpu, what, len)? {
            HostMemory::Pinned(pinned) => Ok(pinned),
            HostMemory::Pageable { why } => Err(DeviceError::Unsupported(format!(
                "{why}, and copies to the device take some page-locked memory: let this process lock more (ulimit -l, or a container's limit)"
            ))),
        }
    }

    /// The GPU that it was locked for.
    pub(super) fn gpu(&self) -> &Rc<Gpu> {
        &self.gpu
    }

    /// Where kernels find it.
    pub(super) fn device_address(&self) -> Result<CUdeviceptr> {
        self.gpu.activate()?;
        let mut address = 0;
        // SAFETY: the driver writes the address to a local. The mapping was registered with DEVICEMAP, and is as long as `self` lives.
        let found = unsafe { raw::cuMemHostGetDevicePointer_v2(&mut address, self.map.as_ptr().cast_mut().cast(), 0) };
        self.gpu.check("cuMemHostGetDevicePointer", found)?;
        Ok(address)
    }

    /// The bytes `start..end`.
    pub(super) fn range(&self, what: &'static str, start: usize, end: usize) -> Result<&[u8]> {
        check_range(what, start, Some(end), self.len)?;
        Ok(&self.map[start..end])
    }
}

fn out_of_memory(what: &str, len: usize, free: u64) -> DeviceError {
    DeviceError::OutOfMemory {
        device: "page-locked host memory".into(),
        what: what.into(),
        need: len as u64,
        free,
        advice: "close other programs or use a smaller model",
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        &self.map[..self.len]
    }
}

impl AsMut<[u8]> for Pinned {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Copies out of it, on the copy queue or (staging) on the compute queue, and kernels that read it must have ended before the
        // pages go.
        let _ = self.gpu.activate();
        let _ = self.gpu.wait(&self.gpu.copy);
        let _ = self.gpu.wait(&self.gpu.compute);
        // SAFETY: registered by `lock`; unregistered once.
        let _ = unsafe { raw::cuMemHostUnregister(self.map.as_mut_ptr().cast()) };
    }
}
