//! The real driver: NVIDIA's, through `cust` and, for what cust lacks, `cuda_dlopen`. Nothing else imports either.
//!
//! A `CustDriver` and its handles stay on the thread that opened it (they are not `Send`), and each call first makes the
//! GPU's context the thread's current one, so several GPUs can be open at once.

mod gpu;
mod memory;
mod modules;

use std::{
    cell::OnceCell,
    ffi::{c_uint, c_void},
    ops::Range,
    ptr,
    rc::Rc,
};

use cuda_dlopen::raw;
use cuda_std::kernel::{Args, Kernel};
use cust::{event::EventFlags, stream::Stream, sys::CUevent};

pub use self::memory::{Mem, Pinned};
use self::{
    gpu::Gpu,
    memory::Staging,
    modules::{Modules, Source},
};
use super::driver::{Driver, Grid, Properties};
use crate::{
    device::{DeviceError, MemoryInfo},
    ptx,
};

type Result<T> = std::result::Result<T, DeviceError>;

/// The most parameters of a kernel: as many as `cuda_std::kernel::Args` is implemented for.
const MAX_PARAMETERS: usize = 16;

/// One GPU, driven by NVIDIA's driver.
pub struct CustDriver {
    modules: Modules,
    staging: OnceCell<Staging>,
    gpu: Rc<Gpu>,
}

impl CustDriver {
    /// Opens the GPU `index` (in the driver's order, after `CUDA_VISIBLE_DEVICES`). `announce` is told when compiling the
    /// kernels takes long.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] says what is missing: driver, GPU, or one new enough; and the way out.
    pub fn open(index: usize, announce: fn(&str)) -> Result<CustDriver> {
        CustDriver::with_modules(index, ptx::module, announce)
    }

    /// How many GPUs there are, at least one.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] where there is none, or no driver that can run the kernels.
    pub fn count() -> Result<usize> {
        gpu::count()
    }

    fn with_modules(index: usize, source: Source, announce: fn(&str)) -> Result<CustDriver> {
        let gpu = Rc::new(Gpu::open(index)?);
        Ok(CustDriver { modules: Modules::new(gpu.clone(), source, announce), staging: OnceCell::new(), gpu })
    }

    /// The staging buffers, page-locked at the first write (some 10 ms).
    fn staging(&self) -> Result<&Staging> {
        match self.staging.get() {
            Some(staging) => Ok(staging),
            None => {
                let staging = Staging::new(&self.gpu)?;
                Ok(self.staging.get_or_init(|| staging))
            }
        }
    }
}

impl Driver for CustDriver {
    type Mem = Mem;
    type Pinned = Pinned;
    type Event = Event;
    type Graph = std::convert::Infallible;

    fn name(&self) -> &str {
        &self.gpu.name
    }

    fn properties(&self) -> &Properties {
        &self.gpu.properties
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.gpu.memory()
    }

    fn alloc(&self, what: &str, bytes: usize) -> Result<Mem> {
        Mem::new(&self.gpu, what, bytes)
    }

    fn address(mem: &Mem) -> u64 {
        mem.address
    }

    fn len(mem: &Mem) -> usize {
        mem.len
    }

    fn pinned(&self, what: &str, bytes: usize) -> Result<Pinned> {
        Pinned::new(&self.gpu, what, bytes)
    }

    fn write(&self, dst: &Mem, offset: usize, bytes: &[u8]) -> Result<()> {
        let dst = dst.range("write", offset, bytes.len())?;
        self.gpu.activate()?;
        self.staging()?.write(&self.gpu, dst, bytes)
    }

    fn read(&self, src: &Mem, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let src = src.range("read", offset, bytes.len())?;
        self.gpu.activate()?;
        if !bytes.is_empty() {
            // SAFETY: the source range lies in its allocation, and `bytes` stays borrowed until the queue has been waited
            // for. Where that fails the context is dead, and writes nothing any more.
            let queued = unsafe {
                let to = bytes.as_mut_ptr().cast();
                raw::cuMemcpyDtoHAsync_v2(to, src, bytes.len(), self.gpu.compute.as_inner())
            };
            self.gpu.check("cuMemcpyDtoHAsync", queued)?;
        }
        self.gpu.wait(&self.gpu.compute)
    }

    fn copy(&self, src: &Mem, dst: &Mem, len: usize) -> Result<()> {
        let (src, dst) = (src.range("copy", 0, len)?, dst.range("copy", 0, len)?);
        self.gpu.activate()?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: both ranges lie in their allocations, which are freed only after the queue has been waited for.
        let queued = unsafe { raw::cuMemcpyDtoDAsync_v2(dst, src, len, self.gpu.compute.as_inner()) };
        self.gpu.check("cuMemcpyDtoDAsync", queued)
    }

    fn upload(
        &self,
        src: &Pinned,
        range: Range<usize>,
        dst: &Mem,
        offset: usize,
        after: Option<&Event>,
    ) -> Result<Event> {
        let bytes = src.range("upload's source", range.start, range.end)?;
        let dst = dst.range("upload", offset, bytes.len())?;
        self.gpu.activate()?;
        if let Some(event) = after {
            event.delay(&self.gpu, &self.gpu.copy)?;
        }
        if !bytes.is_empty() {
            // SAFETY: both ranges lie in their buffers, and both buffers wait for the copy queue when they are dropped.
            let queued =
                unsafe { raw::cuMemcpyHtoDAsync_v2(dst, bytes.as_ptr().cast(), bytes.len(), self.gpu.copy.as_inner()) };
            self.gpu.check("cuMemcpyHtoDAsync", queued)?;
        }
        Event::record(&self.gpu, &self.gpu.copy, false)
    }

