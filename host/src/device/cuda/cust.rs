//! The real driver: NVIDIA's, through `cust` and, for what cust lacks, `cuda_dlopen`. Nothing else imports either.
//!
//! A `CustDriver` and its handles stay on the thread that opened it (they are not `Send`), and each call first makes the
//! GPU's context the thread's current one, so several GPUs can be open at once.

mod beside;
mod event;
mod gpu;
mod graph;
mod locked;
mod memory;
mod modules;
mod pinned;
mod throttle;

use std::{
    cell::{Cell, OnceCell},
    ffi::{c_int, c_void},
    ops::Range,
    os::fd::{FromRawFd, OwnedFd},
    ptr,
    rc::Rc,
};

use cuda_dlopen::{Code, DMA_BUF_FD, LaunchAttribute, LaunchConfig, raw};
use cuda_std::kernel::{Args, Kernel};
use cust::sys::{CUflushGPUDirectRDMAWritesScope, CUflushGPUDirectRDMAWritesTarget, CUpointer_attribute};

pub use self::{beside::CustBeside, event::Event, graph::Graph, memory::Mem, pinned::Pinned};
use self::{
    event::Timers,
    gpu::{Gpu, RemoteWrites},
    graph::Failed,
    memory::{Landing, Staging},
    modules::{Entry, Modules, Source},
    throttle::SlowLink,
};
use super::driver::{Driver, Grid, Launch, Profile, Properties};
use crate::{
    device::{DeviceError, HostMemory, MemoryInfo, link::not_slowed_down},
    ptx,
};

type Result<T> = std::result::Result<T, DeviceError>;

/// The most parameters of a kernel: as many as `cuda_std::kernel::Args` is implemented for.
const MAX_PARAMETERS: usize = 16;

/// One GPU, driven by NVIDIA's driver.
pub struct CustDriver {
    modules: Rc<Modules>,
    staging: OnceCell<Staging>,
    landing: OnceCell<Landing>,
    profile: Profile<Event>,
    timers: Timers,
    slow_link: SlowLink,
    link_limit: Cell<Option<f64>>,
    announce: fn(&str),
    gpu: Rc<Gpu>,
}

impl CustDriver {
    /// Opens the GPU `index` (in the driver's order, after `CUDA_VISIBLE_DEVICES`). `announce` is told when compiling the
    /// kernels takes long, and when passes cannot be captured.
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
        Ok(CustDriver {
            modules: Rc::new(Modules::new(gpu.clone(), source, announce)),
            staging: OnceCell::new(),
            landing: OnceCell::new(),
            profile: Profile::default(),
            timers: Timers::default(),
            slow_link: SlowLink::default(),
            link_limit: Cell::new(None),
            announce,
            gpu,
        })
    }

    /// The staging buffers, page-locked at the first write (some 10 ms).
    fn staging(&self) -> Result<&Staging> {
        made(&self.staging, || Staging::new(&self.gpu))
    }

    /// Where small reads arrive, page-locked at the first.
    fn landing(&self) -> Result<&Landing> {
        made(&self.landing, || Landing::new(&self.gpu))
    }

    /// Puts a launch into the compute queue.
    ///
    /// # Safety
    /// `parameters` are the addresses of as many arguments as the kernel has parameters, of their types; and the kernel's own
    /// contract.
    unsafe fn start(
        &self,
        kernel: Entry,
        grid: Grid,
        parameters: &mut [*mut c_void],
    ) -> std::result::Result<(), (&'static str, Code)> {
        let (queue, none) = (self.gpu.compute.as_inner(), ptr::null_mut());
        let programmatic =
            (kernel.programmatic && !self.profile.on()).then_some(LaunchAttribute::PROGRAMMATIC_STREAM_SERIALIZATION);
        let cluster = (grid.cluster != [1; 3]).then_some(LaunchAttribute::cluster_dimension(grid.cluster));
        let mut attributes: Vec<_> = [programmatic, cluster].into_iter().flatten().collect();
        if !attributes.is_empty() {
            let config = LaunchConfig {
                blocks: grid.blocks,
                threads: grid.threads,
                shared_bytes: grid.shared,
                stream: queue,
                attributes: attributes.as_mut_ptr(),
                attribute_count: attributes.len() as u32,
            };
            // SAFETY: the kernel belongs to a loaded module of this context; with the first attribute, it waits by itself for what came
            // before. The driver copies configuration and arguments before it returns.
            let launched = unsafe { raw::cuLaunchKernelEx(&config, kernel.function, parameters.as_mut_ptr(), none) };
            return launched.map_err(|code| ("cuLaunchKernelEx", code));
        }
        let ([x, y, z], [tx, ty, tz]) = (grid.blocks, grid.threads);
        let (function, parameters) = (kernel.function, parameters.as_mut_ptr());
        // SAFETY: as above, and the queue's order makes it wait.
        unsafe { raw::cuLaunchKernel(function, x, y, z, tx, ty, tz, grid.shared, queue, parameters, none) }
            .map_err(|code| ("cuLaunchKernel", code))
    }
}

