//! The driver that runs kernels on the host (`crates/cuda_emu`): the same kernels and the same device code as on a GPU,
//! on machines without one. Slow; for tests. Every call completes before it returns.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    ops::Range,
    ptr::NonNull,
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use cuda_emu::{Allocation, Emulator, MemoryError};
use cuda_std::kernel::Kernel;

use super::beside::{Beside, SharedMem};
use super::driver::{Capturing, Driver, Grid, Launch, Profile, Properties};
use crate::device::{
    DeviceError, HostMemory, MemoryInfo,
    link::{Throttle, not_slowed_down, sleep_until},
};

type Result<T> = std::result::Result<T, DeviceError>;

/// A small GPU, so that tests see a block do the work of many: three multiprocessors, and the shared memory of sm_86.
const SMALL: Properties = Properties {
    multiprocessors: 3,
    shared_per_block: 99 << 10,
    shared_per_multiprocessor: 100 << 10,
    shared_reserved: 1 << 10,
    compute_capability: (8, 0),
    l2_bytes: 4 << 20,
    cluster: 8,
};

/// The memory of an emulated GPU's machine, for tests of what happens when others take some. Clones are the same machine.
#[derive(Clone, Debug)]
pub struct Machine(Rc<Limits>);

#[derive(Debug)]
struct Limits {
    vram: Cell<u64>,
    ram: Cell<u64>,
    locks: Cell<bool>,
}

impl Machine {
    /// A GPU of `vram` bytes, and no limit to RAM but the real one.
    pub fn new(vram: u64) -> Self {
        Machine(Rc::new(Limits { vram: Cell::new(vram), ram: Cell::new(u64::MAX), locks: Cell::new(true) }))
    }

    /// Others have taken all device memory but for `bytes`, which this process has or can have.
    pub fn leave_vram(&self, bytes: u64) {
        self.0.vram.set(bytes);
    }

    /// Others have taken RAM: `bytes` more can be had to be page-locked.
    pub fn leave_ram(&self, bytes: u64) {
        self.0.ram.set(bytes);
    }

    /// How much more RAM can be had to be page-locked. What is given back does not count.
    pub fn ram(&self) -> u64 {
        self.0.ram.get()
    }

    /// No RAM is page-locked any more where one can do without.
    pub fn forbid_locking(&self) {
        self.0.locks.set(false);
    }
}

/// An emulated GPU.
pub struct EmulatorDriver {
    emulator: Arc<Emulator>,
    properties: Properties,
    capturing: Capturing,
    profile: Profile<Instant>,
    link: RefCell<Throttle>,
    link_limit: Cell<Option<f64>>,
    /// None: as much memory as there is.
    machine: Option<Machine>,
}

impl EmulatorDriver {
    /// A small GPU whose threads run in orders drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        EmulatorDriver::with_properties(seed, SMALL)
    }

    /// The same as a GPU that has `properties`; a launch that asks for more shared memory than they say is an error.
    pub fn with_properties(seed: u64, properties: Properties) -> Self {
        let emulator = Emulator::new(seed).with_shared_limit(properties.shared_per_block as usize);
        EmulatorDriver {
            emulator: Arc::new(emulator),
            properties,
            capturing: Capturing::default(),
            profile: Profile::default(),
            link: RefCell::default(),
            link_limit: Cell::new(None),
            machine: None,
        }
    }

    /// The same in `machine`.
    pub fn in_machine(self, machine: Machine) -> Self {
        EmulatorDriver { machine: Some(machine), ..self }
    }
}

fn memory_error(call: &'static str) -> impl Fn(MemoryError) -> DeviceError {
    move |e| DeviceError::Driver { call, message: e.to_string() }
}

impl Driver for EmulatorDriver {
    type Mem = Allocation;
    type Pinned = Vec<u8>;
    type Event = Instant;
    type Graph = Infallible;
    type Beside = EmulatorBeside;

