//! What a kernel shares with the host and with devices while it runs: words of page-locked memory or of a device's registers, the order in
//! which all see memory, and time.
//!
//! Scopes are the whole system's (PTX ISA, "Memory Consistency Model": scope `.sys`): [`fence`](crate::atomic::fence) orders memory for the
//! threads of the GPU alone.

/// Reads a word, once and now (`ld.volatile`, which PTX defines as `ld.relaxed.sys` that no compiler removes, doubles or merges).
///
/// # Safety
/// `pointer` must be an aligned address of a word that others access as whole words only.
#[inline(always)]
pub unsafe fn load(pointer: *const u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    return unsafe { pointer.read_volatile() };
    #[cfg(not(target_arch = "nvptx64"))]
    {
        crate::host::machine().access(pointer as usize, size_of::<u32>(), align_of::<u32>(), false);
        // SAFETY: the caller's promise; it is only read.
        unsafe { core::sync::atomic::AtomicU32::from_ptr(pointer.cast_mut()) }
            .load(core::sync::atomic::Ordering::Relaxed)
    }
}

/// Writes a word, once and now (`st.volatile`).
///
/// # Safety
/// `pointer` must be an aligned address of a word that others access as whole words only.
#[inline(always)]
pub unsafe fn store(pointer: *mut u32, value: u32) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        pointer.write_volatile(value)
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        crate::host::machine().access(pointer as usize, size_of::<u32>(), align_of::<u32>(), true);
        // SAFETY: the caller's promise.
        unsafe { core::sync::atomic::AtomicU32::from_ptr(pointer) }.store(value, core::sync::atomic::Ordering::Relaxed)
    }
}

/// What the thread has seen and written before this is, for the host, all devices and all threads, before what it does after
/// (`fence.acq_rel.sys`). What other threads of its warp did before a [`sync_warp`](crate::warp::sync_warp) counts, too: fences are
/// cumulative.
#[inline(always)]
pub fn fence() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: it only orders memory; the compiler, too, moves no access across it.
    unsafe {
        core::arch::asm!("fence.acq_rel.sys;", options(nostack))
    }
    #[cfg(not(target_arch = "nvptx64"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Nanoseconds since some point in the past (`%globaltimer`). On GPUs it goes on in steps of 32 ns to 1 us.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    #[cfg(target_arch = "nvptx64")]
    {
        let time;
        // SAFETY: reads a special register. Not `pure`: each read is another time.
        unsafe { core::arch::asm!("mov.u64 {0}, %globaltimer;", out(reg64) time, options(nomem, nostack)) };
        time
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
        START.elapsed().as_nanos() as u64
    }
}

/// Leaves the multiprocessor to others for some `nanoseconds` (`nanosleep`: up to twice as many; 1 ms at most). In the emulator the whole
/// launch sleeps.
#[inline(always)]
pub fn sleep(nanoseconds: u32) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: waits, each thread for itself.
    unsafe {
        core::arch::asm!("nanosleep.u32 {0};", in(reg32) nanoseconds, options(nomem, nostack))
    }
    #[cfg(not(target_arch = "nvptx64"))]
    std::thread::sleep(std::time::Duration::from_nanos(nanoseconds.into()));
}
