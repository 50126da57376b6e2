//! One run of the device compiler.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::compiler::{CompilerError, DeviceCompiler};

/// rustc's name for CUDA devices.
const TARGET: &str = "nvptx64-nvidia-cuda";

/// The oldest GPU that the PTX runs on; the driver compiles it for any younger one. Kernels see which by
/// `cfg(cuda_sm = "90")`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvvmArch {
    /// Ampere: A100 and younger, drivers from CUDA 11.4 on.
    Compute80,
    /// Hopper: H100 and younger, drivers from CUDA 12.0 on.
    Compute90,
}

impl NvvmArch {
    /// All architectures, oldest first: each module of a [`crate::KernelSet`] is compiled for every one of them.
    pub const ALL: [Self; 2] = [Self::Compute80, Self::Compute90];

    /// The number in the architecture's name, ten times its compute capability.
    pub fn sm(self) -> u32 {
        match self {
            Self::Compute80 => 80,
            Self::Compute90 => 90,
        }
    }

    /// The version of the PTX language, ten times too: the oldest that has the instructions of the architecture that the
    /// kernels use. It decides which drivers can read the PTX (PTX ISA, "Release Notes").
    fn ptx_version(self) -> u32 {
        match self {
            Self::Compute80 => 74,
            // Bulk copies and their barriers came with 8.0.
            Self::Compute90 => 80,
        }
    }

    /// Flags that core must be compiled with too: compilers refuse a mix of them.
    fn rustflags(self) -> [String; 5] {
        let cpu = format!("-Ctarget-cpu={self}");
        let features = format!("-Ctarget-feature=+ptx{}", self.ptx_version());
        let cfg = format!("--cfg=cuda_sm=\"{}\"", self.sm());
        // Right after each crate is compiled, while LLVM still has what cuda_std promises about shared addresses (it drops
        // such assumptions before its backend would look): accesses become ld.shared instead of generic ones.
        let spaces = "-Cpasses=infer-address-spaces";
        // This pass copies a barrier between two equal tests into both arms of the first, where the threads of a warp
        // wait for each other for ever. It works on MIR, which does not know what convergent means; LLVM's own does.
        [cpu, features, cfg, spaces.to_owned(), "-Zmir-enable-passes=-JumpThreading".to_owned()]
    }
}

/// `sm_80`.
impl std::fmt::Display for NvvmArch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sm_{}", self.sm())
    }
}

/// The release profile of the compilation. cargo ignores a member's own, so it comes by the environment.
///
/// One codegen unit and fat LTO make the assembly complete: core's functions are in it. Panics become a `trap` on the spot:
/// there is nobody to tell, and formatting messages costs registers and stack.
const PROFILE: [(&str, &str); 6] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "false"),
    ("CARGO_PROFILE_RELEASE_PANIC", "immediate-abort"),
];

/// What a run of the device compiler can fail with.
#[derive(Debug, thiserror::Error)]
pub enum CudaBuilderError {
    /// There is no device compiler.
    #[error(transparent)]
    Compiler(#[from] CompilerError),
    /// A file or folder could not be used.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong with it.
        source: std::io::Error,
    },
    /// The compiler said no.
    #[error("compiling {} (features: {features}) failed:\n{log}", .kernels.display())]
    Compile {
        /// The kernel crate.
        kernels: PathBuf,
        /// The features that were asked for.
        features: String,
        /// What the compiler wrote.
        log: String,
    },
    /// The PTX calls functions that are not in it, which the driver refuses.
    #[error("the PTX of {} (features: {features}) lacks functions that it calls:\n{}", .kernels.display(), .externs.join("\n"))]
    Incomplete {
        /// The kernel crate.
        kernels: PathBuf,
        /// The features that were asked for.
        features: String,
        /// The declarations.
        externs: Vec<String>,
    },
}