    fn name(&self) -> &str {
        "emulator"
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn is_emulated(&self) -> bool {
        true
    }

    fn memory(&self) -> Result<MemoryInfo> {
        if let Some(Machine(limits)) = &self.machine {
            let total = limits.vram.get();
            return Ok(MemoryInfo { free: total.saturating_sub(self.emulator.allocated()), total });
        }
        crate::platform::memory()
            .map_err(|e| DeviceError::Driver { call: "reading /proc/meminfo", message: e.to_string() })
    }

    /// Nothing is loaded, and nothing is rounded: it is for what is not worth planning, such as the homes of weights.
    fn headroom(&self) -> u64 {
        64 << 10
    }

    fn alloc(&self, what: &str, bytes: usize) -> Result<Allocation> {
        self.capturing.refuse("an allocation")?;
        let free = self.memory()?.free;
        let out_of_memory = || DeviceError::OutOfMemory {
            device: self.name().to_owned(),
            what: what.to_owned(),
            need: bytes as u64,
            free,
            advice: "use a smaller model or context",
        };
        if bytes as u64 > free {
            return Err(out_of_memory());
        }
        self.emulator.alloc(bytes).map_err(|_| out_of_memory())
    }

    fn address(mem: &Allocation) -> u64 {
        mem.address()
    }

    fn len(mem: &Allocation) -> usize {
        mem.len()
    }

    /// All or nothing, as where they are one piece.
    fn pinned_parts(&self, what: &str, bytes: usize, count: usize) -> Result<Vec<Vec<u8>>> {
        let free = self.machine.as_ref().map(|Machine(limits)| limits.ram.get());
        let parts: Result<Vec<_>> = (0..count).map(|_| self.pinned(what, bytes)).collect();
        if let (Err(_), Some(Machine(limits)), Some(free)) = (&parts, &self.machine, free) {
            limits.ram.set(free);
        }
        parts
    }

    fn pinned(&self, what: &str, bytes: usize) -> Result<Vec<u8>> {
        self.capturing.refuse("an allocation")?;
        if let Some(Machine(limits)) = &self.machine {
            let free = limits.ram.get();
            let left = free.checked_sub(bytes as u64).ok_or_else(|| DeviceError::OutOfMemory {
                device: "page-locked host memory".into(),
                what: what.to_owned(),
                need: bytes as u64,
                free,
                advice: "close other programs or use a smaller model",
            })?;
            limits.ram.set(left);
        }
        crate::platform::zeroed(what, bytes)
    }

    /// Kernels read live allocations only, so the bytes become one. That nobody can change them any more makes it the same.
    fn zero_copy(&self, src: Vec<u8>) -> Result<Allocation> {
        let mem = self.alloc("memory that is read over the link", src.len())?;
        self.write(&mem, 0, &src)?;
        Ok(mem)
    }

    fn try_pinned(&self, what: &str, bytes: usize) -> Result<HostMemory<Vec<u8>>> {
        match &self.machine {
            Some(Machine(limits)) if !limits.locks.get() => {
                let why = format!("{} refuses to page-lock {bytes} bytes for {what}", self.name());
                Ok(HostMemory::Pageable { why })
            }
            _ => self.pinned(what, bytes).map(HostMemory::Pinned),
        }
    }

    fn write(&self, dst: &Allocation, offset: usize, bytes: &[u8]) -> Result<()> {
        self.capturing.refuse("a write")?;
        dst.write(offset, bytes).map_err(memory_error("write"))
    }

    fn read(&self, src: &Allocation, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.capturing.refuse("a read")?;
        src.read(offset, bytes).map_err(memory_error("read"))
    }

    fn copy(&self, src: &Allocation, dst: &Allocation, len: usize) -> Result<()> {
        let mut bytes = vec![0; len];
        src.read(0, &mut bytes).map_err(memory_error("copy"))?;
        dst.write(0, &bytes).map_err(memory_error("copy"))
    }

    fn upload(
        &self,
        src: &Vec<u8>,
        range: Range<usize>,
        dst: &Allocation,
        offset: usize,
        _after: Option<&Instant>,
    ) -> Result<Instant> {
        self.capturing.refuse("an upload")?;
        let (Range { start, end }, len, ready) = (range.clone(), src.len(), Instant::now());
        let bytes = src.get(range).ok_or(DeviceError::OutOfRange { what: "upload", start, end, len })?;
        self.write(dst, offset, bytes)?;
        if let Some(limit) = self.link_limit.get() {
            sleep_until(self.link.borrow_mut().copy(ready, bytes.len(), limit));
        }
        self.mark()
    }

    fn beside(&self, _module: &'static str) -> Result<EmulatorBeside> {
        Ok(EmulatorBeside { emulator: self.emulator.clone(), launched: None })
    }

    fn limit_link(&self, bytes_per_second: Option<f64>) {
        self.link_limit.set(bytes_per_second);
    }

    fn open_to_others(&self, _mem: &Allocation) -> Result<()> {
        not_slowed_down(self.link_limit.get())
    }

    fn load_modules(&self, _modules: &[&'static str]) -> Result<()> {
        Ok(())
    }

    unsafe fn launch<K: Kernel>(&self, grid: Grid, args: K::Args) -> Result<()> {
        let started = self.profile.on().then(Instant::now);
        // SAFETY: the caller's promise; this driver is used from one thread, and every call waits for its end.
        let result = unsafe { self.emulator.launch::<K>(grid, args) };
        result.map_err(|e| DeviceError::Kernel { kernel: K::NAME, message: e.to_string() })?;
        if let Some(started) = started {
            self.profile.add(K::NAME, started, Instant::now());
        }
        Ok(())
    }

    fn capture(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<Option<Infallible>> {
        self.capturing.refuse("a capture")?;
        self.capturing.during(f).map(|()| None)
    }

    unsafe fn replay(&self, graph: &Infallible) -> Result<()> {
        match *graph {}
    }

    fn profile(&self, on: bool) {
        self.profile.set(on);
    }

    fn label(&self, what: &str, bytes: u64) {
        self.profile.label(what, bytes);
    }

    fn take_profile(&self) -> Result<Vec<Launch>> {
        self.capturing.refuse("a profile")?;
        self.profile.take(|from, to| self.seconds(from, to))
    }

    fn mark(&self) -> Result<Instant> {
        self.capturing.refuse("a mark")?;
        Ok(Instant::now())
    }

    fn mark_copies(&self) -> Result<Instant> {
        self.mark()
    }

    fn compute_waits(&self, _event: &Instant) -> Result<()> {
        self.capturing.refuse("a wait")
    }

    fn host_waits(&self, _event: &Instant) -> Result<()> {
        self.capturing.refuse("a wait")
    }

    fn reached(&self, _event: &Instant) -> Result<bool> {
        Ok(true)
    }

    fn seconds(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.duration_since(*from).as_secs_f64() - from.duration_since(*to).as_secs_f64())
    }
}

/// Bytes of a page.
const PAGE: usize = 4096;

/// A queue of an emulated GPU beside its others: a thread for each launch.
pub struct EmulatorBeside {
    emulator: Arc<Emulator>,
    launched: Option<JoinHandle<Result<()>>>,
}

impl EmulatorBeside {
    /// Waits for the kernel under way.
    fn join(&mut self) -> Result<()> {
        match self.launched.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Beside for EmulatorBeside {
    fn name(&self) -> &str {
        "emulator"
    }

    fn shared(&self, what: &str, bytes: usize) -> Result<SharedMem> {
        // Kernels reach live allocations only, which begin anywhere in a page.
        let len = bytes.max(1).next_multiple_of(PAGE);
        let memory = self
            .emulator
            .alloc(len + PAGE)
            .map_err(|error| DeviceError::Driver { call: "an allocation", message: format!("{what}: {error}") })?;
        memory.write(0, &vec![0; len + PAGE]).map_err(memory_error("write"))?;
        let address = memory.address().next_multiple_of(PAGE as u64);
        let ptr = NonNull::new(std::ptr::with_exposed_provenance_mut(address as usize)).expect("memory has an address");
        // SAFETY: inside the allocation, which its owner keeps and nobody else reaches.
        Ok(unsafe { SharedMem::new(ptr, len, address, Arc::new(memory)) })
    }

    unsafe fn launch<K: Kernel>(&mut self, grid: Grid, args: K::Args) -> Result<()>
    where
        K::Args: 'static,
    {
        struct Bits<T>(T);
        // SAFETY: kernel arguments are plain bits (`cuda_std::kernel::Param`).
        unsafe impl<T> Send for Bits<T> {}
        self.join()?;
        let (emulator, args) = (self.emulator.clone(), Bits(args));
        let run = move || {
            let Bits(args) = { args };
            // SAFETY: the caller's promise.
            unsafe { emulator.launch::<K>(grid, args) }
                .map_err(|e| DeviceError::Kernel { kernel: K::NAME, message: e.to_string() })
        };
        let started = thread::Builder::new().name(K::NAME.into()).spawn(run);
        let no_thread = |e| DeviceError::Kernel { kernel: K::NAME, message: format!("no thread to run it: {e}") };
        self.launched = Some(started.map_err(no_thread)?);
        Ok(())
    }

    fn is_idle(&mut self) -> Result<bool> {
        match &self.launched {
            Some(launched) if !launched.is_finished() => Ok(false),
            _ => self.join().map(|()| true),
        }
    }
}

impl Drop for EmulatorBeside {
    fn drop(&mut self) {
        let _ = self.launched.take().map(JoinHandle::join);
    }
}
