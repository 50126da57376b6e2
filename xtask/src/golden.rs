//! `cargo xtask golden`: remakes the test data that other implementations define.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{root, sh};

/// What the scripts need, pinned.
const REQUIREMENTS: &str = "tools/golden/requirements.txt";

/// The scripts, each with its arguments.
const SCRIPTS: &[&[&str]] = &[&["tools/golden/blocks.py", "crates/quant/tests/data"], &["tools/golden/make.py"]];

/// Where the scripts write.
const DATA: &[&str] = &["crates/quant/tests/data", "tests/data"];

pub fn run() -> Result<()> {
    let python = python()?;
    for script in SCRIPTS {
        eprintln!("{}", script.join(" "));
        sh::run(sh::command(&python).args(*script))?;
    }
    let git = |args: &[&str]| sh::output(sh::command("git").args(args).arg("--").args(DATA));
    let (changed, status) = (git(&["diff", "--stat"])?, git(&["status", "--short"])?);
    let new: String = status.lines().filter(|line| line.starts_with("??")).map(|line| format!("{line}\n")).collect();
    match changed.is_empty() && new.is_empty() {
        true => println!("The golden data is as it was."),
        false => print!("{changed}{new}"),
    }
    Ok(())
}

/// The python of an environment under target/ that has what the scripts need.
fn python() -> Result<PathBuf> {
    let folder = sh::target().join("golden");
    let (python, stamp) = (folder.join("bin/python"), folder.join("installed.txt"));
    let wanted = std::fs::read_to_string(root().join(REQUIREMENTS)).context(REQUIREMENTS)?;
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    eprintln!("{}: installing {REQUIREMENTS}", folder.display());
    sh::run(sh::command("python3").args([Path::new("-m"), Path::new("venv"), &folder]))
        .context("python3 with its venv module is needed (Debian, Ubuntu: apt-get install python3-venv)")?;
    sh::run(sh::command(&python).args(["-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS]))?;
    std::fs::write(&stamp, wanted)?;
    Ok(python)
}
