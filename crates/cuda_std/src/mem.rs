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

/// Four words that are read as one 16-byte access.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct U32x4(pub [u32; 4]);

/// Reads four consecutive words at once.
///
/// # Safety
/// As for [`load`], and `pointer` must be 16-byte aligned.
#[inline(always)]
pub unsafe fn load4_u32(pointer: *const u32) -> [u32; 4] {
    // SAFETY: the caller's promise.
    unsafe { load(pointer.cast::<U32x4>()).0 }
}

/// Writes four consecutive floats at once.
///
/// # Safety
/// As for [`store`], and `pointer` must be 16-byte aligned.
#[inline(always)]
pub unsafe fn store4(pointer: *mut f32, values: [f32; 4]) {
    // SAFETY: the caller's promise.
    unsafe { store(pointer.cast::<F32x4>(), F32x4(values)) }
}

/// The same address, of which the compiler now knows that it is one of global memory: it does not know so of a pointer in a struct.
///
/// # Safety
/// `pointer` must be a device address of global memory, or null.
#[inline(always)]
pub unsafe fn global<T>(pointer: *const T) -> *const T {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        crate::nvptx::assume_global(pointer.cast())
    }
    pointer
}

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
