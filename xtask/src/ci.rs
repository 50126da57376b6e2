//! `cargo xtask ci`: everything that a change has to pass.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::{
    fuzz::{self, Fuzz},
    ptx, ptxas,
    qemu::{self, Qemu},
    root, sh,
};

/// The flags of `cargo xtask ci`.
#[derive(clap::Args)]
pub struct Ci {
    /// Only these parts, in this order
    #[arg(default_values = ["style", "user", "kernels", "bench", "fuzz", "qemu"])]
    parts: Vec<Part>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Format, clippy, documentation
    Style,
    /// What the README tells a user to do, as on a machine without a device compiler
    User,
    /// The PTX is what the sources give, and ptxas takes it for every GPU
    Kernels,
    /// The benchmarks run
    Bench,
    /// The fuzz targets are built, and find nothing in a few seconds
    Fuzz,
    /// The NVMe driver drives QEMU's devices
    Qemu,
}

/// How long each fuzz target runs: enough to see that it works, and to find again what was easily found.
const FUZZ_SECONDS: u32 = 15;

/// A story of the demo model has more words.
const STORY: usize = 50;

pub fn run(args: &Ci) -> Result<()> {
    let mut steps = Steps::default();
    for part in &args.parts {
        match part {
            Part::Style => style(&mut steps)?,
            Part::User => user(&mut steps)?,
            Part::Kernels => {
                steps.step("PTX is what the sources give", || ptx::run(&ptx::Ptx { check: true }))?;
                steps.step("PTX assembles everywhere", ptxas::run)?;
            }
            Part::Fuzz => {
                let format = ["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"];
                steps.step("format of the fuzz targets", || sh::run(&mut build(&format)))?;
                steps.step("fuzzing", || fuzz::run(&Fuzz::all(FUZZ_SECONDS)))?;
            }
            Part::Qemu => steps.step("NVMe drives of virtual machines", || qemu::run(&Qemu { verbose: false }))?,
            Part::Bench => {
                steps.step("benchmarks run", || sh::run(&mut build(&["bench", "--package", "host"])))?;
                let emulator = ["bench", "--package", "host", "--", "emulator"];
                steps.step("the GPU's benchmarks run", || sh::run(&mut build(&emulator)))?;
            }
        }
    }
    steps.print();
    Ok(())
}

/// Times of the steps that are done.
#[derive(Default)]
struct Steps(Vec<(String, f64)>);

impl Steps {
    /// Does one step, under a heading.
    fn step(&mut self, name: &str, f: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n== {name}");
        let start = Instant::now();
        f().with_context(|| format!("CI step \"{name}\" failed"))?;
        let seconds = start.elapsed().as_secs_f64();
        println!("== {name}: passed in {seconds:.0} s");
        self.0.push((name.to_owned(), seconds));
        Ok(())
    }

    fn print(&self) {
        println!("\nCI passed:");
        self.0.iter().for_each(|(name, seconds)| println!("{seconds:6.0} s  {name}"));
        println!("{:6.0} s  together", self.0.iter().map(|(_, seconds)| seconds).sum::<f64>());
    }
}

/// Cargo with no device compiler within its reach: nothing but making the PTX may need one.
fn build(args: &[&str]) -> Command {
    let mut cargo = sh::cargo();
    cargo.args(args);
    hide_device_compiler(&mut cargo);
    cargo
}

fn hide_device_compiler(command: &mut Command) {
    command.env("NT_DEVICE_RUSTC", "/nonexistent/rustc");
}

fn style(steps: &mut Steps) -> Result<()> {
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    let doc = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    steps.step("format", || sh::run(&mut build(&["fmt", "--all", "--check"])))?;
    steps.step("clippy", || sh::run(&mut build(&clippy)))?;
    steps.step("documentation", || sh::run(build(&doc).env("RUSTDOCFLAGS", "--deny warnings")))
}

fn user(steps: &mut Steps) -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md")).context("README.md")?;
    let [story, test] = two_commands(&readme)?;
    steps.step(&format!("README: {story}"), || {
        let text = tee(&mut shell(&story))?;
        let words = text.split_whitespace().count();
        ensure!(words > STORY, "a story of {words} words; more than {STORY} are expected");
        Ok(())
    })?;
    steps.step(&format!("README: {test}"), || {
        let log = tee(&mut shell(&test))?;
        let results: Vec<_> = log.lines().filter(|line| line.starts_with("test result:")).collect();
        let passed: u64 = results.iter().filter_map(|line| passed(line)).sum();
        ensure!(passed > 0, "no test was run");
        println!("{passed} tests passed in {} executables", results.len());
        Ok(())
    })?;
    steps.step("dev profile, streaming", || {
        let args = ["run", "--package", "host", "--", "--model", "assets/demo.gguf", "--streaming"];
        // A budget that most of the demo model's layers do not fit into: else nothing would be streamed.
        let streamed =
            ["--vram-budget", "8MiB", "--context", "128", "--prompt", "Once upon a time", "--n-predict", "16"];
        let text = tee(build(&args).args(streamed))?;
        ensure!(text.split_whitespace().count() >= 4, "the text is too short: {text:?}");
        Ok(())
    })
}

/// The commands of the README's first code block that starts with `cargo run`.
fn two_commands(readme: &str) -> Result<[String; 2]> {
    let mut blocks = readme.split("\n```").skip(1).step_by(2);
    let block =
        blocks.find(|block| block.contains("\ncargo run")).context("README.md: no code block has `cargo run`")?;
    let without_comment = |line: &str| line.split(" #").next().unwrap_or(line).trim_end().to_owned();
    let commands: Vec<_> = block.lines().filter(|line| line.starts_with("cargo ")).map(without_comment).collect();
    let found = commands.len();
    commands.try_into().ok().with_context(|| format!("README.md: its first block has {found} cargo commands, not two"))
}

/// `test result: ok. 12 passed; 0 failed; ...` to 12.
fn passed(line: &str) -> Option<u64> {
    line.split_once(" passed")?.0.rsplit(' ').next()?.parse().ok()
}

/// A command as a user types it.
fn shell(line: &str) -> Command {
    let mut command = sh::command("bash");
    command.args(["-c", line]).stdin(Stdio::null());
    hide_device_compiler(&mut command);
    command
}

/// Runs a command; its stdout is shown and returned.
fn tee(command: &mut Command) -> Result<String> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("{command:?}: cannot be run"))?;
    let mut seen = Vec::new();
    let mut out = BufReader::new(child.stdout.take().expect("stdout is piped"));
    loop {
        let start = seen.len();
        if out.read_until(b'\n', &mut seen)? == 0 {
            break;
        }
        std::io::stdout().write_all(&seen[start..])?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    String::from_utf8(seen).with_context(|| format!("{command:?}: its output is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_two_commands() {
        let readme = "# x\n```sh\napt-get install gcc\n```\ntext\n```sh\ncargo run a  # why\n# comment\ncargo test b\n```\n```\ncargo c\n```\n";
        assert_eq!(two_commands(readme).unwrap(), ["cargo run a", "cargo test b"]);
        assert!(two_commands("```\nls\n```\n").is_err());
        assert!(two_commands("x\n```\ncargo run\n```\n").is_err());
        let ours = fs::read_to_string(root().join("README.md")).unwrap();
        assert_eq!(two_commands(&ours).unwrap(), ["cargo run --release -p host", "cargo test --release"]);
    }

    #[test]
    fn the_results_of_cargo_test_are_read() {
        assert_eq!(passed("test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"), Some(12));
        assert_eq!(passed("test result: none"), None);
    }
}
