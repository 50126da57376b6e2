//! The order of kernels in a queue where one starts before the last has finished: programmatic dependent launch (CUDA
//! programming guide, "Programmatic Dependent Launch and Synchronization"; PTX ISA, "griddepcontrol").
//!
//! A kernel that is launched with the attribute of programmatic stream serialization starts as soon as every block of the
//! kernel before it has called [`launch_dependents`] or ended. It does what depends on nobody, such as fetching weights, on
//! the multiprocessors that fall free, and calls [`wait`] before the rest. All blocks of the kernel before it have started by
//! then, so that those who wait do not keep it from finishing. Two rules make this correct:
//!
//! 1. **Every kernel waits before it reads or writes what an unfinished kernel or copy touches.** That is all of global
//!    memory but weights, which no kernel writes. (What only earlier passes wrote may be read too, if a copy in the queue, as of a pass's tokens, lies between: a kernel
//!    behind a copy starts when all before the copy has finished. What the kernel before has waited for may be read as well, if that kernel
//!    calls [`launch_dependents`] behind its wait only, and if this one waits before it ends: `gpu::gemv::BESIDE`.)
//! 2. **Every thread of every kernel waits before it exits.** `wait` waits for the one kernel before, which has finished only
//!    after its own waits: so the kernel before that one has finished too, and so on along the queue. A kernel without a wait
//!    breaks the chain for all that follow.
//!
//! `#[kernel("module")]` keeps both: it puts the two calls first in the kernel, where all threads pass.
//! `#[kernel("module", prefetch)]` leaves them to the kernel.
//!
//! In PTX for sm_90 each call is an instruction, which does nothing in a kernel that was launched without the attribute. In
//! PTX for older GPUs and on the host the calls are nothing: one kernel runs after the other there.

/// Lets the next kernel in the queue start once every block of this one has called this or ended
/// (`griddepcontrol.launch_dependents`).
///
/// That changes when it starts, not what it sees: what this kernel writes before or after is there when the next one's
/// [`wait`] returns. Calls after the first do nothing.
#[inline(always)]
pub fn launch_dependents() {
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    crate::nvptx::launch_dependents();
}

/// Waits until the kernel before this one in the queue has finished and all that it wrote can be seen
/// (`griddepcontrol.wait`).
///
/// That holds for the thread that calls it, not for its block. The compiler moves no access to memory across the call.
#[inline(always)]
pub fn wait() {
    #[cfg(all(target_arch = "nvptx64", cuda_sm = "90"))]
    crate::nvptx::grid_wait();
}
