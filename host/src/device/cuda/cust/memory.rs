//! Device memory, and the staging through which bytes get there from ordinary host memory.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use cuda_dlopen::{Code, raw};
use cust::sys::CUdeviceptr;
use rayon::prelude::*;

use super::{Event, Pinned, gpu::Gpu};
use crate::device::DeviceError;

type Result<T> = std::result::Result<T, DeviceError>;

/// A device allocation, or page-locked host memory that kernels read over the link.
pub struct Mem {
    gpu: Rc<Gpu>,
    pub(super) address: CUdeviceptr,
    pub(super) len: usize,
    /// The host memory that it is.
    pinned: Option<Pinned>,
}

impl Mem {
    pub(super) fn new(gpu: &Rc<Gpu>, what: &str, len: usize) -> Result<Mem> {
        gpu.activate()?;
        let mut address = 0;
        // An empty allocation is an error to the driver, so it gets a byte. The driver aligns to 256 bytes or more.
        // SAFETY: the driver writes the address to a local.
        match unsafe { raw::cuMemAlloc_v2(&mut address, len.max(1)) } {
            Err(Code::OUT_OF_MEMORY) => Err(DeviceError::OutOfMemory {
                device: gpu.name.clone(),
                what: what.into(),
                need: len as u64,
                free: gpu.memory()?.free,
                advice: "close other programs that use the GPU, or give the model less: a smaller -c or --vram-budget, \
                         --streaming, or --device cpu",
            }),
            result => {
                gpu.check("cuMemAlloc", result)?;
                Ok(Mem { gpu: gpu.clone(), address, len, pinned: None })
            }
        }
    }

    /// `pinned` where it is, at the address that the device has it at.
    pub(super) fn zero_copy(pinned: Pinned) -> Result<Mem> {
        let (gpu, len, address) = (pinned.gpu().clone(), pinned.as_ref().len(), pinned.device_address()?);
        Ok(Mem { gpu, address, len, pinned: Some(pinned) })
    }

    /// The address of `self[start..end]`.
    pub(super) fn range(&self, what: &'static str, start: usize, len: usize) -> Result<CUdeviceptr> {
        check_range(what, start, start.checked_add(len), self.len)?;
        Ok(self.address + start as u64)
    }
}

impl Drop for Mem {
    fn drop(&mut self) {
        if self.pinned.is_some() {
            // It waits for the queues itself.
            return;
        }
        // Waiting first keeps the promise that queued work may still use the memory; cuMemFree gives no such promise.
        // Errors have nowhere to go: they are those of earlier work, and the next call returns them again.
        let _ = self.gpu.activate();
        let _ = self.gpu.wait(&self.gpu.compute);
        let _ = self.gpu.wait(&self.gpu.copy);
        // SAFETY: allocated by `new`, freed once, and no queued work is left that uses it.
        let _ = unsafe { raw::cuMemFree_v2(self.address) };
    }
}

pub(super) fn check_range(what: &'static str, start: usize, end: Option<usize>, len: usize) -> Result<()> {
    match end {
        Some(end) if start <= end && end <= len => Ok(()),
        _ => Err(DeviceError::OutOfRange { what, start, end: end.unwrap_or(usize::MAX), len }),
    }
}

/// Size of a staging buffer. What goes this way is small, or a model that is in memory: matrices of files have buffers of their own
/// (`stream/load.rs`).
pub(super) const STAGE: usize = 4 << 20;
/// How many there are. With two, one of them is empty whenever filling takes longer than the link for once (43 of 55 GB/s).
pub(super) const STAGES: usize = 4;

/// Page-locked buffers between the device and what lies elsewhere, filled in turn: some take new bytes while the link reads
/// another.
///
/// Every `write` goes this way, whatever its size, because it alone makes the source reusable on return without waiting
/// for the queue. What `cuMemcpyHtoDAsync` does with pageable memory is not fixed ("might be synchronous", says "API
/// synchronization behavior" of the CUDA Driver API), is a fifth as fast, and a source that happens to be page-locked
/// would be read after the return.
pub(super) struct Staging {
    buffers: RefCell<[Stage; STAGES]>,
    current: Cell<usize>,
}

