//! Reads and writes of global memory. On the host each is checked against the live allocations of the emulator.

#[inline(always)]
#[cfg_attr(target_arch = "nvptx64", allow(unused_variables))]
fn check<T>(pointer: *const T, write: bool) {
    #[cfg(not(target_arch = "nvptx64"))]
    crate::host::machine().access(pointer as usize, size_of::<T>(), align_of::<T>(), write);
}

/// Reads a value.
///
/// # Safety
/// `pointer` must be a device address of a valid, aligned `T` that no other thread is writing.
#[inline(always)]
pub unsafe fn load<T: Copy>(pointer: *const T) -> T {
    check(pointer, false);
    // SAFETY: the caller's promise.
    unsafe { pointer.read() }
}

/// Writes a value.
///
/// # Safety
/// `pointer` must be an aligned device address of room for a `T` that no other thread accesses.
#[inline(always)]
pub unsafe fn store<T: Copy>(pointer: *mut T, value: T) {
    check(pointer, true);
    // SAFETY: the caller's promise.
    unsafe { pointer.write(value) }
}

/// Four floats that are read as one 16-byte access.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct F32x4(pub [f32; 4]);

/// Reads four consecutive floats at once.
///
/// # Safety
/// As for [`load`], and `pointer` must be 16-byte aligned.
#[inline(always)]
pub unsafe fn load4(pointer: *const f32) -> [f32; 4] {
    // SAFETY: the caller's promise.
    unsafe { load(pointer.cast::<F32x4>()).0 }
}

/// Sixteen bytes that are read as one access.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct U32x4(pub [u32; 4]);

/// Reads sixteen bytes that are used once: `ld.global.nc`, not kept in the L1 cache.
///
/// # Safety
/// As for [`load`], in global memory that nobody writes while the kernel runs.
#[inline(always)]
pub unsafe fn load_streaming(pointer: *const U32x4) -> [u32; 4] {
    check(pointer, false);
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(target_arch = "nvptx64")]
        return crate::nvptx::load_streaming(pointer.cast());
        #[cfg(not(target_arch = "nvptx64"))]
        return pointer.read().0;
    }
}
