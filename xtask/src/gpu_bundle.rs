//! `cargo xtask gpu-bundle`: what a GPU machine without Rust needs to run scripts/gpu-check.sh.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{root, sh};

/// The flags of `cargo xtask gpu-bundle`.
#[derive(clap::Args)]
pub struct GpuBundle {
    /// The folder for bundle.tar.xz
    #[arg(default_value = "bundle")]
    dir: PathBuf,
}

/// What the archive may weigh, in bytes: it travels to the GPU machine with every change.
const LIMIT: u64 = 20_000_000;

/// The repository's files and folders that the executables and the script read.
const DATA: &[&str] =
    &["tests/data", "assets", "scripts/gpu-check.sh", "scripts/gpu_report.py", "scripts/stream_check.py", "README.md"];

pub fn run(args: &GpuBundle) -> Result<()> {
    let staging = sh::target().join("gpu-bundle");
    if staging.exists() {
        fs::remove_dir_all(&staging)?;
    }
    fs::create_dir_all(staging.join("bin"))?;
    for (name, executable) in executables()? {
        let to = staging.join("bin").join(&name);
        sh::run(sh::command("strip").arg("-o").args([&to, &executable]))?;
        println!("bin/{name}: {:.1} MB", megabytes(&to)?);
    }
    let listed = ["ls-files", "--cached", "--others", "--exclude-standard", "--"];
    let files = sh::output(sh::command("git").args(listed).args(DATA))?;
    // The repository's paths, so that everything is found below the bundle as below the repository.
    sh::run(sh::command("cp").arg("--parents").args(files.lines()).arg(&staging))?;

    let archive = root().join(&args.dir).join("bundle.tar.xz");
    fs::create_dir_all(archive.parent().expect("a file in a folder"))?;
    // Each executable holds the demo model. With a dictionary of 64 MB (-9), xz stores it once.
    sh::run(
        sh::command("tar")
            .env("XZ_OPT", "-9")
            .args([Path::new("--create"), Path::new("--xz"), Path::new("--file"), &archive])
            .args([Path::new("--directory"), &staging, Path::new(".")]),
    )?;
    let size = fs::metadata(&archive)?.len();
    if size > LIMIT {
        fs::remove_file(&archive)?;
        bail!("the bundle would weigh {size} bytes, and {LIMIT} is the limit (LIMIT in xtask/src/gpu_bundle.rs)");
    }
    println!("{}: {:.1} MB", archive.display(), megabytes(&archive)?);
    Ok(())
}

fn megabytes(path: &Path) -> Result<f64> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.len() as f64 / 1e6)
}

/// Builds the engine, its tests and its benchmarks. Returns each one's name and path.
fn executables() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for build in [
        &["build", "--release", "--bins"][..],
        &["test", "--release", "--no-run", "--test", "*"],
        &["bench", "--no-run"],
    ] {
        let messages = sh::output(sh::cargo().args(build).args([
            "--package",
            "host",
            "--message-format",
            "json-render-diagnostics",
        ]))?;
        for line in messages.lines() {
            let message: Value = serde_json::from_str(line).context("a message of cargo's")?;
            let Some(path) = message["executable"].as_str() else { continue };
            let (Some(kind), Some(name)) = (message["target"]["kind"][0].as_str(), message["target"]["name"].as_str())
            else {
                bail!("cargo names no target of {path}")
            };
            match kind {
                "bin" if build[0] == "build" => found.push((name.to_owned(), path.into())),
                "test" => found.push((name.to_owned(), path.into())),
                "bench" => found.push((format!("bench-{name}"), path.into())),
                _ => (),
            }
        }
    }
    Ok(found)
}
