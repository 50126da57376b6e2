//! Finding and opening a GPU, and what the driver's errors mean.

use std::{cell::Cell, env, ffi::CStr};

use cuda_dlopen::{Code, raw};
use cust::{
    context::{Context, CurrentContext},
    device::Device,
    error::CudaError,
    stream::{Stream, StreamFlags},
    sys::{CUGPUDirectRDMAWritesOrdering, CUcontext, CUdevice_attribute, CUflushGPUDirectRDMAWritesOptions},
};

use super::super::driver::{Capturing, Properties};
use crate::{
    device::{DeviceError, MemoryInfo},
    platform,
};

type Result<T> = std::result::Result<T, DeviceError>;

/// The least driver, as `cuDriverGetVersion` counts: the kernels are PTX 7.4, which came with CUDA 11.4 (PTX ISA, "Release
/// Notes").
const MIN_DRIVER: i32 = 11040;
/// The least compute capability: the kernels are compiled for sm_80.
const MIN_CAPABILITY: (u32, u32) = (8, 0);

/// The oldest driver that takes the variant for compute capability 9.0: it is PTX 8.0, of CUDA 12.0. Older ones get that for 8.0,
/// which runs there too.
const SM_90_DRIVER: i32 = 12000;
/// Where programmatic dependent launch begins (CUDA C++ Programming Guide, "Programmatic Dependent Launch").
const PROGRAMMATIC_CAPABILITY: (u32, u32) = (9, 0);
/// Where clusters begin, in PTX as in GPUs, and how many blocks of one every such GPU can do (same guide, "Thread Block Clusters").
const CLUSTER_CAPABILITY: (u32, u32) = (9, 0);
const CLUSTER: u32 = 8;
/// The least driver that keeps it in graphs: CUDA 12.3 brought their edges a type (release notes; `CUgraphEdgeData`), and
/// a capture gives programmatic ones to the launches that ask for it ("Use in CUDA Graphs", same chapter).
const PROGRAMMATIC_DRIVER: i32 = 12030;

/// An open GPU: its primary context and the two queues. Every handle holds it through an `Rc`, so the context outlives
/// them all; that also keeps them on the thread that opened it.
pub(super) struct Gpu {
    // Dropped in this order: a stream belongs to the context. cust never makes a stream non-blocking, which only matters
    // beside work on the legacy default stream, and nothing here uses that.
    pub compute: Stream,
    pub copy: Stream,
    context: Context,
    /// In the driver's order.
    pub index: usize,
    /// `cuda:0 NVIDIA H200`.
    pub name: String,
    pub properties: Properties,
    /// `0000:3B:00.0`, where the driver says it.
    pub pci_address: Option<String>,
    /// The compute capability that PTX is chosen for: the GPU's, or less where the driver is too old for its variant.
    pub ptx_capability: (u32, u32),
    /// The NUMA node that the GPU is at, where the machine has several.
    pub numa_node: Option<u32>,
    /// Kernels that wait for the one before them themselves may start before its end (programmatic dependent launch).
    pub programmatic: bool,
    /// What it takes to see what other devices have written into its memory.
    pub remote_writes: RemoteWrites,
    /// Passes can be captured, as far as is known.
    pub graphs: Cell<bool>,
    pub capturing: Capturing,
    /// The kernel launched last: a fault in it surfaces at a later call.
    pub last_kernel: Cell<Option<&'static str>>,
}

impl Gpu {
    pub fn open(index: usize) -> Result<Gpu> {
        let count = count()?;
        if index >= count {
            let have = if count == 1 { "cuda:0 is the only one".into() } else { format!("{count} are visible") };
            return Err(unavailable(format!("there is no cuda:{index}, {have}")));
        }
        // `count` came from the driver as an i32, so `index` fits.
        let device = Device::get_device(index as u32).map_err(|e| refused("cuDeviceGet", code(e)))?;
        let model = device.name().map_err(|e| refused("cuDeviceGetName", code(e)))?;
        let name = format!("cuda:{index} {model}");
        let mut properties = properties(&device)?;
        let capability = properties.compute_capability;
        if capability < MIN_CAPABILITY {
            return Err(unavailable(format!(
                "{name} has compute capability {}.{}, and the kernels need {}.{} or newer (Ampere)",
                capability.0, capability.1, MIN_CAPABILITY.0, MIN_CAPABILITY.1
            )));
        }
        let opening = |call, e| unavailable(format!("{name} cannot be opened: {call} failed: {}", code(e)));
        let context = Context::new(device).map_err(|e| opening("cuDevicePrimaryCtxRetain", e))?;
        let stream = || Stream::new(StreamFlags::DEFAULT, None).map_err(|e| opening("cuStreamCreate", e));
        let version = cuda_dlopen::driver_version().map_err(|e| refused("cuDriverGetVersion", e))?;
        let possible = capability >= PROGRAMMATIC_CAPABILITY && version >= PROGRAMMATIC_DRIVER;
        let ptx_capability = if version < SM_90_DRIVER { capability.min((8, 9)) } else { capability };
        if ptx_capability >= CLUSTER_CAPABILITY {
            properties.cluster = CLUSTER;
        }
        Ok(Gpu {
            compute: stream()?,
            copy: stream()?,
            context,
            index,
            name: name.clone(),
            properties,
            numa_node: pci_address(&device).as_deref().and_then(platform::numa_node),
            pci_address: pci_address(&device),
            ptx_capability,
            programmatic: possible && !is_set("NT_NO_PDL"),
            remote_writes: RemoteWrites::of(&device),
            graphs: Cell::new(!is_set("NT_NO_GRAPH")),
            capturing: Capturing::default(),
            last_kernel: Cell::new(None),
        })
    }

