//! The driver's result codes: as they are, in words, and as cust's closed enum.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_uint},
    fmt, ptr,
};

use cust_raw::CUresult::{self, *};

use crate::library;

/// An error code of the CUDA driver, `CUDA_SUCCESS` excepted. Any value is possible: drivers are younger than headers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(u32);

impl Code {
    /// An argument is out of range.
    pub const INVALID_VALUE: Code = Code(CUDA_ERROR_INVALID_VALUE as u32);
    /// An allocation, or a kernel's own resources, did not fit.
    pub const OUT_OF_MEMORY: Code = Code(CUDA_ERROR_OUT_OF_MEMORY as u32);
    /// There is no driver, or it sees no GPU.
    pub const NO_DEVICE: Code = Code(CUDA_ERROR_NO_DEVICE as u32);
    /// A named symbol does not exist: in a module, or a function in an old driver.
    pub const NOT_FOUND: Code = Code(CUDA_ERROR_NOT_FOUND as u32);
    /// The operating system refused.
    pub const OPERATING_SYSTEM: Code = Code(CUDA_ERROR_OPERATING_SYSTEM as u32);
    /// This process may not do that.
    pub const NOT_PERMITTED: Code = Code(CUDA_ERROR_NOT_PERMITTED as u32);
    /// This system cannot do that.
    pub const NOT_SUPPORTED: Code = Code(CUDA_ERROR_NOT_SUPPORTED as u32);
    /// What was asked about has not happened yet.
    pub const NOT_READY: Code = Code(CUDA_ERROR_NOT_READY as u32);
    /// Something that has no better code.
    pub const UNKNOWN: Code = Code(CUDA_ERROR_UNKNOWN as u32);

    /// The error of a result; `None` for success.
    pub fn new(result: u32) -> Option<Code> {
        (result != CUDA_SUCCESS as u32).then_some(Code(result))
    }

    /// The number.
    pub fn value(self) -> u32 {
        self.0
    }

    pub(crate) fn check(result: c_uint) -> Result<(), Code> {
        Code::new(result).map_or(Ok(()), Err)
    }

    /// What a function answers that could not be found.
    pub(crate) fn absent() -> Code {
        if library::loaded().is_ok() { Code::NOT_FOUND } else { Code::NO_DEVICE }
    }

