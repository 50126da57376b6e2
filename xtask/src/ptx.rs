//! `cargo xtask ptx`: makes and checks gpu/ptx.

use anyhow::{Context, Result, bail};
use cuda_builder::{DeviceCompiler, KernelSet};

use crate::{root, sh};

/// The flags of `cargo xtask ptx`.
#[derive(clap::Args)]
pub struct Ptx {
    /// Change nothing; fail when gpu/ptx is not what the sources give
    #[arg(long)]
    pub check: bool,
}

pub fn run(args: &Ptx) -> Result<()> {
    let kernels = KernelSet::open(root().join("gpu"))?;
    if args.check { check(&kernels) } else { make(&kernels) }
}

fn make(kernels: &KernelSet) -> Result<()> {
    let compiler = DeviceCompiler::find()?;
    let fresh = compile(kernels, &compiler)?;
    for variant in kernels.variants() {
        let (from, to) = (fresh.path().join(variant.to_string()), kernels.kept(variant));
        std::fs::create_dir_all(to.parent().expect("a file in gpu/ptx"))?;
        std::fs::copy(&from, &to).with_context(|| format!("writing {}", to.display()))?;
    }
    kernels.write_manifest(&compiler)?;
    eprintln!("gpu/ptx is up to date.");
    Ok(())
}

fn check(kernels: &KernelSet) -> Result<()> {
    if let Some(stale) = kernels.stale()? {
        bail!("gpu/ptx is out of date: {stale}. Run `cargo xtask ptx` and commit the result.");
    }
    let theirs = kernels.manifest()?.compiler;
    let compiler = DeviceCompiler::find()?;
    let fresh = compile(kernels, &compiler)?;
    if compiler.version() != theirs {
        println!("gpu/ptx belongs to the sources, by its hashes, and {} compiles them too.", compiler.version());
        println!("Not compared byte by byte: gpu/ptx was made by {theirs}.");
        return Ok(());
    }
    for variant in kernels.variants() {
        let made = std::fs::read(fresh.path().join(variant.to_string()))?;
        let kept = std::fs::read(kernels.kept(variant))?;
        if made != kept {
            bail!("gpu/ptx/{variant} is not what {theirs} makes of the sources. Run `cargo xtask ptx`.");
        }
    }
    println!("gpu/ptx is byte for byte what {theirs} makes of the sources.");
    Ok(())
}

/// Compiles all variants of all modules into a temporary folder.
fn compile(kernels: &KernelSet, compiler: &DeviceCompiler) -> Result<tempfile::TempDir> {
    let fresh = tempfile::tempdir()?;
    eprintln!("{}: {}", compiler.rustc().display(), compiler.version());
    eprintln!("(the first modules take longer: core is compiled with them)");
    kernels.compile(compiler, &sh::target().join("ptx"), fresh.path(), |variant| eprintln!("  {variant}"))?;
    Ok(fresh)
}
