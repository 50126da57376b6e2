//! What the CUDA device needs of whoever runs its kernels: the real driver (`cust`) or the emulator.

use std::ops::Range;

pub use cuda_std::kernel::Grid;
use cuda_std::kernel::Kernel;

use crate::device::{DeviceError, MemoryInfo};

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
}

/// A driver of one GPU with two queues: kernels, `write` and `read` are ordered on the compute queue; `upload` runs beside
/// them on the copy queue, ordered by events alone.
pub trait Driver: Sized + 'static {
    /// A device allocation, freed when dropped (after everything queued that may use it has finished).
    type Mem: 'static;
    /// Host memory that the copy queue reads asynchronously. Dropping it first waits for the copies out of it.
    type Pinned: AsRef<[u8]> + AsMut<[u8]> + 'static;
    /// A point in one of the queues.
    type Event: Clone + 'static;
    /// Launches that were recorded, to be started together.
    type Graph: 'static;

    /// The device's name for messages, e.g. `cuda:0 NVIDIA H200`.
    fn name(&self) -> &str;
    /// What the GPU has.
    fn properties(&self) -> &Properties;
    /// Free and total device memory.
    fn memory(&self) -> Result<MemoryInfo>;
    /// `bytes` bytes of device memory, 256-byte aligned, content undefined. `what` names them in an out-of-memory error.
    fn alloc(&self, what: &str, bytes: usize) -> Result<Self::Mem>;
    /// The allocation's device address.
    fn address(mem: &Self::Mem) -> u64;
    /// The allocation's length in bytes.
    fn len(mem: &Self::Mem) -> usize;
    /// `bytes` bytes of page-locked host memory, zeroed, page-aligned.
    fn pinned(&self, what: &str, bytes: usize) -> Result<Self::Pinned>;

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

    /// Loads the module that kernel `K` is in, which otherwise happens at its first launch.
    fn load<K: Kernel>(&self) -> Result<()>;

    /// Starts kernel `K` on the compute queue.
    ///
    /// # Safety
    /// `args` must satisfy the kernel's own contract: device addresses inside live allocations, extents as it documents.
    unsafe fn launch<K: Kernel>(&self, grid: Grid, args: K::Args) -> Result<()>;

    /// Records what `f` launches, instead of launching it. None where this driver does not record: then `f` was run. Inside
    /// `f`, nothing else than launching is allowed.
    fn capture(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>>;
    /// Starts the launches of `graph` on the compute queue.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// The present end of the compute queue.
    fn mark(&self) -> Result<Self::Event>;
    /// Lets the compute queue wait for `event`.
    fn compute_waits(&self, event: &Self::Event) -> Result<()>;
    /// Lets the calling thread wait for `event`.
    fn host_waits(&self, event: &Self::Event) -> Result<()>;
    /// Seconds between two points of the compute queue, both reached.
    fn seconds(&self, from: &Self::Event, to: &Self::Event) -> Result<f64>;
}
