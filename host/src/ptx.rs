//! The kernels' PTX, put in by the build script.

include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// The PTX of a module ([`cuda_std::kernel::Kernel::MODULE`]), or `None` when there is no such module.
pub fn module(name: &str) -> Option<&'static str> {
    MODULES.iter().find(|(module, _)| *module == name).map(|&(_, ptx)| ptx)
}