    fn load<K: Kernel>(&self) -> Result<()> {
        self.gpu.activate()?;
        self.modules.kernel(K::MODULE, K::NAME, 0).map(drop)
    }

    unsafe fn launch<K: Kernel>(&self, grid: Grid, args: K::Args) -> Result<()> {
        self.gpu.activate()?;
        let kernel = self.modules.kernel(K::MODULE, K::NAME, grid.shared)?;
        let mut parameters = [ptr::null_mut::<c_void>(); MAX_PARAMETERS];
        let mut count = 0;
        args.each(&mut |parameter| {
            if let Some(place) = parameters.get_mut(count) {
                *place = parameter.cast_mut();
            }
            count += 1;
        });
        if count > MAX_PARAMETERS {
            let message = format!("it has {count} parameters, and a launch passes at most {MAX_PARAMETERS}");
            return Err(DeviceError::Kernel { kernel: K::NAME, message });
        }
        let ([x, y, z], [tx, ty, tz]) = (grid.blocks, grid.threads);
        // SAFETY: the kernel belongs to a loaded module of this context. `parameters` holds the address of each argument in
        // the order and with the types that the kernel was compiled from, and the driver copies them before it returns.
        // What the kernel does with them is the caller's promise.
        let launched = unsafe {
            let queue = self.gpu.compute.as_inner();
            raw::cuLaunchKernel(
                kernel,
                x,
                y,
                z,
                tx,
                ty,
                tz,
                grid.shared,
                queue,
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        launched.map_err(|code| {
            let message = format!("{x}x{y}x{z} blocks of {tx}x{ty}x{tz} threads cannot start");
            self.gpu.kernel_error("cuLaunchKernel", code, K::NAME, message)
        })?;
        self.gpu.last_kernel.set(Some(K::NAME));
        Ok(())
    }

    fn capture(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>> {
        f().map(|()| None)
    }

    fn replay(&self, graph: &Self::Graph) -> Result<()> {
        match *graph {}
    }

    fn mark(&self) -> Result<Event> {
        self.gpu.activate()?;
        Event::record(&self.gpu, &self.gpu.compute, true)
    }

    fn compute_waits(&self, event: &Event) -> Result<()> {
        self.gpu.activate()?;
        event.delay(&self.gpu, &self.gpu.compute)
    }

    fn host_waits(&self, event: &Event) -> Result<()> {
        self.gpu.activate()?;
        event.wait(&self.gpu)
    }

    fn seconds(&self, from: &Event, to: &Event) -> Result<f64> {
        self.gpu.activate()?;
        let mut milliseconds = 0f32;
        // SAFETY: both events are alive; the driver checks the rest.
        let read = unsafe { raw::cuEventElapsedTime(&mut milliseconds, from.0.raw, to.0.raw) };
        self.gpu.check("cuEventElapsedTime", read)?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

/// A point in one of a driver's queues.
// cust's own event can make a stream wait only by giving the event up, and a point may be waited for more than once.
#[derive(Clone)]
pub struct Event(Rc<RawEvent>);

struct RawEvent {
    gpu: Rc<Gpu>,
    raw: CUevent,
}

impl Event {
    /// The present end of `queue`. With `timed`, it can be given to `seconds`.
    fn record(gpu: &Rc<Gpu>, queue: &Stream, timed: bool) -> Result<Event> {
        let flags = if timed { EventFlags::DEFAULT } else { EventFlags::DISABLE_TIMING };
        let mut raw = ptr::null_mut();
        // SAFETY: the driver writes the handle to a local.
        gpu.check("cuEventCreate", unsafe { raw::cuEventCreate(&mut raw, flags.bits() as c_uint) })?;
        let event = Event(Rc::new(RawEvent { gpu: gpu.clone(), raw }));
        // SAFETY: event and queue are alive.
        gpu.check("cuEventRecord", unsafe { raw::cuEventRecord(raw, queue.as_inner()) })?;
        Ok(event)
    }

    /// Lets `queue` wait for this point.
    fn delay(&self, gpu: &Gpu, queue: &Stream) -> Result<()> {
        // SAFETY: event and queue are alive now; the driver keeps what it needs of the event.
        gpu.check("cuStreamWaitEvent", unsafe { raw::cuStreamWaitEvent(queue.as_inner(), self.0.raw, 0) })
    }

    /// Lets the calling thread wait for this point.
    fn wait(&self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the event is alive.
        gpu.check("cuEventSynchronize", unsafe { raw::cuEventSynchronize(self.0.raw) })
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        let _ = self.gpu.activate();
        // SAFETY: created by `record`, destroyed once; an event still pending is released when it completes.
        let _ = unsafe { raw::cuEventDestroy_v2(self.raw) };
    }
}

#[cfg(test)]
mod tests;