/// What is in `cell`, after making it if nothing is.
fn made<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = make()?;
            Ok(cell.get_or_init(|| value))
        }
    }
}

impl Driver for CustDriver {
    type Mem = Mem;
    type Pinned = Pinned;
    type Event = Event;
    type Graph = Graph;
    type Beside = CustBeside;

    fn name(&self) -> &str {
        &self.gpu.name
    }

    fn properties(&self) -> &Properties {
        &self.gpu.properties
    }

    fn index(&self) -> usize {
        self.gpu.index
    }

    fn pci_address(&self) -> Option<String> {
        self.gpu.pci_address.clone()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.gpu.memory()
    }

    fn alloc(&self, what: &str, bytes: usize) -> Result<Mem> {
        self.gpu.capturing.refuse("an allocation")?;
        Mem::new(&self.gpu, what, bytes)
    }

    fn address(mem: &Mem) -> u64 {
        mem.address
    }

    fn len(mem: &Mem) -> usize {
        mem.len
    }

    fn pinned(&self, what: &str, bytes: usize) -> Result<Pinned> {
        self.gpu.capturing.refuse("an allocation")?;
        Pinned::new(&self.gpu, what, bytes)
    }

    fn pinned_parts(&self, what: &str, bytes: usize, count: usize) -> Result<Vec<Pinned>> {
        self.gpu.capturing.refuse("an allocation")?;
        if count == 0 { Ok(Vec::new()) } else { Pinned::parts(&self.gpu, what, bytes, count) }
    }

    fn try_pinned(&self, what: &str, bytes: usize) -> Result<HostMemory<Pinned>> {
        self.gpu.capturing.refuse("an allocation")?;
        Pinned::lock(&self.gpu, what, bytes)
    }

    /// Memory that is registered with the driver is pinned by it, as for any device that it maps the memory for.
    fn locks_pages(&self) -> bool {
        true
    }

    fn zero_copy(&self, src: Pinned) -> Result<Mem> {
        self.gpu.capturing.refuse("an allocation")?;
        Mem::zero_copy(src)
    }

    fn write(&self, dst: &Mem, offset: usize, bytes: &[u8]) -> Result<()> {
        self.gpu.capturing.refuse("a write")?;
        let dst = dst.range("write", offset, bytes.len())?;
        self.gpu.activate()?;
        self.staging()?.write(&self.gpu, dst, bytes)
    }

    fn read(&self, src: &Mem, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.gpu.capturing.refuse("a read")?;
        let src = src.range("read", offset, bytes.len())?;
        self.gpu.activate()?;
        if (1..=memory::LANDING).contains(&bytes.len()) {
            return self.landing()?.read(&self.gpu, src, bytes);
        }
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
        self.gpu.capturing.refuse("an upload")?;
        let bytes = src.range("upload's source", range.start, range.end)?;
        let dst = dst.range("upload", offset, bytes.len())?;
        self.gpu.activate()?;
        if let Some(event) = after {
            event.delay(&self.gpu, &self.gpu.copy)?;
        }
        if !bytes.is_empty() {
            let copy = || {
                let (from, queue) = (bytes.as_ptr().cast(), self.gpu.copy.as_inner());
                // SAFETY: both ranges lie in their buffers, and both buffers wait for the copy queue when they are dropped.
                let queued = unsafe { raw::cuMemcpyHtoDAsync_v2(dst, from, bytes.len(), queue) };
                self.gpu.check("cuMemcpyHtoDAsync", queued)
            };
            match self.link_limit.get() {
                None => copy()?,
                Some(limit) => self.slow_link.around(&self.gpu, &self.gpu.copy, bytes.len(), limit, copy)?,
            }
        }
        Event::record(&self.gpu, &self.gpu.copy, true)
    }

    fn beside(&self, module: &'static str) -> Result<CustBeside> {
        self.gpu.capturing.refuse("an allocation")?;
        CustBeside::new(&self.gpu, module, self.modules.ptx(module, None)?)
    }

    fn limit_link(&self, bytes_per_second: Option<f64>) {
        self.link_limit.set(bytes_per_second);
    }

    fn open_to_others(&self, mem: &Mem) -> Result<()> {
        not_slowed_down(self.link_limit.get())?;
        if self.gpu.remote_writes == RemoteWrites::Unknown {
            return Err(DeviceError::Unsupported(format!(
                "{} neither orders other devices' writes nor waits for them (its driver may be older than CUDA 11.3)",
                self.gpu.name
            )));
        }
        self.gpu.activate()?;
        let (on, attribute) = (1u32, CUpointer_attribute::CU_POINTER_ATTRIBUTE_SYNC_MEMOPS);
        // What calls have copied on return is then seen from elsewhere, too (GPUDirect RDMA, "Synchronization and Memory Ordering").
        // SAFETY: the allocation is alive; of this attribute, the value is an unsigned int, which the driver reads.
        let set = unsafe { raw::cuPointerSetAttribute(ptr::from_ref(&on).cast(), attribute, mem.address) };
        self.gpu.check("cuPointerSetAttribute", set)
    }

