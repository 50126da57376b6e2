//! A stream of its own, with its own module, which any thread may use.

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    ptr,
    sync::Arc,
};

use cuda_dlopen::{Code, raw};
use cuda_std::kernel::{Args, Kernel};
use cust::{
    context::Context,
    sys::{
        CUevent, CUevent_flags_enum::CU_EVENT_DISABLE_TIMING, CUfunction, CUmodule, CUstream,
        CUstream_flags_enum::CU_STREAM_NON_BLOCKING,
    },
};

use super::{MAX_PARAMETERS, gpu::Gpu, locked::Locked, modules};
use crate::device::{
    DeviceError,
    cuda::{
        beside::{Beside, SharedMem},
        driver::Grid,
    },
};

type Result<T> = std::result::Result<T, DeviceError>;

/// The primary context, kept for who may be on another thread and outlive the [`Gpu`].
struct Kept {
    context: Context,
    name: String,
    numa_node: Option<u32>,
}

impl Kept {
    /// Makes the context the calling thread's.
    fn activate(&self) -> Result<()> {
        // SAFETY: the context is alive.
        self.check("cuCtxSetCurrent", unsafe { raw::cuCtxSetCurrent(self.context.as_raw()) })
    }

    fn check<T>(&self, call: &'static str, result: std::result::Result<T, Code>) -> Result<T> {
        result.map_err(|code| DeviceError::Driver { call, message: format!("{code} ({})", self.name) })
    }
}

/// A stream of the highest priority, and the kernels of one module.
pub struct CustBeside {
    stream: CUstream,
    /// Behind the launch that was last.
    end: CUevent,
    module: CUmodule,
    functions: HashMap<&'static str, CUfunction>,
    /// The kernel that was launched last.
    last: &'static str,
    kept: Arc<Kept>,
}

// SAFETY: handles of the driver's, which lets any thread use them whose current context is theirs; each method makes it so.
unsafe impl Send for CustBeside {}

impl CustBeside {
    pub(super) fn new(gpu: &Gpu, module: &'static str, ptx: &str) -> Result<CustBeside> {
        gpu.activate()?;
        let context = gpu.keep_context()?;
        let kept = Arc::new(Kept { context, name: gpu.name.clone(), numa_node: gpu.numa_node });
        let mut beside = CustBeside {
            stream: ptr::null_mut(),
            end: ptr::null_mut(),
            module: ptr::null_mut(),
            functions: HashMap::new(),
            last: module,
            kept: kept.clone(),
        };
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: throughout, the driver writes handles and numbers to places of ours.
        unsafe {
            kept.check("cuCtxGetStreamPriorityRange", raw::cuCtxGetStreamPriorityRange(&mut least, &mut greatest))?;
            let stream = raw::cuStreamCreateWithPriority(&mut beside.stream, CU_STREAM_NON_BLOCKING as u32, greatest);
            kept.check("cuStreamCreateWithPriority", stream)?;
            kept.check("cuEventCreate", raw::cuEventCreate(&mut beside.end, CU_EVENT_DISABLE_TIMING as u32))?;
        }
        beside.module = modules::compile_module(ptx).map_err(|(code, log)| {
            let message = format!("the driver refused the kernel module {module}{log}");
            gpu.kernel_error("cuModuleLoadDataEx", code, module, message)
        })?;
        Ok(beside)
    }

    fn function(&mut self, name: &'static str) -> Result<CUfunction> {
        if let Some(&function) = self.functions.get(name) {
            return Ok(function);
        }
        let entry = CString::new(name).expect("the name of a Rust function, which has no NUL");
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name a C string, the result a local.
        self.kept.check("cuModuleGetFunction", unsafe {
            raw::cuModuleGetFunction(&mut function, self.module, entry.as_ptr())
        })?;
        // As other kernels: two that want shared memory split differently cannot run on a multiprocessor at once.
        // SAFETY: the function's module is loaded.
        self.kept.check("cuFuncSetAttribute", unsafe { modules::prefer_shared(function) })?;
        self.functions.insert(name, function);
        Ok(function)
    }

