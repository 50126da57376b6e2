//! The kernels' PTX, put in by the build script.

/// One module as compiled for one architecture.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// The module ([`cuda_std::kernel::Kernel::MODULE`]).
    pub module: &'static str,
    /// The oldest architecture that it runs on: 80 is `sm_80`, compute capability 8.0.
    pub sm: u32,
    /// The PTX.
    pub ptx: &'static str,
}

/// Every variant of every module.
pub static VARIANTS: &[Variant] = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// The PTX of `module` for a GPU of compute capability `(major, minor)`: of the variants that run there, the one of the
/// youngest architecture. `None` when there is no such module, or none for so old a GPU.
pub fn module(module: &str, (major, minor): (u32, u32)) -> Option<&'static str> {
    let sm = 10 * major + minor;
    let fitting = VARIANTS.iter().filter(|variant| variant.module == module && variant.sm <= sm);
    fitting.max_by_key(|variant| variant.sm).map(|variant| variant.ptx)
}
