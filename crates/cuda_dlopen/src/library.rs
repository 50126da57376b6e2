//! The driver's library.

use std::{env, error::Error, ffi::OsString, sync::OnceLock};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The driver's library, loaded at the first call and kept until the process ends; or the dynamic linker's reason.
pub(crate) fn loaded() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let file = env::var_os("NT_LIBCUDA").unwrap_or_else(|| OsString::from("libcuda.so.1"));
        // SAFETY: loading runs the library's initialisers. It is the system's CUDA driver, or what the user put in its
        // place, and like any library of the process it is trusted.
        unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            // The reason, which names the file, is the error's source.
            error.source().map_or_else(|| error.to_string(), |reason| reason.to_string())
        })
    });
    library.as_ref().map_err(String::as_str)
}

/// The driver's function `name`, if there is a driver and it has one.
///
/// # Safety
/// `F` must be the C function's pointer type.
pub(crate) unsafe fn symbol<F: Copy>(name: &str) -> Option<F> {
    let library = loaded().ok()?;
    // SAFETY: the caller vouches for the type; the library is never unloaded, so the pointer stays valid.
    unsafe { library.get::<F>(name.as_bytes()) }.ok().map(|found| *found)
}
