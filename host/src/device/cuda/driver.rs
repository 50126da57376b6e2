//! What the CUDA device needs of whoever runs its kernels: the real driver (`cust`) or the emulator.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    os::fd::OwnedFd,
};

pub use cuda_std::kernel::Grid;
use cuda_std::kernel::Kernel;
use gpu::gemv::{Room, Share};

use super::beside::Beside;
use crate::device::{DeviceError, HostMemory, MemoryInfo};

type Result<T> = std::result::Result<T, DeviceError>;

/// What a GPU has, for choosing the shapes of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block can have, static and dynamic.
    pub shared_per_block: u32,
    /// Bytes of shared memory of a multiprocessor, which its resident blocks share.
    pub shared_per_multiprocessor: u32,
    /// Bytes of a multiprocessor's shared memory that each block takes beside its own.
    pub shared_reserved: u32,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
    /// Bytes of L2 cache.
    pub l2_bytes: u32,
    /// Blocks of a cluster at most; 1 where there are no clusters.
    pub cluster: u32,
}

/// A launch that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// [`Kernel::NAME`].
    pub kernel: &'static str,
    /// What [`Driver::label`] said last.
    pub label: String,
    /// The bytes of weights that the label gave this launch.
    pub bytes: u64,
    /// From the moment at which the queue reached the launch to the end of the kernel.
    pub seconds: f64,
}

impl Properties {
    /// What the launch of a product must know.
    pub fn room(&self, share: Share) -> Room {
        Room {
            multiprocessors: self.multiprocessors,
            block: self.shared_per_block,
            multiprocessor: self.shared_per_multiprocessor,
            reserved: self.shared_reserved,
            cluster: self.cluster,
            share,
        }
    }
}

/// A driver of one GPU with two queues: kernels, `write` and `read` are ordered on the compute queue; `upload` runs beside
/// them on the copy queue, ordered by events alone.
pub trait Driver: Sized + 'static {
    /// A device allocation, or host memory that kernels read ([`Driver::zero_copy`]); freed when dropped (after everything queued that
    /// may use it has finished).
    type Mem: 'static;
    /// Host memory that the copy queue reads asynchronously. Dropping it first waits for the copies out of it.
    type Pinned: AsRef<[u8]> + AsMut<[u8]> + 'static;
    /// A point in one of the queues.
    type Event: Clone + 'static;
    /// What [`Driver::capture`] recorded.
    type Graph: 'static;
    /// A queue for kernels beside all others.
    type Beside: Beside;

    /// The device's name for messages, e.g. `cuda:0 NVIDIA H200`.
    fn name(&self) -> &str;
    /// What the GPU has.
    fn properties(&self) -> &Properties;
    /// The GPU's number.
    fn index(&self) -> usize {
        0
    }
    /// Where it is attached, as `cuDeviceGetPCIBusId` writes it.
    fn pci_address(&self) -> Option<String> {
        None
    }
    /// There is no GPU: times say nothing about one.
    fn is_emulated(&self) -> bool {
        false
    }
    /// Free and total device memory.
    fn memory(&self) -> Result<MemoryInfo>;
    /// As [`crate::device::Transfer::headroom`].
    fn headroom(&self) -> u64 {
        256 << 20
    }
    /// `bytes` bytes of device memory, 256-byte aligned, content undefined. `what` names them in an out-of-memory error.
    fn alloc(&self, what: &str, bytes: usize) -> Result<Self::Mem>;
    /// The allocation's device address.
    fn address(mem: &Self::Mem) -> u64;
    /// The allocation's length in bytes.
    fn len(mem: &Self::Mem) -> usize;
    /// `bytes` bytes of page-locked host memory, zeroed, page-aligned.
    fn pinned(&self, what: &str, bytes: usize) -> Result<Self::Pinned>;
    /// As [`crate::device::Transfer::try_pinned`].
    fn try_pinned(&self, what: &str, bytes: usize) -> Result<HostMemory<Self::Pinned>> {
        self.pinned(what, bytes).map(HostMemory::Pinned)
    }
    /// As [`crate::device::Transfer::pinned_parts`].
    fn pinned_parts(&self, what: &str, bytes: usize, count: usize) -> Result<Vec<Self::Pinned>> {
        (0..count).map(|_| self.pinned(what, bytes)).collect()
    }
    /// As [`crate::device::Transfer::locks_pages`].
    fn locks_pages(&self) -> bool {
        false
    }
    /// `src` as memory that kernels read over the link, where it is: it has a device address, and takes no device memory.
    fn zero_copy(&self, src: Self::Pinned) -> Result<Self::Mem>;

    /// Copies `bytes` to `dst[offset..]`, in the compute queue's order. `bytes` may be reused on return.
    fn write(&self, dst: &Self::Mem, offset: usize, bytes: &[u8]) -> Result<()>;
    /// Waits for the compute queue and copies `src[offset..]` into `bytes`.
    fn read(&self, src: &Self::Mem, offset: usize, bytes: &mut [u8]) -> Result<()>;
    /// Copies `len` bytes of `src` to `dst` on the device, in the compute queue's order. The yardstick of the benchmarks.
    fn copy(&self, src: &Self::Mem, dst: &Self::Mem, len: usize) -> Result<()>;
    /// Starts copying `src[range]` to `dst[offset..]` on the copy queue, after `after`. The event is the copy's end.
    fn upload(
        &self,
        src: &Self::Pinned,
        range: Range<usize>,
        dst: &Self::Mem,
        offset: usize,
        after: Option<&Self::Event>,
    ) -> Result<Self::Event>;
    /// A queue beside those of this driver, for `module`'s kernels. It may outlive the driver.
    fn beside(&self, module: &'static str) -> Result<Self::Beside>;
    /// As [`crate::device::Transfer::limit_link`].
    fn limit_link(&self, bytes_per_second: Option<f64>);

    /// Makes an allocation one that other devices write, and see, past this driver's queues.
    fn open_to_others(&self, _mem: &Self::Mem) -> Result<()> {
        Ok(())
    }
    /// A dma-buf of an allocation, for who may write it from elsewhere.
    fn dma_buf(&self, _mem: &Self::Mem) -> Result<OwnedFd> {
        Err(DeviceError::Unsupported(format!("{} has no dma-bufs", self.name())))
    }
    /// As [`crate::device::Transfer::acquire`].
    fn acquire(&self) -> Result<()> {
        Ok(())
    }

    /// Loads modules ([`Kernel::MODULE`]), all at once; otherwise, each is loaded when a kernel in it is first launched.
    fn load_modules(&self, modules: &[&'static str]) -> Result<()>;

    /// Starts kernel `K` on the compute queue.
    ///
    /// # Safety
    /// `args` must satisfy the kernel's own contract: device addresses inside live allocations, extents as it documents.
    unsafe fn launch<K: Kernel>(&self, grid: Grid, args: K::Args) -> Result<()>;

    /// Records what `f` launches and copies on the device, which is then not executed but repeated by each [`Driver::replay`];
    /// or, where the driver cannot record or a profile is on, just runs `f` and returns none. Where recording fails, `f` is
    /// called a second time, to run.
    ///
    /// In `f`, everything that a replay would not repeat is [`DeviceError::Captured`]: to allocate, to move bytes between host
    /// and device, to mark, and to wait; in a driver that cannot record, too. An error of `f` is returned, and the recording
    /// discarded.
    fn capture(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>>;
    /// Starts what `graph` recorded, on the compute queue.
    ///
    /// # Safety
    /// This driver recorded `graph`, and what its launches were promised when they were recorded holds now: the same
    /// allocations are alive, and what they hold is in range.
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Kernels that say when the next one may start are followed by it before their end (programmatic dependent launch).
    fn dependent_launch(&self) -> bool {
        false
    }

    /// Starts or ends the measuring of launches. A profile makes kernels wait for each other, and is not for measuring a pass.
    fn profile(&self, on: bool);
    /// Says what is launched from now on, until the next label; the next launch reads `bytes` bytes of weights. Without a profile
    /// this does nothing.
    fn label(&self, what: &str, bytes: u64);
    /// The launches that were measured since this was last called, in their order. Waits for the compute queue.
    fn take_profile(&self) -> Result<Vec<Launch>>;

    /// The present end of the compute queue.
    fn mark(&self) -> Result<Self::Event>;
    /// The present end of the copy queue.
    fn mark_copies(&self) -> Result<Self::Event>;
    /// Lets the compute queue wait for `event`.
    fn compute_waits(&self, event: &Self::Event) -> Result<()>;
    /// Lets the calling thread wait for `event`.
    fn host_waits(&self, event: &Self::Event) -> Result<()>;
    /// Whether `event` has passed.
    fn reached(&self, event: &Self::Event) -> Result<bool>;
    /// Seconds from `from` to `to`, of any queues, both reached.
    fn seconds(&self, from: &Self::Event, to: &Self::Event) -> Result<f64>;
}

/// Whether a capture is under way, and with it what is refused.
#[derive(Default)]
pub(super) struct Capturing(Cell<bool>);

impl Capturing {
    /// Runs `f` as the body of a capture.
    pub fn during(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        struct End<'a>(&'a Cell<bool>);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.set(false);
            }
        }
        self.0.set(true);
        let _end = End(&self.0);
        f()
    }

    /// An error if a capture is under way; `what` begins its message.
    pub fn refuse(&self, what: &'static str) -> Result<()> {
        if self.0.get() { Err(DeviceError::Captured(what)) } else { Ok(()) }
    }
}