    /// Makes this GPU's context the calling thread's, where every driver call works. Another GPU of the same thread may
    /// have set its own; setting takes some 20 ns.
    pub fn activate(&self) -> Result<()> {
        CurrentContext::set_current(&self.context).map_err(|e| self.error("cuCtxSetCurrent", code(e)))
    }

    /// The context once more, to be kept by who may outlive this.
    pub fn keep_context(&self) -> Result<Context> {
        // The driver counts who retains it.
        let again = Device::get_device(self.index as u32).and_then(Context::new);
        again.map_err(|e| self.error("cuDevicePrimaryCtxRetain", code(e)))
    }

    /// The context, for another thread.
    pub fn context(&self) -> SharedContext {
        SharedContext(self.context.as_raw())
    }

    pub fn check(&self, call: &'static str, result: std::result::Result<(), Code>) -> Result<()> {
        result.map_err(|code| self.error(call, code))
    }

    /// Waits until everything in `queue` is done.
    ///
    /// The thread spins, so it goes on as soon as the device is done, which at a thousand tokens a second matters. No flag
    /// says so: it is what the context's default (`CU_CTX_SCHED_AUTO`) does while there are no more contexts than processors,
    /// and beyond that spinning would take the others' time. The primary context's flags are also those of everybody else
    /// in the process who uses it, and so not ours to change.
    pub fn wait(&self, queue: &Stream) -> Result<()> {
        queue.synchronize().map_err(|e| self.error("cuStreamSynchronize", code(e)))
    }

    pub fn memory(&self) -> Result<MemoryInfo> {
        self.activate()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two sizes to locals.
        self.check("cuMemGetInfo", unsafe { raw::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    /// The error of a driver call.
    pub fn error(&self, call: &'static str, code: Code) -> DeviceError {
        self.fault(call, code)
            .unwrap_or_else(|| DeviceError::Driver { call, message: format!("{code} ({})", self.name) })
    }

    /// The error of a driver call made to load or start `kernel`; `message` says what could not be done.
    pub fn kernel_error(&self, call: &'static str, code: Code, kernel: &'static str, message: String) -> DeviceError {
        self.fault(call, code)
            .unwrap_or_else(|| DeviceError::Kernel { kernel, message: format!("{message} on {}: {code}", self.name) })
    }

    /// The error of a driver call if it is a kernel's fault. Kernels run asynchronously, so a fault in one is the result of
    /// whichever call comes next: the message names the kernel rather than that call.
    fn fault(&self, call: &'static str, code: Code) -> Option<DeviceError> {
        let kernel = self.last_kernel.get().filter(|_| is_fault(code))?;
        let message = format!("{code}, in this kernel or in one launched before it (seen by {call} on {})", self.name);
        Some(DeviceError::Kernel { kernel, message })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // The streams are destroyed next, in their own context. There is nobody to tell of a failure.
        let _ = self.activate();
    }
}

/// How a GPU sees what other devices write into its memory past its queues: whatever is launched after such a write is known to have
/// ended, either finds it, or does when the driver has waited for it, or nobody knows (CUDA Driver API,
/// `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING` and `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RemoteWrites {
    Ordered,
    Flushed,
    Unknown,
}

impl RemoteWrites {
    fn of(device: &Device) -> Self {
        use CUdevice_attribute::*;
        let get = |attribute| {
            let mut value = 0;
            // SAFETY: the driver writes one int, to a local one.
            let got = unsafe { raw::cuDeviceGetAttribute(&mut value, attribute, device.as_raw()) };
            // Drivers before CUDA 11.3 do not know these.
            got.map_or(0, |()| value)
        };
        let ordering = get(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING);
        let options = get(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS);
        let host = CUflushGPUDirectRDMAWritesOptions::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST as i32;
        match ordering >= CUGPUDirectRDMAWritesOrdering::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER as i32 {
            true => RemoteWrites::Ordered,
            false if options & host != 0 => RemoteWrites::Flushed,
            false => RemoteWrites::Unknown,
        }
    }
}

/// A GPU's context on its way to another thread, which ends before the [`Gpu`] does.
#[derive(Clone, Copy)]
pub(super) struct SharedContext(CUcontext);

// SAFETY: the driver lets a context be current in any number of threads.
unsafe impl Send for SharedContext {}
// SAFETY: as above.
unsafe impl Sync for SharedContext {}

impl SharedContext {
    /// Makes it the calling thread's.
    pub fn activate(self) -> std::result::Result<(), Code> {
        // SAFETY: the context is alive, as the type's users promise.
        unsafe { raw::cuCtxSetCurrent(self.0) }
    }
}

/// Whether an environment variable is 1.
fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| value == "1")
}

