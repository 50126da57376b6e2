//! What the linker has to know of the shared library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The engine defines the CUDA driver's functions (crates/cuda_dlopen), and a program that loads this library may link
    // the real ones: only what this crate itself defines is to be seen.
    println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    // The engine's worker threads live as long as the process: unloaded, their code would be gone from under them.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
