//! `cargo xtask ptxas`: assembles gpu/ptx for every GPU we support, without one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use cuda_builder::KernelSet;

use crate::root;

/// What users have: A100, RTX 30, RTX 40, H100 and H200, B200, RTX 50.
const ARCHITECTURES: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// What one kernel needs on one architecture, in registers a thread and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    registers: u32,
    shared: u32,
    stack: u32,
    spill: u32,
}

/// Usage by kernel and the architecture that its PTX was compiled for, then by that of the GPU.
type Table = BTreeMap<(String, u32), BTreeMap<u32, Usage>>;

pub fn run() -> Result<()> {
    let kernels = KernelSet::open(root().join("gpu"))?;
    let ptxas = find()?;
    eprintln!("{}", ptxas.display());
    let scratch = tempfile::tempdir()?;
    let mut table = Table::new();
    for variant in kernels.variants() {
        eprintln!("  {variant}");
        let ptx = kernels.kept(variant);
        let entries = std::fs::read_to_string(&ptx)?.matches(".visible .entry").count();
        for architecture in ARCHITECTURES.into_iter().filter(|&architecture| architecture >= variant.arch.sm()) {
            let output = Command::new(&ptxas)
                .arg(format!("--gpu-name=sm_{architecture}"))
                .args(["--verbose", "--output-file"])
                .arg(scratch.path().join("out.cubin"))
                .arg(&ptx)
                .output()
                .with_context(|| format!("running {}", ptxas.display()))?;
            let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                bail!("{} refuses {variant} for sm_{architecture}:\n{log}", ptxas.display());
            }
            let usages = parse(&log)?;
            // A log that is not understood must not look like one without faults.
            ensure!(
                usages.len() == entries,
                "ptxas told of {} of {entries} kernels in {variant}:\n{log}",
                usages.len()
            );
            for (kernel, usage) in usages {
                let row = table.entry((kernel, variant.arch.sm())).or_default();
                row.insert(architecture, usage);
            }
        }
    }
    print(&table);
    let faults = faults(&table);
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n")) }
}

/// `ptxas -v` tells of each kernel in three lines: its name, its stack frame and spills, its registers and shared memory.
fn parse(log: &str) -> Result<Vec<(String, Usage)>> {
    let mut found = Vec::new();
    let mut current: Option<(String, Usage)> = None;
    let mut frames = 0;
    // "8 bytes stack frame" and the like: the number before `what`.
    let number =
        |line: &str, what: &str| -> Option<u32> { line.split(what).next()?.split_whitespace().last()?.parse().ok() };
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            current = Some((name.to_owned(), Usage::default()));
        } else if let Some((_, usage)) = &mut current {
            if line.contains("bytes stack frame") {
                let read = |what| number(line, what).with_context(|| format!("ptxas says {line:?}"));
                usage.stack = read(" bytes stack frame")?;
                usage.spill = read(" bytes spill stores")? + read(" bytes spill loads")?;
                frames += 1;
            } else if line.contains(" registers") {
                let text = line.split("Used ").nth(1).unwrap_or(line);
                usage.registers = number(text, " registers").with_context(|| format!("ptxas says {line:?}"))?;
                usage.shared = if line.contains(" bytes smem") { number(line, " bytes smem").unwrap_or(0) } else { 0 };
                found.extend(current.take());
            }
        }
    }
    ensure!(frames == found.len(), "ptxas told of {frames} stack frames for {} kernels:\n{log}", found.len());
    Ok(found)
}

fn print(table: &Table) {
    print!("{:32}{:>8}", "kernel: registers on", "PTX for");
    ARCHITECTURES.iter().for_each(|architecture| print!("{:>8}", format!("sm_{architecture}")));
    println!("{:>10}{:>8}{:>8}", "shared B", "local B", "spill B");
    for ((kernel, sm), usages) in table {
        print!("{kernel:32}{:>8}", format!("sm_{sm}"));
        for architecture in ARCHITECTURES {
            print!("{:>8}", usages.get(&architecture).map_or_else(String::new, |usage| usage.registers.to_string()));
        }
        let most = |of: fn(&Usage) -> u32| usages.values().map(of).max().unwrap_or(0);
        println!("{:>10}{:>8}{:>8}", most(|u| u.shared), most(|u| u.stack), most(|u| u.spill));
    }
}