    /// The driver's name of the code, e.g. `CUDA_ERROR_OUT_OF_MEMORY`, where it knows one.
    fn name(self) -> Option<&'static CStr> {
        if self == Code::NO_DEVICE { Some(c"CUDA_ERROR_NO_DEVICE") } else { ask("cuGetErrorName", self) }
    }

    /// The driver's description of the code, where it knows one.
    fn words(self) -> Option<&'static CStr> {
        if self == Code::NO_DEVICE {
            Some(c"no CUDA-capable device is detected")
        } else {
            ask("cuGetErrorString", self)
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.words(), self.name()) {
            (Some(words), Some(name)) => write!(f, "{} ({})", words.to_string_lossy(), name.to_string_lossy()),
            _ => write!(f, "CUDA error {}, which the driver does not describe", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Code {}

/// The answer of the driver's `cuGetErrorName` or `cuGetErrorString`.
fn ask(function: &str, code: Code) -> Option<&'static CStr> {
    type Entry = unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint;
    let mut text = ptr::null();
    // SAFETY: both functions have this signature, take any code, and write one pointer.
    let result = unsafe { library::symbol::<Entry>(function)?(code.0, &mut text) };
    // SAFETY: on success the pointer is null or a string constant of the library, which is never unloaded.
    (result == 0 && !text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

thread_local! {
    static LAST: Cell<Option<Code>> = const { Cell::new(None) };
}

/// The latest error that a C symbol of this crate returned on this thread, as the driver said it. For errors that `cust`
/// reports as unknown because they are younger than it.
pub fn last_error() -> Option<Code> {
    LAST.get()
}

/// The result as cust's enum. A code outside it becomes `CUDA_ERROR_UNKNOWN`: the enum is closed, and to return any other
/// value as it would be undefined behaviour.
pub(crate) fn to_cust(result: Result<(), Code>) -> CUresult {
    let Err(code) = result else { return CUDA_SUCCESS };
    LAST.set(Some(code));
    KNOWN.into_iter().find(|&known| known as u32 == code.0).unwrap_or(CUDA_ERROR_UNKNOWN)
}

/// `cuGetErrorName` for cust: always answers, since cust's `Display` fails (and `to_string` panics) where it doesn't.
///
/// # Safety
/// `text` is valid for a write.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
unsafe extern "C" fn cuGetErrorName(error: CUresult, text: *mut *const c_char) -> CUresult {
    let name = Code(error as u32).name().unwrap_or(c"CUDA_ERROR_UNKNOWN");
    // SAFETY: the caller's pointer.
    unsafe { *text = name.as_ptr() };
    CUDA_SUCCESS
}

/// `cuGetErrorString` for cust: always answers, as [`cuGetErrorName`] does.
///
/// # Safety
/// `text` is valid for a write.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
unsafe extern "C" fn cuGetErrorString(error: CUresult, text: *mut *const c_char) -> CUresult {
    let words = Code(error as u32).words().unwrap_or(c"unknown error");
    // SAFETY: the caller's pointer.
    unsafe { *text = words.as_ptr() };
    CUDA_SUCCESS
}

const _: unsafe extern "C" fn(CUresult, *mut *const c_char) -> CUresult = cust_raw::cuGetErrorName;
const _: unsafe extern "C" fn(CUresult, *mut *const c_char) -> CUresult = cust_raw::cuGetErrorString;

/// Every error of cust's enum.
const KNOWN: [CUresult; 86] = [
    CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_OUT_OF_MEMORY,
    CUDA_ERROR_NOT_INITIALIZED,
    CUDA_ERROR_DEINITIALIZED,
    CUDA_ERROR_PROFILER_DISABLED,
    CUDA_ERROR_PROFILER_NOT_INITIALIZED,
    CUDA_ERROR_PROFILER_ALREADY_STARTED,
    CUDA_ERROR_PROFILER_ALREADY_STOPPED,
    CUDA_ERROR_STUB_LIBRARY,
    CUDA_ERROR_NO_DEVICE,
    CUDA_ERROR_INVALID_DEVICE,
    CUDA_ERROR_DEVICE_NOT_LICENSED,
    CUDA_ERROR_INVALID_IMAGE,
    CUDA_ERROR_INVALID_CONTEXT,
    CUDA_ERROR_CONTEXT_ALREADY_CURRENT,
    CUDA_ERROR_MAP_FAILED,
    CUDA_ERROR_UNMAP_FAILED,
    CUDA_ERROR_ARRAY_IS_MAPPED,
    CUDA_ERROR_ALREADY_MAPPED,
    CUDA_ERROR_NO_BINARY_FOR_GPU,
    CUDA_ERROR_ALREADY_ACQUIRED,
    CUDA_ERROR_NOT_MAPPED,
    CUDA_ERROR_NOT_MAPPED_AS_ARRAY,
    CUDA_ERROR_NOT_MAPPED_AS_POINTER,
    CUDA_ERROR_ECC_UNCORRECTABLE,
    CUDA_ERROR_UNSUPPORTED_LIMIT,
    CUDA_ERROR_CONTEXT_ALREADY_IN_USE,
    CUDA_ERROR_PEER_ACCESS_UNSUPPORTED,
    CUDA_ERROR_INVALID_PTX,
    CUDA_ERROR_INVALID_GRAPHICS_CONTEXT,
    CUDA_ERROR_NVLINK_UNCORRECTABLE,
    CUDA_ERROR_JIT_COMPILER_NOT_FOUND,
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
    CUDA_ERROR_JIT_COMPILATION_DISABLED,
    CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY,
    CUDA_ERROR_INVALID_SOURCE,
    CUDA_ERROR_FILE_NOT_FOUND,
    CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND,
    CUDA_ERROR_SHARED_OBJECT_INIT_FAILED,
    CUDA_ERROR_OPERATING_SYSTEM,
    CUDA_ERROR_INVALID_HANDLE,
    CUDA_ERROR_ILLEGAL_STATE,
    CUDA_ERROR_NOT_FOUND,
    CUDA_ERROR_NOT_READY,
    CUDA_ERROR_ILLEGAL_ADDRESS,
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
    CUDA_ERROR_LAUNCH_TIMEOUT,
    CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING,
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED,
    CUDA_ERROR_PEER_ACCESS_NOT_ENABLED,
    CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE,
    CUDA_ERROR_CONTEXT_IS_DESTROYED,
    CUDA_ERROR_ASSERT,
    CUDA_ERROR_TOO_MANY_PEERS,
    CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
    CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED,
    CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUDA_ERROR_MISALIGNED_ADDRESS,
    CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUDA_ERROR_INVALID_PC,
    CUDA_ERROR_LAUNCH_FAILED,
    CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
    CUDA_ERROR_NOT_PERMITTED,
    CUDA_ERROR_NOT_SUPPORTED,
    CUDA_ERROR_SYSTEM_NOT_READY,
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
    CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE,
    CUDA_ERROR_MPS_CONNECTION_FAILED,
    CUDA_ERROR_MPS_RPC_FAILURE,
    CUDA_ERROR_MPS_SERVER_NOT_READY,
    CUDA_ERROR_MPS_MAX_CLIENTS_REACHED,
    CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    CUDA_ERROR_STREAM_CAPTURE_MERGE,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
    CUDA_ERROR_CAPTURED_EVENT,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
    CUDA_ERROR_TIMEOUT,
    CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE,
    CUDA_ERROR_EXTERNAL_DEVICE,
    CUDA_ERROR_UNKNOWN,
];