/// Compiles a kernel crate to one PTX file.
///
/// ```no_run
/// use cuda_builder::{CudaBuilder, NvvmArch};
/// CudaBuilder::new("../gpu").arch(NvvmArch::Compute80).features(["ops"]).copy_to("ops.ptx").build()?;
/// # Ok::<(), cuda_builder::CudaBuilderError>(())
/// ```
#[derive(Clone, Debug)]
pub struct CudaBuilder {
    kernels: PathBuf,
    arch: NvvmArch,
    features: Option<Vec<String>>,
    copy_to: Option<PathBuf>,
    target_dir: Option<PathBuf>,
    compiler: Option<DeviceCompiler>,
}

impl CudaBuilder {
    /// `path_to_kernel_crate` is the folder of the kernel crate's Cargo.toml.
    pub fn new(path_to_kernel_crate: impl Into<PathBuf>) -> Self {
        Self {
            kernels: path_to_kernel_crate.into(),
            arch: NvvmArch::Compute80,
            features: None,
            copy_to: None,
            target_dir: None,
            compiler: None,
        }
    }

    /// The oldest GPU to run on; [`NvvmArch::Compute80`] unless told.
    pub fn arch(mut self, arch: NvvmArch) -> Self {
        self.arch = arch;
        self
    }

    /// Compiles with these features of the kernel crate alone, without its default ones.
    pub fn features(mut self, features: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.features = Some(features.into_iter().map(Into::into).collect());
        self
    }

    /// Also writes the PTX here.
    pub fn copy_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.copy_to = Some(path.into());
        self
    }

    /// The folder for intermediate files. Unless told, `cuda-builder` in a build script's OUT_DIR, else `target/cuda-builder`
    /// in the kernel crate. Core is compiled once per folder.
    pub fn target_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.target_dir = Some(path.into());
        self
    }

    /// The compiler to use; [`DeviceCompiler::find`]'s unless told.
    pub fn compiler(mut self, compiler: DeviceCompiler) -> Self {
        self.compiler = Some(compiler);
        self
    }

    /// All that decides the output apart from sources and compiler, for [`crate::Manifest`].
    pub(crate) fn recipe(&self) -> String {
        let profile: Vec<_> = PROFILE.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{TARGET} {} {}", self.arch.rustflags().join(" "), profile.join(" "))
    }

    /// Compiles. Returns the path of the PTX.
    ///
    /// # Errors
    /// No device compiler; a compile error, with the compiler's words; PTX that calls what it does not contain.
    pub fn build(&self) -> Result<PathBuf, CudaBuilderError> {
        let compiler = match &self.compiler {
            Some(compiler) => compiler.clone(),
            None => DeviceCompiler::find()?,
        };
        let kernels = absolute(&self.kernels)?;
        let target_dir = match (&self.target_dir, std::env::var_os("OUT_DIR")) {
            (Some(folder), _) => absolute(folder)?,
            (None, Some(out_dir)) => PathBuf::from(out_dir).join("cuda-builder"),
            (None, None) => kernels.join("target/cuda-builder"),
        };
        let features = self.features.as_ref().map_or_else(|| "default".to_owned(), |features| features.join(","));
        // The compiler writes the PTX here itself. A cdylib's own name would be the same for all features, and cargo, which
        // believes a finished build to be fresh, would leave another module's PTX under it.
        let ptx = target_dir.join("ptx").join(format!("{}.ptx", features.replace([',', '/'], "-")));
        let linker = write_linker(&target_dir)?;
        create_dir(&target_dir.join("ptx"))?;

        let mut command = Command::new(compiler.cargo());
        scrub(&mut command);
        command
            .current_dir(&kernels)
            .env("RUSTC", compiler.rustc())
            // Unstable features, for the kernel crate alone.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_NVPTX64_NVIDIA_CUDA_RUSTFLAGS", self.arch.rustflags().join(" "))
            .envs(PROFILE)
            .args(["rustc", "--lib", "--release", "--locked", "--color=never", "--target", TARGET])
            .args(["-Zbuild-std=core", "-Zpanic-immediate-abort", "--crate-type=cdylib", "--target-dir"])
            .arg(&target_dir);
        if self.features.is_some() {
            command.args(["--no-default-features", "--features", &features]);
        }
        command.arg("--").arg(flag("--emit=asm=", &ptx)).arg(flag("-Clinker=", &linker));
        let output = command.output().map_err(|source| io(compiler.cargo(), source))?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(CudaBuilderError::Compile { kernels, features, log });
        }

        let text = std::fs::read_to_string(&ptx).map_err(|source| io(&ptx, source))?;
        let text = with_launch_bounds(&text);
        std::fs::write(&ptx, &text).map_err(|source| io(&ptx, source))?;
        let externs: Vec<String> =
            text.lines().filter(|line| line.trim_start().starts_with(".extern .func")).map(str::to_owned).collect();
        if !externs.is_empty() {
            return Err(CudaBuilderError::Incomplete { kernels, features, externs });
        }
        match &self.copy_to {
            Some(copy) => {
                std::fs::write(copy, text).map_err(|source| io(copy, source))?;
                absolute(copy)
            }
            None => Ok(ptx),
        }
    }
}

