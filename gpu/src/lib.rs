//! The kernels.
//!
//! Each feature of this crate is one PTX module (`gpu/ptx/FEATURE.ptx`), named in the `#[kernel("…")]` of the kernels it
//! holds. Built for the host, the default features bring all of them, for the emulator.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch, stdarch_nvptx))]
// Chains of iterator adaptors need jump threading to become plain loops, and that is off on the device (docs/ptx.md): their
// arrays end in local memory.
#![allow(clippy::needless_range_loop)]

#[cfg(any(feature = "attention_64", feature = "attention_128", feature = "attention_256", feature = "attention_any"))]
pub mod attention;
#[cfg(feature = "bench")]
pub mod bench;
mod gated;
#[cfg(any(
    feature = "f32",
    feature = "f16",
    feature = "bf16",
    feature = "q4_0",
    feature = "q4_1",
    feature = "q5_0",
    feature = "q5_1",
    feature = "q8_0",
    feature = "q2_k",
    feature = "q3_k",
    feature = "q4_k",
    feature = "q5_k",
    feature = "q6_k",
    feature = "iq4_nl",
    feature = "iq4_xs"
))]
pub mod gemv;
#[cfg(any(
    feature = "attention_64",
    feature = "attention_128",
    feature = "attention_256",
    feature = "attention_any",
    feature = "ops"
))]
mod math;
#[cfg(feature = "nvme")]
pub mod nvme;
#[cfg(feature = "ops")]
pub mod ops;
#[cfg(feature = "probe")]
pub mod probe;

/// Kernels have nobody to tell: the launch fails, and the host reports it.
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: ends the kernel.
    unsafe { core::arch::nvptx::trap() }
}
