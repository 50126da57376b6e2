//! PTX modules and the kernels in them, compiled by the driver when they are first launched.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{CString, c_char, c_uint, c_void},
    ptr,
    rc::Rc,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use cuda_dlopen::raw;
use cust::sys::{CUfunction, CUjit_option, CUmodule};

use super::gpu::Gpu;
use crate::device::DeviceError;

type Result<T> = std::result::Result<T, DeviceError>;

/// Looks up a module's PTX by name.
pub(super) type Source = fn(&str) -> Option<&'static str>;

/// The modules loaded so far and their kernels.
pub(super) struct Modules {
    gpu: Rc<Gpu>,
    source: Source,
    loaded: RefCell<HashMap<&'static str, CUmodule>>,
    /// By module and name: looked up at every launch.
    kernels: RefCell<HashMap<(&'static str, &'static str), CUfunction>>,
}

impl Modules {
    pub fn new(gpu: Rc<Gpu>, source: Source) -> Modules {
        Modules { gpu, source, loaded: RefCell::default(), kernels: RefCell::default() }
    }

    /// The kernel `name` of `module`, which is loaded if it isn't yet.
    pub fn kernel(&self, module: &'static str, name: &'static str) -> Result<CUfunction> {
        if let Some(&kernel) = self.kernels.borrow().get(&(module, name)) {
            return Ok(kernel);
        }
        let failed = |message| DeviceError::Kernel { kernel: name, message };
        let handle = self.module(module).map_err(failed)?;
        let entry = CString::new(name).map_err(|_| failed("its name has a NUL in it".into()))?;
        let mut kernel = ptr::null_mut();
        // SAFETY: the module is loaded, the name a C string, the result a local.
        unsafe { raw::cuModuleGetFunction(&mut kernel, handle, entry.as_ptr()) }
            .map_err(|code| failed(format!("not found in the kernel module {module}: {code}")))?;
        self.kernels.borrow_mut().insert((module, name), kernel);
        Ok(kernel)
    }

    /// The module, or why it could not be loaded.
    fn module(&self, name: &'static str) -> std::result::Result<CUmodule, String> {
        if let Some(&module) = self.loaded.borrow().get(name) {
            return Ok(module);
        }
        let ptx = (self.source)(name).ok_or_else(|| format!("this program contains no kernel module {name}"))?;
        let module =
            announced(name, || compile(ptx)).map_err(|why| format!("the kernel module {name} did not load: {why}"))?;
        self.loaded.borrow_mut().insert(name, module);
        Ok(module)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        // A kernel may still run. After a fault all of this fails, and the context's end frees the modules.
        let _ = self.gpu.activate();
        let _ = self.gpu.wait(&self.gpu.compute);
        for &module in self.loaded.borrow().values() {
            // SAFETY: loaded by this object, unloaded once, and its kernels have finished.
            let _ = unsafe { raw::cuModuleUnload(module) };
        }
    }
}

/// Has the driver compile and load `ptx`; an error holds the compiler's log.
fn compile(ptx: &str) -> std::result::Result<CUmodule, String> {
    let image = CString::new(ptx).map_err(|_| "its PTX has a NUL in it".to_string())?;
    let (mut errors, mut infos) = ([0u8; 8192], [0u8; 8192]);
    let mut options = [
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        CUjit_option::CU_JIT_INFO_LOG_BUFFER,
        CUjit_option::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
    ];
    // The API takes numbers in place of pointers, and replaces the sizes by the lengths written.
    let mut values: [*mut c_void; 4] = [
        errors.as_mut_ptr().cast(),
        ptr::without_provenance_mut(errors.len()),
        infos.as_mut_ptr().cast(),
        ptr::without_provenance_mut(infos.len()),
    ];
    let mut module = ptr::null_mut();
    // SAFETY: `image` is a C string; there are as many values as options, each of its option's kind; the log buffers are as
    // long as stated.
    let result = unsafe {
        raw::cuModuleLoadDataEx(
            &mut module,
            image.as_ptr().cast::<c_char>().cast(),
            options.len() as c_uint,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    result.map_err(|code| {
        [text(&errors), text(&infos)]
            .iter()
            .filter(|log| !log.is_empty())
            .fold(code.to_string(), |message, log| format!("{message}\n{log}"))
    })?;
    Ok(module)
}

/// The log in a buffer, up to its NUL.
fn text(log: &[u8]) -> String {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).trim().to_string()
}

/// Runs `work`, and says on stderr what takes so long once it has taken a second: the first run on a machine compiles,
/// later ones find the result in the driver's cache.
fn announced<T>(module: &str, work: impl FnOnce() -> T) -> T {
    let (done, waiting) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                eprintln!("compiling GPU kernels ({module}) ...");
            }
        });
        let result = work();
        drop(done);
        result
    })
}
