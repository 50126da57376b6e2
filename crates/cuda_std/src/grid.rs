//! Programmatic dependent launch (temporary; helper var has the real one).

/// griddepcontrol.launch_dependents
#[inline(always)]
pub fn launch_dependents() {
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    // SAFETY: a hint to the scheduler.
    unsafe {
        core::arch::asm!("griddepcontrol.launch_dependents;", options(nostack))
    };
}

/// griddepcontrol.wait
#[inline(always)]
pub fn wait() {
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    // SAFETY: waits.
    unsafe {
        core::arch::asm!("griddepcontrol.wait;", options(nostack))
    };
}