/// A profile in the making: launches between two events each.
pub(super) struct Profile<E> {
    on: Cell<bool>,
    label: RefCell<String>,
    bytes: Cell<u64>,
    launches: RefCell<Vec<Measured<E>>>,
}

/// A launch and the events around it.
pub(super) struct Measured<E> {
    launch: Launch,
    from: E,
    to: E,
}

impl<E> Default for Profile<E> {
    fn default() -> Self {
        Profile { on: Cell::new(false), label: RefCell::default(), bytes: Cell::new(0), launches: RefCell::default() }
    }
}

impl<E> Profile<E> {
    pub fn on(&self) -> bool {
        self.on.get()
    }

    /// Starts or ends it. What was measured before stays until it is taken.
    pub fn set(&self, on: bool) {
        self.on.set(on);
        self.label.borrow_mut().clear();
        self.bytes.set(0);
    }

    pub fn label(&self, what: &str, bytes: u64) {
        if self.on() {
            let mut label = self.label.borrow_mut();
            label.clear();
            label.push_str(what);
            self.bytes.set(bytes);
        }
    }

    /// Adds a launch of `kernel`.
    pub fn add(&self, kernel: &'static str, from: E, to: E) {
        let launch = Launch { kernel, label: self.label.borrow().clone(), bytes: self.bytes.take(), seconds: 0.0 };
        self.launches.borrow_mut().push(Measured { launch, from, to });
    }

    /// What was measured, with the seconds that `time` finds between two events.
    pub fn take(&self, time: impl Fn(&E, &E) -> Result<f64>) -> Result<Vec<Launch>> {
        let measured = self.launches.take();
        let timed = |Measured { launch, from, to }| Ok(Launch { seconds: time(&from, &to)?, ..launch });
        measured.into_iter().map(timed).collect()
    }
}