/// Bytes of spills that are let pass on GPUs younger than those that registers were counted for: the launch bounds of the products
/// and of attention were chosen on compute capability 9.0, and the same PTX takes more registers there. The table shows them.
/// docs/gemv.md names them among what is left.
const SPILLS_OF_THE_YOUNGER: u32 = 256;

/// The same for PTX for 8.0 on 9.0, which takes it where the driver is older than CUDA 12: `gemv_f32` and `glu_f32` spill 12 there.
const SPILLS_OF_OLD_DRIVERS: u32 = 16;

/// Bytes of spills that are let pass of PTX for `sm` on a GPU of `architecture`.
fn allowed(sm: u32, architecture: u32) -> u32 {
    match architecture {
        100.. => SPILLS_OF_THE_YOUNGER,
        90.. if sm < 90 => SPILLS_OF_OLD_DRIVERS,
        _ => 0,
    }
}

/// What must not be: spilled registers, and arrays in local memory, which is global memory in disguise.
fn faults(table: &Table) -> Vec<String> {
    let mut faults = Vec::new();
    for ((kernel, sm), usages) in table {
        for (architecture, usage) in usages {
            if (1..=allowed(*sm, *architecture)).contains(&usage.spill) {
                continue;
            }
            let what = if usage.spill > 0 {
                format!("spills {} bytes of registers", usage.spill)
            } else if usage.stack > 0 {
                format!("uses {} bytes of local memory", usage.stack)
            } else {
                continue;
            };
            faults.push(format!("{kernel}, compiled for sm_{sm}, {what} on sm_{architecture}"));
        }
    }
    faults
}

/// PTXAS, then PATH, then CUDA_HOME, then the package nvidia-cuda-nvcc of the current python.
fn find() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("PTXAS") {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin")));
    const SITE: &str = "import sysconfig; print(sysconfig.get_path('purelib'))";
    if let Ok(output) = Command::new("python3").args(["-c", SITE]).output() {
        let site = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        places.extend([site.join("nvidia/cu13/bin"), site.join("nvidia/cuda_nvcc/bin")]);
    }
    let found = places.into_iter().map(|place| place.join("ptxas")).find(|ptxas| ptxas.is_file());
    found.context(
        "no ptxas in PATH, CUDA_HOME or the current python's packages: \
         `pip install 'nvidia-cuda-nvcc==13.0.*'` brings it, or name one with PTXAS=/path/to/ptxas",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'norm' for 'sm_80'
ptxas info    : Function properties for norm
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 128 bytes smem, 384 bytes cmem[0]
ptxas info    : Compile time = 8.306 ms
ptxas info    : Compiling entry function 'gemm' for 'sm_80'
ptxas info    : Function properties for gemm
    72 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 99 registers, used 0 barriers, 72 bytes cumulative stack size, 400 bytes cmem[0]
";

    #[test]
    fn the_log_is_read() {
        let norm = Usage { registers: 24, shared: 128, stack: 0, spill: 0 };
        let gemm = Usage { registers: 99, shared: 0, stack: 72, spill: 20 };
        assert_eq!(parse(LOG).unwrap(), [("norm".to_owned(), norm), ("gemm".to_owned(), gemm)]);
    }

    #[test]
    fn spills_and_local_memory_are_faults() {
        let usage = |stack, spill| Usage { stack, spill, ..Usage::default() };
        let table = BTreeMap::from([
            (("clean".to_owned(), 80), BTreeMap::from(ARCHITECTURES.map(|architecture| (architecture, usage(0, 0))))),
            (("spills".to_owned(), 80), BTreeMap::from([(80, usage(0, 0)), (86, usage(8, 8))])),
            (("array".to_owned(), 90), BTreeMap::from([(90, usage(64, 0))])),
            (("older".to_owned(), 80), BTreeMap::from([(89, usage(0, 0)), (90, usage(8, 16)), (100, usage(8, 256))])),
            (("older_still".to_owned(), 80), BTreeMap::from([(90, usage(8, 17))])),
            (
                ("younger".to_owned(), 90),
                BTreeMap::from([(90, usage(0, 0)), (100, usage(8, 256)), (120, usage(8, 257))]),
            ),
        ]);
        assert_eq!(
            faults(&table),
            [
                "array, compiled for sm_90, uses 64 bytes of local memory on sm_90",
                "older_still, compiled for sm_80, spills 17 bytes of registers on sm_90",
                "spills, compiled for sm_80, spills 8 bytes of registers on sm_86",
                "younger, compiled for sm_90, spills 257 bytes of registers on sm_120"
            ]
        );
    }
}