struct Stage {
    memory: Pinned,
    /// Bytes of it in use since it was last empty.
    used: usize,
    /// The end of the copies out of it, once it was full.
    busy: Option<Event>,
}

impl Staging {
    pub fn new(gpu: &Rc<Gpu>) -> Result<Staging> {
        let stage = || {
            Pinned::new(gpu, "the staging buffers for transfers", STAGE).map(|memory| Stage {
                memory,
                used: 0,
                busy: None,
            })
        };
        Ok(Staging { buffers: RefCell::new([stage()?, stage()?, stage()?, stage()?]), current: Cell::new(0) })
    }

    /// Copies `bytes` to the device address `dst`, in the compute queue's order.
    pub fn write(&self, gpu: &Rc<Gpu>, dst: CUdeviceptr, bytes: &[u8]) -> Result<()> {
        let mut buffers = self.buffers.borrow_mut();
        let mut done = 0;
        while done < bytes.len() {
            let mut stage = &mut buffers[self.current.get()];
            if stage.used == STAGE {
                stage.busy = Some(Event::record(gpu, &gpu.compute, false)?);
                self.current.set((self.current.get() + 1) % STAGES);
                stage = &mut buffers[self.current.get()];
                if let Some(event) = stage.busy.take() {
                    event.wait(gpu)?;
                }
                stage.used = 0;
            }
            let now = (bytes.len() - done).min(STAGE - stage.used);
            let slot = &mut stage.memory.as_mut()[stage.used..][..now];
            copy(&bytes[done..done + now], slot);
            // SAFETY: `dst` has room (the caller's check); `slot` is page-locked, and stays as it is until the event that
            // is recorded behind this copy has been waited for.
            let queued = unsafe {
                raw::cuMemcpyHtoDAsync_v2(dst + done as u64, slot.as_ptr().cast(), now, gpu.compute.as_inner())
            };
            gpu.check("cuMemcpyHtoDAsync", queued)?;
            // The next slot starts at a cache line, which the link likes.
            stage.used = (stage.used + now).next_multiple_of(64).min(STAGE);
            done += now;
        }
        Ok(())
    }
}

/// What one thread copies at a time: short enough that the last ones do not wait long for each other.
const COPY: usize = 256 << 10;

/// Copies with several threads where that pays: one moves some 5 to 10 GB/s, a link up to ten times that. The embeddings of a prompt are
/// some MB.
fn copy(from: &[u8], to: &mut [u8]) {
    if to.len() <= COPY {
        return to.copy_from_slice(from);
    }
    to.par_chunks_mut(COPY).zip(from.par_chunks(COPY)).for_each(|(to, from)| to.copy_from_slice(from));
}

/// The longest read that is copied through [`Landing`].
pub(super) const LANDING: usize = 64 << 10;

/// A page-locked buffer in which small reads arrive: each token fetches a few bytes. The device writes there by itself, while
/// a copy to ordinary memory costs the driver a buffer of its own and more calls; for a large one that does not matter.
pub(super) struct Landing(RefCell<Pinned>);

impl Landing {
    pub fn new(gpu: &Rc<Gpu>) -> Result<Landing> {
        Ok(Landing(RefCell::new(Pinned::new(gpu, "the buffer for reads", LANDING)?)))
    }

    /// Waits for the compute queue and copies from the device address `src` into `bytes`, of which there are at most
    /// [`LANDING`].
    pub fn read(&self, gpu: &Gpu, src: CUdeviceptr, bytes: &mut [u8]) -> Result<()> {
        let mut buffer = self.0.borrow_mut();
        let landed = &mut buffer.as_mut()[..bytes.len()];
        // SAFETY: `src` has as many bytes (the caller's check). The buffer stays borrowed until the queue has been waited for, and
        // where that fails the context is dead, and writes nothing any more.
        let queued =
            unsafe { raw::cuMemcpyDtoHAsync_v2(landed.as_mut_ptr().cast(), src, landed.len(), gpu.compute.as_inner()) };
        gpu.check("cuMemcpyDtoHAsync", queued)?;
        gpu.wait(&gpu.compute)?;
        bytes.copy_from_slice(landed);
        Ok(())
    }
}
