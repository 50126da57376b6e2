//! `cargo xtask fuzz`: builds the fuzz targets and runs each for a while.
//!
//! cargo-fuzz does the same and more (`cargo fuzz run open`), but building it takes longer than CI should wait for, and by
//! default it asks for a nightly compiler: its address sanitizer is a nightly flag. What finds the way through the code,
//! LLVM's coverage pass, is within a stable compiler's reach, by the flags that cargo-fuzz passes as well.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{root, sh};

/// The flags of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Fuzz {
    /// How long each target runs
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u32,
    /// Only these targets
    #[arg(value_enum, default_values = ["open", "blocks"])]
    targets: Vec<Target>,
}

impl Fuzz {
    /// All targets, `seconds` each.
    pub fn all(seconds: u32) -> Self {
        Fuzz { seconds, targets: Target::value_variants().to_vec() }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// A file is opened and all of it read
    Open,
    /// Blocks of every type are decoded and encoded
    Blocks,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Target::Open => "open",
            Target::Blocks => "blocks",
        }
    }

    /// The longest input: somewhat more than the seeds have.
    fn max_len(self) -> usize {
        match self {
            Target::Open => 16 << 10,
            Target::Blocks => 2 << 10,
        }
    }
}

/// Coverage of edges, counted, with the operands of comparisons: as cargo-fuzz passes them.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// Stated, so that the flags are for the targets and not for build scripts, which do not link libFuzzer.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

pub fn run(args: &Fuzz) -> Result<()> {
    let folder = root().join("fuzz");
    // The versions that are fuzzed are those that are shipped; cargo adds libFuzzer's.
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).context("Cargo.lock")?;
    let target_dir = sh::target().join("fuzz");
    let mut build = sh::cargo();
    build.args(["build", "--release", "--target", TRIPLE]).current_dir(&folder);
    build.env("CARGO_TARGET_DIR", &target_dir).env("RUSTFLAGS", COVERAGE).env_remove("CARGO_ENCODED_RUSTFLAGS");
    sh::run(&mut build).context("building needs a C++ compiler for libFuzzer (Debian, Ubuntu: apt-get install g++)")?;
    let built = target_dir.join(TRIPLE).join("release");
    for &target in &args.targets {
        fuzz(target, args.seconds, &built)?;
    }
    Ok(())
}

fn fuzz(target: Target, seconds: u32, built: &Path) -> Result<()> {
    let name = target.name();
    let folder = |kind: &str| -> Result<PathBuf> {
        let folder = root().join("fuzz").join(kind).join(name);
        fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        Ok(folder)
    };
    let (corpus, artifacts) = (folder("corpus")?, folder("artifacts")?);
    let mut run = sh::command(built.join(name));
    run.env("NT_FUZZ_SEEDS", &corpus)
        .arg(&corpus)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.max_len()))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-rss_limit_mb=1024", "-timeout=10", "-print_final_stats=1", "-verbosity=0"]);
    sh::run(&mut run).with_context(|| {
        format!("{name}: the input is in {}; {} INPUT runs it again", artifacts.display(), built.join(name).display())
    })?;
    // A fuzzer that has learnt nothing was built without coverage, and would find nothing.
    let inputs = fs::read_dir(&corpus)?.count();
    ensure!(inputs > 20, "{name}: {inputs} inputs in {}: no input led to new code", corpus.display());
    println!("{name}: {inputs} inputs in {}", corpus.display());
    Ok(())
}
