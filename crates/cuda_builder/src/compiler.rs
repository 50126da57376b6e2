//! The search for a compiler that can make PTX.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest rustc that the recipe is known to work with.
const OLDEST: (u32, u32) = (1, 96);

/// Names the one compiler to use, past the search.
const OVERRIDE: &str = "NT_DEVICE_RUSTC";

/// A rustc with core's source beside it, and its cargo.
#[derive(Clone, Debug)]
pub struct DeviceCompiler {
    rustc: PathBuf,
    cargo: PathBuf,
    version: String,
}

/// Why there is no device compiler.
#[derive(Debug, thiserror::Error)]
#[error(
    "no compiler for GPU kernels found:\n{}\nIt takes rustc {}.{} or newer with its cargo and core's source:\n  \
     Debian 12: apt-get install rustc-web cargo-web rust-web-src\n  \
     elsewhere:      rustup toolchain install stable --component rust-src\n\
     or name one with {OVERRIDE}=/path/to/rustc.",
    .tried.iter().map(|(path, why)| format!("  {}: {why}", path.display())).collect::<Vec<_>>().join("\n"),
    OLDEST.0, OLDEST.1
)]
pub struct CompilerError {
    /// Every compiler that was looked at, and what it lacks.
    pub tried: Vec<(PathBuf, String)>,
}

impl DeviceCompiler {
    /// Takes the first that will do of: `NT_DEVICE_RUSTC` (then no other is tried), `/usr/bin/rustc`, the `rustc` of the
    /// running build or of PATH, and rustup's toolchains.
    ///
    /// # Errors
    /// When none will do: each one's reason, and how to get one.
    pub fn find() -> Result<Self, CompilerError> {
        let mut tried = Vec::new();
        for candidate in candidates() {
            match Self::at(&candidate) {
                Ok(compiler) => return Ok(compiler),
                Err(why) => tried.push((candidate, why)),
            }
        }
        Err(CompilerError { tried })
    }

    /// Checks one compiler; the error says what it lacks.
    fn at(rustc: &Path) -> Result<Self, String> {
        // A rustup shim is no good later, in a scrubbed environment: go by the sysroot that it answers with.
        let sysroot = PathBuf::from(ask(rustc, &["--print", "sysroot"])?);
        let (own, cargo) = (sysroot.join("bin/rustc"), sysroot.join("bin/cargo"));
        let rustc = if own.is_file() { own } else { rustc.to_path_buf() };
        let verbose = ask(&rustc, &["-vV"])?;
        let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:").ok_or("its -vV names no release")?;
        if minor(release) < Some(OLDEST) {
            return Err(format!("is {release}, older than {}.{}", OLDEST.0, OLDEST.1));
        }
        if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            return Err(format!("has no source of core (component rust-src) under {}", sysroot.display()));
        }
        let theirs = ask(&cargo, &["-vV"])?;
        if theirs.lines().find_map(|line| line.strip_prefix("release:")).and_then(|r| minor(r.trim())) != minor(release)
        {
            return Err(format!("is {release}, but {} is of another release", cargo.display()));
        }
        let version = format!(
            "rustc {release} {}, LLVM {}",
            field("commit-hash:").unwrap_or("unknown"),
            field("LLVM version:").unwrap_or("unknown")
        );
        Ok(Self { rustc, cargo, version })
    }

    /// The compiler's path.
    pub fn rustc(&self) -> &Path {
        &self.rustc
    }

    /// The path of its cargo.
    pub fn cargo(&self) -> &Path {
        &self.cargo
    }

    /// Release, commit and LLVM version: two compilers of equal version make equal PTX.
    pub fn version(&self) -> &str {
        &self.version
    }
}

fn candidates() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os(OVERRIDE) {
        return vec![named.into()];
    }
    let mut found = vec![PathBuf::from("/usr/bin/rustc")];
    found.push(std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from));
    let rustup = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".rustup")))
        .map(|home| home.join("toolchains"));
    let mut toolchains: Vec<_> = rustup
        .and_then(|folder| folder.read_dir().ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin/rustc")))
        .filter(|rustc| rustc.is_file())
        .collect();
    toolchains.sort();
    found.extend(toolchains);
    found
}

/// `1.96.0-nightly` to (1, 96).
fn minor(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn ask(program: &Path, args: &[impl AsRef<OsStr>]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    if !output.status.success() {
        return Err(format!("{} failed: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_major_and_minor() {
        assert_eq!(minor("1.96.0"), Some((1, 96)));
        assert_eq!(minor("1.100.0-nightly"), Some((1, 100)));
        assert!(minor("1.95.0") < Some(OLDEST) && minor("2.0.0") > Some(OLDEST));
        assert_eq!(minor("unknown"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = DeviceCompiler::at(Path::new("/nonexistent/rustc")).unwrap_err();
        assert!(error.contains("cannot run /nonexistent/rustc"), "{error}");
        let message = CompilerError { tried: vec![("/nonexistent/rustc".into(), error)] }.to_string();
        assert!(message.contains("rust-web-src") && message.contains("rust-src"), "{message}");
    }
}
