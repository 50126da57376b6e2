//! PTX modules and the kernels in them, compiled by the driver when they are loaded, or first launched.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{CString, c_char, c_uint, c_void},
    iter, ptr,
    rc::Rc,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use cuda_dlopen::{Code, raw};
use cust::sys::{
    CUfunction,
    CUfunction_attribute::{
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
    },
    CUjit_option, CUmodule,
    CUshared_carveout::CU_SHAREDMEM_CARVEOUT_MAX_SHARED,
};

use super::gpu::Gpu;
use crate::device::DeviceError;

type Result<T> = std::result::Result<T, DeviceError>;

/// Looks up a module's PTX by name and the GPU's compute capability.
pub(super) type Source = fn(&str, (u32, u32)) -> Option<&'static str>;

/// The modules loaded so far and their kernels.
pub(super) struct Modules {
    gpu: Rc<Gpu>,
    source: Source,
    announce: fn(&str),
    loaded: RefCell<HashMap<&'static str, Module>>,
    /// By module and name: looked up at every launch.
    kernels: RefCell<HashMap<(&'static str, &'static str), Entry>>,
}

/// A loaded module.
#[derive(Clone, Copy)]
struct Module {
    handle: CUmodule,
    /// As [`Entry::programmatic`].
    programmatic: bool,
}

/// A module's handle on its way from the thread that compiled it.
struct Handle(CUmodule);

// SAFETY: a handle is no memory of ours, and belongs to the context, which any thread may make its current one.
unsafe impl Send for Handle {}

/// A kernel in a loaded module.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub function: CUfunction,
    /// It may start before the kernel before it has finished, for which it waits itself.
    pub programmatic: bool,
    /// Bytes of dynamic shared memory that its launches may ask for.
    shared: u32,
}

impl Modules {
    pub fn new(gpu: Rc<Gpu>, source: Source, announce: fn(&str)) -> Modules {
        Modules { gpu, source, announce, loaded: RefCell::default(), kernels: RefCell::default() }
    }

    /// The kernel `name` of `module`, which is loaded if it isn't yet, for a launch with `shared` bytes of dynamic shared
    /// memory.
    pub fn kernel(&self, module: &'static str, name: &'static str, shared: u32) -> Result<Entry> {
        let known = self.kernels.borrow().get(&(module, name)).copied();
        let mut entry = match known {
            Some(entry) if shared <= entry.shared => return Ok(entry),
            Some(entry) => entry,
            None => self.entry(module, name)?,
        };
        if shared > entry.shared {
            self.allow_shared(entry.function, name, shared)?;
            entry.shared = shared;
        }
        self.kernels.borrow_mut().insert((module, name), entry);
        Ok(entry)
    }

    fn entry(&self, module: &'static str, name: &'static str) -> Result<Entry> {
        self.load(&[module], Some(name))?;
        let Module { handle, programmatic } = self.loaded.borrow()[module];
        let entry = CString::new(name).expect("the name of a Rust function, which has no NUL");
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name a C string, the result a local.
        unsafe { raw::cuModuleGetFunction(&mut function, handle, entry.as_ptr()) }.map_err(|code| {
            let message = format!("not found in the kernel module {module}");
            self.gpu.kernel_error("cuModuleGetFunction", code, name, message)
        })?;
        self.prefer_shared(function, name)?;
        Ok(Entry { function, programmatic, shared: 0 })
    }

    /// Tells the multiprocessors to make shared memory of as much of their L1 cache as they can, for every kernel: two kernels
    /// that want it split differently cannot run on a multiprocessor at once.
    fn prefer_shared(&self, function: CUfunction, kernel: &'static str) -> Result<()> {
        // SAFETY: the function's module is loaded.
        unsafe { prefer_shared(function) }.map_err(|code| {
            self.gpu.kernel_error("cuFuncSetAttribute", code, kernel, "the split of shared memory was refused".into())
        })
    }

    /// Lets launches of `function` ask for `shared` bytes of dynamic shared memory; without, 48 KiB is all that a kernel's
    /// arrays and they may be together (CUDA C++ Programming Guide, "Compute Capability 8.x", on shared memory).
    fn allow_shared(&self, function: CUfunction, kernel: &'static str, shared: u32) -> Result<()> {
        let limit = self.gpu.properties.shared_per_block;
        let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // A size that no i32 holds is refused like any other that is too much.
        let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
        // SAFETY: the function's module is loaded.
        unsafe { raw::cuFuncSetAttribute(function, attribute, bytes) }.map_err(|code| {
            let message =
                format!("{shared} bytes of dynamic shared memory a block, where a block has {limit} in all, refused");
            self.gpu.kernel_error("cuFuncSetAttribute", code, kernel, message)
        })
    }