    fn dma_buf(&self, mem: &Mem) -> Result<OwnedFd> {
        self.gpu.activate()?;
        let mut fd: c_int = -1;
        let handle = ptr::from_mut(&mut fd).cast();
        // SAFETY: the allocation is alive; of this type, the handle is an int, which the driver writes to a local one.
        let got = unsafe { raw::cuMemGetHandleForAddressRange(handle, mem.address, mem.len, DMA_BUF_FD, 0) };
        self.gpu.check("cuMemGetHandleForAddressRange", got)?;
        // SAFETY: a new descriptor that is nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn acquire(&self) -> Result<()> {
        if self.gpu.remote_writes == RemoteWrites::Ordered {
            return Ok(());
        }
        self.gpu.activate()?;
        let target = CUflushGPUDirectRDMAWritesTarget::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX;
        let scope = CUflushGPUDirectRDMAWritesScope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER;
        // SAFETY: it takes no pointers.
        let flushed = unsafe { raw::cuFlushGPUDirectRDMAWrites(target, scope) };
        self.gpu.check("cuFlushGPUDirectRDMAWrites", flushed)
    }

    fn load_modules(&self, modules: &[&'static str]) -> Result<()> {
        self.gpu.activate()?;
        self.modules.load(modules, None)
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
        let timer = || self.timers.record(&self.gpu, &self.gpu.compute);
        let from = if self.profile.on() { Some(timer()?) } else { None };
        // SAFETY: `parameters` holds the address of each argument in the order and with the types that the kernel was compiled
        // from. What the kernel does with them is the caller's promise.
        unsafe { self.start(kernel, grid, &mut parameters) }.map_err(|(call, code)| {
            let ([x, y, z], [tx, ty, tz]) = (grid.blocks, grid.threads);
            let message = format!("{x}x{y}x{z} blocks of {tx}x{ty}x{tz} threads cannot start");
            self.gpu.kernel_error(call, code, K::NAME, message)
        })?;
        if let Some(from) = from {
            self.profile.add(K::NAME, from, timer()?);
        }
        self.gpu.last_kernel.set(Some(K::NAME));
        Ok(())
    }

    fn capture(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        self.gpu.capturing.refuse("a capture")?;
        if !self.profile.on() && self.gpu.graphs.get() {
            self.gpu.activate()?;
            match Graph::capture(&self.gpu, &self.modules, f) {
                Ok(graph) => return Ok(Some(graph)),
                Err(Failed::Body(error)) => return Err(error),
                Err(Failed::Recording(error)) => {
                    self.gpu.graphs.set(false);
                    (self.announce)(&format!(
                        "warning: passes cannot be captured as CUDA graphs: {error}; each kernel is launched by itself from now on, \
                         which is slower (NT_NO_GRAPH=1 does so from the start)"
                    ));
                }
            }
        }
        self.gpu.capturing.during(f).map(|()| None)
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.gpu.capturing.refuse("a replay")?;
        self.gpu.activate()?;
        // SAFETY: the caller's promise.
        unsafe { graph.replay(&self.gpu) }
    }

    fn dependent_launch(&self) -> bool {
        self.gpu.programmatic
    }

    fn profile(&self, on: bool) {
        self.profile.set(on);
    }

    fn label(&self, what: &str, bytes: u64) {
        self.profile.label(what, bytes);
    }

    fn take_profile(&self) -> Result<Vec<Launch>> {
        self.gpu.capturing.refuse("a profile")?;
        self.gpu.activate()?;
        self.gpu.wait(&self.gpu.compute)?;
        self.profile.take(Event::seconds_to)
    }

    fn mark(&self) -> Result<Event> {
        self.gpu.capturing.refuse("a mark")?;
        self.gpu.activate()?;
        Event::record(&self.gpu, &self.gpu.compute, true)
    }

    fn mark_copies(&self) -> Result<Event> {
        self.gpu.capturing.refuse("a mark")?;
        self.gpu.activate()?;
        Event::record(&self.gpu, &self.gpu.copy, true)
    }

    fn compute_waits(&self, event: &Event) -> Result<()> {
        self.gpu.capturing.refuse("a wait")?;
        self.gpu.activate()?;
        event.delay(&self.gpu, &self.gpu.compute)
    }

    fn host_waits(&self, event: &Event) -> Result<()> {
        self.gpu.capturing.refuse("a wait")?;
        self.gpu.activate()?;
        event.wait(&self.gpu)
    }

    fn reached(&self, event: &Event) -> Result<bool> {
        self.gpu.activate()?;
        event.reached(&self.gpu)
    }

    fn seconds(&self, from: &Event, to: &Event) -> Result<f64> {
        self.gpu.activate()?;
        from.seconds_to(to)
    }
}

#[cfg(test)]
mod tests;