/// Where `device` is attached. For messages: not knowing it is no error.
fn pci_address(device: &Device) -> Option<String> {
    // Domain, bus, device and function in hexadecimal, and the final zero.
    let mut text = [0u8; 32];
    // SAFETY: the driver writes a string of at most this length, its final zero included.
    unsafe { raw::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, device.as_raw()) }.ok()?;
    Some(CStr::from_bytes_until_nul(&text).ok()?.to_str().ok()?.to_owned())
}

/// What `device` has.
fn properties(device: &Device) -> Result<Properties> {
    let get = |attribute| {
        let mut value = 0;
        // SAFETY: the driver writes one int, to a local one.
        unsafe { raw::cuDeviceGetAttribute(&mut value, attribute, device.as_raw()) }
            .map_err(|e| refused("cuDeviceGetAttribute", e))?;
        u32::try_from(value).map_err(|_| unavailable(format!("cuDeviceGetAttribute answers {value} to {attribute:?}")))
    };
    use CUdevice_attribute::*;
    Ok(Properties {
        multiprocessors: get(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block: get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_per_multiprocessor: get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        shared_reserved: get(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK)?,
        compute_capability: (
            get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        l2_bytes: get(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        // Of the kernels' PTX, too, which is chosen later.
        cluster: 1,
    })
}

/// How many GPUs the driver shows, at least one.
pub(super) fn count() -> Result<usize> {
    if let Some(reason) = cuda_dlopen::why_absent() {
        return Err(unavailable(format!("the NVIDIA driver is not installed or not visible ({reason})")));
    }
    let version = cuda_dlopen::driver_version().map_err(|e| refused("cuDriverGetVersion", e))?;
    if version < MIN_DRIVER {
        return Err(unavailable(format!(
            "the NVIDIA driver is too old: it supports CUDA {}, and the kernels (PTX 7.4) need CUDA {} or newer; update \
             the driver",
            Version(version),
            Version(MIN_DRIVER)
        )));
    }
    // SAFETY: cuInit takes no pointers and may be called any number of times.
    match unsafe { raw::cuInit(0) } {
        Err(Code::NO_DEVICE) => return Err(unavailable("the NVIDIA driver sees no GPU".into())),
        result => result.map_err(|e| refused("cuInit", e))?,
    }
    match Device::num_devices().map_err(|e| refused("cuDeviceGetCount", code(e)))? {
        0 => Err(unavailable("the NVIDIA driver sees no GPU".into())),
        count => Ok(count as usize),
    }
}

/// A CUDA version in the driver's way of counting.
struct Version(i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

fn unavailable(why: String) -> DeviceError {
    DeviceError::Unavailable { why }
}

fn refused(call: &str, code: Code) -> DeviceError {
    unavailable(format!("{call} failed: {code}"))
}

/// The driver's code behind an error of cust's, which knows fewer.
fn code(error: CudaError) -> Code {
    match error {
        CudaError::UnknownError => cuda_dlopen::last_error().unwrap_or(Code::UNKNOWN),
        known => Code::new(known as u32).unwrap_or(Code::UNKNOWN),
    }
}

/// Whether the code is a running kernel's fault (CUDA Driver API, `CUresult`): illegal address, timeout, assertion,
/// hardware stack, instruction, alignment, address space, program counter, or launch failure.
fn is_fault(code: Code) -> bool {
    matches!(code.value(), 700 | 702 | 710 | 714..=719)
}