    /// The error of a call that is a kernel's fault or the call's own.
    fn kernel_check(&self, call: &'static str, result: std::result::Result<(), Code>) -> Result<()> {
        let message = |code| format!("{code} (seen by {call} on {})", self.kept.name);
        result.map_err(|code| DeviceError::Kernel { kernel: self.last, message: message(code) })
    }
}

impl Beside for CustBeside {
    fn name(&self) -> &str {
        &self.kept.name
    }

    fn shared(&self, what: &str, bytes: usize) -> Result<SharedMem> {
        self.kept.activate()?;
        let len = bytes.max(1).next_multiple_of(4096);
        let memory = Locked::new(what, len, self.kept.numa_node)?;
        let memory = self.kept.check("cuMemHostRegister", memory)?;
        let (mut address, ptr) = (0, memory.base());
        let shared = Arc::new(Shared { _memory: memory, kept: self.kept.clone() });
        // SAFETY: the driver writes the address to a local; the mapping was registered with DEVICEMAP.
        let found = unsafe { raw::cuMemHostGetDevicePointer_v2(&mut address, ptr.as_ptr().cast(), 0) };
        self.kept.check("cuMemHostGetDevicePointer", found)?;
        // SAFETY: the owner keeps the mapping page-locked and makes no reference to its bytes.
        Ok(unsafe { SharedMem::new(ptr, len, address, shared) })
    }

    unsafe fn launch<K: Kernel>(&mut self, grid: Grid, args: K::Args) -> Result<()>
    where
        K::Args: 'static,
    {
        self.kept.activate()?;
        let function = self.function(K::NAME)?;
        let mut parameters = [ptr::null_mut::<c_void>(); MAX_PARAMETERS];
        let mut count = 0;
        args.each(&mut |parameter| {
            parameters[count] = parameter.cast_mut();
            count += 1;
        });
        self.last = K::NAME;
        let ([x, y, z], [tx, ty, tz]) = (grid.blocks, grid.threads);
        let (parameters, none) = (parameters.as_mut_ptr(), ptr::null_mut());
        // SAFETY: the kernel belongs to this object's module; `parameters` holds the address of each argument, which the driver copies
        // before it returns. What the kernel does with them is the caller's promise.
        let launched =
            unsafe { raw::cuLaunchKernel(function, x, y, z, tx, ty, tz, grid.shared, self.stream, parameters, none) };
        self.kernel_check("cuLaunchKernel", launched)?;
        // SAFETY: event and stream are alive.
        self.kernel_check("cuEventRecord", unsafe { raw::cuEventRecord(self.end, self.stream) })
    }

    fn is_idle(&mut self) -> Result<bool> {
        self.kept.activate()?;
        // SAFETY: the event is alive. One that was never recorded has passed.
        match unsafe { raw::cuEventQuery(self.end) } {
            Err(Code::NOT_READY) => Ok(false),
            result => self.kernel_check("cuEventQuery", result).map(|()| true),
        }
    }
}

impl Drop for CustBeside {
    fn drop(&mut self) {
        // There is nobody to tell of a failure: after a fault, all of this fails, and the context's end frees what is left.
        let _ = self.kept.activate();
        // SAFETY: handles that this object made, each destroyed once, behind the last kernel; a null one was never made.
        unsafe {
            if !self.stream.is_null() {
                let _ = raw::cuStreamSynchronize(self.stream);
            }
            if !self.module.is_null() {
                let _ = raw::cuModuleUnload(self.module);
            }
            if !self.end.is_null() {
                let _ = raw::cuEventDestroy_v2(self.end);
            }
            if !self.stream.is_null() {
                let _ = raw::cuStreamDestroy_v2(self.stream);
            }
        }
    }
}

/// Page-locked memory, with its context. No kernel uses it: who launches one keeps the memory until its end.
struct Shared {
    /// Dropped first, in the context that `drop` has made the thread's.
    _memory: Locked,
    kept: Arc<Kept>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.kept.activate();
    }
}