/// The comments that `cuda_std::thread::launch_bounds` and `max_registers` leave in a kernel's body, with the threads of a block and a
/// number; and the directive that takes the number.
const BOUNDS: [(&str, &str); 2] = [("// launch_bounds ", ".minnctapersm"), ("// max_registers ", ".maxnreg")];

/// Makes those comments into directives of the entry: rustc has no way to state them.
fn with_launch_bounds(ptx: &str) -> String {
    let mut out = String::with_capacity(ptx.len());
    // Where the body of the present entry begins.
    let mut body = None;
    for line in ptx.lines() {
        let text = line.trim();
        if line.starts_with(".visible .entry") {
            body = None;
        }
        if line == "{" {
            body = Some(out.len());
        }
        let bounds = BOUNDS.iter().find_map(|&(comment, directive)| Some((text.strip_prefix(comment)?, directive)));
        if let Some((numbers, directive)) = bounds {
            let mut numbers = numbers.split_whitespace();
            if let (Some(at), Some(threads), Some(number)) = (body.take(), numbers.next(), numbers.next()) {
                out.insert_str(at, &format!(".maxntid {threads}, 1, 1\n{directive} {number}\n"));
            }
            continue;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// The assembly is complete before anything is linked, so the linker has nothing to do, but cargo wants its output.
fn write_linker(target_dir: &Path) -> Result<PathBuf, CudaBuilderError> {
    const SCRIPT: &str = "#!/bin/sh\nwhile [ $# -gt 1 ]; do\n  [ \"$1\" = -o ] && : > \"$2\"\n  shift\ndone\nexit 0\n";
    create_dir(target_dir)?;
    let path = target_dir.join("linker.sh");
    if std::fs::read(&path).is_ok_and(|content| content == SCRIPT.as_bytes()) {
        return Ok(path);
    }
    std::fs::write(&path, SCRIPT).map_err(|source| io(&path, source))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(|source| io(&path, source))?;
    }
    Ok(path)
}

/// Takes out of the environment what the cargo that runs us has put there for its own compiler, and what users set for
/// theirs: only where things are and how to reach a registry stays.
fn scrub(command: &mut Command) {
    const KEEP: [&str; 5] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text.starts_with("CARGO") && !KEEP.iter().any(|keep| text.starts_with(keep))
            || text.starts_with("RUSTC")
            || ["RUSTFLAGS", "RUSTUP_TOOLCHAIN", "MAKEFLAGS", "MFLAGS"].contains(&&*text);
        if ours {
            command.env_remove(&name);
        }
    }
    // Empty means none, also where a configuration file names one.
    command.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
}

fn flag(name: &str, path: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(path);
    flag
}

fn absolute(path: &Path) -> Result<PathBuf, CudaBuilderError> {
    std::path::absolute(path).map_err(|source| io(path, source))
}

fn create_dir(path: &Path) -> Result<(), CudaBuilderError> {
    std::fs::create_dir_all(path).map_err(|source| io(path, source))
}

fn io(path: &Path, source: std::io::Error) -> CudaBuilderError {
    CudaBuilderError::Io { path: path.to_path_buf(), source }
}
