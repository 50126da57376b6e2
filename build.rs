//! Puts the kernels' PTX into the engine: the kept files of gpu/ptx while the kernels are as they were when those were
//! made, else freshly compiled ones.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cuda_builder::{DeviceCompiler, KernelSet};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("..");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let kernels = KernelSet::open(root.join("gpu"))?;
    println!("cargo::rerun-if-env-changed=NT_PTX");
    println!("cargo::rerun-if-env-changed=NT_DEVICE_RUSTC");
    for path in kernels.watched().filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }

    let reason = match std::env::var("NT_PTX").ok().as_deref() {
        None | Some("") => kernels.stale()?.map(|stale| format!("gpu/ptx is out of date ({stale})")),
        Some("build") => Some("NT_PTX=build asks for it".to_owned()),
        Some(other) => return Err(format!("NT_PTX={other}: the one value it takes is \"build\"").into()),
    };
    if let Some(reason) = &reason {
        let compiler = DeviceCompiler::find()
            .map_err(|error| format!("the GPU kernels must be compiled: {reason}.\n{error}\nThen run `cargo xtask ptx`, which brings gpu/ptx up to date."))?;
        println!("cargo::warning={reason}: compiling the GPU kernels; `cargo xtask ptx` keeps the result");
        kernels.compile(&compiler, &out.join("cuda-builder"), &out.join("ptx"), |_| ())?;
    }
    let folder = if reason.is_some() { out.join("ptx") } else { kernels.folder() };
    let mut table = String::from("&[\n");
    for variant in kernels.variants() {
        let path = folder.join(variant.to_string());
        let path = path.to_str().ok_or_else(|| format!("{}: not UTF-8", path.display()))?;
        let (module, sm) = (variant.module, variant.arch.sm());
        writeln!(table, "    Variant {{ module: {module:?}, sm: {sm}, ptx: include_str!({path:?}) }},")?;
    }
    table.push_str("]\n");
    std::fs::write(out.join("ptx.rs"), table)?;
    Ok(())
}