    /// The PTX of module `name` for this GPU. An error names `kernel`, for whose sake it is wanted, or else the module.
    pub fn ptx(&self, name: &'static str, kernel: Option<&'static str>) -> Result<&'static str> {
        let absent = || DeviceError::Kernel {
            kernel: kernel.unwrap_or(name),
            message: format!("this program contains no kernel module {name}"),
        };
        (self.source)(name, self.gpu.ptx_capability).ok_or_else(absent)
    }

    /// Loads those of the modules `names` that are not loaded yet, each in a thread of its own: compiling takes a core. An
    /// error names `kernel`, for whose sake it is done, or else the module.
    pub fn load(&self, names: &[&'static str], kernel: Option<&'static str>) -> Result<()> {
        let mut missing: Vec<(&'static str, &'static str)> = Vec::new();
        for &name in names {
            if self.loaded.borrow().contains_key(name) || missing.iter().any(|&(other, _)| other == name) {
                continue;
            }
            missing.push((name, self.ptx(name, kernel)?));
        }
        let Some((&(_, first), others)) = missing.split_first() else { return Ok(()) };

        let (gpu, context) = (self.gpu.name.as_str(), self.gpu.context());
        let elsewhere = |ptx| context.activate().map_err(|code| (code, String::new())).and_then(|()| compile(ptx));
        let compiled: Vec<_> = announced(self.announce, gpu, missing.len(), || {
            thread::scope(|scope| {
                // One that no thread can be started for is compiled here, behind the first.
                let start = |&(_, ptx)| (ptx, thread::Builder::new().spawn_scoped(scope, move || elsewhere(ptx)));
                let started: Vec<_> = others.iter().map(start).collect();
                let first = compile(first);
                let others = started.into_iter().map(|(ptx, thread)| match thread {
                    Ok(thread) => thread.join().expect("a thread that only compiles"),
                    Err(_) => compile(ptx),
                });
                iter::once(first).chain(others).collect()
            })
        });
        let mut result = Ok(());
        for ((name, ptx), compiled) in missing.into_iter().zip(compiled) {
            match compiled {
                Ok(Handle(handle)) => {
                    let programmatic = self.gpu.programmatic && waits_itself(ptx);
                    self.loaded.borrow_mut().insert(name, Module { handle, programmatic });
                }
                Err((code, log)) => {
                    let message = format!("the driver refused the kernel module {name}{log}");
                    let kernel = kernel.unwrap_or(name);
                    result = result.and(Err(self.gpu.kernel_error("cuModuleLoadDataEx", code, kernel, message)));
                }
            }
        }
        result
    }
}

/// Whether the kernels of a module wait for the one before them (`griddepcontrol.wait`) and may start before its end. Those
/// compiled for compute capability 9.0 do; older ones have no such instruction.
fn waits_itself(ptx: &str) -> bool {
    let target = ptx.lines().find_map(|line| line.trim().strip_prefix(".target sm_"));
    let number = target.map(|target| target.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
    number.and_then(|number| number.parse().ok()).is_some_and(|number: u32| number >= 90)
}

impl Drop for Modules {
    fn drop(&mut self) {
        // A kernel may still run. After a fault all of this fails, and the context's end frees the modules.
        let _ = self.gpu.activate();
        let _ = self.gpu.wait(&self.gpu.compute);
        for &Module { handle, .. } in self.loaded.borrow().values() {
            // SAFETY: loaded by this object, unloaded once, and its kernels have finished.
            let _ = unsafe { raw::cuModuleUnload(handle) };
        }
    }
}

/// As [`Modules::prefer_shared`].
///
/// # Safety
/// The function's module is loaded.
pub(super) unsafe fn prefer_shared(function: CUfunction) -> std::result::Result<(), Code> {
    let (attribute, most) = (CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, CU_SHAREDMEM_CARVEOUT_MAX_SHARED);
    // SAFETY: the caller's promise.
    unsafe { raw::cuFuncSetAttribute(function, attribute, most as i32) }
}

/// As [`compile`], for who keeps the module by itself.
pub(super) fn compile_module(ptx: &str) -> std::result::Result<CUmodule, (Code, String)> {
    compile(ptx).map(|Handle(module)| module)
}

/// Has the driver compile and load `ptx`; an error comes with the compiler's log, in parentheses where there is one.
fn compile(ptx: &str) -> std::result::Result<Handle, (Code, String)> {
    let image = CString::new(ptx).map_err(|_| (Code::INVALID_VALUE, " (its PTX has a NUL in it)".to_string()))?;
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
    let log = || {
        let lines = [text(&errors), text(&infos)].join("\n");
        if lines.trim().is_empty() { String::new() } else { format!(" ({})", lines.trim()) }
    };
    result.map(|()| Handle(module)).map_err(|code| (code, log()))
}

/// The log in a buffer, up to its NUL.
fn text(log: &[u8]) -> String {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).into_owned()
}

/// Runs `work`, and says what takes so long once it has taken a second: the first run on a machine compiles, later ones
/// find the result in the driver's cache. Where no thread can be started for that, nothing is said.
fn announced<T>(announce: fn(&str), gpu: &str, modules: usize, work: impl FnOnce() -> T) -> T {
    let (done, waiting) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let _ = thread::Builder::new().spawn_scoped(scope, move || {
            if waiting.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                let plural = if modules == 1 { "" } else { "s" };
                announce(&format!("compiling GPU kernels for {gpu} (first run only): {modules} module{plural} ..."));
            }
        });
        let result = work();
        drop(done);
        result
    })
}
