//! What C passes, checked.

use std::{
    ffi::{CStr, c_char},
    slice,
};

use crate::Failure;

/// The object behind a handle.
///
/// # Safety
/// `pointer` is null or from the function that makes such objects, and not freed while the reference lives.
pub unsafe fn object<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::argument(format!("{name} is null")))
}

/// The object behind a handle, to change.
///
/// # Safety
/// As [`object`], and nobody else uses it meanwhile.
pub unsafe fn object_mut<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_mut() }.ok_or_else(|| Failure::argument(format!("{name} is null")))
}

/// `len` elements at `pointer`, which may be null where there are none.
///
/// # Safety
/// If not null, `pointer` has `len` elements that nobody changes while the slice lives.
pub unsafe fn elements<'a, T>(pointer: *const T, len: usize, name: &str) -> Result<&'a [T], Failure> {
    match (pointer.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::argument(format!("{name} is null, with a length of {len}"))),
        (false, _) if len > isize::MAX as usize / size_of::<T>() => {
            Err(Failure::argument(format!("{name}: a length of {len} is not possible")))
        }
        // SAFETY: not null, of a possible length, and else the caller's promise.
        (false, _) => Ok(unsafe { slice::from_raw_parts(pointer, len) }),
    }
}

/// A text: `len` bytes, or up to its zero byte where `len` is [`crate::NT_ZERO_TERMINATED`].
///
/// # Safety
/// As [`elements`], or `pointer` is null or zero-terminated.
pub unsafe fn utf8<'a>(pointer: *const c_char, len: usize, name: &str) -> Result<&'a str, Failure> {
    let bytes = match (pointer.is_null(), len) {
        (true, crate::NT_ZERO_TERMINATED) => return Err(Failure::argument(format!("{name} is null"))),
        // SAFETY: not null, and zero-terminated by the caller's promise.
        (false, crate::NT_ZERO_TERMINATED) => unsafe { CStr::from_ptr(pointer) }.to_bytes(),
        // SAFETY: the caller's promise.
        _ => unsafe { elements(pointer.cast::<u8>(), len, name) }?,
    };
    std::str::from_utf8(bytes)
        .map_err(|e| Failure::argument(format!("{name} is not UTF-8 at byte {}", e.valid_up_to())))
}

/// Gives a result back through a pointer.
///
/// # Safety
/// `to` is null or may be written.
pub unsafe fn give<T>(to: *mut T, value: T, name: &str) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::argument(format!("{name} is null")));
    }
    // SAFETY: not null, and else the caller's promise. What was there is not read: it may never have been written.
    unsafe { to.write(value) };
    Ok(())
}
